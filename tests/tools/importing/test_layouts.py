"""One's own scenes in the layouts of 7Scenes, Cambridge Landmarks and KITTI."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tools.importing.builders import (
    ALL,
    FOCAL,
    change_line,
    intrinsics,
    matrices,
    numbers,
    write_cambridge,
    write_kitti,
    write_seven_scenes,
)

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
WRITERS = {"7scenes": write_seven_scenes, "cambridge": write_cambridge}


def in_order(frames: pd.DataFrame) -> np.ndarray:
    """Poses by the images' names, which are in the order of the room's."""
    return matrices(frames.sort_index())


@pytest.mark.parametrize("kind", WRITERS)
def test_the_layouts_of_7scenes_and_cambridge_with_their_split(kind, room, tmp_path, imported):
    scene = WRITERS[kind](tmp_path / "office", room)
    if kind == "cambridge":
        intrinsics(scene, FOCAL)
    text, frames, card = imported(kind, scene)
    np.testing.assert_allclose(in_order(frames), room.pose_B44, atol=1e-9)
    assert set(frames["scene"]) == {"office"}
    assert frames.groupby("sequence")["split"].unique().map(list).to_dict() == (
        {"seq-01": ["train"], "seq-02": ["test"]}
        if kind == "7scenes"
        else {"seq1": ["train"], "seq2": ["test"]}
    )
    assert set(frames["focal_px"]) == {FOCAL}
    assert all((card.root / image).is_file() for image in frames.index)
    assert "has no metres of its own" not in text
    _, frames, _ = imported(kind, scene, split="blocks", block=3, out="blocks")
    assert set(frames.loc[frames["split"] == "test", "sequence"]) == set(frames["sequence"])


@pytest.mark.parametrize("kind", [*WRITERS, "kitti"])
def test_a_folder_of_scenes_becomes_a_data_set_of_all(kind, room, tmp_path, imported):
    other = replace(room, pose_B44=np.roll(room.pose_B44, 1, axis=0))
    if kind == "kitti":
        for name, its in (("00", room), ("07", other)):
            scene = write_kitti(tmp_path / "data" / "sequences" / name, its)
            (tmp_path / "data" / "poses").mkdir(exist_ok=True)
            shutil.move(scene / "poses.txt", tmp_path / "data" / "poses" / f"{name}.txt")
    else:
        for name, its in (("00", room), ("07", other)):
            WRITERS[kind](tmp_path / "data" / name, its)
    _, frames, card = imported(kind, tmp_path / "data", **ALL)
    assert list(card.scenes) == ["00", "07"]
    for scene, its in (("00", room), ("07", other)):
        poses = in_order(frames[frames["scene"] == scene])
        np.testing.assert_allclose(poses, its.pose_B44, atol=1e-9)


def test_each_sequence_has_the_intrinsics_of_its_own_folder(room, tmp_path, imported):
    for kind, write in WRITERS.items():
        scene = write(tmp_path / kind, room)
        intrinsics(scene, 50)
        intrinsics(scene / ("seq-02" if kind == "7scenes" else "seq2"), 60)
        frames = imported(kind, scene, out=f"own-{kind}")[1]
        found = frames.groupby("sequence")["focal_px"].unique().map(list)
        assert found.tolist() == [[50], [60]]


def test_a_scene_of_7scenes_layout_with_other_names(room, tmp_path, imported, refused):
    """Folders and images of any name, no files of a split: blocks."""
    for name, file, pose_44 in zip(room.names, room.files, room.pose_B44, strict=True):
        path = tmp_path / "hall" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, path.with_suffix(".JPG"))
        np.savetxt(path.with_suffix(".pose.txt"), pose_44)
    _, frames, _ = imported("7scenes", tmp_path / "hall", focal_px=41.0)
    expected = dict(zip(room.names, room.pose_B44, strict=True))
    for name, pose_44 in zip(frames.index, matrices(frames), strict=True):
        np.testing.assert_allclose(pose_44, expected[name.replace(".JPG", ".jpg")], atol=1e-9)
    assert set(frames["focal_px"]) == {41.0}
    lost = tmp_path / "hall" / "walk 1" / "frame-4.pose.txt"
    np.savetxt(lost, np.full((4, 4), -np.inf))
    refused("frame-4.pose.txt: the pose holds NaN or infinity", "7scenes", tmp_path / "hall")
    (tmp_path / "hall" / "walk 1" / "frame-4.JPG").unlink()
    refused("1 of its 30 images are not on disk", "7scenes", tmp_path / "hall")


def test_a_sequence_of_both_splits_is_refused(room, tmp_path, refused):
    scene = write_seven_scenes(tmp_path / "office", room)
    (scene / "TestSplit.txt").write_text("sequence1\nsequence2\n")
    refused("TestSplit.txt: seq-01 is in both splits", "7scenes", scene)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ("X Y Z W P Q R", (0, 1, 2, 3, 4, 5, 6)),
        ("X, Y, Z, P, Q, R, W", (0, 1, 2, 4, 5, 6, 3)),
        ("QW QX QY QZ TX TY TZ", (3, 4, 5, 6, 0, 1, 2)),
    ],
)
def test_the_header_of_cambridges_files_names_the_columns(names, order, room, tmp_path, imported):
    scene = write_cambridge(tmp_path / "Chapel", room)
    for split in ("train", "test"):
        file = scene / f"dataset_{split}.txt"
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines[3:], 3):
            image, *cells = line.split()
            lines[number] = " ".join([image, *(cells[column] for column in order)])
        lines[1] = f"ImageFile, Camera Position [{names}]"
        file.write_text("\n".join(lines) + "\n")
    text, frames, _ = imported("cambridge", scene)
    np.testing.assert_allclose(in_order(frames), room.pose_B44, atol=1e-9)
    assert "as the header says in dataset_test.txt" in text


@pytest.mark.parametrize("camera", [0, 2, 3])
def test_kitti_poses_are_moved_to_the_camera_that_took_the_images(camera, room, tmp_path, imported):
    text, frames, _ = imported("kitti", write_kitti(tmp_path / "drive", room, camera), **ALL)
    np.testing.assert_allclose(in_order(frames), room.pose_B44, atol=1e-9)
    np.testing.assert_allclose(frames["focal_px"], FOCAL)
    assert f"camera {camera} of " in text
    assert ("m from camera 0, whose poses the file has" in text) == (camera != 0)


def test_kitti_without_times_or_calibration_and_with_a_camera_per_sequence(
    room, tmp_path, imported
):
    halves = {"a": slice(0, 15), "b": slice(15, 30)}
    for name, rows in halves.items():
        half = replace(room, files=room.files[rows], names=room.names[rows],
                       pose_B44=room.pose_B44[rows])  # fmt: skip
        folder = write_kitti(tmp_path / "city" / name, half, 0)
        (folder / "image_0").rename(folder / "images")
        (folder / "times.txt").unlink()
    (tmp_path / "city" / "a" / "calib.txt").write_text("K: 50 0 24 0 50 18 0 0 1\n")
    (tmp_path / "city" / "b" / "calib.txt").write_text("60 0 24 0 0 60 18 0 0 0 1 0\n")
    text, frames, _ = imported("kitti", tmp_path / "city", **ALL)
    np.testing.assert_allclose(in_order(frames), room.pose_B44, atol=1e-9)
    assert frames.groupby("sequence")["focal_px"].unique().map(list).to_dict() == {
        "a": [50],
        "b": [60],
    }
    assert "poses of the 2 sequences are taken to be in one frame" in text
    for name in halves:
        (tmp_path / "city" / name / "calib.txt").unlink()
    text, frames, _ = imported("kitti", tmp_path / "city", **ALL, out="unknown")
    assert frames["focal_px"].isna().all()
    assert "there is no calib.txt, so the focal length is unknown" in text


def test_kitti_images_by_their_numbers_and_poses_by_theirs(room, tmp_path, imported, refused):
    scene = write_kitti(tmp_path / "drive", room, 0)
    for number in (0, 7, 8):
        (scene / "image_0" / f"{number:06d}.jpg").unlink()
    kept = [number for number in range(30) if number not in (0, 7, 8)]
    _, frames, _ = imported("kitti", scene, **ALL)
    np.testing.assert_allclose(in_order(frames), room.pose_B44[kept], atol=1e-9)
    lines = (scene / "poses.txt").read_text().splitlines()
    (scene / "times.txt").unlink()
    named = [f"{number} {lines[number]} 0 0 0 1" for number in kept]
    (scene / "elsewhere.txt").write_text("\n".join(named))
    _, frames, _ = imported(
        "kitti", scene, **ALL, trajectory=[str(scene / "elsewhere.txt")], out="named"
    )
    np.testing.assert_allclose(in_order(frames), room.pose_B44[kept], atol=1e-9)
    (scene / "image_0" / "000003.jpg").rename(scene / "image_0" / "other.jpg")
    refused("30 poses for the 27 images in .*expected a line for each image", "kitti", scene)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("poses.txt", "1 0 0 0 0 0 0 1", "line 1: expected the 12 numbers .*found 8 values.*tum"),
        ("poses.txt", "", "is empty"),
        ("poses.txt", numbers(*[0.01 * v for v in np.eye(4)[:3].ravel()]),
         "1 poses for the 30 images"),
        ("times.txt", "0\n1\n", "holds 2 times for the 30 poses"),
        ("calib.txt", "P0: 1 2 3\n", "expected a line `P0:` with the 12 numbers"),
        ("calib.txt", f"P1: {numbers(*np.eye(3, 4).ravel())}", "has no matrix P2, .*it has: P1"),
        ("calib.txt", f"P2: {numbers(*np.zeros(12))}", "focal lengths above 0"),
        ("calib.txt", f"P2: {numbers(*np.ones(12))}", "focal lengths above 0"),
    ],
)  # fmt: skip
def test_damaged_files_of_kitti(file, text, message, room, tmp_path, refused):
    scene = write_kitti(tmp_path / "drive", room)
    (scene / file).write_text(text)
    refused(f"{file}.*{message}", "kitti", scene)


def test_a_scaled_rotation_is_named_with_its_line(room, tmp_path, refused):
    scene = write_kitti(tmp_path / "drive", room, 0)
    pose_34 = room.pose_B44[2, :3]
    scaled = np.column_stack([0.01 * pose_34[:, :3], pose_34[:, 3]])
    line = (scene / "poses.txt").read_text().splitlines()[2]
    change_line(scene / "poses.txt", 3, line, numbers(*scaled.ravel()))
    refused(
        "poses.txt, line 3: the pose is not a rotation but a rotation times 0.01", "kitti", scene
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_microsofts_own_folder_has_the_published_poses(imported):
    _, frames, _ = imported("7scenes", SHARED / "7scenes" / "stairs")
    assert frames["split"].value_counts().to_dict() == {"train": 6, "test": 6}
    tables = [
        pd.read_csv(SHARED / f"labels/7Scenes/stairs_{split}.csv") for split in ("train", "test")
    ]
    labels = pd.concat(tables).set_index("img_path")
    same = [f"stairs/{image}".replace("jpg", "png") for image in frames.index]
    expected = labels.loc[same, ["t1", "t2", "t3"]]
    np.testing.assert_allclose(frames[["tx", "ty", "tz"]], expected, atol=1e-6)
