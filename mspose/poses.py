"""Poses: the one convention, conversions into it, and the two errors.

A pose is camera-to-world: the position is the camera's centre in the scene's world frame (metres),
the orientation a quaternion `w x y z` of unit norm with `w >= 0`. Camera axes: x right, y down, z
forward. Everything here is float64.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _rows(values: Any, width: int, name: str) -> Array:
    """`values` (NumPy, torch on any device, or nested lists) as float64 rows (B, width)."""
    if hasattr(values, "detach"):
        values = values.detach().to("cpu").double().numpy()
    rows = np.asarray(values, dtype=np.float64)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"{name}: expected shape (B, {width}) or ({width},), found {rows.shape}")
    return rows


def normalize_quaternion(quaternion_B4: Any) -> Array:
    """Unit norm and one hemisphere: `w >= 0`; where `w == 0` the first non-zero of x, y, z is
    positive.

    Raises ValueError for a zero or non-finite row, with its number.
    """
    rows = _rows(quaternion_B4, 4, "quaternion_B4")
    norm_B1 = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norm_B1[:, 0]) | (norm_B1[:, 0] < 1e-12))
    if bad.size:
        raise ValueError(
            f"quaternion_B4: row {bad[0]} is zero or not finite: {rows[bad[0]].tolist()}"
        )
    unit = rows / norm_B1
    leading = unit[np.arange(len(unit)), np.argmax(unit != 0, axis=1)]
    return np.where(leading[:, None] < 0, -unit, unit) + 0.0  # + 0.0 turns -0.0 into 0.0


def quaternion_to_rotation(quaternion_B4: Any) -> Array:
    """Rotation matrices (B, 3, 3) of quaternions of any norm."""
    w, x, y, z = normalize_quaternion(quaternion_B4).T
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return np.moveaxis(rotation, 2, 0)


def rotation_to_quaternion(rotation_B33: Any) -> Array:
    """Normalised quaternions (B, 4) of rotation matrices.

    Of the four equivalent formulas (Shepperd 1978) each row takes the one that divides by its
    largest component.
    """
    rotation = np.asarray(rotation_B33, dtype=np.float64)
    rotation = rotation[None] if rotation.ndim == 2 else rotation
    if rotation.ndim != 3 or rotation.shape[1:] != (3, 3):
        raise ValueError(
            f"rotation_B33: expected shape (B, 3, 3) or (3, 3), found {rotation.shape}"
        )
    m = np.moveaxis(rotation, 0, 2)
    candidates = np.array(
        [
            [
                1 + m[0, 0] + m[1, 1] + m[2, 2],
                m[2, 1] - m[1, 2],
                m[0, 2] - m[2, 0],
                m[1, 0] - m[0, 1],
            ],
            [
                m[2, 1] - m[1, 2],
                1 + m[0, 0] - m[1, 1] - m[2, 2],
                m[0, 1] + m[1, 0],
                m[0, 2] + m[2, 0],
            ],
            [
                m[0, 2] - m[2, 0],
                m[0, 1] + m[1, 0],
                1 - m[0, 0] + m[1, 1] - m[2, 2],
                m[1, 2] + m[2, 1],
            ],
            [
                m[1, 0] - m[0, 1],
                m[0, 2] + m[2, 0],
                m[1, 2] + m[2, 1],
                1 - m[0, 0] - m[1, 1] + m[2, 2],
            ],
        ]
    )  # candidate, component, row: candidate k is the quaternion times 4 times its own component k
    best = np.argmax(candidates[np.arange(4), np.arange(4)], axis=0)
    return normalize_quaternion(candidates[best, :, np.arange(len(best))])


def camera_to_world(quaternion_B4: Any, translation_B3: Any) -> tuple[Array, Array]:
    """(orientation, position) in the house convention from world-to-camera poses, p_cam = R(q)
    p_world + t.
    """
    rotation_B33 = quaternion_to_rotation(quaternion_B4)
    translation = _rows(translation_B3, 3, "translation_B3")
    position_B3 = -np.einsum("bji,bj->bi", rotation_B33, translation)
    return invert_quaternion(quaternion_B4), position_B3


def invert_quaternion(quaternion_B4: Any) -> Array:
    """The inverse rotations, normalised."""
    return normalize_quaternion(_rows(quaternion_B4, 4, "quaternion_B4") * [1.0, -1.0, -1.0, -1.0])


def turn_towards(quaternion_B4: Any, right_px_B: Any, down_px_B: Any, focal_px_B: Any) -> Array:
    """Orientations (B, 4) of cameras turned, by the smallest rotation, to look at a point of their
    own image.

    The point lies `right_px_B` and `down_px_B` pixels from the principal point; focal length in the
    same pixels.
    """
    x, y = (
        np.asarray(values, np.float64) / np.asarray(focal_px_B, np.float64)
        for values in (right_px_B, down_px_B)
    )
    length = np.sqrt(x * x + y * y + 1)
    # half way from the optical axis z to the ray d = (x, y, 1) / length: (1 + z.d, z x d)
    turn_B4 = normalize_quaternion(
        np.stack([1 + 1 / length, -y / length, x / length, np.zeros_like(length)], axis=1)
    )
    w, x, y, z = normalize_quaternion(quaternion_B4).T
    a, b, c, d = turn_B4.T
    product = [w * a - x * b - y * c - z * d, w * b + x * a + y * d - z * c]
    product += [w * c - x * d + y * a + z * b, w * d + x * c - y * b + z * a]
    return normalize_quaternion(np.stack(product, axis=1))


def pose_matrix(position_B3: Any, quaternion_B4: Any) -> Array:
    """Camera-to-world matrices (B, 4, 4)."""
    pose_B44 = np.tile(np.eye(4), (len(_rows(position_B3, 3, "position_B3")), 1, 1))
    pose_B44[:, :3, :3] = quaternion_to_rotation(quaternion_B4)
    pose_B44[:, :3, 3] = _rows(position_B3, 3, "position_B3")
    return pose_B44


def mean_quaternion(quaternion_B4: Any) -> Array:
    """The mean orientation (4,): the largest eigenvector of the sum of q q^T (Markley et al. 2007),
    blind to signs.
    """
    unit = normalize_quaternion(quaternion_B4)
    return normalize_quaternion(np.linalg.eigh(unit.T @ unit)[1][:, -1])[0]


def widest_axes(position_N3: Any) -> tuple[int, int]:
    """The two of the axes 0, 1, 2 along which positions vary most, in order: what a view from above
    shows.
    """
    first, second = np.sort(
        np.argsort(_rows(position_N3, 3, "position_N3").std(axis=0), stable=True)[1:]
    )
    return int(first), int(second)


def position_error(estimate_B3: Any, truth_B3: Any) -> Array:
    """Euclidean distances (B,) in metres."""
    estimate, truth = _pair(estimate_B3, truth_B3, 3)
    return np.linalg.norm(estimate - truth, axis=1)


def orientation_error(estimate_B4: Any, truth_B4: Any) -> Array:
    """Angles (B,) in degrees between orientations given as quaternions of any norm and sign.

    The angle is 2 acos |<q, q'>| (METHOD of every paper in the field), computed as 4 atan2(|q -
    q'|, |q + q'|), which
    stays exact near 0 where acos loses half of its digits: equal quaternions give exactly 0. A zero
    quaternion, which names no orientation, counts as 180 degrees. Raises ValueError for values that
    are not finite.
    """
    estimate, truth = _pair(estimate_B4, truth_B4, 4)
    if not (np.isfinite(estimate).all() and np.isfinite(truth).all()):
        raise ValueError("orientation_error: a quaternion holds NaN or infinity")
    estimate, truth = _unit_or_zero(estimate), _unit_or_zero(truth)
    apart = np.linalg.norm(estimate - truth, axis=1)
    along = np.linalg.norm(estimate + truth, axis=1)
    return np.degrees(4 * np.arctan2(np.minimum(apart, along), np.maximum(apart, along)))


def _pair(estimate: Any, truth: Any, width: int) -> tuple[Array, Array]:
    first = _rows(estimate, width, f"estimate_B{width}")
    second = _rows(truth, width, f"truth_B{width}")
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(
            f"estimate has {len(first)} rows and truth {len(second)}: expected as many"
        )
    return first, second


def _unit_or_zero(quaternion_B4: Array) -> Array:
    scale = np.abs(quaternion_B4).max(
        axis=1, keepdims=True
    )  # first, so that squares neither overflow nor vanish
    scaled = quaternion_B4 / np.where(scale > 0, scale, 1)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(norm > 0, norm, 1)
