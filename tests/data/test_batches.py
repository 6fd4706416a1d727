import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mspose.config import AugmentationSettings
from mspose.data import cache as cache_module
from mspose.data.augmentation import Augmentation
from mspose.data.batches import Batches, epoch_order, holdout_rows
from mspose.data.cache import open_cache
from mspose.data.cards import data_root, load_frames, read_card
from mspose.data.frames import evenly
from mspose.errors import MsposeError
from mspose.poses import quaternion_to_rotation

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
DEFAULT = AugmentationSettings()
AUGMENTED = Augmentation(DEFAULT)
CROPS_ALONE = AugmentationSettings(brightness=0, contrast=0, saturation=0, hue=0)


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


def epoch(batches: Batches, seed=0, number=0, *, equalize=False, augmentation=None, **options):
    return list(
        batches.epoch(seed, number, equalize_scenes=equalize, augmentation=augmentation, **options)
    )


def by_row(parts) -> torch.Tensor:
    """Images of an epoch in the order of the frame table."""
    row = np.concatenate([part.row for part in parts])
    return torch.cat([part.image_B3HW for part in parts])[np.argsort(row)]


def test_in_order_gives_every_frame_with_its_labels(small_data, tmp_path):
    batches = make(small_data, tmp_path)
    parts = list(batches.in_order())
    assert [len(part.row) for part in parts] == [5, 5, 5, 5, 4]
    assert np.concatenate([part.row for part in parts]).tolist() == list(range(24))
    for part in parts:
        expected = batches.frames.iloc[part.row]
        np.testing.assert_allclose(part.position_B3, expected[["tx", "ty", "tz"]], rtol=1e-6)
        np.testing.assert_allclose(
            part.orientation_B4, expected[["qw", "qx", "qy", "qz"]], rtol=1e-6
        )
        assert [("attic", "cellar")[index] for index in part.scene_B] == expected["scene"].tolist()
    image_HW3 = batches.cache[7][4:44, 12:52]
    expected = (image_HW3.astype(np.float32) / 255 - MEAN) / STD
    np.testing.assert_allclose(parts[1].image_B3HW[2].permute(1, 2, 0), expected, atol=1e-5)
    swapped = make(small_data, tmp_path, scenes=("cellar", "hall", "attic"))
    assert set(next(swapped.in_order()).scene_B.tolist()) == {2}


def test_an_epoch_depends_on_seed_and_epoch_alone(small_data, tmp_path):
    first = epoch(make(small_data, tmp_path), 3, 4, augmentation=AUGMENTED)
    batches = make(small_data, tmp_path)
    epoch(batches, 3, 3, augmentation=AUGMENTED)  # the epoch before does not matter
    np.random.seed(99)
    torch.manual_seed(99)
    again = epoch(batches, 3, 4, augmentation=AUGMENTED)
    other = epoch(batches, 3, 5, augmentation=AUGMENTED)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.image_B3HW, two.image_B3HW)
        assert one.row.tolist() == two.row.tolist()
    assert [part.row.tolist() for part in other] != [part.row.tolist() for part in first]
    assert sorted(np.concatenate([part.row for part in other])) == list(range(24))


@pytest.mark.parametrize(
    "augmentation",
    [None, AUGMENTED, Augmentation(replace(DEFAULT, cutout=0.4, blur=0.5, jpeg=0.5))],
    ids=["none", "default", "all"],
)
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_the_batches_of_one_from_any_number_on(
    small_data, tmp_path, processes, augmentation
):
    batches = make(small_data, tmp_path)  # five of five frames, but the last of four
    whole = epoch(batches, 3, 4, augmentation=augmentation)[2:]
    parts = [
        epoch(
            batches, 3, 4, augmentation=augmentation, first=2, rank_and_world_size=(one, processes)
        )
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
        torch.testing.assert_close(image_B3HW, batch.image_B3HW, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", ["one", "many"])
def test_frames_held_by_the_device_give_the_same_batches(own_data, tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(
        cache_module, "COPY_BYTES", 10_000
    )  # larger than a frame, smaller than the cache
    if sizes == "many":
        folder = own_data.parent / "attic" / "train-01"
        for name, shape in (("003", (90, 61, 3)), ("011", (48, 90, 3))):
            pixels = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
            Image.fromarray(pixels).save(folder / f"frame-{name}.png")
    mapped, held = (make(own_data, tmp_path / "cache", hold=hold) for hold in (False, True))
    assert mapped.cache.device is None
    assert held.cache.device == torch.device("cpu")
    for augmentation in (None, AUGMENTED):
        for one, two in zip(
            epoch(mapped, augmentation=augmentation),
            epoch(held, augmentation=augmentation),
            strict=True,
        ):
            assert one.row.tolist() == two.row.tolist()
            assert torch.equal(one.image_B3HW, two.image_B3HW)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("hold", [False, True])
def test_a_gpu_has_the_same_batches(small_data, tmp_path, hold):
    here, there = (
        make(small_data, tmp_path, device=device, hold=hold) for device in ("cpu", "cuda")
    )
    assert there.cache.device == (torch.device("cuda", 0) if hold else None)
    everything = Augmentation(replace(DEFAULT, cutout=0.4, blur=0.5, jpeg=0.5))
    for augmentation in (None, AUGMENTED, everything):
        for one, two in zip(
            epoch(here, augmentation=augmentation),
            epoch(there, augmentation=augmentation),
            strict=True,
        ):
            for name in ("image_B3HW", "position_B3", "scene_B"):
                assert getattr(two, name).device.type == "cuda"
            torch.testing.assert_close(two.image_B3HW.cpu(), one.image_B3HW, atol=1e-3, rtol=0)
            assert torch.equal(two.orientation_B4.cpu(), one.orientation_B4)


def test_the_next_batch_is_read_while_one_is_in_use(small_data, tmp_path):
    batches = make(small_data, tmp_path)
    crops, read = batches.cache.crops, threading.Semaphore(0)

    def count_and_read(*arguments, **options):
        result = crops(*arguments, **options)
        read.release()
        return result

    batches.cache.crops = count_and_read
    threads = threading.active_count()
    coming = batches.in_order()
    next(coming)
    assert all(read.acquire(timeout=60) for _ in range(2))
    coming.close()
    assert threading.active_count() == threads  # the thread ends with the batches


def test_an_error_in_the_reading_thread_is_raised(small_data, tmp_path):
    batches = make(small_data, tmp_path)
    batches.cache._index[7, 1] = 0
    with pytest.raises(MsposeError, match="frame 7 of .* could not be read"):
        list(batches.in_order())


def test_augmentation_moves_and_colours_images_and_without_it_nothing_does(small_data, tmp_path):
    batches = make(small_data, tmp_path, batch_size=24)
    plain = next(batches.in_order()).image_B3HW
    assert torch.equal(by_row(epoch(batches)), plain)
    changed = by_row(epoch(batches, augmentation=AUGMENTED))
    assert (changed - plain).abs().mean(dim=(1, 2, 3)).min() > 0.01
    moved = by_row(epoch(batches, augmentation=Augmentation(CROPS_ALONE)))
    assert not torch.equal(moved, plain)


@pytest.mark.parametrize("name", ["cutout", "blur", "jpeg"])
def test_a_further_change_leaves_crops_and_colours_as_they_are_without_it(
    small_data, tmp_path, name
):
    batches = make(small_data, tmp_path)
    one = by_row(epoch(batches, 3, 4, augmentation=AUGMENTED))
    two = by_row(epoch(batches, 3, 4, augmentation=Augmentation(replace(DEFAULT, **{name: 0.4}))))
    same = one == two
    if name == "cutout":
        assert (two[~same] == 0).all()  # the mean colour
        assert same.flatten(1).any(dim=1).all()
    else:
        assert 0 < same.flatten(1).all(dim=1).sum() < len(one)
    assert not torch.equal(one, two)


def test_equalized_scenes_have_as_many_samples_as_the_largest(small_data, tmp_path):
    batches = make(small_data, tmp_path, rows=[*range(12), *range(12, 17)])
    parts = epoch(batches, equalize=True, augmentation=AUGMENTED)
    scene = np.concatenate([part.scene_B.numpy() for part in parts])
    row = np.concatenate([part.row for part in parts])
    assert np.bincount(scene).tolist() == [12, 12]
    assert np.bincount(row)[:12].tolist() == [1] * 12
    assert sorted(np.bincount(row)[12:]) == [2, 2, 2, 3, 3]
    assert len(parts) == batches.epoch_length(True) == 5
    assert batches.epoch_length(False) == 4
    images = torch.cat([part.image_B3HW for part in parts])
    first, second = np.flatnonzero(row == row[row >= 12][0])[:2]
    assert not torch.equal(images[first], images[second])  # augmented anew


def test_faults_are_named(small_data, tmp_path):
    with pytest.raises(
        MsposeError, match="scene cellar is unknown to the model, which knows: attic"
    ):
        make(small_data, tmp_path, scenes=("attic",))
    with pytest.raises(MsposeError, match="data.crop 50 does not fit into a frame of 64x48"):
        make(small_data, tmp_path, crop=50)


def test_order_is_a_permutation_that_the_seed_changes():
    scene = np.zeros(50, np.int64)
    orders = [epoch_order(scene, seed=seed, epoch=0, equalize_scenes=False) for seed in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
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
    batches = make(small_data, tmp_path, batch_size=24)
    # of the 80x60 source, so 56 of the 64x48 frame
    batches.frames = batches.frames.assign(focal_px=70.0)
    turning = Augmentation(replace(CROPS_ALONE, crop_label="turned"))
    (kept,) = epoch(batches, augmentation=Augmentation(CROPS_ALONE))
    (turned,) = epoch(batches, augmentation=turning)
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
    with pytest.raises(MsposeError, match="needs the focal length of attic/train-01/frame-000.png"):
        epoch(make(small_data, tmp_path), augmentation=turning)
