"""The frame table: one row per frame, with poses in one convention.

Every loader collects what its files hold and calls `frame_table` once, at the end, which checks the
frames and converts the poses. Messages name the file and the line.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mspose import poses
from mspose.data.images import name_fault
from mspose.errors import MsposeError
from mspose.files import number, read_bytes

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

FARTHEST = 1e7
"""Metres from the origin; coordinates of a map have up to 1e7."""
ROTATION_TOLERANCE = 1e-2
"""7Scenes' published matrices are off by up to 4e-4, scaled or sheared ones by far more."""
SMALLEST_QUATERNION_NORM = 1e-6
"""Published quaternions have norms from 0.95 to 2.0."""


class NoFramesLeft(MsposeError):
    """A scene or split has no good frame; `faults` lists what is wrong with the bad ones."""

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
    """Check the frames of one split; returns their table (`COLUMNS`), poses as in `mspose.poses`.

    Args:
        dataset, ground_truth, split: one name each, for all rows.
        scene, sequence, image: per row; `image` is relative to the data set's root, with `/`.
        position_B3: metres (B, 3); camera centres, or translations under `world-to-camera`.
        orientation: quaternions w x y z of any norm (B, 4), or rotation matrices (B, 3, 3).
        convention: one of `POSE_CONVENTIONS`.
        where: row number -> the file (and line) that the row came from, for messages.
        source: the folder or files that were read, for the message about a scene without frames.
        focal_px: one value or one per row, in pixels of the original image; NaN where unknown.
        faults: row number -> what the loader found wrong with it; such a row's numbers are not
            checked.
        scenes: scenes that must have at least one frame; by default those of the rows.
        on_bad_frame: `stop` raises at the first bad frame; `skip` leaves bad frames out and warns.
            Their number is in `table.attrs["bad_frames"]`, what is wrong with each in
            `table.attrs["faults"]`.

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
    orientation = np.asarray(orientation, dtype=np.float64).reshape(
        (rows, 4) if np.ndim(orientation) < 3 else (rows, 3, 3)
    )
    focal = np.broadcast_to(np.asarray(focal_px, dtype=np.float64), (rows,))

    _refuse_duplicates(image, where)
    bad = {**_pose_faults(position, orientation, focal), **(faults or {})}
    faults_found = [f"{where(row)}: {bad[row]}" for row in sorted(bad)]
    if bad and on_bad_frame == "stop":
        raise MsposeError(
            f"{faults_found[0]}; correct it, or go on without such frames with --on-bad-frame skip"
        )
    if bad:
        logger.warning("left out %d of %d frames; the first: %s", len(bad), rows, faults_found[0])

    kept = [row for row in range(rows) if row not in bad]
    kept_scenes = {scene[row] for row in kept}
    for name in scenes if scenes is not None else dict.fromkeys(scene):
        if name not in kept_scenes:
            raise NoFramesLeft(f"scene {name} has no {split} frames in {source}", faults_found)
    if not kept:
        raise NoFramesLeft(f"no {split} frames in {source}", faults_found)

    quaternion_B4, centre_B3 = _convert_poses(orientation[kept], position[kept], convention)
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
            "focal_px": focal[kept],
        },
        columns=list(COLUMNS),
    )
    table.attrs["bad_frames"] = len(bad)
    table.attrs["faults"] = faults_found
    return table


def read_lines(path: Path) -> list[str]:
    """Read the stripped lines of a text file (UTF-8, byte order mark or not, any line ends).

    Raises MsposeError where it cannot be read as text.
    """
    try:
        text = StringIO(read_bytes(path).decode("utf-8-sig"), newline=None)
        return [line.strip() for line in text.read().split("\n")]
    except UnicodeDecodeError as error:
        raise MsposeError(f"{path} is not a text file (byte {error.start} is not UTF-8)") from error


def natural_order(name: str) -> list[tuple[int, str]]:
    """Key for sorting names so that frame-2 comes before frame-10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)
    ]


def parse_numbers(values: Sequence[str] | Sequence[bytes]) -> tuple[list[float], str]:
    """Parse values as floats; returns (numbers, ""), or NaNs and what is wrong with the first bad
    one.
    """
    numbers = []
    for value in values:
        try:
            numbers.append(number(value))
        except ValueError:
            shown = value.decode(errors="replace") if isinstance(value, bytes) else value
            return [math.nan] * len(values), f"{shown[:40]!r} is not a number"
    return numbers, ""


@dataclass(frozen=True)
class PoseLine:
    """A line `image number number ...` of a text file of poses."""

    where: str
    """File and line."""
    image: str
    numbers: list[float]
    """NaNs where there is a fault."""
    fault: str
    """Description of a fault in the line, or ""."""


def read_pose_lines(path: Path, count: int, *, header_lines: int = 0) -> list[PoseLine]:
    """Read the lines of a text file with an image and `count` numbers on each.

    Up to `header_lines` lines at the top are left out, but none that holds a number after its first
    word, so that a file without a header loses no frame. Raises MsposeError where the file cannot
    be read as text.
    """
    lines: list[PoseLine] = []
    for line_number, text in enumerate(read_lines(path), start=1):
        if not text:
            continue
        image, *cells = text.split()
        numbers, fault = parse_numbers(cells)
        holds_number = any(not parse_numbers([cell])[1] for cell in cells)
        if line_number <= header_lines and not lines and not holds_number:
            continue
        if len(cells) != count:
            numbers = [math.nan] * count
            fault = f"expected {count} numbers after the image, found {len(cells)}"
        fault = name_fault(image) or fault
        lines.append(PoseLine(f"{path}, line {line_number}", image, numbers, fault))
    return lines


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


def _pose_faults(
    position: NDArray[Any], orientation: NDArray[Any], focal: NDArray[Any]
) -> dict[int, str]:
    """Row number -> what is wrong with its pose or focal length."""
    finite = np.isfinite(position).all(axis=1)
    finite &= np.isfinite(orientation).all(axis=tuple(range(1, orientation.ndim)))
    with np.errstate(over="ignore", invalid="ignore"):
        if orientation.ndim == 3:
            scale = np.cbrt(np.linalg.det(np.where(finite[:, None, None], orientation, 0)))
            off = _off_rotation(orientation)
            unscaled_off = _off_rotation(
                orientation / np.where(scale == 0, 1, scale)[:, None, None]
            )
            bad = np.flatnonzero(~(off <= ROTATION_TOLERANCE) | (scale < 0))
        else:
            norm = np.linalg.norm(orientation, axis=1)
            finite &= np.isfinite(norm)
            bad = np.flatnonzero(norm < SMALLEST_QUATERNION_NORM)
    faults: dict[int, str] = {}
    for row in np.flatnonzero((np.abs(position) > FARTHEST).any(axis=1)).tolist():
        far = np.abs(position[row]).max()
        faults[row] = f"a position of {far:g} m is too far away to be meant: is the unit right?"
    for row in np.flatnonzero(np.isinf(focal) | (focal <= 0)).tolist():
        faults[row] = f"a focal length of {focal[row]:g} pixels is impossible"
    for row in bad.tolist():
        if orientation.ndim == 2:
            faults[row] = "the quaternion is zero"
        elif unscaled_off[row] <= ROTATION_TOLERANCE and scale[row] != 0:
            reflection = ", a reflection: its determinant is negative" if scale[row] < 0 else ""
            faults[row] = (
                f"the pose is not a rotation but a rotation times {scale[row]:.4g}{reflection}"
            )
        else:
            faults[row] = (
                "the pose is not a rotation: R^T R differs from the identity by up to"
                f" {off[row]:.2g}"
            )
    for row in np.flatnonzero(~finite).tolist():
        faults[row] = "the pose holds NaN or infinity"
    return faults


def _off_rotation(matrix_B33: NDArray[Any]) -> NDArray[Any]:
    """Largest difference of R^T R from the identity (B,)."""
    product_B33 = np.swapaxes(matrix_B33, 1, 2) @ matrix_B33
    return np.asarray(np.abs(product_B33 - np.eye(3)).max(axis=(1, 2), initial=0))


def last_row_fault(pose_44: NDArray[Any]) -> str:
    """A message where the last row of a finite pose matrix is not 0 0 0 1, else an empty one.

    Infinity and NaN are left to `frame_table`.
    """
    row, column = pose_44[3], pose_44[:3, 3]
    if not np.isfinite(pose_44).all() or np.allclose(row, [0, 0, 0, 1], rtol=0, atol=1e-6):
        return ""
    fault = f"the last row of the pose is {' '.join(f'{value:g}' for value in row)}, not 0 0 0 1"
    if np.allclose(row[:3], 0, atol=1e-6) and row[3] != 0:
        return f"{fault}: is the pose scaled?"
    return f"{fault}: is it transposed?" if np.allclose(column, 0, atol=1e-6) else fault


def _convert_poses(
    orientation: NDArray[Any], position_B3: NDArray[Any], convention: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Quaternions (B, 4) and positions (B, 3) as in `mspose.poses`."""
    quaternion_B4 = orientation
    if orientation.ndim == 3:
        quaternion_B4 = poses.rotation_to_quaternion(orientation)
    if convention == WORLD_TO_CAMERA:
        return poses.camera_to_world(quaternion_B4, position_B3)
    if convention == WORLD_TO_CAMERA_POSITION:
        return poses.invert_quaternion(quaternion_B4), position_B3
    return poses.normalize_quaternion(quaternion_B4), position_B3


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers 0 .. count-1, evenly spread."""
    if count == 0:
        return np.zeros(0, np.int64)
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
