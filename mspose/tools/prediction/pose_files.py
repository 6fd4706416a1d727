"""Write files of estimated poses line by line: CSV, JSON lines, TUM's, COLMAP's images.txt.

Poses are camera-to-world with the quaternion `w x y z` in CSV and JSON lines; TUM writes the same
`x y z w`, and COLMAP the inverse, world-to-camera.
"""

import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from mspose import poses
from mspose.errors import MsposeError
from mspose.files import whole_file, whole_folder
from mspose.inference import Estimate
from mspose.tools.prediction.inputs import ImageFile, Query, Source
from mspose.tools.timestamps import nanoseconds, seconds_text

POSE = ("tx", "ty", "tz", "qw", "qx", "qy", "qz")
COLUMNS = ("image", "time_s", *POSE, "scene", "scene_probability")
ONE_FRAME = ("tum", "colmap")
"""Formats whose poses are all in the frame of one scene."""
REPLACED = (".csv", ".jsonl", ".json", ".txt", ".tum")
"""Endings of files that a new one of the same name replaces: no image or video."""


class PoseFile(Protocol):
    """A format: the text that begins a file, and the text of each pose."""

    def begin(self) -> str:
        """The first lines, or nothing."""

    def pose(self, query: Query, estimate: Estimate) -> str:
        """The lines of one pose."""


class CsvFile:
    """A row per image with `COLUMNS` and each scene's probability `p_<scene>`.

    `time_s` is empty but for videos; every float reads back as the same float64.
    """

    def __init__(self, scenes: Sequence[str]):
        self.scenes = scenes

    def begin(self) -> str:
        """The names of the columns."""
        return _csv_row([*COLUMNS, *(f"p_{scene}" for scene in self.scenes)])

    def pose(self, query: Query, estimate: Estimate) -> str:
        """One row."""
        probabilities = [estimate.scene_probabilities[scene] for scene in self.scenes]
        return _csv_row([*_values(query, estimate).values(), *probabilities])


class JsonLines:
    """A JSON object per line and image: `COLUMNS`, and the mapping `scene_probabilities`."""

    def begin(self) -> str:
        """An empty text: there is no header."""
        return ""

    def pose(self, query: Query, estimate: Estimate) -> str:
        """One object."""
        values = _values(query, estimate)
        values["scene_probabilities"] = dict(estimate.scene_probabilities)
        return json.dumps(values, ensure_ascii=False) + "\n"


class TumFile:
    """`timestamp tx ty tz qx qy qz qw` of queries with times, as the TUM RGB-D benchmark and evo
    have it.
    """

    def __init__(self, times: str):
        self.times = times

    def begin(self) -> str:
        """Comments: the format, and the origin of the timestamps."""
        return (
            f"# timestamp tx ty tz qx qy qz qw (m; camera-to-world)\n# timestamps: {self.times}\n"
        )

    def pose(self, query: Query, estimate: Estimate) -> str:
        """One line."""
        w, x, y, z = estimate.orientation.tolist()
        time = seconds_text(query.time_ns or 0)
        return _spaced([time, *estimate.position.tolist(), x, y, z, w])


class ColmapFile:
    """COLMAP's images.txt, world-to-camera without points, and the cameras of its images.

    `camera_of` gives an image's focal length in pixels and its origin. Without it, images of equal
    size have one camera and there is no cameras.txt.
    """

    def __init__(self, folder: Path, camera_of: Callable[[Query], tuple[float, str]] | None):
        self.folder = folder
        self._camera_of = camera_of
        self._cameras: dict[tuple[int, int, float, str], int] = {}
        self._images = 0

    def begin(self) -> str:
        """Comments: the format, and the folder that names are relative to."""
        return (
            "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME (world-to-camera, m), then a line of"
            f" its points, empty\n# names are relative to {str(self.folder)!r}\n"
        )

    def pose(self, query: Query, estimate: Estimate) -> str:
        """Two lines, the second empty."""
        self._images += 1
        # the same formula inverts in both directions
        quaternion_14, translation_13 = poses.camera_to_world(
            estimate.orientation, estimate.position
        )
        focal_px, origin = self._camera_of(query) if self._camera_of else (math.nan, "")
        camera = (query.width, query.height, focal_px, origin)
        number = self._cameras.setdefault(camera, len(self._cameras) + 1)
        pose = [*quaternion_14[0].tolist(), *translation_13[0].tolist()]
        name = colmap_name(Path(query.name), self.folder)
        return _spaced([self._images, *pose, number, name]) + "\n"

    def cameras(self) -> str:
        """cameras.txt: pinhole cameras of the images so far, principal point in the middle."""
        text = "# CAMERA_ID PINHOLE WIDTH HEIGHT FX FY CX CY\n"
        for (width, height, focal_px, origin), number in self._cameras.items():
            parameters = [width, height, focal_px, focal_px, width / 2, height / 2]
            text += f"# focal length of camera {number}: {origin}\n"
            text += _spaced([number, "PINHOLE", *parameters])
        return text


def colmap_name(path: Path, folder: Path) -> str:
    """An image's name relative to `folder`; MsposeError for one that COLMAP's text cannot hold."""
    name = _text(path.relative_to(folder).as_posix())
    if re.search(r"\s", name):
        raise MsposeError(
            f"{path}: COLMAP's text format ends a name at a space: rename it, or take another"
            " --format"
        )
    return name


def colmap_folder(sources: Sequence[Source]) -> Path:
    """The folder that names in images.txt are relative to: the one given, or that all share.

    Raises MsposeError where there is none, or for a name that COLMAP's text format cannot hold.
    """
    try:
        folder = Path(os.path.commonpath({source.folder for source in sources}))
    except ValueError as error:
        raise MsposeError(
            "names for COLMAP are relative to one folder: give all paths relative, or all absolute"
        ) from error
    for source in sources:
        colmap_name(source.path, folder)
    return folder


def with_times(sources: Sequence[Source], fps: float | None = None) -> tuple[list[Source], str]:
    """(sources whose images have times, in the order of time; origin of the times).

    A video has times of its own. Images have the timestamp that their name is, where all names are
    different timestamps in seconds or nanoseconds, as in TUM's data (`1305031102.175304.png`) and
    EuRoC's; else, or with `fps`, their rank from 0, divided by `fps` (default 1).

    Raises MsposeError for several videos, or one with images: they share no clock.
    """
    images = [source for source in sources if isinstance(source, ImageFile)]
    if len(images) < len(sources):
        if len(sources) > 1:
            raise MsposeError("a TUM trajectory has one clock: give one video, or images alone")
        if fps is not None:
            raise MsposeError("--fps: without effect on a video, which has times of its own")
        return list(sources), "seconds of the video"
    stamps = [_timestamp(image.path.stem) for image in images]
    if fps is None and None not in stamps and len(set(stamps)) == len(images):
        timed = [replace(image, time_ns=time) for image, time in zip(images, stamps, strict=True)]
        timed.sort(key=lambda image: image.time_ns or 0)
        return list[Source](timed), "the images' names"
    rate = fps or 1.0
    ranked: list[Source] = [
        replace(image, time_ns=round(rank * 10**9 / rate)) for rank, image in enumerate(images)
    ]
    return ranked, f"the images' rank in the order, from 0, at {rate:g} a second"


def _timestamp(name: str) -> int | None:
    """Nanoseconds, where a file's name is a timestamp."""
    if not re.fullmatch(r"\d+(\.\d+)?", name, re.ASCII):
        return None
    try:
        return nanoseconds(name)
    except ValueError:
        return None


@contextmanager
def open_output(out: Path | None, pose_file: PoseFile) -> Iterator[Callable[[str], object]]:
    """A function that writes a format's text: to standard output at once, or to `out`.

    `out` appears whole or not at all. It is a file, or, for COLMAP, the folder of a model; a file
    of poses is replaced. Raises MsposeError where anything else is there, and where it cannot be
    written.
    """
    if out is None:
        yield _print_at_once
        return
    is_folder = isinstance(pose_file, ColmapFile)
    replaceable = out.suffix.lower() in REPLACED and out.is_file() and not is_folder
    if (out.exists() or out.is_symlink()) and not replaceable:
        raise MsposeError(f"{out} is there already: remove it, or name another --out")
    if not isinstance(pose_file, ColmapFile):
        with whole_file(out) as file:
            yield file.write
        return
    with whole_folder(out) as folder:
        with (folder / "images.txt").open("w", encoding="utf-8", newline="\n") as file:
            yield file.write
        (folder / "cameras.txt").write_text(pose_file.cameras(), encoding="utf-8")
        (folder / "points3D.txt").write_text("# no points: poses alone\n", encoding="utf-8")


def _print_at_once(text: str) -> None:
    # on a terminal the progress bar is moved out of the way
    with tqdm.external_write_mode(sys.stdout) if sys.stdout.isatty() else nullcontext():
        sys.stdout.write(text)
        sys.stdout.flush()


def _values(query: Query, estimate: Estimate) -> dict[str, Any]:
    """`COLUMNS` with their values."""
    pose = [*estimate.position.tolist(), *estimate.orientation.tolist()]
    values = [_text(query.name), query.time_s, *pose, estimate.scene, estimate.scene_probability]
    return dict(zip(COLUMNS, values, strict=True))


def _csv_row(values: Sequence[Any]) -> str:
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(values)
    return row.getvalue()


def _spaced(values: Sequence[Any]) -> str:
    return " ".join(map(str, values)) + "\n"


def _text(name: str) -> str:
    """A file's name as text, with `\\udcff` and the like for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
