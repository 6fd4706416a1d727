import logging
import math
from pathlib import Path

import numpy as np
import pytest

from mspose import poses
from mspose.data.cambridge import read_cambridge
from mspose.data.label_csv import read_label_csv
from mspose.errors import MsposeError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HEADER = "Visual Landmark Dataset V1\nImageFile, Camera Position [X Y Z W P Q R]\n\n"
POSITION, ORIENTATION = ["tx", "ty", "tz"], ["qw", "qx", "qy", "qz"]


def write_scene(root, scene="Chapel", lines=None, header=HEADER, split="train"):
    folder = root / scene
    for number in range(3):
        path = folder / f"seq{number % 2 + 1}" / f"frame{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"an image")
    lines = lines or [
        f"seq{n % 2 + 1}/frame{n:05d}.png {n} 20.5 -3 1.2 0.6 {n / 10} -0.4" for n in range(3)
    ]
    (folder / f"dataset_{split}.txt").write_text(header + "\n".join(lines) + "\n")
    return folder / f"dataset_{split}.txt"


def test_centres_stay_and_orientations_are_inverted(tmp_path):
    write_scene(tmp_path)
    frames = read_cambridge(tmp_path, ["Chapel"], "train")
    assert frames["image"].tolist() == [f"Chapel/seq{n % 2 + 1}/frame{n:05d}.png" for n in range(3)]
    assert frames["sequence"].tolist() == ["seq1", "seq2", "seq1"]
    assert frames[POSITION].to_numpy().tolist() == [[n, 20.5, -3] for n in range(3)]
    world_to_camera = poses.quaternion_to_rotation([[1.2, 0.6, n / 10, -0.4] for n in range(3)])
    camera_to_world = poses.quaternion_to_rotation(frames[ORIENTATION].to_numpy())
    np.testing.assert_allclose(camera_to_world, np.swapaxes(world_to_camera, 1, 2), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(frames[ORIENTATION], axis=1), 1, atol=1e-12)
    assert frames.loc[0, ["dataset", "ground_truth", "scene", "split"]].tolist() == [
        "cambridge",
        "sfm",
        "Chapel",
        "train",
    ]
    assert math.isnan(frames["focal_px"][0])


def test_line_ends_blank_lines_and_several_scenes(tmp_path):
    path = write_scene(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \r\n")
    write_scene(tmp_path, "Tower")
    frames = read_cambridge(tmp_path, ["Chapel", "Tower"], "train")
    assert frames["scene"].tolist() == ["Chapel"] * 3 + ["Tower"] * 3


@pytest.mark.parametrize("header", ["", "ImageFile, Camera Position [X Y Z W P Q R]\n"])
def test_no_frame_is_taken_for_a_header(tmp_path, header):
    path = write_scene(tmp_path, header=header)
    assert len(read_cambridge(tmp_path, ["Chapel"], "train")) == 3
    lines = path.read_text().replace(" 0 20.5 ", " x 20.5 ")
    path.write_text(lines)
    with pytest.raises(MsposeError, match=r"line [12]: 'x' is not a number"):
        read_cambridge(tmp_path, ["Chapel"], "train")


def test_an_image_of_another_kind_counts_as_there(tmp_path):
    write_scene(tmp_path)
    (tmp_path / "Chapel/seq1/frame00000.png").rename(tmp_path / "Chapel/seq1/frame00000.jpg")
    assert len(read_cambridge(tmp_path, ["Chapel"], "train")) == 3


FAULTS = {
    "too few values": (
        "seq1/frame00002.png 1 2 3 1 0 0",
        "expected 7 numbers after the image, found 6",
    ),
    "too many values": (
        "seq1/frame00002.png 1 2 3 1 0 0 0 9",
        "expected 7 numbers after the image, found 8",
    ),
    "a word": ("seq1/frame00002.png 1 2 x 1 0 0 0", "'x' is not a number"),
    "NaN": ("seq1/frame00002.png 1 2 nan 1 0 0 0", "NaN or infinity"),
    "zero quaternion": ("seq1/frame00002.png 1 2 3 0 0 0 0", "the quaternion is zero"),
    "no image": ("seq1/frame00009.png 1 2 3 1 0 0 0", "image not found: "),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_line_stops_or_is_left_out(tmp_path, name, caplog):
    line, message = FAULTS[name]
    path = write_scene(tmp_path, lines=["seq1/frame00000.png 1 2 3 1 0 0 0", "", line])
    with pytest.raises(MsposeError) as caught:
        read_cambridge(tmp_path, ["Chapel"], "train")
    assert str(caught.value).startswith(f"{path}, line 6: ")
    assert message in str(caught.value)
    with caplog.at_level(logging.WARNING, logger="mspose"):
        assert len(read_cambridge(tmp_path, ["Chapel"], "train", on_bad_frame="skip")) == 1
    assert f"left out 1 of 2 frames; the first: {path}, line 6" in caplog.text


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_faults_of_structure_always_stop(tmp_path, mode):
    def read(split="train"):
        return read_cambridge(tmp_path, ["Chapel"], split, on_bad_frame=mode)

    line = "seq1/frame00000.png 1 2 3 1 0 0 0"
    write_scene(tmp_path, lines=[line, line])
    with pytest.raises(
        MsposeError,
        match=r"line 5: image Chapel/seq1/frame00000.png is there twice \(first: .*line 4\)",
    ):
        read()
    write_scene(tmp_path, lines=[""])
    with pytest.raises(MsposeError, match=r"scene Chapel has no train frames"):
        read()
    with pytest.raises(MsposeError, match=r"cannot read .*dataset_test.txt"):
        read("test")
    with pytest.raises(MsposeError, match=r"no split 'val'; there are: train, test"):
        read("val")


def test_real_poses_have_the_convention(tmp_path):
    """King's College, the optical axes meet in front of the cameras
    (median miss of the point nearest to all axes 4.5 m, 28.6 m if read the other way round), and
    the cameras' down axes agree (0.99, 0.71).
    """
    labels = SHARED / "labels/CambridgeLandmarks/KingsCollege_train.csv"
    if not labels.is_file():
        pytest.skip("../shared/data is not there")
    rows = [line.split(",") for line in labels.read_text().splitlines()[1:]]
    lines = [" ".join([row[3].removeprefix("KingsCollege/"), *row[4:]]) for row in rows]
    for line in lines:
        path = tmp_path / "KingsCollege" / line.split()[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    write_scene(tmp_path, "KingsCollege", lines=lines)
    frames = read_cambridge(tmp_path, ["KingsCollege"], "train")
    assert len(frames) == 1220

    by_csv = read_label_csv(
        [labels],
        "train",
        dataset="cambridge",
        ground_truth="sfm",
        convention="world-to-camera-position",
    )
    np.testing.assert_array_equal(by_csv[POSITION + ORIENTATION], frames[POSITION + ORIENTATION])

    centre_B3 = frames[POSITION].to_numpy()
    rotation_B33 = poses.quaternion_to_rotation(frames[ORIENTATION].to_numpy())
    ahead_B3, down_B3 = rotation_B33[:, :, 2], rotation_B33[:, :, 1]
    assert np.linalg.norm(down_B3.mean(axis=0)) > 0.98
    across_B33 = np.eye(3) - ahead_B3[:, :, None] * ahead_B3[:, None]
    meeting_3 = np.linalg.solve(across_B33.sum(0), np.einsum("bij,bj->i", across_B33, centre_B3))
    misses_B = np.linalg.norm(np.einsum("bij,bj->bi", across_B33, meeting_3 - centre_B3), axis=1)
    assert np.median(misses_B) < 6
    assert np.median(((meeting_3 - centre_B3) * ahead_B3).sum(axis=1)) > 0
