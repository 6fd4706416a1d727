from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mspose.data.augmentation import Jitter
from mspose.data.batches import Batches, epoch_order, evenly, holdout_rows, occurrence
from mspose.data.cache import open_cache
from mspose.data.cards import data_root, load_frames, read_card
from mspose.errors import MsposeError
from mspose.poses import quaternion_to_rotation

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make(card_path: Path, folder: Path, *, scenes=("attic", "cellar"), crop=40, batch_size=5, rows=None) -> Batches:
    card = read_card(card_path)
    frames, cache = open_cache(
        load_frames(card, split="train"), data_root(card), short_side=48, folder=folder, progress=False
    )
    frames = frames if rows is None else frames.iloc[rows].reset_index(drop=True)
    return Batches(frames, cache, scenes=scenes, crop=crop, mean=MEAN, std=STD, batch_size=batch_size)


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
        np.testing.assert_allclose(part.orientation_B4, expected[["qw", "qx", "qy", "qz"]], rtol=1e-6)
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
        return {int(row): image for part in parts for row, image in zip(part.row, part.image_B3HW, strict=True)}

    five, seven = by_frame(5), by_frame(7)
    for row, image in five.items():
        torch.testing.assert_close(image, seven[row], atol=1e-5, rtol=0)


def test_augmentation_moves_and_colours_images_and_without_it_nothing_does(small_data, tmp_path):
    batches = make(small_data, tmp_path, batch_size=24)
    plain = next(batches.in_order()).image_B3HW
    still = epoch(batches)[0]
    assert torch.equal(still.image_B3HW[np.argsort(still.row)], plain)
    changed = epoch(batches, jitter=Jitter())[0]
    assert (changed.image_B3HW[np.argsort(changed.row)] - plain).abs().mean(dim=(1, 2, 3)).min() > 0.01
    moved = epoch(batches, jitter=Jitter(0, 0, 0, 0))[0]
    assert not torch.equal(moved.image_B3HW[np.argsort(moved.row)], plain)


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
    assert not torch.equal(images[twice[0]], images[twice[1]])  # a frame drawn again is augmented anew


def test_faults_are_named(small_data, tmp_path):
    with pytest.raises(MsposeError, match="scene cellar is unknown to the model, which knows: attic"):
        make(small_data, tmp_path, scenes=("attic",))
    with pytest.raises(MsposeError, match="data.crop 50 does not fit into a frame of 64x48"):
        make(small_data, tmp_path, crop=50)


def test_order_is_a_permutation_that_the_seed_changes():
    scene = np.zeros(50, np.int64)
    orders = {seed: epoch_order(scene, seed=seed, epoch=0, equalize_scenes=False) for seed in range(3)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert orders[0].tolist() != orders[1].tolist()


def test_occurrence_counts_earlier_draws():
    assert occurrence(np.array([4, 2, 4, 4, 2, 0])).tolist() == [0, 0, 1, 2, 1, 0]


def test_holdout_is_one_block_of_every_sequence():
    frames = pd.DataFrame({"scene": ["a"] * 30 + ["b"] * 10, "sequence": ["1"] * 20 + ["2"] * 10 + ["1"] * 10})
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
    batches.frames = batches.frames.assign(focal_px=70.0)  # of the 80x60 source, so 56 of the 64x48 frame
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
        np.testing.assert_allclose(quaternion_to_rotation(orientation)[0][:, 2], ray / np.linalg.norm(ray), atol=1e-5)
    without = make(small_data, tmp_path)
    with pytest.raises(MsposeError, match=r"needs the focal length of attic/train-01/frame-000.png"):
        next(without.epoch(0, 0, equalize_scenes=False, jitter=jitter, crop_label="turned"))
