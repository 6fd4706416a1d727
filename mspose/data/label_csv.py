"""Label CSVs as MST and ActMST ship them, and for data of your own.

Columns `scene,split,seq,img_path,t1,t2,t3,q1,q2,q3,q4`: the image relative to the data set's root,
camera centre in metres, quaternion w first; and, where there is one, `focal_px`. Others are
ignored. Which way the quaternion turns is not in the file (7Scenes' CSVs are camera-to-world,
Cambridge's world-to-camera), so the data set's card says it.
"""

import csv
import logging
import math
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from mspose.data.frames import frame_table, parse_numbers
from mspose.data.images import name_fault
from mspose.errors import MsposeError
from mspose.files import read_bytes

logger = logging.getLogger("mspose")
POSE_COLUMNS = ("t1", "t2", "t3", "q1", "q2", "q3", "q4")
CSV_COLUMNS = ("scene", "split", "seq", "img_path", *POSE_COLUMNS)
SAME_FOCAL = 0.01
"""Relative difference of two statements of a focal length, as rounding makes it."""
FOCAL_COLUMN = "focal_px"
"""Focal length in pixels of the original image; may be empty, and the column may be missing."""


@dataclass(frozen=True)
class _Row:
    where: str
    """File and line."""
    scene: str
    split: str
    sequence: str
    image: str
    pose: list[str]
    focal_px: str | None
    """The cell; None where the file has no such column."""


def read_label_csv(
    files: Sequence[Path],
    split: str,
    *,
    dataset: str,
    ground_truth: str,
    convention: str,
    scenes: Sequence[str] | None = None,
    known_scenes: Sequence[str] | None = None,
    focal_px: float = math.nan,
    on_bad_frame: str = "stop",
) -> pd.DataFrame:
    """Read the frame table of one split, by scene, then in the order of the files.

    Args:
        files: label CSVs; their rows are joined.
        split: any name that the files use.
        convention: how the pose is to be read, one of `mspose.data.frames.POSE_CONVENTIONS`.
        scenes: scenes wanted, each of which must have rows; by default all in the files.
        known_scenes: where given, a row of any other scene is refused: it belongs to another data
            set.
        focal_px: of the images of files without a column `focal_px`, in pixels; an empty cell of
            that column is NaN.

    Images need not exist. Raises MsposeError with file and line for a missing or duplicate
    column, a row of a wrong length, a duplicate image (in whichever split), a cell that is not a
    number, NaN, a zero quaternion, an unknown scene; and for a split or a scene without rows.
    """
    rows = [row for file in files for row in _read_rows(file)]
    listed = ", ".join(str(file) for file in files)
    first: dict[str, _Row] = {}
    for row in rows:
        if row.image in first:
            raise MsposeError(
                f"{row.where}: image {row.image} is there twice (first: {first[row.image].where})"
            )
        first[row.image] = row
        if known_scenes and row.scene not in known_scenes:
            raise MsposeError(
                f"{row.where}: {row.scene} is not a scene of {dataset}; its scenes:"
                f" {', '.join(known_scenes)}"
            )
    splits = sorted({row.split for row in rows})
    if split not in splits:
        raise MsposeError(
            f"no frames of split {split!r} in {listed}; splits there: {', '.join(splits) or 'none'}"
        )
    rows = [row for row in rows if row.split == split and (scenes is None or row.scene in scenes)]
    rows.sort(key=lambda row: row.scene)

    faults = {}
    numbers = []
    for number, row in enumerate(rows):
        cells = dict(zip(POSE_COLUMNS, row.pose, strict=True))
        if row.focal_px is not None:
            cells[FOCAL_COLUMN] = row.focal_px or "nan"
        values, fault = parse_numbers(list(cells.values()))
        if outside := name_fault(row.image):
            faults[number] = outside
        elif fault:
            column = next(name for name, cell in cells.items() if parse_numbers([cell])[1])
            faults[number] = f"column {column}: {fault}"
        numbers.append(values if row.focal_px is not None else [*values, focal_px])
    number_B8 = np.array(numbers, dtype=np.float64).reshape(-1, 8)
    if (np.abs(number_B8[:, 7] - focal_px) > SAME_FOCAL * focal_px).any():
        logger.warning(
            "%s: column %s differs from the card's %g pixels: the column counts",
            listed, FOCAL_COLUMN, focal_px,
        )  # fmt: skip
    return frame_table(
        dataset=dataset,
        ground_truth=ground_truth,
        split=split,
        scene=[row.scene for row in rows],
        sequence=[row.sequence for row in rows],
        image=[row.image for row in rows],
        position_B3=number_B8[:, :3],
        orientation=number_B8[:, 3:7],
        convention=convention,
        where=lambda number: rows[number].where,
        source=listed,
        focal_px=number_B8[:, 7],
        faults=faults,
        scenes=scenes,
        on_bad_frame=on_bad_frame,
    )


def _read_rows(file: Path) -> list[_Row]:
    rows = []
    try:
        with StringIO(read_bytes(file).decode("utf-8-sig"), newline="") as text:
            reader = csv.reader(text, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if missing := [name for name in CSV_COLUMNS if name not in header]:
                raise MsposeError(
                    f"{file}, line 1: column {missing[0]} is not there; a label file has"
                    f" {','.join(CSV_COLUMNS)}"
                )
            for column in (*CSV_COLUMNS, FOCAL_COLUMN):
                if header.count(column) > 1:
                    raise MsposeError(f"{file}, line 1: column {column} is there twice")
            for values in reader:
                if not any(value.strip() for value in values):
                    continue  # spreadsheets end with rows of empty cells
                where = f"{file}, line {reader.line_num}"
                if len(values) != len(header):
                    raise MsposeError(
                        f"{where}: expected {len(header)} values, found {len(values)}"
                    )
                cells = {name: value.strip() for name, value in zip(header, values, strict=True)}
                for column in ("scene", "split", "img_path"):
                    if not cells[column]:
                        raise MsposeError(f"{where}: column {column} is empty")
                rows.append(
                    _Row(
                        where,
                        cells["scene"],
                        cells["split"],
                        cells["seq"],
                        posixpath.normpath(cells["img_path"].replace("\\", "/")),
                        [cells[column] for column in POSE_COLUMNS],
                        cells.get(FOCAL_COLUMN),
                    )
                )
    except UnicodeDecodeError as error:
        raise MsposeError(f"{file} is not a text file (byte {error.start} is not UTF-8)") from error
    except csv.Error as error:
        raise MsposeError(f"{file}, line {reader.line_num}: not a CSV file: {error}") from error
    return rows


def label_rows(files: Sequence[Path]) -> pd.DataFrame:
    """Read the rows of `files` unchecked: scene, split, sequence, image, q1 .. q4, place.

    `place` is file and line. Quaternions are numbers, NaN where a row's are not. Raises MsposeError
    as `read_label_csv` does for broken files.
    """
    rows = [row for file in files for row in _read_rows(file)]
    columns = {
        "scene": [row.scene for row in rows],
        "split": [row.split for row in rows],
        "sequence": [row.sequence for row in rows],
        "image": [row.image for row in rows],
        "place": [row.where for row in rows],
    }
    quaternions = [parse_numbers(row.pose[3:])[0] for row in rows]
    quaternion_B4 = np.array(quaternions, dtype=np.float64).reshape(-1, 4)
    table = pd.DataFrame(columns, dtype=object)
    return table.assign(**dict(zip(POSE_COLUMNS[3:], quaternion_B4.T, strict=True)))
