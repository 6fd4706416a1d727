"""The frame table: one row per frame, in one pose convention, whatever the files said.

Every loader collects what its files hold and calls `frame_table` once, at the end. Validation and
the conversion of poses happen there and nowhere else; messages name the file and the line.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mspose import poses
from mspose.errors import MsposeError

logger = logging.getLogger("mspose")

COLUMNS = (
    "dataset",
    "ground_truth",
    "scene",
    "split",
    "sequence",
    "image",
    *("tx", "ty", "tz", "qw", "qx", "qy", "qz"),
    "focal_px",
)

CAMERA_TO_WORLD = "camera-to-world"
"""Position: camera centre. Orientation: camera-to-world."""
WORLD_TO_CAMERA = "world-to-camera"
"""p_cam = R p_world + t, as COLMAP and 7Scenes' structure-from-motion files store it."""
WORLD_TO_CAMERA_POSITION = "world-to-camera-position"
"""Position: camera centre. Orientation: world-to-camera. Cambridge Landmarks stores it so."""
POSE_CONVENTIONS = (CAMERA_TO_WORLD, WORLD_TO_CAMERA, WORLD_TO_CAMERA_POSITION)

# 7Scenes' published matrices are off by up to 4e-4; a scaled, sheared or mistyped one by far more
# than this
ROTATION_TOLERANCE = 1e-2
# published quaternions have norms from 0.95 to 2.0
SMALLEST_QUATERNION_NORM = 1e-6


class NoFramesLeft(MsposeError):
    """A scene or split without a single good frame; `faults` says what is wrong with the bad ones."""

    def __init__(self, message: str, faults: list[str]):
        super().__init__(message)
        self.faults = faults


def frame_table(
    *,
    dataset: str,
    ground_truth: str,
    split: str,
    scene: Sequence[str],
    sequence: Sequence[str],
    image: Sequence[str],
    position_B3: Any,
    orientation: Any,
    convention: str,
    where: Callable[[int], str],
    source: str,
    focal_px: Any = math.nan,
    faults: Mapping[int, str] | None = None,
    scenes: Sequence[str] | None = None,
    on_bad_frame: str = "stop",
) -> pd.DataFrame:
    """The checked frame table (`COLUMNS`) of one split, with poses in the house convention.

    Args:
        dataset, ground_truth, split: one name each, for all rows.
        scene, sequence, image: per row; `image` is relative to the data set's root, with `/`.
        position_B3: metres (B, 3); camera centres, or translations under `world-to-camera`.
        orientation: quaternions w x y z of any norm (B, 4), or rotation matrices (B, 3, 3).
        convention: one of `POSE_CONVENTIONS`.
        where: row number -> the file (and line) that the row came from, for messages.
        source: the folder or files that were read, for the message about a scene without frames.
        focal_px: one value or one per row, in pixels of the original image; NaN where unknown.
        faults: row number -> what the loader found wrong with it; the numbers of such a row are not
            looked at.
        scenes: scenes that must have at least one frame; by default those of the rows.
        on_bad_frame: `stop` raises at the first bad frame; `skip` leaves bad frames out, warns with
            their number, and notes it in `table.attrs["bad_frames"]`, and what is wrong with each
            in `table.attrs["faults"]`.

    Raises MsposeError for a bad frame (NaN, non-rotation, zero quaternion, impossible focal length,
    the loader's own `faults`), a duplicate image, or a scene without frames.
    """
    if convention not in POSE_CONVENTIONS:
        raise MsposeError(
            f"unknown pose convention {convention!r}; there are: {', '.join(POSE_CONVENTIONS)}"
        )
    if on_bad_frame not in ("stop", "skip"):
        raise MsposeError(f"on_bad_frame is 'stop' or 'skip', not {on_bad_frame!r}")
    rows = len(image)
    position = np.asarray(position_B3, dtype=np.float64).reshape(rows, 3)
    turn = np.asarray(orientation, dtype=np.float64).reshape(
        (rows, 4) if np.ndim(orientation) < 3 else (rows, 3, 3)
    )
    focal = np.broadcast_to(np.asarray(focal_px, dtype=np.float64), (rows,))

    _refuse_duplicates(image, where)
    bad = {**_pose_faults(position, turn, focal), **(faults or {})}
    if bad and on_bad_frame == "stop":
        first = min(bad)
        raise MsposeError(
            f"{where(first)}: {bad[first]}; correct it, or go on without such frames with"
            " --on-bad-frame skip"
        )
    keep = np.ones(rows, dtype=bool)
    keep[list(bad)] = False
    if bad:
        first = min(bad)
        logger.warning(
            "left out %d of %d frames; the first: %s: %s", len(bad), rows, where(first), bad[first]
        )

    faults_found = [f"{where(row)}: {bad[row]}" for row in sorted(bad)]
    kept_scenes = {name for name, stays in zip(scene, keep, strict=True) if stays}
    for name in scenes if scenes is not None else dict.fromkeys(scene):
        if name not in kept_scenes:
            raise NoFramesLeft(f"scene {name} has no {split} frames in {source}", faults_found)
    if not kept_scenes:
        raise NoFramesLeft(f"no {split} frames in {source}", faults_found)

    quaternion_B4, centre_B3 = _to_house_convention(turn[keep], position[keep], convention)
    kept = np.flatnonzero(keep).tolist()
    table = pd.DataFrame(
        {
            "dataset": dataset,
            "ground_truth": ground_truth,
            "scene": [scene[row] for row in kept],
            "split": split,
            "sequence": [sequence[row] for row in kept],
            "image": [image[row] for row in kept],
            **dict(zip(("tx", "ty", "tz"), centre_B3.T, strict=True)),
            **dict(zip(("qw", "qx", "qy", "qz"), quaternion_B4.T, strict=True)),
            "focal_px": focal[keep],
        },
        columns=list(COLUMNS),
    )
    table.attrs["bad_frames"] = len(bad)
    table.attrs["faults"] = faults_found
    return table


def read_lines(path: Path) -> list[str]:
    """The lines of a text file (UTF-8, with or without a byte order mark, any line ends), stripped.

    Raises MsposeError where it cannot be read as text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise MsposeError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MsposeError(f"{path} is not a text file (byte {error.start} is not UTF-8)") from error


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorting key under which frame-2 comes before frame-10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)
    ]


def parse_numbers(values: Sequence[str] | Sequence[bytes]) -> tuple[list[float], str]:
    """(numbers, fault): the values as floats and "", or NaNs and what is wrong with the first bad
    one.
    """
    try:
        return [float(value) for value in values], ""
    except ValueError:
        for value in values:
            try:
                float(value)
            except ValueError:
                shown = value.decode(errors="replace") if isinstance(value, bytes) else value
                return [math.nan] * len(values), f"{shown[:40]!r} is not a number"
        raise


def _refuse_duplicates(image: Sequence[str], where: Callable[[int], str]) -> None:
    if len(set(image)) == len(image):
        return
    first: dict[str, int] = {}
    for row, name in enumerate(image):
        if name in first:
            raise MsposeError(
                f"{where(row)}: image {name} is there twice (first: {where(first[name])})"
            )
        first[name] = row


def _pose_faults(position: NDArray[Any], turn: NDArray[Any], focal: NDArray[Any]) -> dict[int, str]:
    """Row number -> what is wrong with its pose or focal length."""
    with np.errstate(over="ignore", invalid="ignore"):
        not_finite = ~(
            np.isfinite(position).all(1) & np.isfinite(turn).all(tuple(range(1, turn.ndim)))
        )
        if turn.ndim == 3:
            off = (
                np.abs(np.swapaxes(turn, 1, 2) @ turn - np.eye(3))
                .reshape(len(turn), 9)
                .max(1, initial=0)
            )
            sheared = ~not_finite & ~(off <= ROTATION_TOLERANCE)
            mirrored = (
                ~not_finite
                & ~sheared
                & (np.linalg.det(np.where(not_finite[:, None, None], 0, turn)) < 0)
            )
            zero = np.zeros(len(turn), dtype=bool)
        else:
            norm = np.linalg.norm(turn, axis=1)
            sheared = mirrored = np.zeros(len(turn), dtype=bool)
            not_finite |= np.isinf(norm)
            zero = norm < SMALLEST_QUATERNION_NORM
        no_focal = np.isinf(focal) | (focal <= 0)
    faults: dict[int, str] = {}
    for row in np.flatnonzero(no_focal):
        faults[int(row)] = f"a focal length of {focal[row]:g} pixels is impossible"
    for row in np.flatnonzero(zero):
        faults[int(row)] = "the quaternion is zero"
    for row in np.flatnonzero(sheared):
        faults[int(row)] = (
            f"the pose is not a rotation: R^T R differs from the identity by up to {off[row]:.2g}"
        )
    for row in np.flatnonzero(mirrored):
        faults[int(row)] = (
            "the pose is not a rotation but a reflection: its determinant is negative"
        )
    for row in np.flatnonzero(not_finite):
        faults[int(row)] = "the pose holds NaN or infinity"
    return faults


def _to_house_convention(
    turn: NDArray[Any], position_B3: NDArray[Any], convention: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    quaternion_B4 = poses.rotation_to_quaternion(turn) if turn.ndim == 3 else turn
    if convention == WORLD_TO_CAMERA:
        return poses.camera_to_world(quaternion_B4, position_B3)
    if convention == WORLD_TO_CAMERA_POSITION:
        return poses.invert_quaternion(quaternion_B4), position_B3
    return poses.normalize_quaternion(quaternion_B4), position_B3


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers 0 .. count-1, evenly spread."""
    return (
        np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
        if count
        else np.zeros(0, np.int64)
    )
