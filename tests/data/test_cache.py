import json
import logging
import multiprocessing
import os
import signal
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mspose.data import cache as cache_module
from mspose.data.cache import open_cache, open_split
from mspose.data.cards import data_root, load_frames, read_card
from mspose.data.images import read_image, resize_short_side
from mspose.errors import MsposeError
from mspose.files import locked


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
    with pytest.raises(MsposeError, match=name):  # the cache remembers it
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


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_build_continues(small_data, tmp_path, monkeypatch, damaged):
    frames, root = frames_of(small_data)
    monkeypatch.setattr(cache_module, "CHUNK", 4)

    def read_then_stop(path: Path):
        if path == root / frames["image"][15]:
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(cache_module, "read_image", read_then_stop)
    with pytest.raises(KeyboardInterrupt):
        open_small(frames, root, tmp_path)
    if damaged:
        with next(tmp_path.glob("*/frames.u8")).open("r+b") as file:
            file.truncate(1000)
    read = count_reads(monkeypatch)
    _, cache = open_small(frames, root, tmp_path)
    assert len(read) == len(frames) - (0 if damaged else 12)  # three chunks were written
    for row in range(len(frames)):
        np.testing.assert_array_equal(
            cache[row], resize_short_side(read_image(root / frames["image"][row]), 32)
        )


@pytest.mark.parametrize("file", ["frames.u8", "index.npy", "about.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped", "zeros"])
def test_a_damaged_cache_is_rebuilt(small_data, tmp_path, file, damage, caplog):
    caplog.set_level(logging.INFO, "mspose")
    frames, root = frames_of(small_data)
    _, cache = open_small(frames, root, tmp_path)
    expected = np.array(cache[5])
    path = next(tmp_path.glob(f"*/{file}"))
    whole = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(whole[:40])
    elif damage == "zeros":  # NumPy's parser of a header raises other errors on these
        path.write_bytes(whole[:11] + bytes(64) + whole[75:])
    elif damage == "flipped":
        middle = whole.index(b'"stamp": ') + 12 if file == "about.json" else len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    _, cache = open_small(frames, root, tmp_path)
    np.testing.assert_array_equal(cache[5], expected)
    assert path.read_bytes() == whole
    assert caplog.text.count("is built anew") == (damage == "flipped" or file != "about.json")


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


def _hang(card_path: Path, folder: Path, queue) -> None:
    def say_and_hang(path: Path):
        queue.put("hangs")
        time.sleep(600)

    cache_module.read_image = say_and_hang
    frames, root = frames_of(card_path)
    open_small(frames, root, folder)


def test_a_process_that_waits_takes_over_from_a_killed_one(small_data, tmp_path):
    context = multiprocessing.get_context("fork")
    hanging, done = context.Queue(), context.Queue()
    builder = context.Process(target=_hang, args=(small_data, tmp_path, hanging))
    builder.start()
    assert hanging.get(timeout=60) == "hangs"
    waiter = context.Process(target=_open_and_count, args=(small_data, tmp_path, done))
    waiter.start()
    waiter.join(0.5)
    assert waiter.is_alive()
    assert done.empty()
    os.kill(builder.pid, signal.SIGKILL)
    reads, _ = done.get(timeout=60)
    waiter.join()
    frames, _ = frames_of(small_data)
    assert reads == len(frames)


def test_waiting_for_another_process_is_logged(small_data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mspose")
    frames, root = frames_of(small_data)
    open_small(frames, root, tmp_path)
    other = threading.Thread(target=open_small, args=(frames, root, tmp_path))
    with locked(next(tmp_path.iterdir()) / "lock"):
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
    with pytest.raises(MsposeError, match=r"cannot write the frame cache .*--data\.cache"):
        open_small(frames, root, tmp_path / "file" / "cache")


def open_train(card_path: Path, folder: Path, **options):
    return open_split(
        read_card(card_path),
        "train",
        root=None,
        scenes=(),
        ground_truth=None,
        labels=(),
        short_side=32,
        folder=str(folder),
        progress=False,
        **options,
    )


def test_open_split_counts_the_frames_left_out(own_data, tmp_path):
    frames, root = frames_of(own_data)
    (root / frames["image"][1]).unlink()
    kept, _, bad = open_train(own_data, tmp_path, on_bad_frame="skip")
    assert (len(kept), bad) == (len(frames) - 1, 1)


def test_open_split_warns_where_the_card_states_another_number_of_frames(
    own_data, tmp_path, caplog
):
    card = own_data.read_text()
    stated = {"attic": {"frames": {"train": 12, "test": 99}}, "cellar": {"frames": {"train": 13}}}
    own_data.write_text(card + yaml.safe_dump({"scenes": stated}))
    open_train(own_data, tmp_path)
    (warning,) = caplog.messages
    assert warning.endswith("card states: cellar train: 12 frames here, 13 as the card says")


def test_open_split_takes_some_frames_of_every_scene_evenly_spread(small_data, tmp_path):
    every, _, _ = open_train(small_data, tmp_path)
    some, cache, bad = open_train(small_data, tmp_path, frames_per_scene=3)
    assert bad == 0
    assert len(cache) == len(some) == 6
    for scene, rows in every.groupby("scene").indices.items():
        chosen = every["image"].iloc[rows[[0, round((len(rows) - 1) / 2), len(rows) - 1]]]
        assert some.loc[some["scene"] == scene, "image"].tolist() == chosen.tolist()
    plenty, _, _ = open_train(small_data, tmp_path, frames_per_scene=99)
    assert plenty["image"].tolist() == every["image"].tolist()


@pytest.mark.parametrize("how", ["read", "crop", "hold"])
def test_a_frame_that_is_damaged_later_is_noticed_when_it_is_first_read(
    small_data, tmp_path, monkeypatch, how
):
    monkeypatch.setattr(cache_module, "CHECKED", 2)  # the first and the last
    frames, root = frames_of(small_data)
    _, cache = open_small(frames, root, tmp_path)
    expected = np.array(cache[5])
    path = next(tmp_path.glob("*/frames.u8"))
    with path.open("r+b") as file:
        file.seek(5 * expected.size + 7)
        file.write(b"\xaa\x55")
    _, cache = open_small(frames, root, tmp_path)
    assert cache[4].shape == expected.shape
    with pytest.raises(MsposeError, match="frame 5 of the frame cache .* is damaged: the same com"):
        if how == "read":
            cache[5]
        elif how == "crop":
            cache.crops(np.array([4, 5]), np.array([0, 0]), np.array([0, 0]), 8)
        else:
            cache.hold_on(torch.device("cpu"))
    _, cache = open_small(frames, root, tmp_path)
    np.testing.assert_array_equal(cache[5], expected)


@pytest.mark.parametrize(
    "index",
    [np.zeros(0), np.zeros((0, 5), np.int64), np.zeros((24, 3), np.int64), np.zeros((24, 5))],
)
def test_an_index_of_another_shape_is_built_anew(small_data, tmp_path, index):
    frames, root = frames_of(small_data)
    _, cache = open_small(frames, root, tmp_path)
    expected = np.array(cache[5])
    folder = next(tmp_path.iterdir())
    np.save(folder / "index.npy", index)
    about = json.loads((folder / "about.json").read_text())
    about["index_checksum"] = zlib.crc32(index.tobytes())
    (folder / "about.json").write_text(json.dumps(about))
    _, cache = open_small(frames, root, tmp_path)
    np.testing.assert_array_equal(cache[5], expected)
