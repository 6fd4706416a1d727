from pathlib import Path

import pytest

from mspose.tools.importing.text_tables import header, image_column, pose_column

NEEDED = ("time", "x", "y", "z", "qw", "qx", "qy", "qz")


def order_of(folder: Path, text: str) -> list[int] | None:
    """Columns of `NEEDED` as a file's header names them."""
    (folder / "file").write_text(text + "\n1.0 2 3 4 5 6 7 8\n")
    columns = header(folder / "file", pose_column, NEEDED)[0]
    return None if columns is None else [columns.of[name] for name in NEEDED]


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("# timestamp tx ty tz qx qy qz qw", [0, 1, 2, 3, 7, 4, 5, 6]),
        ("timestamp tx ty tz qx qy qz qw", [0, 1, 2, 3, 7, 4, 5, 6]),
        ("#timestamp, tx, ty, tz, qw, qx, qy, qz", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("# timestamp\ttx\tty\ttz\tqw\tqx\tqy\tqz", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("Time;X;Y;Z;QW;QX;QY;QZ", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("# timestamp tx ty tz qw qx qy qz\n# recorded on a Tuesday", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("#timestamp [ns], p_RS_R_x [m], p_RS_R_y [m], p_RS_R_z [m], q_RS_w [], q_RS_x [], q_RS_y"
         " [], q_RS_z [], v_RS_R_x [m s^-1], b_w_RS_S_x [rad s^-1], b_a_RS_S_z [m s^-2]",
         [0, 1, 2, 3, 4, 5, 6, 7]),
        ("%time,field.header.seq,field.header.stamp,field.header.frame_id,field.pose.position.x,"
         "field.pose.position.y,field.pose.position.z,field.pose.orientation.x,"
         "field.pose.orientation.y,field.pose.orientation.z,field.pose.orientation.w",
         [2, 4, 5, 6, 10, 7, 8, 9]),
        ("id,timestamp_s,Position X,Position Y,Position Z,Rotation W,Rotation X,Rotation Y,"
         "Rotation Z", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("timestamp posX posY posZ quatW quatX quatY quatZ", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("stamp q_w q_x q_y q_z t_x t_y t_z", [0, 5, 6, 7, 1, 2, 3, 4]),
        ("t x y z rx ry rz rw", [0, 1, 2, 3, 7, 4, 5, 6]),
        ("time x y z q0 q1 q2 q3", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("time,tx,ty,tz,vx,vy,vz,qw,qx,qy,qz,wx,wy,wz", [0, 1, 2, 3, 7, 8, 9, 10]),
        ("# some trajectory", None),
        ("# time x y z q1 q2 q3 q4", None),  # which does not say where w is
        ("# time x y z roll pitch yaw", None),
        ("# tx ty tz qx qy qz qw", None),
        ("# time x y z x y z w", None),
    ],
)  # fmt: skip
def test_columns_by_their_names(text, order, tmp_path):
    assert order_of(tmp_path, text) == order


def test_units_are_those_beside_the_names(tmp_path):
    names = "timestamp_us, tx [mm], ty (cm), tz, qw, qx, qy, qz"
    (tmp_path / "file").write_text(f"# {names}\n1 2 3 4 5 6 7 8\n")
    columns = header(tmp_path / "file", pose_column, NEEDED)[0]
    assert columns.units == {"time": "us", "x": "mm", "y": "cm"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#timestamp [ns],filename", {"time": 0, "file": 1}),
        ("id,image_path,depth_path,time", {"time": 3, "file": 1}),
        ("# timestamp filename", {"time": 0, "file": 1}),
        ("# color images", None),
    ],
)
def test_columns_of_lists_of_images(text, expected, tmp_path):
    (tmp_path / "file").write_text(f"{text}\n1.0 a.png\n")
    columns = header(tmp_path / "file", image_column, ("time", "file"))[0]
    assert (columns and columns.of) == expected
