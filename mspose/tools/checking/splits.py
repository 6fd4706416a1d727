"""Check how near test frames are to training frames.

Too near, and the test measures memory; too far, and pose regression cannot extrapolate.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mspose.poses import orientation_error
from mspose.tools.checking.findings import Finding, share
from mspose.tools.checking.trajectories import ORIENTATION, POSITION

LEAKING = 0.1  # share of the test frames with a training frame beside them in their sequence
# a training frame at this part of the distance to the neighbour in the own sequence, for this
# share of the test frames: splits are interleaved, whatever their sequences are called
CLOSER, MOSTLY = 0.6, 0.5
NEXT = 1.5  # usual intervals between file numbers, below which no frame was dropped between two
FEW = 2  # frames that prove nothing, whatever share they are
OUTSIDE = 0.05  # share of the test frames outside the training frames' box
MARGIN = 0.1  # of the box's diagonal, by which it is widened
VIDEO = 0.2  # median step over the scene's diagonal, below which a sequence is a video
# angle to the nearest viewing direction in training, and the share of test frames beyond it
UNSEEN_DEG, UNSEEN = 45.0, 0.2


class Nearness(NamedTuple):
    """A scene's test frames against its training frames."""

    scene: str
    frames: int
    median_m: float
    """Median distance to the training frame that is nearest in position and angle together."""
    median_deg: float
    beside: int
    """Test frames with a training frame directly beside them in their sequence."""
    closer: int
    """Test frames with a training frame clearly nearer than their neighbour in their sequence."""
    in_video: int
    """Test frames that have such a neighbour: those of sequences that are videos."""
    outside: int
    """Test frames outside the box of the training positions."""
    unseen: int
    """Test frames that look more than `UNSEEN_DEG` away from the nearest training frame."""


def nearness(ordered: pd.DataFrame, step: pd.DataFrame) -> list[Nearness]:
    """`Nearness` of each scene that has training and test frames.

    Args:
        ordered, step: results of `trajectories.in_order` and `trajectories.steps`.
    """
    found = []
    split_N = ordered["split"].to_numpy()
    for scene, rows_N in ordered.reset_index(drop=True).groupby("scene").indices.items():
        train_N, test_N = rows_N[split_N[rows_N] == "train"], rows_N[split_N[rows_N] == "test"]
        if len(train_N) and len(test_N):
            its_steps = step[step["scene"] == scene]
            found.append(_nearness(str(scene), ordered, its_steps, train_N, test_N))
    return found


def _nearness(
    scene: str,
    ordered: pd.DataFrame,
    step: pd.DataFrame,
    train_N: NDArray[np.intp],
    test_N: NDArray[np.intp],
) -> Nearness:
    position_N3, quaternion_N4 = ordered[POSITION].to_numpy(), ordered[ORIENTATION].to_numpy()
    low_3, high_3 = position_N3[train_N].min(axis=0), position_N3[train_N].max(axis=0)
    diagonal = float(np.linalg.norm(high_3 - low_3))
    # one unit is the median step, so that position and angle have equal weight
    metre = max(float(step["metres"].median()) if len(step) else 0.0, 1e-3 * diagonal, 1e-9)
    degree = max(float(step["degrees"].median()) if len(step) else 0.0, 0.1)
    half_angle = 2 * np.degrees(1) / degree  # |q - q'| is about half the angle in radians
    pose_N7 = np.nan_to_num(
        np.concatenate([position_N3 / metre, quaternion_N4 * half_angle], axis=1)
    )
    mirrored = np.array([1, 1, 1, -1, -1, -1, -1])  # q and -q are one orientation
    tree = cKDTree(np.concatenate([pose_N7[train_N], pose_N7[train_N] * mirrored]))
    distance_M, nearest_M = tree.query(pose_N7[test_N])
    nearest_M = train_N[nearest_M % len(train_N)]

    neighbour_N = np.full(len(ordered), np.nan)
    pair = step[["first", "second"]].to_numpy()
    first, second = pair[(step["interval"] < NEXT).to_numpy()].T
    beside = np.concatenate([first[np.isin(second, train_N)], second[np.isin(first, train_N)]])
    size = np.hypot(step["metres"].to_numpy() / metre, step["degrees"].to_numpy() / degree)
    if diagonal > 0 and metre < VIDEO * diagonal:
        np.fmin.at(neighbour_N, pair.ravel(), np.repeat(size, 2))
    own_M = neighbour_N[test_N]
    margin = MARGIN * diagonal
    test_M3 = position_N3[test_N]
    outside_M = ((test_M3 < low_3 - margin) | (test_M3 > high_3 + margin)).any(axis=1)
    look_M = _nearest_angle(quaternion_N4[train_N], quaternion_N4[test_N])
    return Nearness(
        scene,
        len(test_N),
        float(np.median(np.linalg.norm(test_M3 - position_N3[nearest_M], axis=1))),
        float(np.median(orientation_error(quaternion_N4[test_N], quaternion_N4[nearest_M]))),
        beside=int((np.isin(test_N, beside) & np.isfinite(own_M)).sum()),
        closer=int((distance_M <= own_M * CLOSER).sum()),
        in_video=int(np.isfinite(own_M).sum()),
        outside=int(outside_M.sum()),
        unseen=int((look_M > UNSEEN_DEG).sum()),
    )


def _nearest_angle(
    train_N4: NDArray[np.float64], test_M4: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Degrees from each test orientation to the nearest training orientation."""
    nearest = cKDTree(np.concatenate([train_N4, -train_N4])).query(test_M4)[1] % len(train_N4)
    return orientation_error(test_M4, train_N4[nearest])


def split_findings(scenes: list[Nearness]) -> list[Finding]:
    """Test sets too near to the training set, and too far from it."""
    findings = []
    for near in scenes:
        leaking = near.beside > max(FEW, LEAKING * near.frames)
        if leaking or near.closer > max(FEW, MOSTLY * near.frames):
            count = share(near.beside if leaking else near.closer, near.frames)
            which = "directly beside them" if leaking else "nearer than the one beside them"
            text = (
                f"{near.scene}: the test set is too near to the training set: {count} test frames"
                f" have a training frame {which} in their sequence, as in a split by every n-th"
                f" frame (the nearest is {near.median_m:.3g} m, {near.median_deg:.3g} deg away, in"
                " the median); split by sequences, or by blocks with a margin"
            )
            findings.append(Finding("warning", "test-near-train", text))
        if near.outside > max(FEW, OUTSIDE * near.frames):
            text = (
                f"{near.scene}: {share(near.outside, near.frames)} test frames lie outside the box"
                " of the training positions: pose regression does not extrapolate"
            )
            findings.append(Finding("warning", "test-outside-train", text))
        if near.unseen > max(FEW, UNSEEN * near.frames):
            text = (
                f"{near.scene}: {share(near.unseen, near.frames)} test frames look more than"
                f" {UNSEEN_DEG:g} degrees away from every training frame"
            )
            findings.append(Finding("warning", "test-views-unseen", text))
    return findings
