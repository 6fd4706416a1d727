import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pose_matrix import pose_matrix

from mspose.poses import (
    camera_to_world,
    mean_quaternion,
    normalize_quaternion,
    orientation_error,
    position_error,
    quaternion_to_rotation,
    rotation_to_quaternion,
    turn_towards,
)

COMPONENT = st.floats(-1, 1, allow_nan=False, width=64)
QUATERNION = arrays(np.float64, 4, elements=COMPONENT).filter(lambda q: np.linalg.norm(q) > 1e-3)
AXIS = arrays(np.float64, 3, elements=COMPONENT).filter(lambda v: np.linalg.norm(v) > 1e-3)


def turned_by(degrees: float, axis: np.ndarray) -> np.ndarray:
    half = math.radians(degrees) / 2
    return np.array([math.cos(half), *(math.sin(half) * axis / np.linalg.norm(axis))])


def product(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.array(
        [p[0] * q[0] - p[1:] @ q[1:], *(p[0] * q[1:] + q[0] * p[1:] + np.cross(p[1:], q[1:]))]
    )


@given(QUATERNION)
def test_normalized_quaternions_are_unit_and_in_one_hemisphere(quaternion):
    unit = normalize_quaternion(quaternion)[0]
    assert abs(np.linalg.norm(unit) - 1) < 1e-12
    assert unit[0] >= 0
    np.testing.assert_array_equal(unit, normalize_quaternion(-quaternion)[0])


@pytest.mark.parametrize("quaternion", [[0, 0, -1, 2], [0, -3, 0, 0], [-0.0, 0, 0, -1]])
def test_half_turns_have_one_sign(quaternion):
    unit = normalize_quaternion(quaternion)[0]
    assert unit[np.flatnonzero(unit)[0]] > 0
    assert math.copysign(1, unit[0]) == 1


@pytest.mark.parametrize("quaternion", [[0, 0, 0, 0], [math.nan, 0, 0, 1], [math.inf, 0, 0, 1]])
def test_a_row_without_direction_is_refused(quaternion):
    with pytest.raises(ValueError, match="row 1"):
        normalize_quaternion([[1, 0, 0, 0], quaternion])


@given(QUATERNION)
def test_rotation_and_quaternion_are_inverses(quaternion):
    rotation = quaternion_to_rotation(quaternion)
    np.testing.assert_allclose(rotation[0] @ rotation[0].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation[0]) == pytest.approx(1)
    assert orientation_error(rotation_to_quaternion(rotation), quaternion)[0] < 1e-6


@given(QUATERNION, arrays(np.float64, 3, elements=st.floats(-50, 50)))
def test_rotation_turns_vectors_as_the_quaternion_does(quaternion, vector):
    unit = normalize_quaternion(quaternion)[0]
    turned = product(product(unit, np.array([0, *vector])), unit * [1, -1, -1, -1])[1:]
    np.testing.assert_allclose(quaternion_to_rotation(quaternion)[0] @ vector, turned, atol=1e-9)


@given(QUATERNION, arrays(np.float64, 3, elements=st.floats(-50, 50)))
def test_camera_to_world_inverts_world_to_camera(quaternion, translation):
    orientation, position = camera_to_world(quaternion, translation)
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = quaternion_to_rotation(quaternion)[0]
    world_to_camera[:3, 3] = translation
    np.testing.assert_allclose(
        pose_matrix(position, orientation)[0] @ world_to_camera, np.eye(4), atol=1e-9
    )


@given(
    QUATERNION, AXIS, st.one_of(st.floats(1e-3, 180), st.sampled_from([1e-3, 90.0, 179.999, 180.0]))
)
def test_orientation_error_is_the_angle(quaternion, axis, degrees):
    truth = normalize_quaternion(quaternion)[0]
    estimate = product(truth, turned_by(degrees, axis))
    for sign, scale in ((1, 1), (-1, 1), (1, 7.5)):
        assert orientation_error(sign * scale * estimate, truth)[0] == pytest.approx(
            degrees, abs=1e-4
        )


@given(QUATERNION)
def test_orientation_error_of_equal_quaternions_is_exactly_zero(quaternion):
    for dtype in (torch.float32, torch.float64):
        same = torch.tensor(quaternion[None], dtype=dtype)
        assert orientation_error(same, same)[0] == 0
        assert orientation_error(same, -same)[0] == 0


def test_orientation_error_is_never_nan():
    tiny, huge = np.full((1, 4), 1e-200), np.full((1, 4), 1e200)
    assert orientation_error(tiny, huge)[0] == 0
    assert orientation_error(np.zeros((1, 4)), huge)[0] == pytest.approx(180)
    with pytest.raises(ValueError, match="NaN"):
        orientation_error([[math.nan, 0, 0, 0]], [[1, 0, 0, 0]])


def test_position_error_takes_tensors_and_checks_shapes():
    assert position_error(torch.tensor([[1.0, 2, 2]]), np.zeros((1, 3)))[0] == 3
    with pytest.raises(ValueError, match=r"estimate_B3: expected shape \(B, 3\)"):
        position_error(np.zeros((2, 4)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="2 rows and truth 3"):
        position_error(np.zeros((2, 3)), np.zeros((3, 3)))


def test_mean_quaternion_ignores_signs():
    axis = np.array([0.0, 0, 1])
    quaternions = np.stack([turned_by(angle, axis) for angle in (10, 20, 30)]) * np.array(
        [[1], [-1], [1]]
    )
    assert orientation_error(mean_quaternion(quaternions), turned_by(20, axis))[0] < 1e-6


@given(QUATERNION, st.floats(-200, 200), st.floats(-200, 200), st.floats(50, 800))
def test_a_turned_camera_looks_along_the_ray_of_the_pixel(quaternion, right, down, focal):
    turned = turn_towards(quaternion, [right], [down], [focal])
    before, after = quaternion_to_rotation(quaternion)[0], quaternion_to_rotation(turned)[0]
    ray = before @ np.array([right, down, focal])
    np.testing.assert_allclose(after[:, 2], ray / np.linalg.norm(ray), atol=1e-9)
    angle = math.degrees(math.atan2(math.hypot(right, down), focal))
    assert orientation_error(turned, quaternion)[0] == pytest.approx(
        angle, abs=1e-6
    )  # and by no roll beyond that
