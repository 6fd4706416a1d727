"""TUM trajectories: `timestamp tx ty tz qx qy qz qw` with an image list `timestamp file`.

Poses are camera-to-world, camera axes as ours, metres, quaternion w last
(https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats). Commas for blanks are taken too,
as by TUM's own associate.py, and timestamps in nanoseconds, as EuRoC's files and programs made for
them have.
"""

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mspose.data.frames import CAMERA_TO_WORLD, parse_numbers
from mspose.errors import MsposeError
from mspose.tools.importing.capture import (
    Capture,
    View,
    existing_folder,
    locate,
    looks_like,
    sequence_of,
    values_of,
)

TRAJECTORY = "groundtruth.txt"
IMAGE_LIST = "rgb.txt"
TOLERANCE = 0.02
"""Seconds; that of TUM's own associate.py."""
LATEST_S, EARLIEST_NS = 1e11, 1e17
"""A timestamp up to the one is in seconds, from the other on in nanoseconds (both since 1970); none
is between.
"""


def read_tum(
    path: Path,
    images: Path | None,
    *,
    trajectory: Path | None,
    image_list: Path | None,
    tolerance: float,
) -> Capture:
    """The views of the folder `path`: each image with the pose nearest in time, at most `tolerance`
    seconds away.

    A pose serves one image only, the nearest; images without a pose are left out. Image names are
    relative to the image list's folder, or to `images`. Raises MsposeError for missing or damaged
    files, and where no image finds a pose.
    """
    folder = existing_folder(path, "TUM")
    poses_file, list_file = trajectory or folder / TRAJECTORY, image_list or folder / IMAGE_LIST
    for file, option in ((poses_file, "--trajectory"), (list_file, "--image_list")):
        if not file.is_file():
            what = f"{file} is no file" if file.exists() else f"there is no {file}"
            raise MsposeError(
                f"{what}: say which file it is with {option}{looks_like(folder, 'tum')}"
            )
    poses = [
        (place, line.replace(",", " ").split()) for place, (line,) in values_of(poses_file, "\n")
    ]
    for place, values in poses:
        if len(values) != 8:
            raise MsposeError(
                f"{place}: expected timestamp tx ty tz qx qy qz qw, found {len(values)} values"
            )
    listed = [
        (place, re.split(r"[,\s]\s*", line, maxsplit=1))
        for place, (line,) in values_of(list_file, "\n")
    ]
    image_time_B = _times([(place, values[0]) for place, values in listed])
    pose_time_P = _times([(place, values[0]) for place, values in poses])
    for file, times in ((poses_file, pose_time_P), (list_file, image_time_B)):
        if not len(times):
            raise MsposeError(f"{file} is empty")
    if short := next(
        (place for place, values in listed if len(list(filter(None, values))) < 2), None
    ):
        raise MsposeError(f"{short}: expected timestamp and file")

    nearest = associate(image_time_B, pose_time_P, tolerance)
    if (nearest < 0).all():
        raise MsposeError(
            f"no image has a pose within {tolerance:g} s: the images' timestamps go from"
            f" {image_time_B.min():.3f} to {image_time_B.max():.3f}, those of the poses from"
            f" {pose_time_P.min():.3f} to {pose_time_P.max():.3f}"
        )
    base = images or list_file.parent
    views, unposed = [], {}
    for (_, values), time, pose in zip(
        listed, image_time_B.tolist(), nearest.tolist(), strict=True
    ):
        image = values[1].replace("\\", "/").removeprefix("./")
        if pose < 0:
            unposed[image] = f"no pose of its own within {tolerance:g} s"
            continue
        place, cells = poses[pose]
        (*position, x, y, z, w), fault = parse_numbers(cells[1:])
        here = locate(base, image)
        views.append(
            View(image, here, position, [w, x, y, z], sequence_of(image), time, place, fault=fault)
        )
    return Capture(
        source=poses_file,
        convention=CAMERA_TO_WORLD,
        views=views,
        looked_in=[base],
        unposed=unposed,
        notes=[f"images have the pose nearest in time, at most {tolerance:g} s away"],
    )


def associate(
    image_time_B: NDArray[np.float64], pose_time_P: NDArray[np.float64], tolerance: float
) -> NDArray[np.int64]:
    """The pose of each image (B,), -1 for none: pairs at most `tolerance` apart, nearest first,
    nothing used twice.
    """
    order = np.argsort(pose_time_P, kind="stable")
    after = np.searchsorted(pose_time_P[order], image_time_B)
    images = np.tile(np.arange(len(image_time_B)), 2)
    poses = order[np.concatenate([np.maximum(after - 1, 0), np.minimum(after, len(order) - 1)])]
    apart = np.abs(image_time_B[images] - pose_time_P[poses])
    found = np.full(len(image_time_B), -1)
    taken = np.zeros(len(pose_time_P), dtype=bool)
    for pair in np.argsort(apart, kind="stable"):
        if apart[pair] > tolerance:
            break
        if found[images[pair]] < 0 and not taken[poses[pair]]:
            found[images[pair]] = poses[pair]
            taken[poses[pair]] = True
    return found


def _times(stamps: list[tuple[str, str]]) -> NDArray[np.float64]:
    """In seconds."""
    times = []
    for place, stamp in stamps:
        (time,), fault = parse_numbers([stamp])
        if fault or not math.isfinite(time):
            raise MsposeError(f"{place}: {stamp[:40]!r} is not a timestamp in seconds")
        if LATEST_S < abs(time) < EARLIEST_NS:
            raise MsposeError(
                f"{place}: {stamp[:40]} is too large for seconds: write the timestamps in seconds"
            )
        times.append(time if abs(time) < EARLIEST_NS else time / 1e9)
    return np.array(times, dtype=np.float64)
