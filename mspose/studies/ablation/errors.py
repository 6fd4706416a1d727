"""The two errors of every test frame: of a run, from its predictions; of the record of a run, as
they were kept.

A record keeps errors alone: they are all that tables need, and the poses of a data set are not ours
    to pass on.
"""

from pathlib import Path

import pandas as pd

from mspose.errors import MsposeError
from mspose.files import whole_file
from mspose.metrics import ERROR_COLUMNS, csv_number, csv_rows, read_predictions

PREDICTIONS = "predictions/test.csv"
RECORDED = "predictions/errors.csv"
COLUMNS = ("image", "scene", *ERROR_COLUMNS)


def has_errors(run: Path) -> bool:
    """Whether the errors of a run's or a record's test frames are there."""
    return any((run / name).is_file() for name in (PREDICTIONS, RECORDED))


def read_errors(run: Path) -> pd.DataFrame:
    """`COLUMNS` of every test frame, metres and degrees.

    Raises MsposeError, with file and line, for a broken file, an error below zero, or a frame that
    is there twice.
    """
    if (run / PREDICTIONS).is_file():
        return read_predictions(run / PREDICTIONS)[list(COLUMNS)]
    path = run / RECORDED
    rows = csv_rows(path, COLUMNS)
    table = pd.DataFrame([row for _, row in rows])[list(COLUMNS)]
    for column in ERROR_COLUMNS:
        values = [csv_number(path, line, row, column) for line, row in rows]
        if below := [line for (line, _), value in zip(rows, values, strict=True) if value < 0]:
            raise MsposeError(f"{path}, line {below[0]}: {column} is below zero")
        table[column] = values
    if (twice := table.duplicated(["image", "scene"])).any():
        line, row = rows[int(twice.to_numpy().argmax())]
        raise MsposeError(
            f"{path}, line {line}: {row['image']} is there twice in scene {row['scene']}"
        )
    return table


def record_errors(run: Path, target: Path) -> None:
    """Keep a run's errors, to nine digits, in the folder of its record."""
    with whole_file(target / RECORDED) as file:
        read_errors(run).to_csv(file, index=False, lineterminator="\n", float_format="%.9g")
