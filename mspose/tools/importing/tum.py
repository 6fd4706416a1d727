"""Read TUM trajectories: `timestamp tx ty tz qx qy qz qw` with an image list `timestamp file`.

Poses are camera-to-world, camera axes as here, metres, quaternion w last
(https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats). Also EuRoC's and TUM-VI's files:
commas, nanoseconds, and columns in the order that the header names.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mspose.data.frames import CAMERA_TO_WORLD, parse_numbers
from mspose.errors import MsposeError
from mspose.tools.importing.image_paths import existing_folder, hint, locate
from mspose.tools.importing.text_tables import EITHER, columns_by_name, header, read_rows
from mspose.tools.importing.views import Capture, View, plain_name, sequence_of
from mspose.tools.timestamps import nanoseconds, seconds_text

TRAJECTORY, IMAGE_LIST = "groundtruth.txt", "rgb.txt"
COLUMNS = "timestamp tx ty tz qx qy qz qw"
POSITION = [rf"(?:[tp](?:_\w+?)?_?)?{axis}" for axis in "xyz"]
QUATERNION = [rf"q(?:_\w+?)?_?{part}" for part in "wxyz"]
TOLERANCE = 0.02
"""Seconds; that of TUM's own associate.py."""


def read_tum(
    path: Path,
    images: Path | None,
    *,
    trajectory: Path | None,
    image_list: Path | None,
    tolerance: float,
) -> Capture:
    """The views of the folder `path`: each image with the pose nearest in time.

    At most `tolerance` seconds are between them. A pose serves one image only, the nearest; images
    without a pose are left out. Image names are relative to the image list's folder, or to
    `images`. Raises MsposeError for missing or damaged files, and where no image finds a pose.
    """
    folder = existing_folder(path, "TUM")
    poses_file, list_file = trajectory or folder / TRAJECTORY, image_list or folder / IMAGE_LIST
    for file, option in ((poses_file, "--trajectory"), (list_file, "--image_list")):
        if not file.is_file():
            raise MsposeError(
                f"there is no file {file}: say which one it is with {option}{hint(folder, 'tum')}"
            )
    names = header(poses_file)
    columns = columns_by_name(names, [*POSITION, *QUATERNION])
    expected = ",".join(names) if columns else COLUMNS
    poses = list(read_rows(poses_file, expected, EITHER, has_header=columns is not None))
    with_header = header(list_file)[:1] == ["timestamp"]
    listed = list(read_rows(list_file, "timestamp file", EITHER, rest=True, has_header=with_header))
    image_time_B, pose_time_P = _times(list_file, listed), _times(poses_file, poses)
    pose_of_image = associate(image_time_B, pose_time_P, round(tolerance * 1e9))
    if (pose_of_image < 0).all():
        raise MsposeError(
            f"no image has a pose within {tolerance:g} s: {_period('images', image_time_B)},"
            f" {_period('poses', pose_time_P)}"
        )
    base = images or list_file.parent
    views, unposed = [], {}
    for (_, (_, name)), time, pose in zip(
        listed, image_time_B.tolist(), pose_of_image.tolist(), strict=True
    ):
        image = plain_name(name)
        if pose < 0:
            unposed[image] = f"no pose of its own within {tolerance:g} s"
            continue
        where, cells = poses[pose]
        numbers, fault = parse_numbers([cells[k] for k in columns or (1, 2, 3, 7, 4, 5, 6)])
        position, orientation = numbers[:3], numbers[3:]
        found, sequence = locate(base, image), sequence_of(image)
        views.append(View(image, found, position, orientation, sequence, time, where, fault=fault))
    notes = _notes(poses_file, names, columns)
    notes.append(f"images have the pose nearest in time, at most {tolerance:g} s away")
    return Capture(poses_file, CAMERA_TO_WORLD, views, [base], unposed, notes)


def _notes(file: Path, names: list[str], columns: list[int] | None) -> list[str]:
    if columns is None:
        return ["quaternion order: w last, as TUM has it; the file of poses names no columns"]
    order = " ".join(sorted("wxyz", key=lambda part: columns[3 + "wxyz".index(part)]))
    notes = [f"quaternion order: {order}, as the header of {file.name} says"]
    if any("_rs_" in name.lower() for name in names):
        notes.append("poses are the body's (RS): the camera's pose on the body is not applied")
    return notes


def associate(
    image_time_B: NDArray[np.int64], pose_time_P: NDArray[np.int64], tolerance: int
) -> NDArray[np.int64]:
    """The pose of each image (B,), -1 for none: the nearest pairs first, nothing used twice.

    All times are in one unit; pairs are at most `tolerance` from each other.
    """
    order = np.argsort(pose_time_P, kind="stable")
    after = np.searchsorted(pose_time_P[order], image_time_B)
    images = np.tile(np.arange(len(image_time_B)), 2)
    poses = order[np.concatenate([np.maximum(after - 1, 0), np.minimum(after, len(order) - 1)])]
    distance = np.abs(image_time_B[images] - pose_time_P[poses])
    found = np.full(len(image_time_B), -1)
    taken = np.zeros(len(pose_time_P), dtype=bool)
    for pair in np.argsort(distance, kind="stable"):
        if distance[pair] > tolerance:
            break
        if found[images[pair]] < 0 and not taken[poses[pair]]:
            found[images[pair]] = poses[pair]
            taken[poses[pair]] = True
    return found


def _times(file: Path, rows: list[tuple[str, list[str]]]) -> NDArray[np.int64]:
    """Nanoseconds of the first column."""
    times = []
    for where, (stamp, *_) in rows:
        try:
            times.append(nanoseconds(stamp))
        except ValueError as error:
            raise MsposeError(f"{where}: {error}") from error
    if not times:
        raise MsposeError(f"{file} is empty")
    return np.array(times, dtype=np.int64)


def _period(what: str, time_B: NDArray[np.int64]) -> str:
    first, last = (seconds_text(int(time)) for time in (time_B.min(), time_B.max()))
    return f"those of the {what} go from {first} to {last}"
