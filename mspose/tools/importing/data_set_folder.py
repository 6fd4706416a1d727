"""Write the folder of an imported data set: labels.csv, a card, left_out.csv, copied images.

It appears whole or not at all.
"""

import os
import posixpath
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from mspose.data.frames import CAMERA_TO_WORLD
from mspose.data.label_csv import CSV_COLUMNS, FOCAL_COLUMN
from mspose.errors import MsposeError
from mspose.files import whole_folder

LABELS, LEFT_OUT, IMAGES = "labels.csv", "left_out.csv", "images"
FRAME_COLUMNS = ("scene", "split", "sequence", "image", "tx", "ty", "tz", "qw", "qx", "qy", "qz")
"""Columns of the frame table in the order of `CSV_COLUMNS`."""


def free_folder(out: Path) -> Path:
    """`out`, absolute. Raises MsposeError where anything but an empty folder is there."""
    folder = out.expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise MsposeError(f"--out: {folder} is a file: give the folder to be made")
    if folder.is_dir() and any(folder.iterdir()):
        raise MsposeError(f"--out: {folder} is not empty, and nothing is replaced: give another")
    return folder


def write_data_set(
    folder: Path,
    frames: pd.DataFrame,
    left_out: Sequence[tuple[str, str, str]],
    bases: Mapping[str, Path],
    *,
    card: Mapping[str, Any],
    copy: bool,
    progress: bool,
) -> Path:
    """Write the data set into `folder`, whole or not at all; returns the path of its card.

    Args:
        frames: a frame table with `image` the absolute path of each file, in the order to be
            written.
        left_out: scene, image and reason of each image that is not in it.
        bases: scene -> the folder that the files name its images from.
        card: entries of the card that depend on the format of the files.
        copy: whether the images are copied into `images/` of the folder.

    Raises MsposeError for an image name that label files cannot hold, and where it cannot be
    written.
    """
    files = [Path(image) for image in frames["image"]]
    # a base says nothing of images that absolute paths name elsewhere
    bases = {
        scene: base
        for scene, base in bases.items()
        if all(
            file.is_relative_to(base)
            for file, its in zip(files, frames["scene"], strict=True)
            if its == scene
        )
    }
    root = _common_folder([*bases.values(), *(file.parent for file in files)])
    if copy:
        names = _names_of_copies(frames["scene"].tolist(), files, bases)
    else:
        names = [file.relative_to(root).as_posix() for file in files]
    for name, file in zip(names, files, strict=True):
        _refuse_unwritable(name, file)
    counts = frames.groupby(["scene", "split"]).size()
    focal_px = frames["focal_px"]
    one_focal = focal_px.notna().all() and focal_px.nunique() == 1
    content = {
        "name": folder.name,
        "format": "label-csv",
        "root": IMAGES if copy else str(root),
        "labels": [LABELS],
        "label_convention": CAMERA_TO_WORLD,
        **({"focal_px": float(focal_px.iloc[0])} if one_focal else {}),
        **card,
        "scenes": {
            str(scene): {"frames": {str(split): int(n) for split, n in counts[scene].items()}}
            for scene in counts.index.unique("scene")
        },
    }
    labels = frames.assign(image=names)[[*FRAME_COLUMNS, "focal_px"]]
    labels.columns = pd.Index([*CSV_COLUMNS, FOCAL_COLUMN])
    with whole_folder(folder) as new:
        if copy:
            for name, file in zip(
                tqdm(names, "copying", unit="image", disable=not progress), files, strict=True
            ):
                (new / IMAGES / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, new / IMAGES / name)
        labels.to_csv(new / LABELS, index=False, lineterminator="\n")
        if left_out:
            table = pd.DataFrame(left_out, columns=["scene", "image", "reason"])
            table.to_csv(
                new / LEFT_OUT, index=False, lineterminator="\n", errors="backslashreplace"
            )
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (new / f"{folder.name}.yaml").write_text(text, "utf-8")
    return folder / f"{folder.name}.yaml"


def _common_folder(folders: Sequence[Path]) -> Path:
    """The innermost folder that holds all; one without two blanks in a row, as cards need it."""
    root = Path(os.path.commonpath(folders))
    while " ".join(str(root).split()) != str(root):
        root = root.parent
    return root


def _names_of_copies(
    scenes: Sequence[str], files: Sequence[Path], bases: Mapping[str, Path]
) -> list[str]:
    """A name below its scene's folder for each file."""
    folders: dict[str, list[Path]] = {scene: [base] for scene, base in bases.items()}
    for scene, file in zip(scenes, files, strict=True):
        folders.setdefault(scene, []).append(file.parent)
    roots = {scene: _common_folder(its) for scene, its in folders.items()}
    return [
        f"{scene}/{file.relative_to(roots[scene]).as_posix()}"
        for scene, file in zip(scenes, files, strict=True)
    ]


def _refuse_unwritable(name: str, file: Path) -> None:
    try:
        name.encode("utf-8")
        good = posixpath.normpath(name.strip().replace("\\", "/")) == name
    except UnicodeEncodeError:
        good = False
    if not good:
        raise MsposeError(
            f"{str(file)!r} cannot stand in a label file (backslash, blank at an end, or not"
            " UTF-8): rename it"
        )
