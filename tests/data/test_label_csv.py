import csv
import logging
from pathlib import Path

import numpy as np
import pytest

from mspose import poses
from mspose.data.label_csv import CSV_COLUMNS, read_label_csv
from mspose.errors import MsposeError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
HEADER = ",".join(CSV_COLUMNS)
POSITION, ORIENTATION = ["tx", "ty", "tz"], ["qw", "qx", "qy", "qz"]


def row(image, scene="attic", split="train", seq="seq-01", pose="1,2,3,0.9,0.1,-0.2,0.3"):
    return f"{scene},{split},{seq},{image},{pose}"


def read(path, split="train", **changes):
    values = {"dataset": "rooms", "ground_truth": "labels", "convention": "camera-to-world"}
    return read_label_csv(
        [path] if isinstance(path, Path) else path, split, **{**values, **changes}
    )


@pytest.fixture
def write(tmp_path):
    def write(*rows, header=HEADER, name="labels.csv"):
        path = tmp_path / name
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    return write


def test_rows_become_frames(write):
    path = write(
        row("cellar/7.jpg", scene="cellar", seq=""),
        row("attic/1.png", seq="12", pose="1e-3,-2,3.5,-2,0,0,0"),
        row("attic/2.png", split="test"),
        row("attic\\3.png", seq="anything at all"),
    )
    frames = read(path, focal_px=300.0)
    assert frames["image"].tolist() == ["attic/1.png", "attic/3.png", "cellar/7.jpg"]
    assert frames["scene"].tolist() == ["attic", "attic", "cellar"]
    assert frames["sequence"].tolist() == ["12", "anything at all", ""]
    assert frames.loc[0, POSITION + ORIENTATION].tolist() == [0.001, -2, 3.5, 1, 0, 0, 0]
    assert set(frames["focal_px"]) == {300}
    assert read(path, "test")["image"].tolist() == ["attic/2.png"]
    assert read(path, scenes=["cellar"])["image"].tolist() == ["cellar/7.jpg"]


def test_the_convention_is_the_callers(write):
    path = write(row("a.png"))
    turn = poses.normalize_quaternion([0.9, 0.1, -0.2, 0.3])
    as_written = read(path)
    np.testing.assert_allclose(as_written[ORIENTATION], turn)
    centre_kept = read(path, convention="world-to-camera-position")
    np.testing.assert_allclose(centre_kept[ORIENTATION], poses.invert_quaternion(turn))
    assert centre_kept.loc[0, POSITION].tolist() == [1, 2, 3]
    inverted = read(path, convention="world-to-camera")
    np.testing.assert_allclose(
        inverted[POSITION].to_numpy()[0],
        -poses.quaternion_to_rotation(turn)[0].T @ [1, 2, 3],
        atol=1e-12,
    )


def test_order_of_columns_more_columns_quotes_and_line_ends(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(
        b"\xef\xbb\xbfq4, img_path,q3,q2,q1,t3,t2,t1,seq,split,scene,comment\r\n"
        b'0,"./hall, north/1.png",0,0,1,3,2,1,seq-01,dev, attic ,"two\r\nlines"\r\n'
        b"\r\n"
        b"0,2.png,0,0,1,3,2,x,seq-01,dev,attic,\r\n"
        b",,,,,,,,,,,\r\n"
    )
    with pytest.raises(MsposeError, match=r"labels.csv, line 5: column t1: 'x' is not a number"):
        read(path, "dev")
    frames = read(path, "dev", on_bad_frame="skip")
    assert frames["image"].tolist() == ["hall, north/1.png"]
    assert frames.loc[0, POSITION].tolist() == [1, 2, 3]


def test_several_files_are_joined(write):
    first = write(row("a/1.png", scene="a"), name="a.csv")
    second = write(row("b/1.png", scene="b"), name="b.csv")
    assert read([second, first])["scene"].tolist() == ["a", "b"]
    with pytest.raises(
        MsposeError, match=r"a.csv, line 2: image a/1.png is there twice \(first: .*a.csv, line 2\)"
    ):
        read([first, first])


FAULTS = {
    "a word": ("1,2,3,1,0,0,left", "column q4: 'left' is not a number"),
    "an empty cell": ("1,,3,1,0,0,0", "column t2: '' is not a number"),
    "NaN": ("1,2,nan,1,0,0,0", "NaN or infinity"),
    "infinity": ("1,2,3,inf,0,0,0", "NaN or infinity"),
    "zero quaternion": ("1,2,3,0,0,0,0", "the quaternion is zero"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_pose_is_named_with_file_and_line_or_left_out(write, name, caplog):
    pose, message = FAULTS[name]
    path = write(row("1.png"), row("2.png", pose=pose), row("3.png"))
    with pytest.raises(MsposeError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert message in str(caught.value)
    with caplog.at_level(logging.WARNING, logger="mspose"):
        assert read(path, on_bad_frame="skip")["image"].tolist() == ["1.png", "3.png"]
    assert f"left out 1 of 3 frames; the first: {path}, line 3" in caplog.text


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_faults_of_structure_always_stop(write, tmp_path, mode):
    def stops(path, message, **changes):
        with pytest.raises(MsposeError, match=message) as caught:
            read(path, on_bad_frame=mode, **changes)
        assert "\n" not in str(caught.value)

    stops(
        write(row("1.png"), header=HEADER.replace("q3", "q_3")),
        r"labels.csv, line 1: column q3 is not there; a label",
    )
    for column in ("t1", "focal_px"):
        stops(
            write(header=f"{HEADER},focal_px,{column}"),
            f"labels.csv, line 1: column {column} is there twice",
        )
    for wrong, count in ((row("2.png") + ",9", 12), ("attic,train,seq-01,2.png,1,2", 6)):
        stops(write(row("1.png"), wrong), f"labels.csv, line 3: expected 11 values, found {count}")
    stops(
        write(row("1.png"), row("./1.png")),
        r"line 3: image 1.png is there twice \(first: .*labels.csv, line 2\)",
    )
    stops(
        write(row("1.png"), row("1.png", split="test")),
        r"labels.csv, line 3: image 1.png is there twice",
    )
    stops(write(row("")), "line 2: column img_path is empty")
    stops(write(row("1.png", scene=" ")), "line 2: column scene is empty")
    stops(write(row("1.png", split="")), "line 2: column split is empty")
    stops(write(), "no frames of split 'train' in .*labels.csv; splits there: none")
    stops(
        write(row("1.png", split="test")),
        "no frames of split 'train' in .*labels.csv; splits there: test",
    )
    stops(
        write(row("1.png")), "scene cellar has no train frames in .*labels.csv", scenes=["cellar"]
    )
    stops(
        write(row("1.png")),
        "line 2: attic is not a scene of rooms; its scenes: hall",
        known_scenes=["hall"],
    )
    stops(write(row('"1.png')), "labels.csv, line 2: not a CSV file")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    stops(tmp_path / "binary.csv", "binary.csv is not a text file")
    (tmp_path / "empty.csv").write_bytes(b"")
    stops(tmp_path / "empty.csv", "empty.csv, line 1: column scene is not there")
    stops(tmp_path / "nothing.csv", "cannot read .*nothing.csv: No such file")
    stops(tmp_path, "cannot read .*Is a directory")


def test_a_column_of_focal_lengths(write, caplog):
    """An empty cell is unknown; without the column the card's focal length holds for all."""
    header = HEADER + ",focal_px"
    known = write(
        row("a.png") + ",512.5",
        row("b.png") + ",",
        row("c.png") + ",1e3",
        header=header,
        name="known.csv",
    )
    np.testing.assert_array_equal(read(known, focal_px=300.0)["focal_px"], [512.5, np.nan, 1000])
    plain = write(row("d.png"), name="plain.csv")
    np.testing.assert_array_equal(
        read([known, plain], focal_px=300.0)["focal_px"], [512.5, np.nan, 1000, 300]
    )
    assert "column focal_px differs from the card's 300 pixels: the column counts" in caplog.text
    caplog.clear()
    read(plain, focal_px=300.0)
    assert caplog.text == ""
    assert np.isnan(read(plain)["focal_px"]).all()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("wide", "column focal_px: 'wide' is not a number"),
        ("-3", "a focal length of -3 pixels is impossible"),
        ("0", "a focal length of 0 pixels is impossible"),
        ("inf", "a focal length of inf pixels is impossible"),
    ],
)
def test_a_bad_focal_length_is_named_with_file_and_line_or_left_out(write, cell, message):
    path = write(row("1.png") + ",500", row("2.png") + f",{cell}", header=HEADER + ",focal_px")
    with pytest.raises(MsposeError, match=f"labels.csv, line 3: {message}"):
        read(path)
    assert read(path, on_bad_frame="skip")["image"].tolist() == ["1.png"]


COUNTS = {
    "7Scenes": {
        "chess": (4000, 2000),
        "fire": (2000, 2000),
        "heads": (1000, 1000),
        "office": (6000, 4000),
        "pumpkin": (4000, 2000),
        "redkitchen": (7000, 5000),
        "stairs": (2000, 1000),
        "all_scenes": (26000, 0),
    },
    "CambridgeLandmarks": {
        "KingsCollege": (1220, 343),
        "OldHospital": (895, 182),
        "ShopFacade": (231, 103),
        "StMarysChurch": (1487, 530),
        "Street": (3015, 2923),
        "all_scenes": (3833, 0),
    },
}
CONVENTIONS = {"7Scenes": "camera-to-world", "CambridgeLandmarks": "world-to-camera-position"}


@needs_shared
@pytest.mark.parametrize("folder", COUNTS)
def test_every_published_file_loads(folder):
    loaded = set()
    for scene, counts in COUNTS[folder].items():
        for split, count in zip(("train", "test"), counts, strict=True):
            path = SHARED / "labels" / folder / f"{scene}_{split}.csv"
            if scene == "all_scenes":
                path = path.with_name("all_scenes.csv")
            if count:
                loaded.add(path)
                assert len(read(path, split, convention=CONVENTIONS[folder])) == count
    assert loaded == set((SHARED / "labels" / folder).glob("*.csv"))


@needs_shared
@pytest.mark.parametrize("name", ["7Scenes/stairs", "CambridgeLandmarks/ShopFacade"])
def test_values_are_as_they_stand_in_a_published_file(name):
    path = SHARED / "labels" / f"{name}_test.csv"
    convention = CONVENTIONS[path.parent.name]
    frames = read(path, "test", convention=convention)
    with path.open() as text:
        given = list(csv.DictReader(text))
    assert frames["image"].tolist() == [entry["img_path"] for entry in given]
    np.testing.assert_array_equal(
        frames[POSITION], [[float(entry[c]) for c in ("t1", "t2", "t3")] for entry in given]
    )
    turn = poses.normalize_quaternion(
        [[float(entry[c]) for c in ("q1", "q2", "q3", "q4")] for entry in given]
    )
    expected = turn if convention == "camera-to-world" else poses.invert_quaternion(turn)
    np.testing.assert_allclose(frames[ORIENTATION], expected, atol=1e-15)


@pytest.mark.parametrize("number", ["１", "1_0", "٣"])
def test_numbers_are_in_ascii_digits(write, number):
    path = write(row("a.png"), row("b.png", pose=f"{number},2,3,1,0,0,0"))
    with pytest.raises(MsposeError, match=rf"line 3: column t1: '{number}' is not a number"):
        read(path)


@pytest.mark.parametrize(("metres", "good"), [("1e7", True), ("-1.1e7", False), ("1e300", False)])
def test_positions_that_are_too_far_away_are_refused(write, metres, good):
    path = write(row("a.png"), row("b.png", pose=f"1,{metres},3,1,0,0,0"))
    if good:
        assert len(read(path)) == 2
        return
    with pytest.raises(MsposeError, match=r"line 3: a position of .* m is too far away"):
        read(path)


@pytest.mark.parametrize("image", ["../b.png", "/etc/b.png", "a/../../b.png", "..\\b.png"])
def test_images_outside_of_the_root_are_refused(write, image):
    path = write(row("a.png"), row(image))
    with pytest.raises(MsposeError, match=r"line 3: .*leads outside of the folder"):
        read(path)
    assert read(path, on_bad_frame="skip")["image"].tolist() == ["a.png"]
