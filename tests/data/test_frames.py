import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mspose import poses
from mspose.data.frames import COLUMNS, POSE_CONVENTIONS, frame_table, parse_numbers, read_lines
from mspose.errors import MsposeError

finite = st.floats(-50, 50, allow_nan=False)
quaternions = arrays(np.float64, (5, 4), elements=st.floats(-2, 2)).filter(
    lambda rows: bool((np.linalg.norm(rows, axis=1) > 1e-2).all())
)
positions = arrays(np.float64, (5, 3), elements=finite)


def table(position, orientation, convention="camera-to-world", **changes):
    rows = len(position)
    values = {
        "dataset": "rooms",
        "ground_truth": "original",
        "split": "train",
        "scene": ["attic"] * rows,
        "sequence": ["seq-01"] * rows,
        "image": [f"attic/seq-01/frame-{row:06d}.color.png" for row in range(rows)],
        "where": lambda row: f"poses.txt, line {row + 1}",
        "source": "here",
    }
    return frame_table(
        position_B3=position,
        orientation=orientation,
        convention=convention,
        **{**values, **changes},
    )


def rotation(quaternion):
    """Rotate the basis vectors one at a time by the sandwich product with w x y z."""
    w, v = quaternion[0], quaternion[1:]
    return np.stack(
        [
            e + 2 * np.cross(v, np.cross(v, e) + w * e) / (quaternion @ quaternion)
            for e in np.eye(3)
        ],
        1,
    )


@given(quaternions, positions)
@settings(max_examples=20, deadline=None)
def test_every_convention_yields_the_same_camera(quaternion_B4, centre_B3):
    given = {
        "camera-to-world": (quaternion_B4, centre_B3),
        "world-to-camera-position": (quaternion_B4 * [1, -1, -1, -1], centre_B3),
        "world-to-camera": (
            quaternion_B4 * [1, -1, -1, -1],
            np.stack([-rotation(q).T @ c for q, c in zip(quaternion_B4, centre_B3, strict=True)]),
        ),
    }
    assert set(given) == set(POSE_CONVENTIONS)
    for convention, (orientation, position) in given.items():
        matrices = np.stack([rotation(quaternion) for quaternion in orientation])
        by_matrix = table(position, matrices, convention)[["qw", "qx", "qy", "qz"]].to_numpy()
        assert poses.orientation_error(by_matrix, quaternion_B4).max() < 1e-6
        frames = table(position, orientation, convention)
        found = frames[["qw", "qx", "qy", "qz"]].to_numpy()
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)
        assert (found[:, 0] >= 0).all()
        assert poses.orientation_error(found, quaternion_B4).max() < 1e-6
        np.testing.assert_allclose(frames[["tx", "ty", "tz"]].to_numpy(), centre_B3, atol=1e-9)


def test_columns_types_and_index():
    frames = table(np.zeros((2, 3)), [[2, 0, 0, 0], [-1, 0, 0, 0]], focal_px=[500.0, math.nan])
    assert tuple(frames.columns) == COLUMNS
    assert frames.index.tolist() == [0, 1]
    assert frames[["qw", "qx", "qy", "qz"]].to_numpy().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    assert frames["focal_px"][0] == 500
    assert math.isnan(frames["focal_px"][1])
    assert frames.attrs["bad_frames"] == 0
    names = ["dataset", "ground_truth", "scene", "split", "sequence"]
    expected = ["rooms", "original", "attic", "train", "seq-01"]
    assert frames.loc[0, names].tolist() == expected


NAN = float("nan")
BAD_QUATERNIONS = {
    "NaN": ([[NAN, 0, 0, 1]], "NaN or infinity"),
    "infinite": ([[math.inf, 0, 0, 1]], "NaN or infinity"),
    "overflowing": ([[1e200, 0, 0, 1]], "NaN or infinity"),
    "zero": ([[0, 0, 0, 0]], "the quaternion is zero"),
    "next to zero": ([[1e-7, 0, 0, 0]], "the quaternion is zero"),
    "scaled matrix": ([np.eye(3) * 1.1], "not a rotation but a rotation times 1.1;"),
    "small matrix": ([np.eye(3) * 0.01], "not a rotation but a rotation times 0.01;"),
    "negative matrix": ([-np.eye(3)], "not a rotation but a rotation times -1, a reflection"),
    "reflection": ([np.diag([1.0, 1.0, -1.0])], "reflection"),
    "sheared": (
        [[[1, 0.2, 0], [0, 1, 0], [0, 0, 1]]],
        r"not a rotation: R\^T R differs from the identity by up to 0.2",
    ),
    "matrix with NaN": ([[[1, NAN, 0], [0, 1, 0], [0, 0, 1]]], "NaN or infinity"),
    "zero matrix": ([np.zeros((3, 3))], "not a rotation"),
}


@pytest.mark.parametrize("name", BAD_QUATERNIONS)
def test_a_bad_orientation_is_named_with_its_line(name):
    orientation, message = BAD_QUATERNIONS[name]
    good = [1, 0, 0, 0] if np.ndim(orientation) == 2 else np.eye(3)
    with pytest.raises(MsposeError, match=rf"^poses.txt, line 2: .*{message}"):
        table(np.zeros((2, 3)), np.array([good, orientation[0]], dtype=float))


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_a_bad_position_is_named_with_its_line(value):
    with pytest.raises(MsposeError, match=r"^poses.txt, line 1: the pose holds NaN or infinity"):
        table([[0, value, 0]], [[1, 0, 0, 0]])


@pytest.mark.parametrize("focal", [0, -1, math.inf])
def test_an_impossible_focal_length_is_refused(focal):
    with pytest.raises(MsposeError, match=r"line 1: a focal length of"):
        table(np.zeros((1, 3)), [[1, 0, 0, 0]], focal_px=focal)


def test_slightly_rounded_matrices_and_odd_norms_are_accepted():
    matrix = rotation(np.array([0.9, 0.1, -0.3, 0.2]))
    frames = table(np.zeros((1, 3)), [np.round(matrix, 3)])
    assert (
        poses.orientation_error(frames[["qw", "qx", "qy", "qz"]].to_numpy(), [0.9, 0.1, -0.3, 0.2])[
            0
        ]
        < 0.1
    )
    frames = table(np.zeros((2, 3)), [[1.9, 0.1, -0.3, 0.2], [0.5, 0.5, 0.5, 0.3]])
    np.testing.assert_allclose(np.linalg.norm(frames[["qw", "qx", "qy", "qz"]], axis=1), 1)


def test_duplicate_images_are_named_with_both_places_even_when_skipping():
    for mode in ("stop", "skip"):
        with pytest.raises(
            MsposeError,
            match=r"poses.txt, line 2: image a.png is there twice \(first: poses.txt, line 1",
        ):
            table(np.zeros((2, 3)), [[1, 0, 0, 0]] * 2, image=["a.png", "a.png"], on_bad_frame=mode)


def test_skip_leaves_bad_frames_out_and_counts_them(caplog):
    with caplog.at_level(logging.WARNING, logger="mspose"):
        frames = table(
            [[0, 0, 0], [0, NAN, 0], [3, 0, 0], [4, 0, 0]],
            [[1, 0, 0, 0]] * 4,
            faults={3: "the image is missing"},
            on_bad_frame="skip",
        )
    assert frames["tx"].tolist() == [0, 3]
    assert frames.index.tolist() == [0, 1]
    assert frames.attrs["bad_frames"] == 2
    assert "left out 2 of 4 frames; the first: poses.txt, line 2: the pose holds NaN" in caplog.text


def test_the_loaders_own_fault_goes_first():
    with pytest.raises(
        MsposeError, match=r"^poses.txt, line 1: it has 15 values; .*--on-bad-frame skip"
    ):
        table([[NAN, 0, 0]], [[1, 0, 0, 0]], faults={0: "it has 15 values"})


def test_a_scene_without_frames_is_refused():
    with pytest.raises(MsposeError, match=r"scene attic has no train frames in here"):
        table([[NAN, 0, 0]], [[1, 0, 0, 0]], on_bad_frame="skip")
    with pytest.raises(MsposeError, match=r"scene cellar has no train frames in here"):
        table(np.zeros((1, 3)), [[1, 0, 0, 0]], scenes=["attic", "cellar"])
    with pytest.raises(MsposeError, match=r"no train frames in here"):
        table(np.zeros((0, 3)), np.zeros((0, 4)))
    with pytest.raises(MsposeError, match=r"no train frames in here"):
        table(np.zeros((0, 3)), np.zeros((0, 3, 3)))


def test_unknown_words_are_refused_with_the_known_ones():
    with pytest.raises(
        MsposeError,
        match=r"'c2w'; there are: camera-to-world, world-to-camera, world-to-camera-position",
    ):
        table(np.zeros((1, 3)), [[1, 0, 0, 0]], "c2w")
    with pytest.raises(MsposeError, match=r"'stop' or 'skip', not 'ignore'"):
        table(np.zeros((1, 3)), [[1, 0, 0, 0]], on_bad_frame="ignore")


def test_read_lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbfone \r\n\r\n two\n")
    assert read_lines(path) == ["one", "", "two", ""]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MsposeError, match=r"lines.txt is not a text file"):
        read_lines(path)
    with pytest.raises(MsposeError, match=r"cannot read .*nothing.txt: No such file"):
        read_lines(tmp_path / "nothing.txt")


def test_parse_numbers():
    assert parse_numbers([b"1e-3", b" 2"]) == ([0.001, 2.0], "")
    numbers, fault = parse_numbers(["1", "0,5"])
    assert fault == "'0,5' is not a number"
    assert all(math.isnan(number) for number in numbers)
