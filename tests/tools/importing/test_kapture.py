from dataclasses import replace

import numpy as np
import pytest
from tools.importing.builders import FOCAL, rotation, write_kapture

from mspose.errors import MsposeError
from mspose.tools.importing.importer import import_data
from mspose.tools.importing.kapture import read_kapture
from mspose.tools.importing.splits import SplitBy

OF_RIG = np.tile(np.eye(4), (2, 1, 1))
OF_RIG[0, :3, 3] = [0.1, 0.2, -0.3]
OF_RIG[1, :3, :3] = rotation([0.8, 0.0, 0.6, 0.0])
OF_RIG[1, :3, 3] = [-0.5, 0.0, 0.1]


def stereo(room):
    """The room's frames in pairs: each second one is what the rig's second camera sees meanwhile."""
    pose_B44 = room.pose_B44.copy()
    for first in range(0, len(pose_B44), 2):
        rig_to_world = pose_B44[first] @ OF_RIG[0]
        pose_B44[first + 1] = rig_to_world @ np.linalg.inv(OF_RIG[1])
    names = [
        f"{'right' if number % 2 else 'left'}/{number // 2}.jpg" for number in range(len(pose_B44))
    ]
    return replace(room, names=names, pose_B44=pose_B44)


def test_cameras_of_a_rig(room, tmp_path, frames_of, matrices):
    pairs = stereo(room)
    write_kapture(tmp_path / "hall", pairs, OF_RIG)
    import_data(
        "kapture", [str(tmp_path / "hall")], str(tmp_path / "own"), split=SplitBy(block=2, margin=1)
    )
    frames = frames_of(tmp_path / "own").set_index("image")
    expected = dict(zip(pairs.names, pairs.pose_B44, strict=True))
    np.testing.assert_allclose(
        matrices(frames), [expected[name] for name in frames.index], atol=1e-9
    )
    for number in range(15):  # what was seen at one time is in one split
        left, right = (frames["split"].get(f"{side}/{number}.jpg") for side in ("left", "right"))
        assert left == right == {3: None, 4: "test", 5: "test", 6: None}.get(number, left)
    assert set(frames["sequence"]) == {"rig"}
    assert set(frames["focal_px"]) == {FOCAL}


def test_a_rig_on_a_rig(room, tmp_path):
    """Each step is the unit pose but for a shift; the camera stands where all of them together put
    it.
    """
    write_kapture(tmp_path, room)
    sensors = tmp_path / "sensors"
    (sensors / "rigs.txt").write_text(
        "# rigs\ncar, mast, 1, 0, 0, 0, 0, -2, 0\nmast, c0, 1, 0, 0, 0, 0, -0.5, 0\n"
    )
    (sensors / "trajectories.txt").write_text(
        "0, car, 1, 0, 0, 0, -7, 0, 0\n1, c0, 1, 0, 0, 0, 1, 1, 1\n"
    )
    capture = read_kapture(tmp_path, None)
    assert [list(view.position) for view in capture.views] == [
        [-7, -2.5, 0],
        [1, 1, 1],
    ]  # its own pose goes first
    assert [view.sequence for view in capture.views] == ["car", "walk 1"]
    assert len(capture.unposed) == 28


def test_rigs_that_hold_each_other_have_no_pose(room, tmp_path):
    write_kapture(tmp_path, room)
    (tmp_path / "sensors" / "rigs.txt").write_text(
        "a, b, 1,0,0,0,0,0,0\nb, a, 1,0,0,0,0,0,0\na, c0, 1,0,0,0,0,0,0\n"
    )
    (tmp_path / "sensors" / "trajectories.txt").write_text("# none\n")
    with pytest.raises(MsposeError, match="no image has a pose in trajectories.txt"):
        read_kapture(tmp_path, None)


@pytest.mark.parametrize("end", [".", "sensors"])
def test_the_folder_or_its_sensors(end, room, tmp_path):
    write_kapture(tmp_path / "hall", room)
    text = import_data("kapture", [str(tmp_path / "hall" / end)], str(tmp_path / "own"))
    assert "| hall " in text


def test_images_without_a_pose_are_counted_and_named(room, tmp_path):
    write_kapture(tmp_path / "hall", room)
    trajectory = tmp_path / "hall" / "sensors" / "trajectories.txt"
    lines = trajectory.read_text().splitlines()
    lines[4] = "3, c0, , , , , 1, 2, 3"  # the format allows a position alone
    del lines[9]
    trajectory.write_text("\n".join(lines))
    text = import_data("kapture", [str(tmp_path / "hall")], str(tmp_path / "own"))
    assert "left out, no pose at its time: 2: walk 1/frame-3.jpg, walk 1/frame-8.jpg" in text
    assert "no pose at its time: c0 at 0008\n" in (tmp_path / "own" / "left_out.csv").read_text()


def test_times_with_more_digits_than_a_float(room, tmp_path):
    write_kapture(tmp_path, room)
    first = 1_700_000_000_000_000_001
    sensors = tmp_path / "sensors"
    (sensors / "records_camera.txt").write_text(f"{first}, c0, a.jpg\n{first + 1}, c0, b.jpg\n")
    (sensors / "trajectories.txt").write_text(
        f"{first + 1}, c0, 1,0,0,0,1,0,0\n{first}, c0, 1,0,0,0,0,0,0\n"
    )
    assert [view.position[0] for view in read_kapture(tmp_path, None).views] == [0, 1]


def test_cameras_of_any_model(room, tmp_path):
    write_kapture(tmp_path, room)
    (tmp_path / "sensors" / "sensors.txt").write_text(
        "c0, , camera, UNKNOWN_CAMERA, 48, 36\nc1, x, camera, SIMPLE_RADIAL, 48, 36, 70, 24, 18,"
        " 0.1\n"
    )
    (tmp_path / "sensors" / "records_camera.txt").write_text("0, c0, a.jpg\n1, c1, b.jpg\n")
    (tmp_path / "sensors" / "trajectories.txt").write_text(
        "0, c0, 1,0,0,0,0,0,0\n1, c1, 1,0,0,0,0,0,0\n"
    )
    capture = read_kapture(tmp_path, None)
    np.testing.assert_equal([view.focal_px for view in capture.views], [np.nan, 70])
    assert capture.notes == ["camera models with distortion: SIMPLE_RADIAL"]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("sensors.txt", "c9", "sensors.txt, line 5: expected sensor_id, name, type"),
        ("sensors.txt", "c9, , camera, PINHOLE, 48, 36", "line 5: camera model PINHOLE has 4 parameters, not 0"),
        ("sensors.txt", "c9, , camera, EXOTIC, 48, 36", "sensors.txt, line 5: expected camera model, width, height"),
        ("sensors.txt", "c9, , camera, PINHOLE, 48, 36, f, 2, 3, 4", "sensors.txt, line 5: 'f' is not a number"),
        ("records_camera.txt", "1, c0", "records_camera.txt, line 32: expected timestamp, device_id, image_path"),
        ("records_camera.txt", "1, gps, a.jpg", "line 32: there is no camera 'gps'"),
        ("records_camera.txt", "noon, c0, a.jpg", "line 32: 'noon' is not a timestamp"),
        ("trajectories.txt", "99, c0, 1, 0, 0, 0, 0, 0", "trajectories.txt, line 32: expected timestamp, device"),
        ("trajectories.txt", "0000, c0, 1, 0, 0, 0, 0, 0, 0", "line 32: c0 has two poses at 0000 .*line 2"),
        ("rigs.txt", "rig, c0", "rigs.txt, line 1: expected rig_id, sensor_id, qw"),
    ],
)  # fmt: skip
def test_damaged_files(file, line, message, room, tmp_path):
    write_kapture(tmp_path, room)
    path = tmp_path / "sensors" / file
    path.write_text((path.read_text() if path.is_file() else "") + line + "\n")
    with pytest.raises(MsposeError, match=message) as caught:
        read_kapture(tmp_path, None)
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
def test_bad_poses_are_named_by_file_and_line(pose, message, room, tmp_path):
    write_kapture(tmp_path / "hall", room)
    trajectory = tmp_path / "hall" / "sensors" / "trajectories.txt"
    lines = trajectory.read_text().splitlines()
    lines[3] = f"2, c0, {pose}"
    trajectory.write_text("\n".join(lines))
    with pytest.raises(MsposeError, match=f"trajectories.txt, line 4: {message}"):
        import_data("kapture", [str(tmp_path / "hall")], str(tmp_path / "own"))


def test_a_bad_place_on_a_rig_is_named_where_it_stands(room, tmp_path):
    write_kapture(tmp_path / "hall", stereo(room), OF_RIG)
    rigs = tmp_path / "hall" / "sensors" / "rigs.txt"
    lines = rigs.read_text().splitlines()
    rigs.write_text("\n".join([*lines[:2], "rig, c1, 0, 0, 0, 0, 1, 2, 3"]))
    with pytest.raises(MsposeError, match="rigs.txt, line 3: the quaternion is zero"):
        import_data("kapture", [str(tmp_path / "hall")], str(tmp_path / "own"))
    rigs.write_text(
        "\n".join([*lines[:2], "rig, c1, , , , , 1, 2, 3"])
    )  # no full pose: none, as in trajectories
    text = import_data("kapture", [str(tmp_path / "hall")], str(tmp_path / "own"))
    assert "left out, no pose at its time: 15: right/0.jpg" in text


@pytest.mark.parametrize("name", ["records_camera.txt", "trajectories.txt"])
def test_files_that_are_missing(name, room, tmp_path):
    write_kapture(tmp_path, room)
    (tmp_path / "sensors" / name).unlink()
    with pytest.raises(
        MsposeError, match=f"there is no .*{name}: a kapture with images and poses has it"
    ):
        read_kapture(tmp_path, None)
    (tmp_path / "sensors" / "sensors.txt").write_text("gps, , gnss\n")
    (tmp_path / "sensors" / name).write_text("")
    with pytest.raises(MsposeError, match="sensors.txt lists no camera"):
        read_kapture(tmp_path, None)
