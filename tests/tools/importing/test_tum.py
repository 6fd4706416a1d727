from pathlib import Path

import numpy as np
import pytest
from tools.importing.builders import ALL, change_line, matrices, numbers, quaternion, write_tum

from mspose.errors import MsposeError
from mspose.tools.importing.tum import associate, read_tum
from mspose.tools.timestamps import nanoseconds, seconds_text


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
    text, frames, _ = imported("tum", tmp_path / "desk", **ALL)
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
    for name, option in (("rgb.txt", "image-list"), ("groundtruth.txt", "trajectory")):
        moved = (desk / name).rename(tmp_path / f"{option}.txt")
        files[option.replace("-", "_")] = [str(moved)]
        message = f"no tum folder: there is no file {name}; say which one it is with --{option};"
        with pytest.raises(MsposeError, match=f"{message} expected groundtruth.txt with"):
            read(desk)
    with pytest.raises(MsposeError, match="--trajectory: there is no file .*nowhere"):
        read(desk, trajectory=desk / "nowhere")
    _, frames, _ = imported("tum", desk, images=[desk], tolerance=0.004, **files)
    assert set(frames["scene"]) == {"desk"}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("groundtruth.txt", "1 0 0 0 0 0 0", "line 1: expected timestamp tx .*, found 7 values"),
        ("groundtruth.txt", "nan 0 0 0 0 0 0 1", "line 1: 'nan' is not a timestamp"),
        ("groundtruth.txt", "# nothing", "is empty"),
        ("groundtruth.txt", "1.4e13 0 0 0 0 0 0 1", "line 1: 1.4e13 is too large for seconds"),
        ("groundtruth.txt", "1e30 0 0 0 0 0 0 1", "line 1: 1e30 is too large for seconds"),
        ("groundtruth.txt", "1 0 0 0 0 1 0 0 0 0 1 0", "found 12 values, as KITTI has"),
        ("groundtruth.txt", "# time x y z q1 q2 q3 q4\n1 0 0 0 0 0 0 1",
         "the columns' names have .*q3, expected"),
        ("groundtruth.txt", "# time p_x p_y p_z\n1 0 0 0", "the columns' names have .*p_z, exp"),
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
    assert len(imported("tum", desk, on_bad_frame="skip", **ALL)[1]) == 29


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
    text, frames, _ = imported("tum", desk, **ALL)
    np.testing.assert_allclose(matrices(frames.loc[room.names]), room.pose_B44, atol=1e-9)
    assert f"quaternion order: {order_said}" in text
    assert ("poses are those of the body that carries the camera" in text) == ("_RS_" in header)


@pytest.mark.parametrize(
    ("unit", "scale", "metres"), [("[ns]", 10**9, "[mm]"), ("[us]", 10**6, "(cm)"), ("(s)", 1, "")]
)
def test_units_in_the_header_count(unit, scale, metres, room, tmp_path, imported):
    """Nanoseconds from a start at 0 are no seconds since 1970."""
    desk = write_tum(tmp_path / "desk", room, start=2)
    per_metre = {"[mm]": 1000, "(cm)": 100, "": 1}[metres]
    lines = [f"timestamp {unit},tx {metres},ty {metres},tz {metres},qx,qy,qz,qw"]
    for number, pose_44 in enumerate(room.pose_B44):
        w, x, y, z = quaternion(pose_44[:3, :3])
        time = (2 + number / 30) * scale
        time = round(time) if scale > 1 else round(time, 6)
        values = numbers(*(per_metre * pose_44[:3, 3]), x, y, z, w).replace(" ", ",")
        lines.append(f"{time},{values}")
    (desk / "groundtruth.txt").write_text("\n".join(lines))
    text, frames, _ = imported("tum", desk, **ALL)
    np.testing.assert_allclose(matrices(frames.loc[room.names]), room.pose_B44, atol=1e-9)
    assert f"time is in {unit[1:-1]} there" in text


def test_euroc_folders_are_found(room, tmp_path, imported):
    for number, name in enumerate(("mav0", "flat")):
        top = tmp_path / name if name == "flat" else tmp_path / "MH_01" / "mav0"
        (top / "cam0" / "data").mkdir(parents=True)
        (top / "state_groundtruth_estimate0").mkdir()
        images, poses = ["#timestamp [ns],filename"], ["#timestamp, x, y, z, qw, qx, qy, qz"]
        for rank, (file, pose_44) in enumerate(zip(room.files, room.pose_B44, strict=True)):
            stamp = 1403636579763555584 + rank * 50_000_000
            (top / "cam0" / "data" / f"{stamp}.png").write_bytes(file.read_bytes())
            images.append(f"{stamp},{stamp}.png")
            values = [*pose_44[:3, 3], *quaternion(pose_44[:3, :3])]
            poses.append(f"{stamp}," + numbers(*values).replace(" ", ","))
        (top / "cam0" / "data.csv").write_text("\r\n".join(images))
        (top / "state_groundtruth_estimate0" / "data.csv").write_text("\r\n".join(poses))
        path = top if name == "flat" else top.parent
        text, frames, card = imported("tum", path, **ALL, out=f"own-{number}")
        np.testing.assert_allclose(matrices(frames.sort_index()), room.pose_B44, atol=1e-9)
        assert list(card.scenes) == ["flat" if name == "flat" else "MH_01"]
        assert "poses are those of the body" in text


@pytest.mark.parametrize("order", ["rgb first", "depth first", "pose"])
def test_lists_of_associations(order, room, tmp_path, imported):
    """Of `time rgb time depth` the colour images are taken, with their own times."""
    desk = write_tum(tmp_path / "desk", room)
    (desk / "rgb.txt").unlink()
    lines = []
    for number, file in enumerate(room.files):
        (desk / "rgb").mkdir(exist_ok=True)
        (desk / "rgb" / f"{number}.png").write_bytes(file.read_bytes())
        time = 1305031102.175 + number / 30
        rgb, depth = f"{time:.6f} rgb/{number}.png", f"{time + 0.018:.6f} depth/{number}.png"
        tail = {"rgb first": f"{rgb} {depth}", "depth first": f"{depth} {rgb}"}
        lines.append(tail.get(order, f"{rgb} {time:.6f} 0 0 0 0 0 0 1"))
    (desk / "associations.txt").write_text("\n".join(lines))
    text, frames, _ = imported("tum", desk, **ALL, tolerance=0.004)
    assert sorted(frames.index) == sorted(f"rgb/{number}.png" for number in range(30))
    assert "associations.txt is a list of associations: its images are those like rgb/0.png" in text


def test_of_several_poses_at_one_time_the_last_counts_as_in_associate_py(room, tmp_path):
    trajectory = write_tum(tmp_path, room) / "groundtruth.txt"
    lines = trajectory.read_text().splitlines()
    stamp = lines[5].split()[0]
    trajectory.write_text("\n".join([*lines, f"{stamp} 7 8 9 0 0 0 1"]))
    capture = read(tmp_path)
    assert [view.position for view in capture.views][3] == [7, 8, 9]
    assert f"1 times have several poses, of which the last counts: {stamp}" in capture.notes[-2]


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("1403636579.763555584", 1403636579763555584),
        ("1403636579763555584", 1403636579763555584),
        ("1403636579763555", 1403636579763555000),
        ("1403636579763", 1403636579763000000),
        ("1.403636579763555584e9", 1403636579763555584),
        ("-3.5", -3500000000),
    ],
)
def test_timestamps_of_every_size_are_exact(text, time_ns):
    assert nanoseconds(text) == time_ns
    assert nanoseconds(seconds_text(time_ns)) == time_ns
