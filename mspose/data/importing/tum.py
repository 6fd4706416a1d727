"""TUM trajectories: `timestamp tx ty tz qx qy qz qw` with an image list `timestamp file`.

Poses are camera-to-world, camera axes as ours, metres, quaternion w last
(https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats).
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mspose.data.frames import CAMERA_TO_WORLD, parse_numbers
from mspose.data.importing.capture import (
    Capture,
    View,
    existing_folder,
    locate,
    looks_like,
    sequence_of,
    values_of,
)
from mspose.errors import MsposeError

TRAJECTORY = "groundtruth.txt"
IMAGE_LIST = "rgb.txt"
TOLERANCE = 0.02
"""Seconds; that of TUM's own associate.py."""


def read_tum(
    path: Path, images: Path | None, *, trajectory: Path | None, image_list: Path | None, tolerance: float
) -> Capture:
    """The views of the folder `path`: each image with the pose nearest in time, at most `tolerance` seconds away.

    A pose serves one image only, the nearest; images without a pose are left out. Image names are relative to the image
    list's folder, or to `images`. Raises MsposeError for missing or damaged files, and where no image finds a pose.
    """
    folder = existing_folder(path, "TUM")
    poses_file, list_file = trajectory or folder / TRAJECTORY, image_list or folder / IMAGE_LIST
    for file, option in ((poses_file, "--trajectory"), (list_file, "--image_list")):
        if not file.is_file():
            raise MsposeError(f"there is no {file}: say which file it is with {option}{looks_like(folder, 'tum')}")
    poses = [(place, *parse_numbers(values), len(values)) for place, values in values_of(poses_file, None)]
    for place, _, fault, count in poses:
        if count != 8:
            raise MsposeError(f"{place}: expected timestamp tx ty tz qx qy qz qw, found {count} values")
        if fault:
            raise MsposeError(f"{place}: {fault}")
    listed = [(place, values) for place, values in values_of(list_file, None, 1)]
    image_time_B = _times([(place, values[0]) for place, values in listed])
    pose_time_P = _times([(place, str(numbers[0])) for place, numbers, _, _ in poses])
    for file, times in ((poses_file, pose_time_P), (list_file, image_time_B)):
        if not len(times):
            raise MsposeError(f"{file} is empty")
    if short := next((place for place, values in listed if len(values) < 2), None):
        raise MsposeError(f"{short}: expected timestamp and file")

    nearest = associate(image_time_B, pose_time_P, tolerance)
    if (nearest < 0).all():
        raise MsposeError(
            f"no image has a pose within {tolerance:g} s: the images' timestamps go from {image_time_B.min():.3f} to "
            f"{image_time_B.max():.3f}, those of the poses from {pose_time_P.min():.3f} to {pose_time_P.max():.3f}"
        )
    base = images or list_file.parent
    views, unposed = [], {}
    for (_, values), time, pose in zip(listed, image_time_B.tolist(), nearest.tolist(), strict=True):
        image = values[1].replace("\\", "/").removeprefix("./")
        if pose < 0:
            unposed[image] = f"no pose of its own within {tolerance:g} s"
            continue
        place, (_, *position, x, y, z, w), _, _ = poses[pose]
        views.append(View(image, locate(base, image), position, [w, x, y, z], sequence_of(image), time, place))
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
    """The pose of each image (B,), -1 for none: pairs at most `tolerance` apart, nearest first, nothing used twice."""
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
    times = []
    for place, stamp in stamps:
        (time,), fault = parse_numbers([stamp])
        if fault or not math.isfinite(time):
            raise MsposeError(f"{place}: {stamp[:40]!r} is not a timestamp in seconds")
        times.append(time)
    return np.array(times, dtype=np.float64)
