"""Files of estimated poses, line by line: CSV, JSON lines, TUM's trajectories, COLMAP's images.txt.

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
from mspose.tools.prediction.image_sources import ImageFile, Source, View

POSE = ("tx", "ty", "tz", "qw", "qx", "qy", "qz")
COLUMNS = ("image", "time_s", *POSE, "scene", "scene_probability")
ONE_FRAME = ("tum", "colmap")
"""Formats whose poses are all in the frame of one scene."""
REPLACED = (".csv", ".jsonl", ".json", ".txt", ".tum")
"""Endings of files that a new one of the same name replaces: no image or video."""
Camera = Callable[[View], tuple[float, str]]
"""View -> focal length in pixels, where it is from."""


class PoseFile(Protocol):
    """A format: text that begins a file, and text of each pose in it."""

    def begin(self) -> str:
        """The first lines, or nothing."""

    def pose(self, view: View, estimate: Estimate) -> str:
        """The lines of one pose."""


class CsvFile:
    """One row per image with COLUMNS and, for every scene, its probability `p_<scene>`; `time_s` of
    videos alone.
    """

    def __init__(self, scenes: Sequence[str]):
        self.scenes = scenes

    def begin(self) -> str:
        """The names of the columns."""
        return _csv_row([*COLUMNS, *(f"p_{scene}" for scene in self.scenes)])

    def pose(self, view: View, estimate: Estimate) -> str:
        """One row; every float reads back as the same float64."""
        return _csv_row(
            [
                *_values(view, estimate).values(),
                *(estimate.scene_probabilities[scene] for scene in self.scenes),
            ]
        )


class JsonLines:
    """One JSON object per line and image: COLUMNS, and `scene_probabilities`, a mapping."""

    def begin(self) -> str:
        """Nothing."""
        return ""

    def pose(self, view: View, estimate: Estimate) -> str:
        """One object."""
        values = {
            **_values(view, estimate),
            "scene_probabilities": dict(estimate.scene_probabilities),
        }
        return json.dumps(values, ensure_ascii=False) + "\n"


class TumFile:
    """`timestamp tx ty tz qx qy qz qw`, for views with times, as the TUM RGB-D benchmark and evo
    have it.
    """

    def __init__(self, times: str):
        self.times = times

    def begin(self) -> str:
        """The format, and what the timestamps are, as comments."""
        return (
            f"# timestamp tx ty tz qx qy qz qw (m; camera-to-world)\n# timestamps: {self.times}\n"
        )

    def pose(self, view: View, estimate: Estimate) -> str:
        """One line."""
        w, x, y, z = estimate.orientation.tolist()
        return _spaced([view.seconds, *estimate.position.tolist(), x, y, z, w])


class ColmapFile:
    """COLMAP's images.txt, of poses world-to-camera without points, and the cameras that its images
    refer to.

    Without `focal_of`, images of equal size have one camera and there is no cameras.txt.
    """

    def __init__(self, folder: Path, focal_of: Camera | None):
        self.folder = folder
        self._focal_of = focal_of
        self._cameras: dict[tuple[int, int, float, str], int] = {}
        self._images = 0

    def begin(self) -> str:
        """The format, and the folder that names are relative to, as comments."""
        return (
            "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME (world-to-camera, m), then a line of"
            f" its points, empty\n# names are relative to {str(self.folder)!r}\n"
        )

    def pose(self, view: View, estimate: Estimate) -> str:
        """Two lines, the second empty."""
        self._images += 1
        # an inverse is its own inverse: the same formula leads from camera-to-world to
        # world-to-camera
        quaternion_14, translation_13 = poses.camera_to_world(
            estimate.orientation, estimate.position
        )
        values = [
            self._images,
            *quaternion_14[0].tolist(),
            *translation_13[0].tolist(),
            self._camera(view),
        ]
        return _spaced([*values, colmap_name(Path(view.name), self.folder)]) + "\n"

    def cameras(self) -> str:
        """cameras.txt: pinhole cameras of the images so far, principal point in the middle."""
        text = "# CAMERA_ID PINHOLE WIDTH HEIGHT FX FY CX CY\n"
        for (width, height, focal_px, origin), number in self._cameras.items():
            text += f"# focal length of camera {number}: {origin}\n"
            text += _spaced(
                [number, "PINHOLE", width, height, focal_px, focal_px, width / 2, height / 2]
            )
        return text

    def _camera(self, view: View) -> int:
        camera = (
            view.width,
            view.height,
            *(self._focal_of(view) if self._focal_of else (math.nan, "not asked for")),
        )
        return self._cameras.setdefault(camera, len(self._cameras) + 1)


def colmap_name(path: Path, folder: Path) -> str:
    """An image's name relative to `folder`. Raises MsposeError for one that COLMAP's text format
    cannot hold.
    """
    name = _text(path.relative_to(folder).as_posix())
    if re.search(r"\s", name):
        raise MsposeError(
            f"{path}: COLMAP's text format ends a name at a space: rename it, or take another"
            " --format"
        )
    return name


def colmap_folder(sources: Sequence[Source]) -> Path:
    """The folder that names in images.txt are relative to: the one that was given, or that all
    inputs share.

    Raises MsposeError where there is none, or for a name that COLMAP's text format cannot hold.
    """
    folders = {source.folder for source in sources}
    try:
        folder = Path(os.path.commonpath(folders))
    except ValueError as error:
        raise MsposeError(
            "names for COLMAP are relative to one folder: give all paths relative, or all absolute"
        ) from error
    for source in sources:
        colmap_name(source.path, folder)
    return folder


def with_times(sources: Sequence[Source], fps: float | None = None) -> tuple[list[Source], str]:
    """(sources whose images have times, in the order of time; what the times are) for a trajectory.

    A video has times of its own. Images have the number that their name is, in seconds, where all
    names are different numbers, as in TUM's data (`1305031102.175304.png`); else, or with `fps`,
    their place in the order, from 0, divided by `fps` (default 1). Raises MsposeError for several
    videos, or one with images: they share no clock.
    """
    images = [source for source in sources if isinstance(source, ImageFile)]
    if len(images) < len(sources):
        if len(sources) > 1:
            raise MsposeError("a TUM trajectory has one clock: give one video, or images alone")
        if fps is not None:
            raise MsposeError(
                "--fps: without effect on a video, which has times of its own: leave it out"
            )
        return list(sources), "seconds of the video"
    numbers = [
        float(image.path.stem)
        for image in images
        if re.fullmatch(r"\d+(\.\d+)?", image.path.stem, re.ASCII)
    ]
    if fps is None and len(set(numbers)) == len(images):
        in_time = sorted(zip(numbers, images, strict=True), key=lambda pair: pair[0])
        return [
            replace(image, seconds=number) for number, image in in_time
        ], "the numbers that the images' names are"
    rate = fps or 1.0
    timed: list[Source] = [
        replace(image, seconds=place / rate) for place, image in enumerate(images)
    ]
    return timed, f"the images' places in the order, from 0, at {rate:g} a second"


@contextmanager
def open_output(out: Path | None, pose_file: PoseFile) -> Iterator[Callable[[str], object]]:
    """What a format's text is written with: to standard output at once, or to `out`, which appears
    whole or not at all.

    `out` is a file, or, for COLMAP, the folder of a model; a file of poses that is there is
    replaced. Raises MsposeError where anything else is there, and where it cannot be written.
    """
    if out is None:
        yield _print_at_once
        return
    of_poses = (
        out.suffix.lower() in REPLACED and out.is_file() and not isinstance(pose_file, ColmapFile)
    )
    if (out.exists() or out.is_symlink()) and not of_poses:
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
    # on a terminal the progress bar makes room
    with tqdm.external_write_mode(sys.stdout) if sys.stdout.isatty() else nullcontext():
        sys.stdout.write(text)
        sys.stdout.flush()


def _values(view: View, estimate: Estimate) -> dict[str, Any]:
    """COLUMNS with their values."""
    pose = [*estimate.position.tolist(), *estimate.orientation.tolist()]
    values = [_text(view.name), view.seconds, *pose, estimate.scene, estimate.scene_probability]
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
