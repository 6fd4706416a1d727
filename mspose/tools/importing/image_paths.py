"""Paths of folders and images that other programs wrote: which file on this machine is meant."""

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from mspose.data.frames import evenly
from mspose.data.images import SUFFIXES, opened_image
from mspose.errors import MsposeError
from mspose.tools.importing.views import View, plain_name

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst")
ENDINGS = (*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES))
FORMAT_FILES = {
    "colmap": ("images.txt", "images.bin", "sparse"),
    "nerfstudio": ("transforms.json", "transforms_train.json"),
    "tum": ("groundtruth.txt", "rgb.txt"),
    "kapture": ("sensors/sensors.txt", "records_camera.txt"),
}


def without_dots(path: Path) -> Path:
    """`path`, absolute and without `..`; links stay, since their targets may bear other names."""
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


def hint(folder: Path, kind: str) -> str:
    """End of the message that `folder` is not of the format `kind`: what it seems to be."""
    for other, names in FORMAT_FILES.items():
        for name in names:
            if other != kind and (folder / name).exists():
                return f"; {name} is there: try mspose data import {other} {folder}"
    if (folder / "database.db").is_file():
        return "; there is a COLMAP database, but no model: run `colmap mapper` first"
    inside = sorted(folder.iterdir())
    if archive := next((file for file in inside if file.name.lower().endswith(ARCHIVES)), None):
        return f"; {archive.name} is there: unpack it first"
    if any(file.suffix.lower() in SUFFIXES for file in inside) or (folder / "images").is_dir():
        return "; there are images without poses: reconstruct them first, for example with COLMAP"
    return ""


def locate(folder: Path, image: str) -> Path | None:
    """The file of an image that is named relative to `folder`, or None.

    The name may lack its ending (Blender), have another one, or be an absolute path of another
    machine, of which then the last parts count.
    """
    name = plain_name(image)
    for path in (folder / part for part in (name, *_last_parts(name))):
        if path.name:
            path = without_dots(path.parent) / path.name if ".." in path.parts else path
            appended = (path.with_name(path.name + ending) for ending in ("", *ENDINGS))
            replaced = (path.with_suffix(ending) for ending in ENDINGS)
            if found := next((file for file in (*appended, *replaced) if file.is_file()), None):
                return found
    return None


def _last_parts(name: str) -> Iterator[str]:
    """Ever shorter ends of an absolute path; nothing of a relative one."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute():
            for first in range(1, len(path.parts)):
                yield "/".join(path.parts[first:])
            return


def renamed_note(views: Sequence[View]) -> list[str]:
    """A line about images that were found under another name than the files state."""
    renamed = [
        view for view in views if view.file is not None and _is_renamed(view.image, view.file)
    ]
    if not renamed:
        return []
    first = renamed[0]
    return [f"{len(renamed)} images have other names here, such as {first.file} for {first.image}"]


def _is_renamed(image: str, file: Path) -> bool:
    elsewhere = any(_last_parts(image)) and not str(file).startswith(image)
    return elsewhere or PurePosixPath(image).name not in (file.name, file.stem)


def images_folder(candidates: Sequence[Path], images: Sequence[str]) -> Path | None:
    """The candidate with most of a sample of the images; None where none has any."""
    sample = [images[number] for number in evenly(len(images), 20)]
    counts = {
        folder: sum(locate(folder, image) is not None for image in sample) for folder in candidates
    }
    best = max(counts, key=lambda folder: counts[folder], default=None)
    return best if best is not None and counts[best] else None


def image_size(file: Path) -> tuple[float, float]:
    """Width and height of an image in pixels, from its header alone; NaN where it is unreadable."""
    try:
        with opened_image(file) as image:
            return float(image.width), float(image.height)
    except MsposeError:
        return math.nan, math.nan
