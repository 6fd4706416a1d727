from dataclasses import replace

import numpy as np
import pytest
from tools.importing.builders import FOCAL, change_line, matrices, rotation, write_kapture

from mspose.errors import MsposeError
from mspose.tools.importing.kapture import read_kapture

OF_RIG = np.tile(np.eye(4), (2, 1, 1))
OF_RIG[0, :3, 3] = [0.1, 0.2, -0.3]
OF_RIG[1, :3, :3] = rotation([0.8, 0.0, 0.6, 0.0])
OF_RIG[1, :3, 3] = [-0.5, 0.0, 0.1]


@pytest.fixture
def hall(room, tmp_path):
    return write_kapture(tmp_path / "hall", room)


def rewrite(folder, **files: str) -> None:
    for name, text in files.items():
        (folder / "sensors" / f"{name}.txt").write_text(text)


def stereo(room):
    """The room's frames in pairs: each second one is seen by the second camera of a rig."""
    pose_B44 = room.pose_B44.copy()
    for first in range(0, len(pose_B44), 2):
        rig_to_world = pose_B44[first] @ OF_RIG[0]
        pose_B44[first + 1] = rig_to_world @ np.linalg.inv(OF_RIG[1])
    sides = ("left", "right")
    names = [f"{sides[number % 2]}/{number // 2}.jpg" for number in range(len(pose_B44))]
    return replace(room, names=names, pose_B44=pose_B44)


def test_cameras_of_a_rig(room, tmp_path, imported):
    pairs = stereo(room)
    write_kapture(tmp_path / "hall", pairs, OF_RIG)
    _, frames, _ = imported("kapture", tmp_path / "hall", block=2, margin=1)
    expected = dict(zip(pairs.names, pairs.pose_B44, strict=True))
    poses = [expected[name] for name in frames.index]
    np.testing.assert_allclose(matrices(frames), poses, atol=1e-9)
    for number in range(15):  # what was seen at one time is in one split
        left, right = (frames["split"].get(f"{side}/{number}.jpg") for side in ("left", "right"))
        assert left == right == {3: None, 4: "test", 5: "test", 6: None}.get(number, left)
    assert set(frames["sequence"]) == {"rig"}
    assert set(frames["focal_px"]) == {FOCAL}


def test_a_rig_on_a_rig(hall):
    """Each step is the unit pose but for a shift; a rig's pose precedes a camera's own."""
    rewrite(
        hall,
        rigs="# rigs\ncar, mast, 1, 0, 0, 0, 0, -2, 0\nmast, c0, 1, 0, 0, 0, 0, -0.5, 0\n",
        trajectories="0, car, 1, 0, 0, 0, -7, 0, 0\n1, c0, 1, 0, 0, 0, 1, 1, 1\n"
        "0, c0, 1, 0, 0, 0, 9, 9, 9\n",
    )
    capture = read_kapture(hall, None)
    assert [list(view.position) for view in capture.views] == [[-7, -2.5, 0], [1, 1, 1]]
    assert [view.sequence for view in capture.views] == ["car", "walk 1"]
    assert len(capture.unposed) == 28
    assert any("1 images have a pose of their own in trajectories.txt" in n for n in capture.notes)


def test_rigs_that_hold_each_other_have_no_pose(hall):
    rigs = "a, b, 1,0,0,0,0,0,0\nb, a, 1,0,0,0,0,0,0\na, c0, 1,0,0,0,0,0,0\n"
    rewrite(hall, rigs=rigs, trajectories="# none\n")
    with pytest.raises(MsposeError, match="no image has a pose in trajectories.txt"):
        read_kapture(hall, None)


def test_images_without_a_pose_are_counted_and_named(hall, tmp_path, imported):
    trajectory = hall / "sensors" / "trajectories.txt"
    lines = trajectory.read_text().splitlines()
    lines[4] = "3, c0, , , , , 1, 2, 3"  # the format allows a position alone
    del lines[9]
    trajectory.write_text("\n".join(lines))
    text, _, _ = imported("kapture", hall / "sensors")
    assert "| hall " in text
    assert "left out, no pose at its time: 2: walk 1/frame-3.jpg, walk 1/frame-8.jpg" in text
    assert "no pose at its time: c0 at 0008\n" in (tmp_path / "own" / "left_out.csv").read_text()


def test_times_with_more_digits_than_a_float(hall):
    first = 1_700_000_000_000_000_001
    rewrite(
        hall,
        records_camera=f"{first}, c0, a.jpg\n{first + 1}, c0, b.jpg\n",
        trajectories=f"{first + 1}, c0, 1,0,0,0,1,0,0\n{first}, c0, 1,0,0,0,0,0,0\n",
    )
    assert [view.position[0] for view in read_kapture(hall, None).views] == [0, 1]


def test_cameras_of_any_model(hall):
    radial = "c1, x, camera, SIMPLE_RADIAL, 48, 36, 70, 24, 18, 0.1\n"
    rewrite(
        hall,
        sensors=f"c0, , camera, UNKNOWN_CAMERA, 48, 36\n{radial}",
        records_camera="0, c0, a.jpg\n1, c1, b.jpg\n",
        trajectories="0, c0, 1,0,0,0,0,0,0\n1, c1, 1,0,0,0,0,0,0\n",
    )
    capture = read_kapture(hall, None)
    np.testing.assert_equal([view.focal_px for view in capture.views], [np.nan, 70])
    assert capture.notes == ["camera models with distortion: SIMPLE_RADIAL"]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("sensors.txt", "c9", "line 5: expected sensor_id, name, type"),
        ("sensors.txt", "c9, , camera, PINHOLE, 48, 36", "line 5: camera model PINHOLE has 4"),
        ("sensors.txt", "c9, , camera, EXOTIC, 48, 36", "line 5: expected camera model"),
        ("sensors.txt", "c9, , camera, PINHOLE, 48, 36, f, 2, 3, 4", "line 5: 'f' is not a number"),
        ("records_camera.txt", "1, c0", "line 32: expected timestamp, device_id"),
        ("records_camera.txt", "1, gps, a.jpg", "line 32: there is no camera 'gps'"),
        ("records_camera.txt", "noon, c0, a.jpg", "line 32: 'noon' is not a timestamp"),
        ("trajectories.txt", "99, c0, 1, 0, 0, 0, 0, 0", "line 32: expected timestamp, device"),
        ("trajectories.txt", "0000, c0, 1, 0, 0, 0, 0, 0, 0", "line 32: c0 has two poses"),
        ("rigs.txt", "rig, c0", "line 1: expected rig_id, sensor_id, qw"),
    ],
)  # fmt: skip
def test_damaged_files(file, line, message, hall):
    path = hall / "sensors" / file
    path.write_text((path.read_text() if path.is_file() else "") + line + "\n")
    with pytest.raises(MsposeError, match=f"{file}, {message}") as caught:
        read_kapture(hall, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        ("0, 0, 0, 0, 1, 2, 3", "the quaternion is zero"),
        ("1, 0, 0, 0, x, 2, 3", "'x' is not a number"),
        ("nan, 0, 0, 0, 1, 2, 3", "the pose holds NaN"),
        ("1, 0, 0, 0, 1, inf, 3", "the pose holds NaN or infinity"),
    ],
)
def test_bad_poses_are_named_by_file_and_line(pose, message, hall, refused):
    trajectory = hall / "sensors" / "trajectories.txt"
    line = trajectory.read_text().splitlines()[3]
    change_line(trajectory, 4, line, f"2, c0, {pose}")
    refused(f"trajectories.txt, line 4: {message}", "kapture", hall)


def test_a_bad_pose_on_a_rig_is_named_by_its_line(room, tmp_path, refused, imported):
    hall = write_kapture(tmp_path / "hall", stereo(room), OF_RIG)
    first = "\n".join((hall / "sensors" / "rigs.txt").read_text().splitlines()[:2])
    rewrite(hall, rigs=f"{first}\nrig, c1, 0, 0, 0, 0, 1, 2, 3")
    refused("rigs.txt, line 3: the quaternion is zero", "kapture", hall)
    rewrite(hall, rigs=f"{first}\nrig, c1, , , , , 1, 2, 3")  # no full pose: none
    text, _, _ = imported("kapture", hall)
    assert "left out, no pose at its time: 15: right/0.jpg" in text


@pytest.mark.parametrize("name", ["records_camera", "trajectories"])
def test_files_that_are_missing(name, hall):
    (hall / "sensors" / f"{name}.txt").unlink()
    message = f"no kapture folder: there is no .*{name}.txt; expected sensors/ with"
    with pytest.raises(MsposeError, match=message):
        read_kapture(hall, None)
    rewrite(hall, sensors="gps, , gnss\n", **{name: ""})
    with pytest.raises(MsposeError, match="sensors.txt lists no camera"):
        read_kapture(hall, None)
