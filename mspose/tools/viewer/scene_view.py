"""Geometry of a scene in the viewer: paths, colours of errors, up direction, overview.

N frames; poses as everywhere (`mspose.poses`), which is viser's convention too.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from numpy.typing import NDArray

from mspose.metrics import (
    ESTIMATED_ORIENTATION,
    ESTIMATED_POSITION,
    TRUE_ORIENTATION,
    TRUE_POSITION,
)
from mspose.plotting import HEAT
from mspose.poses import Array, normalize_quaternion, quaternion_to_rotation, rotation_to_quaternion

ERRORS = {"position": "m", "orientation": "°"}
"""Errors that colours may show, and their units."""
DARKEST = 0.2  # of viridis, whose first colours are too dark for thin lines on a dark ground
ANGLE = 0.9  # radians, the vertical field of view of an overview
FAR = 100.0  # times a scene's size
FEW = 5.0  # times a path's median step: a longer one is a jump


@dataclass(frozen=True, eq=False)
class SceneView:
    """The predictions for one scene, in the order of the file."""

    scene: str
    image: list[str]
    predicted_scene: list[str | None]
    origin_3: Array
    """Origin of the positions below, metres: (0, 0, 0), or the middle of a scene far away from it,
    since graphics cards compute in single precision."""
    true_position_N3: Array
    true_orientation_N4: Array
    position_N3: Array
    """Estimated, metres."""
    orientation_N4: Array
    error_N: dict[str, Array]
    """By name in `ERRORS`: metres and degrees."""

    @cached_property
    def up_3(self) -> Array:
        """Up in the world, see `up_direction`."""
        return up_direction(self.true_orientation_N4)

    @cached_property
    def centre_3(self) -> Array:
        """Middle of the true positions, metres."""
        low_3, high_3 = np.percentile(self.true_position_N3, (2, 98), axis=0)
        return (low_3 + high_3) / 2

    @cached_property
    def extent(self) -> float:
        """Diagonal, in metres, of the box around the inner 96 % of true positions; 1 if empty."""
        low_3, high_3 = np.percentile(self.true_position_N3, (2, 98), axis=0)
        diagonal = float(np.linalg.norm(high_3 - low_3))
        return diagonal if diagonal > 1e-3 else 1.0

    @cached_property
    def limit(self) -> dict[str, float]:
        """Upper end of each error's colours: nineteen of twenty frames are below."""
        return {
            name: float(np.percentile(error_N, 95)) or 1.0 for name, error_N in self.error_N.items()
        }

    def colour_N3(self, error: str) -> NDArray[np.uint8]:
        """Colour every frame (RGB), from dark to bright as its error grows."""
        return error_colours(self.error_N[error] / self.limit[error])

    def frame_of_rank(self, rank: str) -> int:
        """Find the frame with the `best`, `median` or `worst` position."""
        order = np.argsort(self.error_N["position"], kind="stable")
        return int(order[{"best": 0, "median": (len(order) - 1) // 2, "worst": -1}[rank]])


def scene_view(predictions: pd.DataFrame, scene: str) -> SceneView:
    """Select one scene of a table of `mspose.metrics.read_predictions`."""
    rows = predictions[predictions["scene"] == scene]
    true_position_N3 = rows[TRUE_POSITION].to_numpy(np.float64)
    middle_3 = np.median(true_position_N3, axis=0)
    far = np.linalg.norm(middle_3) > FAR * np.linalg.norm(np.ptp(true_position_N3, axis=0))
    origin_3 = middle_3.round() if far else np.zeros(3)
    return SceneView(
        scene=scene,
        image=rows["image"].tolist(),
        predicted_scene=[None if pd.isna(name) else str(name) for name in rows["predicted_scene"]],
        origin_3=origin_3,
        true_position_N3=true_position_N3 - origin_3,
        true_orientation_N4=normalize_quaternion(rows[TRUE_ORIENTATION].to_numpy()),
        position_N3=rows[ESTIMATED_POSITION].to_numpy(np.float64) - origin_3,
        orientation_N4=normalize_quaternion(rows[ESTIMATED_ORIENTATION].to_numpy()),
        error_N={
            "position": rows["position_error_m"].to_numpy(np.float64),
            "orientation": rows["orientation_error_deg"].to_numpy(np.float64),
        },
    )


def up_direction(orientation_N4: Any) -> Array:
    """Estimate the world's up (3,), unit length, from how cameras are held.

    People hold cameras level, so that image rows are horizontal whichever way the camera points: up
    is orthogonal to all of them. Where they are all parallel, as of a camera that never turned, it
    is the mean image's up.
    """
    rotation_N33 = quaternion_to_rotation(orientation_N4)
    right_N3, image_up_N3 = rotation_N33[:, :, 0], -rotation_N33[:, :, 1]
    mean_up_3 = image_up_N3.mean(axis=0)
    spread_3, axes_33 = np.linalg.eigh(right_N3.T @ right_N3 / len(right_N3))  # ascending
    if spread_3[1] > 0.1 and spread_3[0] < spread_3[1] / 3:
        up_3 = axes_33[:, 0] * (1 if axes_33[:, 0] @ mean_up_3 >= 0 else -1)
    else:
        up_3 = mean_up_3
    length = float(np.linalg.norm(up_3))
    return up_3 / length if length > 0.05 else np.array([0.0, 0.0, 1.0])


def path_segments(image: list[str], position_N3: Array) -> Array:
    """Lines (M, 2, 3) from frame to frame, not from one sequence's folder to the next's nor over a
    jump.
    """
    if len(image) < 2:
        return np.zeros((0, 2, 3))
    folder = [name.rpartition("/")[0] for name in image]
    together = np.array([here == there for here, there in pairwise(folder)])
    step = np.linalg.norm(np.diff(position_N3, axis=0), axis=1)
    usual = float(np.median(step[together])) if together.any() else 0.0
    joined = together & (step <= FEW * usual) if len(image) > 3 else together
    return np.stack([position_N3[:-1][joined], position_N3[1:][joined]], axis=1)


def error_colours(share_N: Any) -> NDArray[np.uint8]:
    """Map shares of an error's limit to RGB (N, 3) of viridis: 0 is dark, from 1 on brightest."""
    value_N = DARKEST + (1 - DARKEST) * np.clip(np.asarray(share_N, np.float64), 0, 1)
    return (255 * colormaps[HEAT](value_N)[:, :3]).round().astype(np.uint8)


def overview(view: SceneView) -> tuple[Array, Array]:
    """Choose a camera that sees the whole scene, from above, across the longer side of the path.

    Returns its position and the point it is directed at.
    """
    long_3, back_3, _ = ground_axes(view.up_3, view.true_position_N3).T
    away_3 = (0.7 * view.up_3 - 0.85 * back_3) / np.hypot(0.7, 0.85)
    low_3, high_3 = np.percentile(view.true_position_N3, (2, 98), axis=0)
    around_N3 = np.clip(view.true_position_N3, low_3, high_3) - view.centre_3
    beside_N2 = np.abs(around_N3 @ np.stack([long_3, np.cross(away_3, long_3)], axis=1))
    distance = float((beside_N2.max(axis=1) / np.tan(ANGLE / 2) + around_N3 @ away_3).max())
    return view.centre_3 + max(1.15 * distance, 0.8 * view.extent) * away_3, view.centre_3


def ground_axes(up_3: Array, position_N3: Array) -> Array:
    """Axes as columns (3, 3), right-handed: along the path's longer side, across it, up."""
    level_N3 = position_N3 - position_N3.mean(axis=0)
    level_N3 = level_N3 - np.outer(level_N3 @ up_3, up_3)
    start_3 = np.eye(3)[int(np.argmin(np.abs(up_3)))]
    long_3 = (
        np.linalg.svd(level_N3, full_matrices=True)[2][0] if np.ptp(level_N3) > 1e-9 else start_3
    )
    long_3 = long_3 - (long_3 @ up_3) * up_3
    long_3 /= np.linalg.norm(long_3)
    return np.stack([long_3, np.cross(up_3, long_3), up_3], axis=1)


def ground(view: SceneView) -> tuple[Array, Array, float, float]:
    """Choose a grid below all cameras.

    Returns its centre, orientation, side, and the side of its squares (0.1, 1, 10, ... m).
    """
    axes_33 = ground_axes(view.up_3, view.true_position_N3)
    low = float(np.percentile(view.true_position_N3 @ view.up_3, 2)) - 0.15 * view.extent
    centre_3 = view.centre_3 + (low - view.centre_3 @ view.up_3) * view.up_3
    square = float(10.0 ** np.floor(np.log10(view.extent)))
    return (
        centre_3,
        rotation_to_quaternion(axes_33)[0],
        square * np.ceil(2.2 * view.extent / square),
        square,
    )
