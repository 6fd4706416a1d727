"""What one foreign folder holds, before its poses are converted, and where its images lie."""

import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mspose.data.frames import evenly, read_lines
from mspose.data.images import SUFFIXES, find_image
from mspose.errors import MsposeError

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst")
SEVERAL_LISTED = 10


@dataclass(frozen=True)
class View:
    """One image with its pose as the files state it, in their convention and unit."""

    image: str
    """Its name as the files have it, with `/`."""
    file: Path | None
    """Where it lies; None where it is not on disk."""
    position: Sequence[float]
    orientation: Any
    """Quaternion w x y z, or rotation matrix (3, 3); NaN where it could not be read."""
    sequence: str
    moment: Any
    """Sorts the sequence's views; those with equal ones were taken at the same time, by several
    cameras.
    """
    place: str
    """File and line, for messages."""
    focal_px: float = math.nan
    size_px: tuple[float, float] = (math.nan, math.nan)
    """Width and height of the image that `focal_px` was measured in."""
    fault: str = ""
    given_split: str = ""
    """The split that the files put it in, where they do."""


@dataclass(frozen=True)
class Capture:
    """What one PATH holds."""

    source: Path
    """What was read, for messages: a model folder or a file."""
    convention: str
    """Of the views' poses, one of `mspose.data.frames.POSE_CONVENTIONS`."""
    views: list[View]
    looked_in: Sequence[Path]
    """The folders in which images were looked for."""
    unposed: Mapping[str, str] = field(default_factory=dict)
    """Image -> why it has no pose."""
    notes: Sequence[str] = ()
    """What else a reader should know, a line each."""


def without_dots(path: Path) -> Path:
    """`path`, absolute and without `..`; links stay, as what they lead to may be called otherwise."""
    path = path.expanduser().absolute()
    plain = Path(os.path.normpath(path))
    try:
        return plain if plain.samefile(path) else path.resolve()
    except OSError:
        return path.resolve()


def existing_folder(path: Path, kind: str) -> Path:
    """`path`, absolute. Raises MsposeError where it is missing, an archive, or a file."""
    path = without_dots(path)
    if not path.exists():
        raise MsposeError(f"there is no folder {path}")
    if not path.is_dir():
        if path.name.lower().endswith(ARCHIVES) or (path.is_file() and zipfile.is_zipfile(path)):
            raise MsposeError(f"{path} is an archive: unpack it first, and give the folder")
        raise MsposeError(f"{path} is a file: give the folder of the {kind} data")
    return path


def looks_like(path: Path, kind: str) -> str:
    """What a folder looks like that is not of `kind`, for the end of a message; nothing where it
    looks like nothing.
    """
    signs = {
        "colmap": ("images.txt", "images.bin", "sparse"),
        "nerfstudio": ("transforms.json", "transforms_train.json"),
        "tum": ("groundtruth.txt", "rgb.txt"),
        "kapture": ("sensors/sensors.txt", "records_camera.txt"),
    }
    for other, names in signs.items():
        for name in names:
            if other != kind and (path / name).exists():
                return f"; {name} is there: try mspose data import {other} {path}"
    if (path / "database.db").is_file():
        return (
            "; there is a COLMAP database, but no model: run `colmap mapper`, or give the folder"
            " that it wrote"
        )
    inside = sorted(path.iterdir())
    if archive := next((file for file in inside if file.name.lower().endswith(ARCHIVES)), None):
        return f"; {archive.name} is there: unpack it first"
    if any(file.suffix.lower() in SUFFIXES for file in inside) or (path / "images").is_dir():
        return "; there are images without poses: reconstruct them first, for example with COLMAP"
    return ""


def locate(folder: Path, image: str) -> Path | None:
    """The file of an image in `folder`, also under another ending (Blender leaves it out); None
    where there is none.
    """
    path = folder / image.replace("\\", "/")
    if not path.name:
        return None
    path = without_dots(path.parent) / path.name if ".." in path.parts else path
    for suffix in ("", *SUFFIXES):
        if (named := path.with_name(path.name + suffix)).is_file():
            return named
    try:
        return find_image(folder, str(path))
    except MsposeError:
        return None


def images_folder(candidates: Sequence[Path], images: Sequence[str]) -> Path | None:
    """That of the candidates which has most of a sample of the images; None where none has any."""
    sample = [images[number] for number in evenly(len(images), 20)]
    counts = {
        folder: sum(locate(folder, image) is not None for image in sample) for folder in candidates
    }
    best = max(counts, key=lambda folder: counts[folder], default=None)
    return best if best is not None and counts[best] else None


def sequence_of(image: str) -> str:
    """The folder of an image, which stands for the sequence that it belongs to; `.` for none."""
    return image.replace("\\", "/").removeprefix("./").rpartition("/")[0] or "."


def image_size(file: Path) -> tuple[float, float]:
    """Width and height of an image in pixels, from its header alone; NaN where it cannot be read."""
    try:
        with Image.open(file) as image:
            return float(image.width), float(image.height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return math.nan, math.nan


def values_of(path: Path, separator: str | None, most: int = -1) -> Iterator[tuple[str, list[str]]]:
    """(file and line, values) of the lines of a text file that hold any and are no comments (#)."""
    for number, line in enumerate(read_lines(path), 1):
        if line and not line.startswith("#"):
            values = line.replace("\t", " ").split(separator, most)
            yield f"{path}, line {number}", [value.strip() for value in values]


def listed(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - SEVERAL_LISTED} more" if len(names) > SEVERAL_LISTED else ""
    return ", ".join(names[:SEVERAL_LISTED]) + more


def stacked(views: Sequence[View]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(positions (B, 3), orientations (B, 4) or (B, 3, 3), focal lengths (B,)) of views."""
    position_B3 = np.array([view.position for view in views], dtype=np.float64).reshape(-1, 3)
    orientation = np.array([view.orientation for view in views], dtype=np.float64)
    return position_B3, orientation, np.array([view.focal_px for view in views], dtype=np.float64)
