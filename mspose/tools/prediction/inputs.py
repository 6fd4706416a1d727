"""Find and read the images to predict poses of: files, folders and videos."""

import logging
import math
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mspose.data.frames import natural_order
from mspose.data.images import IMAGE_SUFFIXES, opened_image, read_image
from mspose.errors import MsposeError
from mspose.libraries import require
from mspose.tools.exif import read_exif

log = logging.getLogger("mspose")
VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
"""Videos that a warning names when they are in a folder; any file that OpenCV opens is a video."""
UNREAD_SUFFIXES = (".avif", ".dng", ".exr", ".heic", ".heif", ".jp2", ".jxl")
"""Images that cannot be read, which a warning names."""
DEPTH_MAP = ".depth"
"""7Scenes: frame-000000.depth.png, and .depth.proj.png, beside frame-000000.color.png."""
FILM_DIAGONAL_MM = math.hypot(36, 24)
MISSING_FRAMES = 0.05  # share of a video's announced frames, often an estimate, that may be missing

Image_HW3 = NDArray[np.uint8]


@dataclass(frozen=True)
class Query:
    """Facts about an image whose pose is to be predicted."""

    name: str
    """Its path as given, or found in a folder; of a video's frame `clip.mp4#120`, the frame's
    number from 0.
    """
    width: int
    height: int
    time_ns: int | None = None
    """Nanoseconds in its video, or the time that was given to an image."""
    focal_px: float | None = None
    """From EXIF, in pixels of this image; None where the file has none."""
    turn_tag: int = 1
    """EXIF orientation; with any but 1 a viewer shows the image turned or mirrored, while its
    pixels are read as they are stored, as those of training images are.
    """

    @property
    def time_s(self) -> float | None:
        """Seconds of `time_ns`."""
        return None if self.time_ns is None else self.time_ns / 10**9


@dataclass(frozen=True)
class ImageFile:
    """One image on disk."""

    path: Path
    folder: Path
    """The folder that it was found in; of an image that was given by itself, its own."""
    time_ns: int | None = None

    images = 1

    def read(self) -> Iterator[tuple[Query, Image_HW3]]:
        """The image, RGB uint8 (H, W, 3). Raises MsposeError where it cannot be read."""
        image_HW3 = read_image(self.path)
        height, width = image_HW3.shape[:2]
        turn_tag, focal_mm = read_exif(self.path)
        focal_px = focal_mm and focal_mm / FILM_DIAGONAL_MM * math.hypot(width, height)
        yield Query(str(self.path), width, height, self.time_ns, focal_px, turn_tag), image_HW3


@dataclass(frozen=True)
class Video:
    """A video, of which every `every`-th frame is read."""

    path: Path
    folder: Path
    frames: int | None
    """As the file announces them; None where it does not."""
    every: int = 1

    @property
    def images(self) -> int | None:
        """Number of images to be read, where it is known."""
        return None if self.frames is None else math.ceil(self.frames / self.every)

    def read(self) -> Iterator[tuple[Query, Image_HW3]]:
        """Its frames with their times: RGB uint8 (H, W, 3), turned upright as the video asks."""
        cv2 = require("cv2")
        capture = _open_video(self.path)
        number, seconds = 0, -math.inf
        try:
            rate = capture.get(cv2.CAP_PROP_FPS)
            step = 1 / rate if 0 < rate < math.inf else 1 / 30
            while capture.grab():
                stated = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                # where stated times stand still or run back, the frame rate goes on from the last
                seconds = stated if seconds < stated < math.inf else max(seconds + step, 0.0)
                if number % self.every == 0:
                    read, image_HW3 = capture.retrieve()
                    if not read:
                        break
                    image_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB)
                    height, width = image_HW3.shape[:2]
                    name = f"{self.path}#{number}"
                    yield Query(name, width, height, round(seconds * 1e9)), image_HW3
                number += 1
        except cv2.error as error:
            raise MsposeError(f"{self.path}: frame {number} cannot be decoded: {error}") from error
        finally:
            capture.release()
        if self.frames is not None and number < (1 - MISSING_FRAMES) * self.frames:
            log.warning("%s: decoded %d of about %d frames", self.path, number, self.frames)


Source = ImageFile | Video


def find_sources(inputs: Sequence[Path | str], *, every: int = 1) -> list[Source]:
    """The images and videos of paths of files and folders, in the order given.

    A folder stands for all images in it and in folders below, in natural order (`2.png` before
    `10.png`); hidden ones and 7Scenes' depth maps are left out, and so are videos and images of
    other kinds, which a warning names. Of a video every `every`-th frame is meant.

    Raises MsposeError where there is nothing to read: a missing path, a folder without images, an
    archive, a file that is neither image nor video; and for one that is given twice.
    """
    sources: list[Source] = []
    others: list[Path] = []
    for given in inputs:
        if not str(given):
            raise MsposeError("a path is empty: give images, folders of images, or videos")
        path = Path(given)
        if path.is_dir():
            images, beside = _images_in(path)
            sources += images
            others += beside
        else:
            sources.append(_source(path, every))
    known: set[str] = set()
    for source in sources:
        absolute = _absolute(source.path)
        if absolute in known:
            raise MsposeError(f"{source.path} is there twice: give it once")
        known.add(absolute)
    for warning in _left_out([path for path in others if _absolute(path) not in known]):
        log.warning("%s", warning)
    return sources


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - unlike resolve, it does not read the disk


def read_queries(sources: Sequence[Source]) -> Iterator[tuple[Query, Image_HW3] | MsposeError]:
    """Every image with its facts, or its error."""
    for source in sources:
        try:
            yield from source.read()
        except MsposeError as error:
            yield error


def _images_in(folder: Path) -> tuple[list[ImageFile], list[Path]]:
    """(the images of a folder; videos and images that are not read)."""
    paths, others, visited = [], [], set()
    try:
        for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
            real = os.path.realpath(parent)
            if real in visited:  # by a link that leads in a circle
                folders.clear()
                continue
            visited.add(real)
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(parent, name) for name in names if not name.startswith(".")):
                if path.exists() and not path.is_file():  # a pipe or a device
                    continue
                suffix = path.suffix.lower()
                depth = any(part.lower() == DEPTH_MAP for part in path.suffixes[:-1])
                if suffix in IMAGE_SUFFIXES and not depth:
                    paths.append(path)
                elif suffix in (*VIDEO_SUFFIXES, *UNREAD_SUFFIXES):
                    others.append(path)
    except OSError as error:
        raise MsposeError(f"cannot read folder {error.filename}: {error.strerror}") from error
    if not paths:
        kinds = f"searched {', '.join(IMAGE_SUFFIXES)}, in the folders below it too"
        raise MsposeError("; ".join([f"no images in {folder} ({kinds})", *_left_out(others)]))
    paths.sort(key=lambda path: [natural_order(part) for part in path.parts])
    return [ImageFile(path, folder) for path in paths], others


def _raise(error: OSError) -> None:
    raise error


def _left_out(others: Sequence[Path]) -> list[str]:
    """A line for each kind of files that are left out, and what to do."""
    kinds = (
        (VIDEO_SUFFIXES, "videos in folders are not read, give them by their names"),
        (UNREAD_SUFFIXES, f"images not read ({', '.join(UNREAD_SUFFIXES)}), save them as JPEG"),
    )
    lines = []
    for suffixes, advice in kinds:
        if paths := sorted(path for path in others if path.suffix.lower() in suffixes):
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            lines.append(f"{advice}: {paths[0]}{more}")
    return lines


def _source(path: Path, every: int) -> Source:
    if not path.exists():
        raise MsposeError(
            f"there is no file or folder {path}: give images, folders of images, or videos"
        )
    if not path.is_file():
        raise MsposeError(f"{path} is neither a file nor a folder")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFile(path, path.parent)
    try:
        empty = path.stat().st_size == 0
        archive = zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except OSError as error:
        raise MsposeError(f"cannot read {path}: {error.strerror}") from error
    if empty:
        raise MsposeError(f"{path} is an empty file")
    if archive:
        raise MsposeError(f"{path} is an archive: unpack it, and give the folder")
    if _is_still(path):
        return ImageFile(path, path.parent)
    return _video(path, every)


def _is_still(path: Path) -> bool:
    try:
        with opened_image(path):
            return True
    except MsposeError:  # then OpenCV decides
        return False


def _video(path: Path, every: int) -> Video:
    cv2 = require("cv2")
    if (name := str(path)) != name.encode(errors="replace").decode():  # OpenCV would crash
        raise MsposeError(f"{path}: a video's name has to be UTF-8: rename it")
    capture = _open_video(path)
    try:
        if not capture.isOpened():
            advice = ": save it as JPEG" if path.suffix.lower() in UNREAD_SUFFIXES else ""
            raise MsposeError(
                f"{path} is neither an image nor a video that OpenCV can open{advice}"
            )
        if not capture.read()[0]:
            raise MsposeError(f"{path} opens as a video, but none of its frames can be decoded")
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        capture.release()
    return Video(path, path.parent, int(count) if 0 < count < 2**53 else None, every)


def _open_video(path: Path) -> Any:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # errors are reported in one line here
    cv2 = require("cv2")
    capture = cv2.VideoCapture(str(path))
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture
