"""Images to estimate poses of: from files, folders and videos, one after the other, with what the
files say of them.
"""

import logging
import math
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from mspose.data.images import SUFFIXES, read_image
from mspose.errors import MsposeError

log = logging.getLogger("mspose")
IMAGE_SUFFIXES = (*SUFFIXES, ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
"""Endings by which a folder's videos are named in a message; any file that OpenCV opens is a video."""
UNREAD_SUFFIXES = (".avif", ".dng", ".exr", ".heic", ".heif", ".jp2", ".jxl")
"""Endings of images that are looked for in no folder, and named in a message."""
DEPTH_MAP = (  # 7Scenes: frame-000000.depth.png, and .depth.proj.png, beside frame-000000.color.png
    ".depth"
)
FILM_DIAGONAL_MM = math.hypot(36, 24)
MISSING_FRAMES = (
    0.05  # share of a video's announced frames, often an estimate, whose lack is worth a word
)


@dataclass(frozen=True)
class View:
    """What is known of an image beside its pixels."""

    name: str
    """Its path as given, or found in a folder; of a video's frame `clip.mp4#120`, the frame's
    number from 0.
    """
    width: int
    height: int
    seconds: float | None = None
    """Time in its video; of an image, the time that was given to it."""
    focal_px: float | None = None
    """From EXIF, in pixels of this image; None where the file does not say."""
    turn_tag: int = 1
    """EXIF orientation; with any but 1 a viewer shows the image turned or mirrored, while its
    pixels are read as they are stored, as those of training images are."""


@dataclass(frozen=True)
class ImageFile:
    """One image on disk."""

    path: Path
    folder: Path
    """The folder that it was found in; of an image that was given by itself, the one that holds it."""
    seconds: float | None = None

    images = 1

    def read(self) -> Iterator[tuple[View, NDArray[np.uint8]]]:
        """The image, RGB uint8 (H, W, 3). Raises MsposeError where it cannot be read."""
        image_HW3 = read_image(self.path)
        height, width = image_HW3.shape[:2]
        turn_tag, focal_mm = _exif(self.path)
        focal_px = (
            None if focal_mm is None else focal_mm / FILM_DIAGONAL_MM * math.hypot(width, height)
        )
        yield View(str(self.path), width, height, self.seconds, focal_px, turn_tag), image_HW3


@dataclass(frozen=True)
class Video:
    """A video, or every so many frames of it."""

    path: Path
    folder: Path
    """The one that holds it."""
    frames: int | None
    """As the file announces them; None where it does not."""
    every: int = 1

    @property
    def images(self) -> int | None:
        """How many will be read, where that is known."""
        return None if self.frames is None else math.ceil(self.frames / self.every)

    def read(self) -> Iterator[tuple[View, NDArray[np.uint8]]]:
        """Its frames, RGB uint8 (H, W, 3), upright where the video says how it is turned, with
        their times.
        """
        import cv2

        capture = _open_video(self.path)
        number, seconds = 0, -math.inf
        try:
            rate = capture.get(cv2.CAP_PROP_FPS)
            step = 1 / rate if 0 < rate < math.inf else 1 / 30
            while capture.grab():
                stated = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                # times that stand still or run back are no times: the frame rate goes on from the
                # last one
                seconds = stated if seconds < stated < math.inf else max(seconds + step, 0.0)
                if number % self.every == 0:
                    read, image_HW3 = capture.retrieve()
                    if not read:
                        break
                    image_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB)
                    height, width = image_HW3.shape[:2]
                    yield View(f"{self.path}#{number}", width, height, seconds), image_HW3
                number += 1
        except cv2.error as error:
            raise MsposeError(f"{self.path}: frame {number} cannot be decoded: {error}") from error
        finally:
            capture.release()
        if self.frames is not None and number < (1 - MISSING_FRAMES) * self.frames:
            log.warning(
                "%s: decoded %d of about %d frames, the rest is not there or broken",
                self.path,
                number,
                self.frames,
            )


Source = ImageFile | Video


def find_sources(inputs: Sequence[Path | str], *, every: int = 1) -> list[Source]:
    """The images and videos that are meant by paths of files and folders, in the order given.

    A folder stands for all images in it and in folders below, in natural order (`2.png` before
    `10.png`); hidden ones and 7Scenes' depth maps are left out, and so are videos and images of
    other kinds, of which a warning tells. Of a video every `every`-th frame is meant.
    Raises MsposeError where there is nothing to read: a missing path, a folder without images, an
    archive, a file that is neither image nor video; and for what is there twice.
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
    seen: set[str] = set()
    for source in sources:
        # does not ask the disk, for tens of thousands
        absolute = os.path.abspath(source.path)  # noqa: PTH100
        if absolute in seen:
            raise MsposeError(f"{source.path} is there twice: give it once")
        seen.add(absolute)
    for words in _left_out([path for path in others if os.path.abspath(path) not in seen]):  # noqa: PTH100
        log.warning("%s", words)
    return sources


def read_views(sources: Sequence[Source]) -> Iterator[tuple[View, NDArray[np.uint8]] | MsposeError]:
    """Every image with what is known of it, or what is wrong with it."""
    for source in sources:
        try:
            yield from source.read()
        except MsposeError as error:
            yield error


def natural_order(path: Path) -> list[list[str | int]]:
    """A sorting key by which numbers in names count as numbers."""
    return [
        [int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"(\d+)", part))]
        for part in path.parts
    ]


def _images_in(folder: Path) -> tuple[list[ImageFile], list[Path]]:
    """(the images of a folder; videos and images that are not read)."""
    paths, others, visited = [], [], set()
    try:
        for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
            real = os.path.realpath(place)
            folders[:] = (
                [] if real in visited else [name for name in folders if not name.startswith(".")]
            )
            if real in visited:  # by a link that leads in a circle
                continue
            visited.add(real)
            seen = [Path(place, name) for name in names if not name.startswith(".")]
            paths += [
                path
                for path in seen
                if path.suffix.lower() in IMAGE_SUFFIXES and not _is_depth_map(path)
            ]
            others += [
                path for path in seen if path.suffix.lower() in (*VIDEO_SUFFIXES, *UNREAD_SUFFIXES)
            ]
    except OSError as error:
        raise MsposeError(f"cannot read folder {error.filename}: {error.strerror}") from error
    if not paths:
        looked_for = (
            f"no images in {folder} (looked for {', '.join(IMAGE_SUFFIXES)}, in the folders below"
            " it too)"
        )
        raise MsposeError("; ".join([looked_for, *_left_out(others)]))
    return [ImageFile(path, folder) for path in sorted(paths, key=natural_order)], others


def _left_out(others: Sequence[Path]) -> list[str]:
    """Of which kinds they are, and what to do."""
    videos = [path for path in others if path.suffix.lower() in VIDEO_SUFFIXES]
    unread = [path for path in others if path.suffix.lower() in UNREAD_SUFFIXES]
    kinds = (
        (videos, "videos in folders are not read, give them by their names"),
        (
            unread,
            f"images of kinds ({', '.join(UNREAD_SUFFIXES)}) that are not read, save them as JPEG",
        ),
    )
    found = [(min(paths), len(paths) - 1, words) for paths, words in kinds if paths]
    return [f"{words}: {first}{f' and {more} more' * (more > 0)}" for first, more, words in found]


def _raise(error: OSError) -> None:
    raise error


def _is_depth_map(path: Path) -> bool:
    return any(suffix.lower() == DEPTH_MAP for suffix in path.suffixes[:-1])


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
        with path.open("rb") as file:
            beginning = file.read(1)
        packed = zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except OSError as error:
        raise MsposeError(f"cannot read {path}: {error.strerror}") from error
    if not beginning:
        raise MsposeError(f"{path} is an empty file")
    if packed:
        raise MsposeError(f"{path} is an archive: unpack it, and give the folder")
    if _is_still(path):
        return ImageFile(path, path.parent)
    return _video(path, every)


def _is_still(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.format not in ("GIF", "MPEG")
    except Exception:  # Pillow's readers fail in many ways; then it is for OpenCV to say
        return False


def _video(path: Path, every: int) -> Video:
    import cv2

    if (name := str(path)) != name.encode(errors="replace").decode():  # OpenCV would not survive it
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
    os.environ.setdefault(
        "OPENCV_FFMPEG_LOGLEVEL", "-8"
    )  # what is wrong is said by us, in one line
    import cv2

    capture = cv2.VideoCapture(str(path))
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


def _exif(path: Path) -> tuple[int, float | None]:
    """(orientation tag, focal length in mm that a camera for 35 mm film would have), as far as a
    photo says.
    """
    try:
        with Image.open(path) as image:
            tags = image.getexif()
            turn_tag = (
                1 if image.format == "TIFF" else int(tags.get(ExifTags.Base.Orientation, 1))
            )  # Pillow turns those
            focal_mm = tags.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm)
        focal_mm = float(focal_mm) if focal_mm is not None else math.nan
    except Exception:  # the image itself was read; tags may be broken in any way
        return 1, None
    return turn_tag if turn_tag in range(1, 9) else 1, focal_mm if 0 < focal_mm < math.inf else None
