"""Poses from keypoints, of rendered rooms whose poses are exact."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from mspose.config import Settings
from mspose.data.cards import load_frames, read_card
from mspose.data.images import find_image
from mspose.data.virtual.dataset import render_virtual
from mspose.metrics import ESTIMATED_ORIENTATION, ESTIMATED_POSITION, TRUE_POSITION, with_errors
from mspose.poses import orientation_error, position_error, quaternion_to_rotation
from mspose.studies import structure
from mspose.studies.baselines import POSE, evaluate_baselines
from mspose.studies.structure import keypoints, match, structure_poses, triangulate

CARD = """\
name: rooms
format: virtual
root: rooms
focal_px: 292.5
scenes: [library, atelier]
"""


@pytest.fixture(scope="module")
def rooms(tmp_path_factory) -> Path:
    """The card of two rendered rooms; not to be changed."""
    folder = tmp_path_factory.mktemp("structure")
    (folder / "rooms.yaml").write_text(CARD)
    frames = {"library": (40, 1), "atelier": (40, 1)}
    render_virtual(
        folder / "rooms", frames=frames, frames_per_sequence=40, workers=1, progress=False
    )
    return folder / "rooms.yaml"


def split(rooms: Path) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Training frames, every eighth frame to localise, and for it the nearest of the former."""
    frames = load_frames(read_card(rooms), split="train")
    held = np.arange(len(frames)) % 8 == 4
    train, test = (frames[rows].reset_index(drop=True) for rows in (~held, held))
    distance = [
        position_error(row[TRUE_POSITION].to_numpy(float), train[TRUE_POSITION].to_numpy())
        + orientation_error(
            row[["qw", "qx", "qy", "qz"]].to_numpy(float),
            train[["qw", "qx", "qy", "qz"]].to_numpy(),
        )
        / 30
        + 100 * (train["scene"] != row["scene"]).to_numpy()
        for _, row in test.iterrows()
    ]
    return train, test, np.argsort(distance, axis=1)


def copy_images(rooms: Path, images: pd.Series, folder: Path) -> None:
    for image in images:
        source = find_image(rooms.parent / "rooms", image)
        target = (folder / image).with_suffix(source.suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)


def errors(test: pd.DataFrame, pose_M7: np.ndarray) -> pd.DataFrame:
    estimate = pd.DataFrame(pose_M7, columns=[*ESTIMATED_POSITION, *ESTIMATED_ORIENTATION])
    return with_errors(test.reset_index(drop=True).join(estimate))


def test_poses_of_rendered_frames_are_right_to_centimetres(rooms):
    train, test, nearest = split(rooms)
    pose_M7, localised_M = structure_poses(
        train, test, nearest, rooms.parent / "rooms", progress=False
    )
    found = errors(test, pose_M7)[localised_M]
    assert localised_M.sum() >= 9 and len(test) == 10
    assert found["position_error_m"].median() < 0.02
    assert found["orientation_error_deg"].median() < 0.5
    again, _ = structure_poses(train, test, nearest, rooms.parent / "rooms", progress=False)
    np.testing.assert_array_equal(pose_M7, again)


def test_size_and_focal_length_of_every_image_count_by_themselves(rooms, tmp_path, monkeypatch):
    """Queries at half the size, and references that are made smaller to search them."""
    train, test, nearest = split(rooms)
    test, nearest = test.iloc[:3].copy(), nearest[:3]
    copy_images(rooms, train["image"], tmp_path)
    for image in test["image"]:
        pixels = cv2.imread(str(find_image(rooms.parent / "rooms", image)))
        pixels = cv2.resize(pixels, (160, 120), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(tmp_path / image), pixels)
    test["focal_px"] /= 2
    monkeypatch.setattr(structure, "LONGEST_PX", 288)
    pose_M7, localised_M = structure_poses(train, test, nearest, tmp_path, progress=False)
    assert localised_M.all()
    assert errors(test, pose_M7)["position_error_m"].max() < 0.1


def test_a_query_without_matches_has_the_retrieved_pose(rooms, tmp_path):
    train, test, nearest = split(rooms)
    test, nearest = test.iloc[:3].copy(), nearest[:3]
    copy_images(rooms, train["image"], tmp_path)
    blank = np.full((240, 320, 3), 128, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    for name, pixels in {"blank.png": blank, "noise.png": noise}.items():
        cv2.imwrite(str(tmp_path / name), pixels)
    test["image"] = ["blank.png", "noise.png", train["image"].iloc[nearest[2, 0]]]
    test.loc[test.index[2], "focal_px"] = np.nan  # nothing is known of its camera
    pose_M7, localised_M = structure_poses(train, test, nearest, tmp_path, progress=False)
    assert not localised_M.any()
    np.testing.assert_array_equal(pose_M7, train[POSE].to_numpy()[nearest[:, 0]])


def test_references_of_another_scene_are_not_matched(rooms, monkeypatch):
    train, test, nearest = split(rooms)
    test, nearest = test.iloc[:1], nearest[:1]
    other = np.flatnonzero(train["scene"] != test["scene"].iloc[0])
    mixed = np.concatenate([nearest[0, :10], other[:20], nearest[0, 10:20]])[None]
    used: list[list[np.ndarray]] = []
    monkeypatch.setattr(structure, "localise", lambda *inputs: used.append(inputs[2]))
    structure_poses(train, test, mixed, rooms.parent / "rooms", progress=False)
    rotation = quaternion_to_rotation(train[["qw", "qx", "qy", "qz"]].to_numpy())
    (cameras,) = used
    rows = [np.abs(rotation.swapaxes(1, 2) - c[:, :3]).sum(axis=(1, 2)).argmin() for c in cameras]
    assert set(train["scene"].iloc[rows]) == {test["scene"].iloc[0]}


def test_keypoints_are_rays_about_the_middle_of_the_image(tmp_path):
    """The middle of a spot in the file, whatever the size that it is searched at."""
    for size, spot in ((400, (300, 100)), (2400, (1800, 600))):
        pixels = np.full((size // 2, size, 3), 255, np.uint8)
        cv2.circle(pixels, spot, size // 50, (0, 0, 0), -1)
        cv2.imwrite(str(tmp_path / "spot.png"), pixels)
        view = keypoints(tmp_path / "spot.png", size * 0.9)
        middle = np.array([(size - 1) / 2, (size // 2 - 1) / 2])
        expected = (np.array(spot) - middle) / (size * 0.9)
        distance = np.linalg.norm(view.ray_N2 - expected, axis=1).min()
        assert distance < 0.5 / (min(size, structure.LONGEST_PX) * 0.9)


def test_matches_are_mutual_and_unambiguous():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (6, 128)).astype(np.uint8)
    second = np.concatenate([first[[4, 2, 0]], first[[1, 1]], rng.integers(0, 256, (3, 128))])
    rows, others = match(first, second.astype(np.uint8))  # the second of 1 is as near as the first
    assert dict(zip(rows.tolist(), others.tolist(), strict=True)) == {0: 2, 2: 1, 4: 0}
    assert not len(match(first, first[:1])[0]) and not len(match(first[:0], first)[0])


def test_points_are_triangulated_from_the_cameras_that_agree():
    """An outlier in one of four cameras changes nothing; rays that hardly meet give no point."""
    rng = np.random.default_rng(1)
    point_N3 = rng.uniform([-1, -1, 3], [1, 1, 5], (30, 3))
    centre_R3 = np.array([[0, 0, 0], [0.4, 0, 0], [0, 0.4, 0.1], [-0.4, 0.1, 0]])
    camera_R34 = np.stack([np.column_stack([np.eye(3), -centre]) for centre in centre_R3])
    seen_RN3 = point_N3 - centre_R3[:, None]
    ray_RN2 = seen_RN3[..., :2] / seen_RN3[..., 2:]
    ray_RN2[1, :10] += 0.1
    ray_RN2[2:, 20:] = np.nan
    error_R = np.full(4, 0.002)
    found_N3, good_N = triangulate(ray_RN2, camera_R34, error_R)
    assert good_N.all()
    np.testing.assert_allclose(found_N3, point_N3, atol=1e-9)
    near_R34 = camera_R34.copy()
    near_R34[:, :, 3] *= 0.01  # a few millimetres
    near_RN2 = (point_N3 - 0.01 * centre_R3[:, None])[..., :2] / point_N3[:, 2:]
    assert not triangulate(near_RN2, near_R34, error_R)[1].any()


def test_the_baseline_is_evaluated_where_focal_lengths_are_known(rooms, tmp_path, small_data):
    data = replace(Settings().data, resize=72, crop=64, cache=str(tmp_path / "cache"))
    model = replace(Settings().model, backbone="efficientnet_lite0", pretrained=False)
    settings = Settings(
        experiment="rooms", runs=str(tmp_path), device="cpu", data=data, model=model
    )
    results = evaluate_baselines(
        replace(settings, data=replace(data, dataset=str(rooms))), progress=False
    )
    metrics, path = results["baseline-structure"]
    assert 0 <= metrics["not_localised"] <= 2 and metrics["scene_selection"] == "predicted"
    assert metrics["provenance"]["model"]["milliseconds_per_image"] > 0
    assert path == tmp_path / "rooms" / "baseline-structure" / "seed-0" / "metrics.json"
    unknown = evaluate_baselines(
        replace(settings, data=replace(data, dataset=str(small_data))), progress=False
    )
    assert list(unknown) == ["baseline-mean-pose", "baseline-retrieval"]
