"""Read TUM trajectories: `timestamp tx ty tz qx qy qz qw` with an image list `timestamp file`.

Poses are camera-to-world, camera axes as here, metres, quaternion w last
(https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats). Also the files of EuRoC, TUM-VI
and ROS: commas, nanoseconds, and columns in the order that the header names.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mspose.data.frames import CAMERA_TO_WORLD, parse_numbers
from mspose.errors import MsposeError
from mspose.tools.importing.image_paths import existing_folder, find_images, wrong_layout
from mspose.tools.importing.text_tables import (
    AXES,
    EITHER,
    METRES,
    QUATERNION,
    Columns,
    header,
    image_column,
    pose_column,
    read_rows,
)
from mspose.tools.importing.views import Capture, View, plain_name, sequence_of
from mspose.tools.timestamps import nanoseconds, seconds_text

OF_EUROC = [f"{name}/data.csv" for name in ("state_groundtruth_estimate0", "mocap0", "vicon0")]
TRAJECTORIES = ("groundtruth.txt", *OF_EUROC, *(f"mav0/{name}" for name in OF_EUROC))
IMAGE_LISTS = (
    *("rgb.txt", "associations.txt", "associate.txt", "associated.txt"),
    *("cam0/data.csv", "mav0/cam0/data.csv"),
)
"""Files that are searched in a folder, in this order."""
POSE = (*AXES, *QUATERNION)
TUM_POSES = Columns(
    ["timestamp", "tx", "ty", "tz", "qx", "qy", "qz", "qw"],
    {"time": 0, "x": 1, "y": 2, "z": 3, "qx": 4, "qy": 5, "qz": 6, "qw": 7},
    {},
)
TUM_IMAGES = Columns(["timestamp", "file"], {"time": 0, "file": 1}, {})
BODY_COLUMN = re.compile(r"(^|[\W_])(rs|wb|wi|gb|body|base|imu)[\W_]", re.IGNORECASE)
BODY_FILE = re.compile(r"(^|[\W_])(imu|mocap|vicon|leica|state_groundtruth)", re.IGNORECASE)
"""Signs that poses are those of a body that carries the camera."""
TOLERANCE = 0.02
"""Seconds; that of TUM's own associate.py."""
TOGETHER_NS = 10**9
"""Nanoseconds within which the files of one line of associations were recorded."""
Rows = list[tuple[str, list[str]]]


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
    poses_file = _file(folder, trajectory, TRAJECTORIES, "--trajectory")
    list_file = _file(folder, image_list, IMAGE_LISTS, "--image-list")
    columns, poses, notes = _read_poses(poses_file)
    listed, listed_notes = _read_list(list_file)
    image_time_B = np.array([time for time, _ in listed], dtype=np.int64)
    pose_times = list(poses)
    pose_time_P = np.array(pose_times, dtype=np.int64)
    pose_of_image = associate(image_time_B, pose_time_P, round(tolerance * 1e9))
    if (pose_of_image < 0).all():
        raise MsposeError(
            f"no image has a pose within {tolerance:g} s: {_period('images', image_time_B)},"
            f" {_period('poses', pose_time_P)}"
        )
    names = [plain_name(name) for _, name in listed]
    beside = list_file.parent
    candidates = [images] if images else [beside, beside / "data"]  # EuRoC's images are in data/
    folders, files = find_images(names, candidates, candidates[0])
    metres = [METRES.get(columns.units.get(axis, ""), 1.0) for axis in AXES]
    views, unposed = [], {}
    for image, file, time, number in zip(
        names, files, image_time_B.tolist(), pose_of_image.tolist(), strict=True
    ):
        if number < 0:
            unposed[image] = f"no pose of its own within {tolerance:g} s"
            continue
        where, cells = poses[pose_times[number]]
        numbers, fault = parse_numbers(cells)
        position = [value * unit for value, unit in zip(numbers[:3], metres, strict=True)]
        sequence = sequence_of(image)
        views.append(View(image, file, position, numbers[3:], sequence, time, where, fault=fault))
    notes += [*listed_notes, f"images have the pose nearest in time, at most {tolerance:g} s away"]
    return Capture(poses_file, CAMERA_TO_WORLD, views, folders, unposed, notes)


def _file(folder: Path, given: Path | None, names: Sequence[str], option: str) -> Path:
    if given is not None:
        if not given.is_file():
            raise MsposeError(f"{option}: there is no file {given}")
        return given
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise wrong_layout(
            folder, "tum", f"there is no file {names[0]}; say which one it is with {option}"
        )
    return found[0]


def _read_poses(file: Path) -> tuple[Columns, dict[int, tuple[str, list[str]]], list[str]]:
    """(columns; nanoseconds -> file and line, cells of `POSE`; notes).

    Of several poses at one time the last counts, as in TUM's own associate.py.
    """
    columns, known = header(file, pose_column, ("time", *POSE))
    if columns is None and len(known) > 2:
        raise MsposeError(
            f"{file}: the columns' names have {', '.join(known)}, expected a timestamp, x, y, z and"
            " the quaternion's w, x, y, z, each once: name them in the order of the file, as in `#"
            f" {' '.join(TUM_POSES.names)}`"
        )
    first = next(read_rows(file, "timestamp", EITHER, more=True), ("", []))
    if columns is None and len(first[1]) in (12, 16):
        raise MsposeError(
            f"{first[0]}: expected {' '.join(TUM_POSES.names)}, found {len(first[1])} values, as"
            " KITTI has: try mspose data import kitti"
        )
    columns = columns or TUM_POSES
    has_header = columns is not TUM_POSES
    rows = list(read_rows(file, " ".join(columns.names), EITHER, has_header=has_header))
    poses: dict[int, tuple[str, list[str]]] = {}
    repeated = set()
    for time, (where, cells) in zip(_times(file, rows, columns), rows, strict=True):
        pose = [cells[columns.of[name]] for name in POSE]
        if time in poses and poses[time][1] != pose:
            repeated.add(time)
        poses[time] = (where, pose)
    notes = _pose_notes(file, columns)
    if repeated:
        first_time = seconds_text(min(repeated))
        notes.append(
            f"{len(repeated)} times have several poses, of which the last counts: {first_time}"
        )
    return columns, poses, notes


def _read_list(file: Path) -> tuple[list[tuple[int, str]], list[str]]:
    """([(nanoseconds, image)], notes) of a list of images.

    Of associations, `time rgb time depth`, the images that are no depth maps are taken.
    """
    columns = header(file, image_column, ("time", "file"))[0]
    named, columns = columns is not None, columns or TUM_IMAGES
    if len(columns.names) > 2 or columns.of["file"] != 1:
        rows = list(read_rows(file, " ".join(columns.names), EITHER, has_header=True))
        images = [cells[columns.of["file"]] for _, cells in rows]
        return list(zip(_times(file, rows, columns), images, strict=True)), []
    rows = list(read_rows(file, "timestamp file", EITHER, rest=True, has_header=named))
    times = _times(file, rows, columns)
    lines = [re.split(EITHER, name) for _, (_, name) in rows]
    if not all(map(_is_association, times, lines)):
        return [(time, name) for time, (_, (_, name)) in zip(times, rows, strict=True)], []
    if all(len(line) == 3 and "depth" in line[0] and "depth" not in line[2] for line in lines):
        taken = [(nanoseconds(time), image) for _, time, image in lines]
    else:
        taken = [(time, line[0]) for time, line in zip(times, lines, strict=True)]
    return taken, [
        f"{file.name} is a list of associations: its images are those like {taken[0][1]}"
    ]


def _is_association(time_ns: int, line: Sequence[str]) -> bool:
    """True for a file at `time_ns`, a timestamp near it, and more."""
    if len(line) < 3 or not Path(line[0]).suffix:
        return False
    try:
        return abs(nanoseconds(line[1]) - time_ns) <= TOGETHER_NS
    except ValueError:
        return False


def _pose_notes(file: Path, columns: Columns) -> list[str]:
    if columns is TUM_POSES:
        notes = [f"quaternion order: w last, as TUM has it; {file.name} names no columns"]
    else:
        order = " ".join(name[1] for name in sorted(QUATERNION, key=columns.of.__getitem__))
        notes = [f"quaternion order: {order}, as the header of {file.name} says"]
        notes += [f"{name} is in {unit} there" for name, unit in columns.units.items()]
    if any(map(BODY_COLUMN.search, columns.names)) or any(map(BODY_FILE.search, file.parts[-3:])):
        notes.append(
            "poses are those of the body that carries the camera: the camera's pose on the body"
            " (EuRoC: T_BS of sensor.yaml) is not applied"
        )
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


def _times(file: Path, rows: Rows, columns: Columns) -> list[int]:
    """Nanoseconds of each row."""
    times = []
    for where, cells in rows:
        stamp, unit = cells[columns.of["time"]], columns.units.get("time")
        try:
            # a number with a point is none of nanoseconds, whatever a header says that was kept
            times.append(nanoseconds(stamp, None if unit == "ns" and "." in stamp else unit))
        except ValueError as error:
            raise MsposeError(f"{where}: {error}") from error
    if not times:
        raise MsposeError(f"{file} is empty")
    return times


def _period(what: str, time_B: NDArray[np.int64]) -> str:
    first, last = (seconds_text(int(time)) for time in (time_B.min(), time_B.max()))
    return f"those of the {what} go from {first} to {last}"
