"""Label CSVs as MST and ActMST ship them, and for data of your own.

Columns `scene,split,seq,img_path,t1,t2,t3,q1,q2,q3,q4`: the image relative to the data set's root,
camera centre in metres, quaternion w first; and, where there is one, `focal_px`. Others are
ignored. Which way the quaternion turns is
not in the file: 7Scenes' CSVs are camera-to-world, Cambridge's world-to-camera; so the data set's
    card says it.
"""

import csv
import math
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mspose.data.frames import frame_table, parse_numbers
from mspose.errors import MsposeError

POSE_COLUMNS = ("t1", "t2", "t3", "q1", "q2", "q3", "q4")
CSV_COLUMNS = ("scene", "split", "seq", "img_path", *POSE_COLUMNS)
FOCAL_COLUMN = "focal_px"
"""Focal length in pixels of the original image; may be empty, and the column may be missing."""


class _Row(NamedTuple):
    file: Path
    line: int
    scene: str
    split: str
    sequence: str
    image: str
    pose: list[str]
    focal_px: str | None
    """The cell; None where the file has no such column."""

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"


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
    """The frame table of the rows of one split in `files`, by scene, then in the order of the
    files.

    Args:
        files: label CSVs; their rows are joined.
        split: any name that the files use.
        convention: how the pose is to be read, one of `mspose.data.frames.POSE_CONVENTIONS`.
        scenes: scenes wanted, each of which must have rows; by default all in the files.
        known_scenes: where given, a row of any other scene is refused: it belongs to another data
            set.
        focal_px: of the images of files without a column `focal_px`, in pixels; an empty cell of
            that column is NaN.

    Images are not looked for. Raises MsposeError with file and line for a missing column, a row of
    a wrong length, a duplicate image (in whichever split), a cell that is not a number, NaN, a zero
    quaternion, an unknown scene; and for a split or a scene without rows.
    """
    rows = [row for file in files for row in _read_rows(file)]
    listed = ", ".join(str(file) for file in files)
    first: dict[str, _Row] = {}
    for row in rows:
        if row.image in first:
            raise MsposeError(
                f"{row.place}: image {row.image} is there twice (first: {first[row.image].place})"
            )
        first[row.image] = row
        if known_scenes and row.scene not in known_scenes:
            raise MsposeError(
                f"{row.place}: {row.scene} is not a scene of {dataset}; its scenes:"
                f" {', '.join(known_scenes)}"
            )
    splits = sorted({row.split for row in rows})
    if split not in splits:
        raise MsposeError(
            f"no frames of split {split!r} in {listed}; splits there: {', '.join(splits) or 'none'}"
        )
    wanted = sorted(
        {row.scene for row in rows if row.split == split} if scenes is None else set(scenes)
    )
    order = {scene: rank for rank, scene in enumerate(wanted)}
    rows = sorted(
        (row for row in rows if row.split == split and row.scene in order),
        key=lambda row: order[row.scene],
    )

    values, focals, faults = [], [], {}
    for number, row in enumerate(rows):
        focal, fault = _focal(row, focal_px)
        focals.append(focal)
        if fault:
            faults[number] = f"column {FOCAL_COLUMN}: {fault}"
        numbers, fault = parse_numbers(row.pose)
        if fault:
            column = next(
                name
                for name, cell in zip(POSE_COLUMNS, row.pose, strict=True)
                if parse_numbers([cell])[1]
            )
            faults[number] = f"column {column}: {fault}"
        values.append(numbers)
    number_B7 = np.array(values, dtype=np.float64).reshape(-1, 7)
    return frame_table(
        dataset=dataset,
        ground_truth=ground_truth,
        split=split,
        scene=[row.scene for row in rows],
        sequence=[row.sequence for row in rows],
        image=[row.image for row in rows],
        position_B3=number_B7[:, :3],
        orientation=number_B7[:, 3:],
        convention=convention,
        where=lambda number: rows[number].place,
        source=listed,
        focal_px=focals,
        faults=faults,
        scenes=wanted,
        on_bad_frame=on_bad_frame,
    )


def _focal(row: _Row, default: float) -> tuple[float, str]:
    """(focal length, fault) of a row."""
    if row.focal_px is None:
        return default, ""
    (number,), fault = parse_numbers([row.focal_px or "nan"])
    return number, fault


def _read_rows(file: Path) -> list[_Row]:
    rows = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in CSV_COLUMNS if header.count(name) != 1]
            if missing:
                times = "twice" if missing[0] in header else "not there"
                raise MsposeError(
                    f"{file}, line 1: column {missing[0]} is {times}; a label file has"
                    f" {','.join(CSV_COLUMNS)}"
                )
            if header.count(FOCAL_COLUMN) > 1:
                raise MsposeError(f"{file}, line 1: column {FOCAL_COLUMN} is twice")
            scene, split, seq, path, *pose = (header.index(name) for name in CSV_COLUMNS)
            focal = header.index(FOCAL_COLUMN) if FOCAL_COLUMN in header else None
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                line = reader.line_num
                if len(cells) != len(header):
                    raise MsposeError(
                        f"{file}, line {line}: expected {len(header)} values, found {len(cells)}"
                    )
                names = {
                    "scene": cells[scene].strip(),
                    "split": cells[split].strip(),
                    "img_path": cells[path].strip(),
                }
                for column, name in names.items():
                    if not name:
                        raise MsposeError(f"{file}, line {line}: column {column} is empty")
                rows.append(
                    _Row(
                        file,
                        line,
                        names["scene"],
                        names["split"],
                        cells[seq].strip(),
                        posixpath.normpath(names["img_path"].replace("\\", "/")),
                        [cells[column].strip() for column in pose],
                        None if focal is None else cells[focal].strip(),
                    )
                )
    except OSError as error:
        raise MsposeError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MsposeError(f"{file} is not a text file (byte {error.start} is not UTF-8)") from error
    except csv.Error as error:
        raise MsposeError(f"{file}, line {reader.line_num}: not a CSV file: {error}") from error
    return rows


def label_rows(files: Sequence[Path]) -> pd.DataFrame:
    """The rows of `files` as they stand there, unchecked: scene, split, sequence, image, q1 .. q4,
    place.

    place is file and line. Quaternions are numbers, NaN where a row's are not. Raises MsposeError
    as `read_label_csv` does for broken files.
    """
    rows = [row for file in files for row in _read_rows(file)]
    names = ("scene", "split", "sequence", "image", "place")
    table = pd.DataFrame(
        {name: [getattr(row, name) for row in rows] for name in names}, dtype=object
    )
    quaternion_B4 = np.array(
        [parse_numbers(row.pose[3:])[0] for row in rows], dtype=np.float64
    ).reshape(-1, 4)
    return table.assign(**dict(zip(POSE_COLUMNS[3:], quaternion_B4.T, strict=True)))
