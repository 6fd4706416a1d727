"""Paths of folders and images that other programs wrote: which file on this machine is meant."""

import math
import os
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mspose.data.frames import evenly
from mspose.data.images import IMAGE_SUFFIXES, opened_image, same_image
from mspose.errors import MsposeError
from mspose.tools.importing.views import View, listed, plain_name

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst")
LAYOUTS = {
    "colmap": "cameras and images as .txt or .bin, here or in sparse/",
    "nerfstudio": "transforms.json, or transforms_train.json and transforms_test.json",
    "tum": "groundtruth.txt with `timestamp tx ty tz qx qy qz qw` in its lines, and rgb.txt with"
    " `timestamp file`",
    "kapture": "sensors/ with sensors.txt, records_camera.txt and trajectories.txt",
    "7scenes": "folders such as seq-01 with frame-000000.color.png and frame-000000.pose.txt, a 4x4"
    " camera-to-world matrix, and TrainSplit.txt and TestSplit.txt above them",
    "cambridge": "dataset_train.txt and dataset_test.txt with `image x y z qw qx qy qz` in their"
    " lines",
    "kitti": "poses.txt with the 12 numbers of a 3x4 camera-to-world matrix in each line, beside"
    " calib.txt and the images in image_0/, image_2/ or images/",
}
"""Format -> the files that a folder of it has."""
FORMAT_FILES = {
    "colmap": ("images.txt", "images.bin", "sparse"),
    "nerfstudio": ("transforms.json", "transforms_train.json"),
    "tum": ("groundtruth.txt", "rgb.txt", "cam0/data.csv", "mav0/cam0/data.csv"),
    "kapture": ("sensors/sensors.txt", "records_camera.txt"),
    "7scenes": ("TrainSplit.txt", "TestSplit.txt", "seq-01"),
    "cambridge": ("dataset_train.txt", "dataset_test.txt"),
    "kitti": ("poses.txt", "calib.txt", "image_0", "image_2"),
}
"""Format -> files or folders that are a sign of it."""
DEEPEST, MOST_FOLDERS = 3, 1000
"""Levels and number of folders in which images are searched."""


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


def wrong_layout(folder: Path, kind: str, missing: str) -> MsposeError:
    """The error that `folder` is not of the format `kind`, with the layout that was expected, and
    what the folder seems to be.
    """
    return MsposeError(
        f"{folder} is no {kind} folder: {missing}; expected {LAYOUTS[kind]}{_hint(folder, kind)}"
    )


def _hint(folder: Path, kind: str) -> str:
    signs = {
        other: next((name for name in names if (folder / name).exists()), "")
        for other, names in FORMAT_FILES.items()
    }
    for other, name in signs.items():
        if name and not signs[kind] and other != kind:
            return f"; {name} is there: try mspose data import {other} {shlex.quote(str(folder))}"
    if (folder / "database.db").is_file():
        return "; there is a COLMAP database, but no model: run `colmap mapper` first"
    inside = sorted(folder.iterdir())
    if archive := next((file for file in inside if file.name.lower().endswith(ARCHIVES)), None):
        return f"; {archive.name} is there: unpack it first"
    if images_in(folder) or (folder / "images").is_dir():
        return "; there are images without poses: reconstruct them first, for example with COLMAP"
    return ""


def images_in(folder: Path) -> list[str]:
    """Names of the images in a folder."""
    return [file.name for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]


def find_images(
    names: Sequence[str], candidates: Sequence[Path], above: Path
) -> tuple[list[Path], list[Path | None]]:
    """(the folder that names are relative to, or all that were searched; the file of each name).

    A folder has an image under its name, with another ending or case, or under the end of its name:
    names may be paths of another machine, or relative to another folder; the same number of parts
    is then left out of all. Where no candidate has any of a sample, all folders below `above` are
    searched. Raises MsposeError where several of these are as likely.
    """
    sample = [plain_name(names[number]) for number in evenly(len(names), 20)]
    best = _most_likely(sample, candidates)
    if not best:
        best = _most_likely(sample, list(_folders_below(above)))
        if len(best) > 1:
            raise MsposeError(
                f"{sample[0]} and others may be in several folders:"
                f" {listed([str(folder) for folder, _ in best])}: choose with --images FOLDER"
            )
    if not best:
        return list(candidates), [None] * len(names)
    folder, left_out = best[0]
    return [folder], [
        file_of(folder, name) or (file_of(folder, name, left_out) if left_out else None)
        for name in map(plain_name, names)
    ]


def _most_likely(sample: Sequence[str], folders: Sequence[Path]) -> list[tuple[Path, int]]:
    """(folder, number of parts to leave out) with most of the sample and the fewest left out."""
    deepest = max((name.count("/") for name in sample), default=0)
    best: list[tuple[Path, int]] = []
    most = 0
    for left_out in range(deepest + 1):
        for folder in folders:
            count = sum(file_of(folder, name, left_out) is not None for name in sample)
            if count > most:
                best, most = [], count
            if count == most > 0 and all(left_out == other for _, other in best):
                best.append((folder, left_out))
        if most == len(sample):
            break
    return best


def _folders_below(folder: Path) -> Iterator[Path]:
    found = 0
    for parent, inner, _ in os.walk(folder):
        depth = len(Path(parent).relative_to(folder).parts)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if depth >= DEEPEST:
            inner.clear()
        for name in inner:
            found += 1
            if found > MOST_FOLDERS:
                return
            yield Path(parent, name)


def file_of(folder: Path, name: str, left_out: int = 0) -> Path | None:
    """The file of an image that is named relative to `folder`, less the first parts of the name."""
    path = folder / "/".join(name.split("/")[min(left_out, name.count("/")) :])
    if not path.name:
        return None
    path = without_dots(path.parent) / path.name if ".." in path.parts else path
    return path if path.is_file() else same_image(path)


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
    parts = [part for part in image.split("/") if part not in ("", ".", "..")]
    here = file.parts[-len(parts) :]
    return list(here[:-1]) != parts[:-1] or parts[-1] not in (file.name, file.stem)


def image_size(file: Path) -> tuple[float, float]:
    """Width and height of an image in pixels, from its header alone; NaN where it is unreadable."""
    try:
        with opened_image(file) as image:
            return float(image.width), float(image.height)
    except MsposeError:
        return math.nan, math.nan
