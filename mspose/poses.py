"""Poses: the one convention, conversions into it with SciPy's rotations, and the two errors.

A pose is camera-to-world: the position is the camera's centre in the scene's world frame (metres),
the orientation a quaternion `w x y z` of unit norm with `w >= 0`. Camera axes: x right, y down, z
forward. Everything here is float64.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

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


def _rotations(quaternion_B4: Any) -> Rotation:
    return Rotation.from_quat(normalize_quaternion(quaternion_B4), scalar_first=True)


def _quaternions(rotation: Rotation) -> Array:
    return rotation.as_quat(canonical=True, scalar_first=True) + 0.0  # turns -0.0 into 0.0


def normalize_quaternion(quaternion_B4: Any) -> Array:
    """Quaternions (B, 4) of unit norm in one hemisphere: the first component that is not 0 is
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
    return _rotations(quaternion_B4).as_matrix()


def rotation_to_quaternion(rotation_B33: Any) -> Array:
    """Normalised quaternions (B, 4) of rotation matrices, or of the nearest rotations to them."""
    rotation = np.asarray(rotation_B33, dtype=np.float64)
    rotation = rotation[None] if rotation.ndim == 2 else rotation
    if rotation.ndim != 3 or rotation.shape[1:] != (3, 3):
        raise ValueError(
            f"rotation_B33: expected shape (B, 3, 3) or (3, 3), found {rotation.shape}"
        )
    return _quaternions(Rotation.from_matrix(rotation))


def camera_to_world(quaternion_B4: Any, translation_B3: Any) -> tuple[Array, Array]:
    """(orientation, position) of cameras given world-to-camera, p_cam = R(q) p_world + t."""
    orientation = _rotations(quaternion_B4).inv()
    return _quaternions(orientation), -orientation.apply(_rows(translation_B3, 3, "translation_B3"))


def invert_quaternion(quaternion_B4: Any) -> Array:
    """Quaternions (B, 4) of the inverse rotations, normalised."""
    return _quaternions(_rotations(quaternion_B4).inv())


def turn_towards(quaternion_B4: Any, right_px_B: Any, down_px_B: Any, focal_px_B: Any) -> Array:
    """Orientations (B, 4) of cameras turned, by the smallest rotation, to point at a pixel of their
    own image.

    The pixel lies `right_px_B` and `down_px_B` pixels from the principal point; the focal length is
    in the same pixels.
    """
    x, y, focal = np.broadcast_arrays(right_px_B, down_px_B, focal_px_B)
    # half way from the optical axis z to the ray d = (x, y, focal): (|d| + z.d, z x d)
    length = np.sqrt(x * x + y * y + focal * focal)
    turn_B4 = np.stack([length + focal, -y, x, np.zeros_like(length)], axis=1)
    return _quaternions(_rotations(quaternion_B4) * _rotations(turn_B4))


def mean_quaternion(quaternion_B4: Any) -> Array:
    """Mean orientation (4,), the same for q and -q (Markley et al. 2007)."""
    return _quaternions(_rotations(quaternion_B4).mean())


def widest_axes(position_N3: Any) -> tuple[int, int]:
    """Return the two of the axes 0, 1, 2 along which positions vary most: those of a map."""
    spread_3 = _rows(position_N3, 3, "position_N3").std(axis=0)
    first, second = np.sort(np.argsort(spread_3, stable=True)[1:])
    return int(first), int(second)


def position_error(estimate_B3: Any, truth_B3: Any) -> Array:
    """Euclidean distances (B,) in metres."""
    estimate, truth = _pair(estimate_B3, truth_B3, 3)
    return np.linalg.norm(estimate - truth, axis=1)


def orientation_error(estimate_B4: Any, truth_B4: Any) -> Array:
    """Angles (B,) in degrees between orientations given as quaternions of any norm and sign.

    The angle is 2 acos |<q, q'>|, computed as 4 atan2(|q - q'|, |q + q'|), which stays exact near
    0 where acos loses half of its digits: equal quaternions give exactly 0. A zero quaternion,
    which names no orientation, counts as 180 degrees. Raises ValueError for values that are not
    finite.
    """
    estimate, truth = _pair(estimate_B4, truth_B4, 4)
    if not (np.isfinite(estimate).all() and np.isfinite(truth).all()):
        raise ValueError("orientation_error: a quaternion holds NaN or infinity")
    estimate, truth = _unit_or_zero(estimate), _unit_or_zero(truth)
    difference = np.linalg.norm(estimate - truth, axis=1)
    total = np.linalg.norm(estimate + truth, axis=1)
    near, far = np.minimum(difference, total), np.maximum(difference, total)
    return np.degrees(4 * np.arctan2(near, far))


def _pair(estimate: Any, truth: Any, width: int) -> tuple[Array, Array]:
    first = _rows(estimate, width, f"estimate_B{width}")
    second = _rows(truth, width, f"truth_B{width}")
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(
            f"estimate has {len(first)} rows and truth {len(second)}: expected as many"
        )
    return first, second


def _unit_or_zero(quaternion_B4: Array) -> Array:
    # scaled first, so that squares neither overflow nor vanish
    scale = np.abs(quaternion_B4).max(axis=1, keepdims=True)
    scaled = quaternion_B4 / np.where(scale > 0, scale, 1)
    norm = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(norm > 0, norm, 1)
