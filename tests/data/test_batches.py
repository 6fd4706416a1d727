import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mspose.data import cache as cache_module
from mspose.data.augmentation import Jitter
from mspose.data.batches import Batches, epoch_order, holdout_rows
from mspose.data.cache import open_cache
from mspose.data.cards import data_root, load_frames, read_card
from mspose.data.frames import evenly
from mspose.errors import MsposeError
from mspose.poses import quaternion_to_rotation

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make(
    card_path: Path,
    folder: Path,
    *,
    scenes=("attic", "cellar"),
    crop=40,
    batch_size=5,
    rows=None,
    device="cpu",
    hold=False,
) -> Batches:
    card = read_card(card_path)
    frames, cache = open_cache(
        load_frames(card, split="train"),
        data_root(card),
        short_side=48,
        folder=folder,
        progress=False,
    )
    frames = frames if rows is None else frames.iloc[rows].reset_index(drop=True)
    if hold:
        cache.hold_on(torch.device(device))
    return Batches(
        frames,
        cache,
        scenes=scenes,
        crop=crop,
        mean=MEAN,
        std=STD,
        batch_size=batch_size,
        device=device,
    )


def epoch(batches: Batches, seed=0, number=0, equalize=False, jitter=None):
    return list(batches.epoch(seed, number, equalize_scenes=equalize, jitter=jitter))


def test_in_order_gives_every_frame_with_its_labels(small_data, tmp_path):
    batches = make(small_data, tmp_path)
    parts = list(batches.in_order())
    assert [len(part.row) for part in parts] == [5, 5, 5, 5, 4]
    assert np.concatenate([part.row for part in parts]).tolist() == list(range(24))
    frames = batches.frames
    for part in parts:
        expected = frames.iloc[part.row]
        np.testing.assert_allclose(part.position_B3, expected[["tx", "ty", "tz"]], rtol=1e-6)
        np.testing.assert_allclose(
            part.orientation_B4, expected[["qw", "qx", "qy", "qz"]], rtol=1e-6
        )
        assert [("attic", "cellar")[index] for index in part.scene_B] == expected["scene"].tolist()
    image_HW3 = batches.cache[7][4:44, 12:52]
    expected = (image_HW3.astype(np.float32) / 255 - MEAN) / STD
    np.testing.assert_allclose(parts[1].image_B3HW[2].permute(1, 2, 0), expected, atol=1e-5)


def test_a_scenes_index_is_its_place_in_the_models_list(small_data, tmp_path):
    swapped = make(small_data, tmp_path, scenes=("cellar", "hall", "attic"))
    assert set(next(swapped.in_order()).scene_B.tolist()) == {2}


def test_an_epoch_depends_on_seed_and_epoch_alone(small_data, tmp_path):
    jitter = Jitter()
    first = epoch(make(small_data, tmp_path), 3, 4, jitter=jitter)
    batches = make(small_data, tmp_path)
    epoch(batches, 3, 3, jitter=jitter)  # what came before does not matter
    np.random.seed(99)
    torch.manual_seed(99)
    again = epoch(batches, 3, 4, jitter=jitter)
    other = epoch(batches, 3, 5, jitter=jitter)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.image_B3HW, two.image_B3HW)
        assert one.row.tolist() == two.row.tolist()
    assert [part.row.tolist() for part in other] != [part.row.tolist() for part in first]
    assert sorted(np.concatenate([part.row for part in other])) == list(range(24))


def test_a_frames_augmentation_does_not_depend_on_its_batch(small_data, tmp_path):
    def by_frame(batch_size):
        parts = epoch(make(small_data, tmp_path, batch_size=batch_size), jitter=Jitter())
        return {
            int(row): image
            for part in parts
            for row, image in zip(part.row, part.image_B3HW, strict=True)
        }

    five, seven = by_frame(5), by_frame(7)
    for row, image in five.items():
        torch.testing.assert_close(image, seven[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("jitter", [None, Jitter()])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_the_batches_of_one_from_any_number_on(
    small_data, tmp_path, processes, jitter
):
    batches = make(small_data, tmp_path)  # five of five frames, but the last of four
    options = {"equalize_scenes": False, "jitter": jitter}
    whole = list(batches.epoch(3, 4, **options))[2:]
    parts = [
        list(batches.epoch(3, 4, **options, first=2, share=(one, processes)))
        for one in range(processes)
    ]
    assert [len(part) for part in parts] == [len(whole)] * processes
    for number, batch in enumerate(whole):
        mine = [part[number] for part in parts]
        assert {part.whole for part in mine} == {len(batch.row)}
        if len(batch.row) < processes:  # everyone has all
            assert all(torch.equal(part.image_B3HW, batch.image_B3HW) for part in mine)
            continue
        sizes = [len(part.row) for part in mine]
        assert max(sizes) - min(sizes) <= 1
        assert np.concatenate([part.row for part in mine]).tolist() == batch.row.tolist()
        for name in ("position_B3", "orientation_B4", "scene_B"):
            assert torch.equal(
                torch.cat([getattr(part, name) for part in mine]), getattr(batch, name)
            )
        image_B3HW = torch.cat([part.image_B3HW for part in mine])
        torch.testing.assert_close(image_B3HW, batch.image_B3HW, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", ["one", "many"])
def test_frames_held_by_the_device_give_the_same_batches(own_data, tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(
        cache_module, "PIECE", 10_000
    )  # larger than a frame, smaller than the cache
    if sizes == "many":
        folder = own_data.parent / "attic" / "train-01"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 61, 3), np.uint8)).save(
            folder / "frame-003.png"
        )
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 90, 3), np.uint8)).save(
            folder / "frame-011.png"
        )
    mapped, held = (make(own_data, tmp_path / "cache", hold=hold) for hold in (False, True))
    assert mapped.cache.device is None
    assert held.cache.device == torch.device("cpu")
    for jitter in (None, Jitter()):
        for one, two in zip(epoch(mapped, jitter=jitter), epoch(held, jitter=jitter), strict=True):
            assert one.row.tolist() == two.row.tolist()
            assert torch.equal(one.image_B3HW, two.image_B3HW)
    for one, two in zip(mapped.in_order(), held.in_order(), strict=True):
        assert torch.equal(one.image_B3HW, two.image_B3HW)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("hold", [False, True])
def test_a_gpu_has_the_same_batches(small_data, tmp_path, hold):
    here, there = (
        make(small_data, tmp_path, device=device, hold=hold) for device in ("cpu", "cuda")
    )
    assert there.cache.device == (torch.device("cuda", 0) if hold else None)
    for jitter in (None, Jitter()):
        for one, two in zip(epoch(here, jitter=jitter), epoch(there, jitter=jitter), strict=True):
            assert (
                two.image_B3HW.device.type
                == two.position_B3.device.type
                == two.scene_B.device.type
                == "cuda"
            )
            torch.testing.assert_close(two.image_B3HW.cpu(), one.image_B3HW, atol=1e-4, rtol=0)
            assert torch.equal(two.orientation_B4.cpu(), one.orientation_B4)


def test_the_next_batch_is_read_while_one_is_in_use(small_data, tmp_path):
    batches = make(small_data, tmp_path)
    crops, read = batches.cache.crops, threading.Semaphore(0)

    def and_say_so(*arguments, **options):
        result = crops(*arguments, **options)
        read.release()
        return result

    batches.cache.crops = and_say_so
    threads = threading.active_count()
    coming = batches.in_order()
    next(coming)
    assert all(read.acquire(timeout=60) for _ in range(2))
    coming.close()
    assert threading.active_count() == threads  # the thread ends with the batches


def test_what_goes_wrong_in_the_thread_is_raised(small_data, tmp_path):
    batches = make(small_data, tmp_path)
    batches.cache._index[7, 1] = 0
    with pytest.raises(MsposeError, match="frame 7 of .* could not be read"):
        list(batches.in_order())


def test_augmentation_moves_and_colours_images_and_without_it_nothing_does(small_data, tmp_path):
    batches = make(small_data, tmp_path, batch_size=24)
    plain = next(batches.in_order()).image_B3HW
    still = epoch(batches)[0]
    assert torch.equal(still.image_B3HW[np.argsort(still.row)], plain)
    changed = epoch(batches, jitter=Jitter())[0]
    assert (changed.image_B3HW[np.argsort(changed.row)] - plain).abs().mean(
        dim=(1, 2, 3)
    ).min() > 0.01
    moved = epoch(batches, jitter=Jitter(0, 0, 0, 0))[0]
    assert not torch.equal(moved.image_B3HW[np.argsort(moved.row)], plain)


def test_cut_out_leaves_crops_and_colours_as_they_are_without_it(small_data, tmp_path):
    batches = make(small_data, tmp_path)
    options = {"equalize_scenes": False, "jitter": Jitter()}
    plain, cut = (list(batches.epoch(3, 4, **options, cutout=share)) for share in (0.0, 0.4))
    places = []
    for one, two in zip(plain, cut, strict=True):
        assert one.row.tolist() == two.row.tolist()
        for before, after in zip(one.image_B3HW, two.image_B3HW, strict=True):
            hole = (after == 0).all(dim=0)
            assert torch.equal(after[:, ~hole], before[:, ~hole])
            rows, columns = np.flatnonzero(hole.any(dim=1)), np.flatnonzero(hole.any(dim=0))
            assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert max(len(rows), len(columns)) <= 16  # 0.4 of 40 pixels
            places.append((rows[0], columns[0], len(rows), len(columns)))
    assert len(set(places)) > 15
    assert (16, 16) in {place[2:] for place in places}
    assert any(place[2] < 16 for place in places)  # over the border

    part = list(batches.epoch(3, 4, **options, cutout=0.4, first=2, share=(1, 2)))
    for mine, whole in zip(part, cut[2:], strict=True):
        torch.testing.assert_close(
            mine.image_B3HW, whole.image_B3HW[-len(mine.row) :], atol=1e-5, rtol=0
        )
        assert torch.equal(mine.image_B3HW == 0, whole.image_B3HW[-len(mine.row) :] == 0)
    other = list(batches.epoch(3, 5, **options, cutout=0.4))
    assert not torch.equal(other[0].image_B3HW == 0, cut[0].image_B3HW == 0)


def test_without_augmentation_nothing_is_cut_out(small_data, tmp_path):
    batches = make(small_data, tmp_path)
    still = list(batches.epoch(0, 0, equalize_scenes=False, jitter=None, cutout=0.5))
    for one, two in zip(still, epoch(batches), strict=True):
        assert torch.equal(one.image_B3HW, two.image_B3HW)


def test_equalized_scenes_have_as_many_samples_as_the_largest(small_data, tmp_path):
    batches = make(small_data, tmp_path, rows=[*range(12), *range(12, 17)])
    parts = epoch(batches, equalize=True, jitter=Jitter())
    scene = np.concatenate([part.scene_B.numpy() for part in parts])
    row = np.concatenate([part.row for part in parts])
    assert np.bincount(scene).tolist() == [12, 12]
    assert np.bincount(row)[:12].tolist() == [1] * 12
    assert sorted(np.bincount(row)[12:]) == [2, 2, 2, 3, 3]
    assert len(parts) == batches.epoch_length(True) == 5
    assert batches.epoch_length(False) == 4
    images = torch.cat([part.image_B3HW for part in parts])
    twice = np.flatnonzero(row == row[row >= 12][0])
    assert not torch.equal(
        images[twice[0]], images[twice[1]]
    )  # a frame drawn again is augmented anew


def test_faults_are_named(small_data, tmp_path):
    with pytest.raises(
        MsposeError, match="scene cellar is unknown to the model, which knows: attic"
    ):
        make(small_data, tmp_path, scenes=("attic",))
    with pytest.raises(MsposeError, match="data.crop 50 does not fit into a frame of 64x48"):
        make(small_data, tmp_path, crop=50)


def test_order_is_a_permutation_that_the_seed_changes():
    scene = np.zeros(50, np.int64)
    orders = {
        seed: epoch_order(scene, seed=seed, epoch=0, equalize_scenes=False) for seed in range(3)
    }
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert orders[0].tolist() != orders[1].tolist()


def test_holdout_is_one_block_of_every_sequence():
    frames = pd.DataFrame(
        {"scene": ["a"] * 30 + ["b"] * 10, "sequence": ["1"] * 20 + ["2"] * 10 + ["1"] * 10}
    )
    held = holdout_rows(frames, 0.2)
    assert np.flatnonzero(held).tolist() == [8, 9, 10, 11, 24, 25, 34, 35]
    assert not holdout_rows(frames, 0.0).any()


def test_evenly_spread_numbers():
    assert evenly(10, 3).tolist() == [0, 4, 9]
    assert evenly(2, 5).tolist() == [0, 1]
    assert evenly(0, 5).tolist() == []


def test_a_turned_label_is_the_pose_of_a_camera_that_looks_at_the_crop(small_data, tmp_path):
    jitter = Jitter(0, 0, 0, 0)
    batches = make(small_data, tmp_path, batch_size=24)
    batches.frames = batches.frames.assign(
        focal_px=70.0
    )  # of the 80x60 source, so 56 of the 64x48 frame
    kept = next(batches.epoch(0, 0, equalize_scenes=False, jitter=jitter))
    turned = next(batches.epoch(0, 0, equalize_scenes=False, jitter=jitter, crop_label="turned"))
    assert torch.equal(kept.image_B3HW, turned.image_B3HW)
    expected = batches.orientation[torch.from_numpy(kept.row)]
    torch.testing.assert_close(kept.orientation_B4, expected)
    for row, image, orientation, before in zip(
        turned.row, turned.image_B3HW, turned.orientation_B4, expected, strict=True
    ):
        pixels = (image.permute(1, 2, 0).numpy() * STD + MEAN) * 255
        frame = batches.cache[row].astype(float)
        left, top = next(
            (left, top)
            for top in range(9)
            for left in range(25)
            if np.abs(frame[top : top + 40, left : left + 40] - pixels).max() < 0.01
        )
        ray = quaternion_to_rotation(before)[0] @ [left + 20 - 32, top + 20 - 24, 56.0]
        np.testing.assert_allclose(
            quaternion_to_rotation(orientation)[0][:, 2], ray / np.linalg.norm(ray), atol=1e-5
        )
    without = make(small_data, tmp_path)
    with pytest.raises(
        MsposeError, match=r"needs the focal length of attic/train-01/frame-000.png"
    ):
        next(without.epoch(0, 0, equalize_scenes=False, jitter=jitter, crop_label="turned"))
