from pathlib import Path

import numpy as np
import pytest
from tools.importing.builders import ALL, change_line, matrices, numbers, quaternion, write_tum

from mspose.errors import MsposeError
from mspose.tools.importing.tum import associate, read_tum


def read(folder: Path, tolerance: float = 0.02, trajectory=None, image_list=None):
    return read_tum(folder, None, trajectory=trajectory, image_list=image_list, tolerance=tolerance)


@pytest.mark.parametrize(
    ("images", "poses", "tolerance", "expected"),
    [
        ([0, 10, 20], [1, 9, 23], 2, [0, 1, -1]),
        ([0, 100, 200], [205, 95, 5], 10, [2, 1, 0]),  # in any order
        ([0, 10], [4], 5, [0, -1]),  # a pose serves one image, the nearest
        ([10, 0], [4], 5, [-1, 0]),
        ([0, 20], [11, 35], 20, [-1, 0]),
        ([50], [10, 20], 5, [-1]),
        ([10], [10, 10], 5, [0]),
        ([100], [75, 125], 25, [0]),
    ],
)
def test_association(images, poses, tolerance, expected):
    assert associate(np.array(images), np.array(poses), tolerance).tolist() == expected


def test_association_of_many():
    rng = np.random.default_rng(3)
    images, poses = rng.integers(0, 3000, 60), rng.integers(0, 3000, 90)
    distance_BP = abs(images[:, None] - poses)
    found = associate(images, poses, 20)
    kept = np.flatnonzero(found >= 0)
    assert 10 < len(kept) < 60
    assert (distance_BP[kept, found[kept]] <= 20).all()
    assert len(set(found[kept])) == len(kept)


def test_images_without_a_pose_are_counted_and_named(room, tmp_path, imported):
    trajectory = write_tum(tmp_path / "desk", room) / "groundtruth.txt"
    lines = trajectory.read_text().splitlines()
    trajectory.write_text("\n".join(lines[:7] + lines[9:]))
    text, frames, _ = imported("tum", tmp_path / "desk", split=ALL)
    names = "walk 1/frame-5.jpg, walk 1/frame-6.jpg"
    assert f"left out, no pose of its own within 0.02 s: 2: {names}" in text
    assert len(frames) == 28
    assert frames["focal_px"].isna().all()
    assert (tmp_path / "own" / "left_out.csv").read_text().count("\n") == 3


def test_the_tolerance_is_the_callers(room, tmp_path):
    write_tum(tmp_path, room)  # poses 3 ms after their images
    assert len(read(tmp_path, 0.0031).views) == 30
    with pytest.raises(MsposeError, match=r"no image has a pose within 0.002 s: .*1305031102.175"):
        read(tmp_path, 0.002)


def test_other_names_of_the_files(room, tmp_path, imported):
    desk = write_tum(tmp_path / "desk", room)
    files = {}
    for name, option in (("rgb.txt", "image_list"), ("groundtruth.txt", "trajectory")):
        files[option] = [str((desk / name).rename(tmp_path / f"{option}.txt"))]
        with pytest.raises(MsposeError, match=f"no file .*{name}: .* with --{option}"):
            read(desk)
    _, frames, _ = imported("tum", desk, images=[desk], tolerance=0.004, **files)
    assert set(frames["scene"]) == {"desk"}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("groundtruth.txt", "1 0 0 0 0 0 0", "line 1: expected timestamp tx .*, found 7 values"),
        ("groundtruth.txt", "nan 0 0 0 0 0 0 1", "line 1: 'nan' is not a timestamp"),
        ("groundtruth.txt", "# nothing", "is empty"),
        ("groundtruth.txt", "1.4e15 0 0 0 0 0 0 1", "line 1: 1.4e15 is too large for seconds"),
        ("rgb.txt", "", "is empty"),
        ("rgb.txt", "1.0,", "line 1: expected timestamp file, found 1"),
        ("rgb.txt", "x a.jpg", "line 1: 'x' is not a timestamp"),
        ("rgb.txt", "#\n1.0", "line 2: expected timestamp file, found 1"),
    ],
)  # fmt: skip
def test_damaged_files(file, text, message, room, tmp_path):
    write_tum(tmp_path, room)
    (tmp_path / file).write_text(text)
    with pytest.raises(MsposeError, match=f"{file}.* {message}") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "fault"), [("0 0 0 0", "the quaternion is zero"), ("0 0 0 w", "'w' is not a num")]
)
def test_a_bad_pose_is_named_by_its_line_or_left_out(
    cells, fault, room, tmp_path, imported, refused
):
    desk = write_tum(tmp_path / "desk", room)
    orientation = numbers(*np.roll(quaternion(room.pose_B44[3, :3, :3]), -1))
    change_line(desk / "groundtruth.txt", 6, orientation, cells)
    refused(f"groundtruth.txt, line 6: {fault}", "tum", desk)
    assert len(imported("tum", desk, on_bad_frame="skip", split=ALL)[1]) == 29


def test_nanoseconds_and_commas(tmp_path):
    """EuRoC's stamps have more digits than a float; its poses in either unit, 4 ms later."""
    stamps = [1403636579763555584 + 50_000_000 * number for number in range(20)]
    rows = [f"{stamp},{stamp}.png\r\n" for stamp in stamps]
    (tmp_path / "data.csv").write_text("#timestamp [ns],filename\r\n" + "".join(rows), newline="")
    later = [stamp + 4_000_007 for stamp in stamps]
    seconds = [f"{stamp // 10**9}.{stamp % 10**9:09d}" for stamp in later]
    for name, times in (("ns", later), ("s", seconds)):
        lines = [f"{time},{row},0,0,0,0,0,1\n" for row, time in enumerate(times)]
        (tmp_path / name).write_text("".join(lines))
        capture = read(tmp_path, 0.0041, tmp_path / name, tmp_path / "data.csv")
        assert [view.position[0] for view in capture.views] == list(range(20))
        assert [view.image for view in capture.views] == [f"{stamp}.png" for stamp in stamps]
        with pytest.raises(MsposeError, match="no image has a pose within 0.0039 s"):
            read(tmp_path, 0.0039, tmp_path / name, tmp_path / "data.csv")


@pytest.mark.parametrize(
    ("header", "order", "order_said"),
    [
        ("#timestamp [ns], p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [],"
         " q_RS_y [], q_RS_z [], v_RS_R_x [m s^-1]", (0, 1, 2, 3, 4, 5, 6, 0), "w x y z, as the"),
        ("# timestamp qw qx qy qz tx ty tz", (3, 4, 5, 6, 0, 1, 2), "w x y z, as the header of"),
        ("timestamp,x,y,z,q_x,q_y,q_z,q_w", (0, 1, 2, 4, 5, 6, 3), "x y z w, as the header of"),
        ("# some trajectory", (0, 1, 2, 4, 5, 6, 3), "w last, as TUM has it"),
    ],
)  # fmt: skip
def test_columns_are_read_by_the_names_in_the_header(
    header, order, order_said, room, tmp_path, imported
):
    desk = write_tum(tmp_path / "desk", room)
    lines = [header]
    for number, pose_44 in enumerate(room.pose_B44):
        values = [*pose_44[:3, 3], *quaternion(pose_44[:3, :3])]
        time = 1305031102.175 + number / 30
        lines.append(f"{time:.6f} " + numbers(*(values[column] for column in order)))
    (desk / "groundtruth.txt").write_text("\n".join(lines))
    if not header.startswith("#"):  # nor is that of the image list a comment
        (desk / "rgb.txt").write_text("timestamp,file\n" + (desk / "rgb.txt").read_text())
    text, frames, _ = imported("tum", desk, split=ALL)
    np.testing.assert_allclose(matrices(frames.loc[room.names]), room.pose_B44, atol=1e-9)
    assert f"quaternion order: {order_said}" in text
    assert ("poses are the body's" in text) == ("_RS_" in header)
