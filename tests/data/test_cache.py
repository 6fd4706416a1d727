import logging
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mspose.data import cache as cache_module
from mspose.data.cache import open_cache, open_split
from mspose.data.cards import data_root, load_frames, read_card
from mspose.data.images import read_image, resize_short_side
from mspose.errors import MsposeError


def frames_of(card_path: Path):
    card = read_card(card_path)
    return load_frames(card, split="train"), data_root(card)


def count_reads(monkeypatch) -> list[Path]:
    read: list[Path] = []
    monkeypatch.setattr(
        cache_module, "read_image", lambda path: read.append(path) or read_image(path)
    )
    return read


def open_small(frames, root, folder, **options):
    return open_cache(frames, root, short_side=32, folder=folder, progress=False, **options)


def test_it_holds_what_decoding_and_resizing_give_and_reads_once(small_data, tmp_path, monkeypatch):
    frames, root = frames_of(small_data)
    read = count_reads(monkeypatch)
    kept, cache = open_small(frames, root, tmp_path)
    for row in range(len(frames)):
        expected = resize_short_side(read_image(root / frames["image"][row]), 32)
        np.testing.assert_array_equal(cache[kept["cache_row"][row]], expected)
    assert cache.shape(0) == (32, 42)
    before = len(read)
    again, _ = open_small(frames, root, tmp_path)
    assert len(read) == before
    assert again.equals(kept)


def test_other_frames_or_sizes_have_another_cache(small_data, tmp_path):
    frames, root = frames_of(small_data)
    open_small(frames, root, tmp_path)
    open_small(frames.iloc[3:].reset_index(drop=True), root, tmp_path)
    open_cache(frames, root, short_side=24, folder=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 3


def test_frames_may_differ_in_size(own_data, tmp_path):
    frames, root = frames_of(own_data)
    Image.new("RGB", (90, 45)).save(root / frames["image"][2])
    kept, cache = open_small(frames, root, tmp_path)
    assert [cache.shape(row) for row in (1, 2, 3)] == [(32, 42), (32, 64), (32, 42)]
    np.testing.assert_array_equal(
        cache[3], resize_short_side(read_image(root / frames["image"][3]), 32)
    )


def test_a_changed_image_is_noticed(own_data, tmp_path):
    frames, root = frames_of(own_data)
    tmp_path = tmp_path / "cache"
    open_small(frames, root, tmp_path)
    path = root / frames["image"][4]
    Image.fromarray(np.full((60, 80, 3), 9, np.uint8)).save(path)
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
    _, cache = open_small(frames, root, tmp_path)
    assert (cache[4] == 9).all()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "missing", "text"])
def test_a_bad_image_stops_or_is_left_out(own_data, tmp_path, damage, caplog):
    frames, root = frames_of(own_data)
    path = root / frames["image"][4]
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"not an image")
    name = path.name
    with pytest.raises(MsposeError, match=rf"{name}.*--on-bad-frame skip"):
        open_small(frames, root, tmp_path)
    kept, cache = open_small(frames, root, tmp_path, on_bad_frame="skip")
    assert len(kept) == len(frames) - 1
    assert frames["image"][4] not in set(kept["image"])
    assert f"1 of {len(frames)} frames left out" in caplog.text
    last = len(frames) - 1
    np.testing.assert_array_equal(
        cache[kept["cache_row"].iloc[-1]],
        resize_short_side(read_image(root / frames["image"][last]), 32),
    )
    with pytest.raises(
        MsposeError, match=name
    ):  # what was skipped once is no secret to the next who asks
        open_small(frames, root, tmp_path)
    path.write_bytes(whole)  # mended
    kept, cache = open_small(frames, root, tmp_path)
    assert len(kept) == len(frames)


def test_no_readable_image_at_all(own_data, tmp_path):
    frames, root = frames_of(own_data)
    for image in frames["image"]:
        (root / image).write_bytes(b"")
    with pytest.raises(MsposeError, match=f"none of the {len(frames)} frames"):
        open_small(frames, root, tmp_path, on_bad_frame="skip")


def test_an_interrupted_build_goes_on_where_it_stopped(small_data, tmp_path, monkeypatch):
    frames, root = frames_of(small_data)

    def read_then_stop(path: Path):
        if path == root / frames["image"][15]:
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(cache_module, "read_image", read_then_stop)
    with pytest.raises(KeyboardInterrupt):
        open_small(frames, root, tmp_path)
    read = count_reads(monkeypatch)
    kept, cache = open_small(frames, root, tmp_path)
    assert root / frames["image"][0] not in read
    assert root / frames["image"][15] in read
    for row in range(len(frames)):
        np.testing.assert_array_equal(
            cache[row], resize_short_side(read_image(root / frames["image"][row]), 32)
        )


def test_what_a_machine_lost_when_it_went_down_is_decoded_again(small_data, tmp_path, monkeypatch):
    frames, root = frames_of(small_data)

    def read_then_stop(path: Path):
        if path == root / frames["image"][15]:
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(cache_module, "read_image", read_then_stop)
    with pytest.raises(KeyboardInterrupt):
        open_small(frames, root, tmp_path)
    data, journal = (next(tmp_path.glob(f"*/{name}.part")) for name in ("frames", "facts"))
    size = 32 * 42 * 3
    assert data.stat().st_size >= 15 * size
    with data.open(
        "r+b"
    ) as file:  # a block of frame 6 was never written, and the last line only half
        file.seek(6 * size + 100)
        file.write(bytes(512))
    with journal.open("ab") as file:
        file.write(b"half a")
    read = count_reads(monkeypatch)
    kept, cache = open_small(frames, root, tmp_path)
    assert sorted(read) == sorted(root / image for image in frames["image"][6:])
    assert len(kept) == len(frames)
    for row in range(len(frames)):
        np.testing.assert_array_equal(
            cache[row], resize_short_side(read_image(root / frames["image"][row]), 32)
        )


@pytest.mark.parametrize("file", ["frames.u8", "index.npy", "about.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_cache_is_rebuilt(small_data, tmp_path, caplog, file, damage):
    caplog.set_level(logging.INFO, "mspose")
    frames, root = frames_of(small_data)
    _, cache = open_small(frames, root, tmp_path)
    expected = np.array(cache[5])
    path = next(tmp_path.glob(f"*/{file}"))
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[:40])
    else:
        place = whole.index(b'"stamp": ') + 12 if file == "about.json" else len(whole) // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    _, cache = open_small(frames, root, tmp_path)
    np.testing.assert_array_equal(cache[5], expected)
    assert path.read_bytes() == whole
    if damage == "flipped":
        assert "is built anew" in caplog.text


def _open_and_count(card_path: Path, folder: Path, queue) -> None:
    reads = []
    cache_module.read_image = lambda path: reads.append(path) or read_image(path)
    frames, root = frames_of(card_path)
    _, cache = open_small(frames, root, folder)
    queue.put((len(reads), int(np.asarray(cache[3]).sum())))


def test_two_processes_build_it_once(small_data, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    both = [
        context.Process(target=_open_and_count, args=(small_data, tmp_path, queue))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    results = [queue.get(timeout=60) for _ in both]
    for process in both:
        process.join()
    frames, _ = frames_of(small_data)
    assert sorted(reads for reads, _ in results) == [0, len(frames)]
    assert len({total for _, total in results}) == 1


def _hang_at(card_path: Path, folder: Path, row: int, queue) -> None:
    frames, root = frames_of(card_path)

    def read_then_hang(path: Path):
        if path == root / frames["image"][row]:
            queue.put("hangs")
            time.sleep(600)
        return read_image(path)

    cache_module.read_image = read_then_hang
    open_small(frames, root, folder)


def test_a_process_that_waits_goes_on_where_a_killed_one_stopped(small_data, tmp_path):
    context = multiprocessing.get_context("fork")
    hanging, done = context.Queue(), context.Queue()
    builder = context.Process(target=_hang_at, args=(small_data, tmp_path, 15, hanging))
    builder.start()
    assert hanging.get(timeout=60) == "hangs"
    journal = next(tmp_path.glob("*/facts.part"))
    deadline = time.monotonic() + 60
    while (
        journal.stat().st_size < 15 * 32 and time.monotonic() < deadline
    ):  # the frames before it are on their way
        time.sleep(0.01)
    waiter = context.Process(target=_open_and_count, args=(small_data, tmp_path, done))
    waiter.start()
    waiter.join(0.5)
    assert waiter.is_alive()
    assert done.empty()
    os.kill(builder.pid, signal.SIGKILL)
    reads, total = done.get(timeout=60)
    waiter.join()
    frames, root = frames_of(small_data)
    assert reads == len(frames) - 15
    assert total == int(resize_short_side(read_image(root / frames["image"][3]), 32).sum())


def test_who_waits_says_so(small_data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mspose")
    frames, root = frames_of(small_data)
    open_small(frames, root, tmp_path)
    other = threading.Thread(target=open_small, args=(frames, root, tmp_path))
    with cache_module._alone(next(tmp_path.iterdir())):
        other.start()
        deadline = time.monotonic() + 60
        while "waiting for another process" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    other.join()
    assert "waiting for another process" in caplog.text


def test_frames_that_do_not_fit_into_the_memory_are_one_line(small_data, tmp_path):
    frames, root = frames_of(small_data)
    _, cache = open_small(frames, root, tmp_path)
    cache._bytes = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2**50,), (0,))
    with pytest.raises(
        MsposeError, match=r"\(1125899.9 GB\) do not fit .* cpu: leave out --data.cache_on_device"
    ):
        cache.hold_on(torch.device("cpu"))


def test_a_folder_that_cannot_be_written_is_one_line(small_data, tmp_path):
    frames, root = frames_of(small_data)
    (tmp_path / "file").write_text("")
    with pytest.raises(MsposeError, match=r"cannot make the frame cache .*--data\.cache"):
        open_small(frames, root, tmp_path / "file" / "cache")


def test_open_split_counts_what_it_left_out(own_data, tmp_path):
    card = read_card(own_data)
    frames = load_frames(card, split="test")
    (data_root(card) / frames["image"][1]).unlink()
    options = {
        "root": None,
        "scenes": [],
        "ground_truth": None,
        "labels": [],
        "short_side": 32,
        "progress": False,
    }
    kept, _, bad = open_split(card, "test", folder=str(tmp_path), on_bad_frame="skip", **options)
    assert (len(kept), bad) == (len(frames) - 1, 1)


def test_open_split_takes_some_frames_of_every_scene_evenly_spread(small_data, tmp_path):
    options = {
        "root": None,
        "scenes": (),
        "ground_truth": None,
        "labels": (),
        "short_side": 32,
        "progress": False,
    }
    every, _, _ = open_split(read_card(small_data), "train", folder=str(tmp_path), **options)
    some, cache, bad = open_split(
        read_card(small_data), "train", folder=str(tmp_path), frames_per_scene=3, **options
    )
    assert bad == 0
    assert len(cache) == len(some) == 6
    for scene, rows in every.groupby("scene").indices.items():
        chosen = every["image"].iloc[rows[[0, round((len(rows) - 1) / 2), len(rows) - 1]]]
        assert some.loc[some["scene"] == scene, "image"].tolist() == chosen.tolist()
    plenty, _, _ = open_split(
        read_card(small_data), "train", folder=str(tmp_path), frames_per_scene=99, **options
    )
    assert plenty["image"].tolist() == every["image"].tolist()
