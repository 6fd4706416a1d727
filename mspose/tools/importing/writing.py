"""The folder of an imported data set: labels.csv, one card, left_out.csv, and images where they are
copied.

It appears whole or not at all: it is written beside its place and moved there at the end.
"""

import csv
import math
import os
import posixpath
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml
from tqdm import tqdm

from mspose.data.frames import CAMERA_TO_WORLD
from mspose.data.label_csv import CSV_COLUMNS, FOCAL_COLUMN
from mspose.errors import MsposeError
from mspose.files import whole_folder

LABELS, LEFT_OUT, IMAGES = "labels.csv", "left_out.csv", "images"


def free_folder(out: Path) -> Path:
    """`out`, absolute. Raises MsposeError where something is there that is not an empty folder."""
    folder = out.expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise MsposeError(f"--out: {folder} is a file: give the folder to be made")
    if folder.is_dir() and any(folder.iterdir()):
        raise MsposeError(
            f"--out: {folder} is there and not empty, and nothing is replaced: give another"
        )
    return folder


def write_data_set(
    folder: Path,
    frames: pd.DataFrame,
    left_out: Sequence[tuple[str, str, str]],
    *,
    kind: str,
    stated: str,
    scale: float,
    sources: Sequence[str],
    bases: Mapping[str, Path],
    copy: bool,
    progress: bool,
) -> Path:
    """Write the data set into `folder`, whole or not at all; returns the path of its card.

    Args:
        frames: a frame table with `image` the absolute path of each file, in the order to be
            written.
        left_out: scene, image and reason of what is not in it.
        stated: how the poses stood in the files.
        sources: the files that were read.
        bases: scene -> the folder that the files name its images from.
        copy: whether the images are copied into `images/` of the folder.

    Raises MsposeError for an image name that label files cannot hold, and where it cannot be
    written.
    """
    files = [Path(image) for image in frames["image"]]
    of_scene = {
        str(scene): [files[row] for row in rows]
        for scene, rows in frames.groupby("scene").indices.items()
    }
    # full paths in the files lead elsewhere
    bases = {
        scene: base
        for scene, base in bases.items()
        if all(file.is_relative_to(base) for file in of_scene[scene])
    }
    root = _common_root([*bases.values(), *(file.parent for file in files)])
    names = [file.relative_to(root).as_posix() for file in files]
    if copy:
        names = _names_for_copies(frames["scene"].tolist(), files, bases)
    for name, file in zip(names, files, strict=True):
        _refuse_unwritable(name, file)
    focal_px = frames["focal_px"]
    one_focal = focal_px.notna().all() and focal_px.nunique() == 1
    card = {
        "name": folder.name,
        "format": "label-csv",
        "root": IMAGES if copy else str(root),
        "labels": [LABELS],
        "ground_truths": [kind],
        "label_convention": CAMERA_TO_WORLD,
        **({"focal_px": float(focal_px.iloc[0])} if one_focal else {}),
        "source": f"mspose data import {kind}: {', '.join(sources)}",
        "pose_convention": (
            f"label CSV, camera-to-world, quaternion w first, metres; from {kind}: {stated};"
            f" {scale:g} metres per unit there; images as they are, with the distortion of their"
            " lens"
        ),
        "how_to_get": f"import it again: mspose data import {kind} ... --out {folder}",
        "scenes": {
            str(scene): {
                "frames": {
                    str(split): int(count) for split, count in of_scene.value_counts().items()
                }
            }
            for scene, of_scene in frames.groupby("scene")["split"]
        },
    }
    with whole_folder(folder) as place:
        if copy:
            for name, file in zip(
                tqdm(names, "copying", unit="image", disable=not progress), files, strict=True
            ):
                (place / IMAGES / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place / IMAGES / name)
        _write_csv(place / LABELS, [*CSV_COLUMNS, FOCAL_COLUMN], _label_rows(frames, names))
        if left_out:
            _write_csv(place / LEFT_OUT, ["scene", "image", "reason"], left_out)
        (place / f"{folder.name}.yaml").write_text(
            yaml.safe_dump(card, sort_keys=False, allow_unicode=True), "utf-8"
        )
    return folder / f"{folder.name}.yaml"


def _label_rows(frames: pd.DataFrame, names: Sequence[str]) -> Iterator[list[object]]:
    columns = ["tx", "ty", "tz", "qw", "qx", "qy", "qz", "focal_px"]
    of_frame = zip(frames["scene"], frames["split"], frames["sequence"], names, strict=True)
    for (scene, split, sequence, name), numbers in zip(
        of_frame, frames[columns].to_numpy().tolist(), strict=True
    ):
        yield [
            scene,
            split,
            sequence,
            name,
            *numbers[:-1],
            "" if math.isnan(numbers[-1]) else numbers[-1],
        ]


def _write_csv(
    path: Path, header: Sequence[str], rows: Iterator[list[object]] | Sequence[Sequence[object]]
) -> None:
    with path.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _common_root(folders: Sequence[Path]) -> Path:
    """The folder that all of them are in; a card's root has no two blanks in a row."""
    root = Path(os.path.commonpath(folders))
    while " ".join(str(root).split()) != str(root):
        root = root.parent
    return root


def _names_for_copies(
    scenes: Sequence[str], files: Sequence[Path], bases: Mapping[str, Path]
) -> list[str]:
    """A name below its scene's folder for each file."""
    of_scene: dict[str, list[Path]] = {scene: [base] for scene, base in bases.items()}
    for scene, file in zip(scenes, files, strict=True):
        of_scene.setdefault(scene, []).append(file.parent)
    roots = {scene: _common_root(folders) for scene, folders in of_scene.items()}
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
