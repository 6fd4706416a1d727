"""Predictions files, and the metrics that are computed from them alone.

Protocol (Shavit et al., ICCV 2021): per scene the median position error (metres) and the median
orientation error (degrees); a data set's average is the unweighted mean over its scenes. Recall is
the share of frames whose two errors are both within a pair of thresholds. Beside them, the
QUANTILES of both errors, and the area under the recall curve (AUC): recall at a pair of thresholds
scaled by a common factor, averaged over factors from 0 to 1.

The two errors of a frame are computed once, where its poses enter: by `with_errors` for new
predictions, by `read_predictions` for a file. Writing stores them; metrics, tables and reports take
them from the table.
"""

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd

from mspose.errors import MsposeError
from mspose.files import number, read_bytes, read_json, whole_file, with_checksum
from mspose.poses import orientation_error, position_error

TRUE_POSITION, TRUE_ORIENTATION = ["tx", "ty", "tz"], ["qw", "qx", "qy", "qz"]
ESTIMATED_POSITION = ["tx_est", "ty_est", "tz_est"]
ESTIMATED_ORIENTATION = ["qw_est", "qx_est", "qy_est", "qz_est"]
POSE_COLUMNS = (*TRUE_POSITION, *TRUE_ORIENTATION, *ESTIMATED_POSITION, *ESTIMATED_ORIENTATION)
ERROR_COLUMNS = ("position_error_m", "orientation_error_deg")
PREDICTION_COLUMNS = (
    *("image", "scene", "predicted_scene", "scene_probability"),
    *POSE_COLUMNS,
    *ERROR_COLUMNS,
)
"""Columns of a predictions file: camera-to-world poses in metres, quaternions w x y z; `_est` is
the estimate.
"""

PREDICTIONS_CHECKSUM = "predictions_sha256"
"""Key of metrics.json for the checksum of the predictions file that they were computed from."""
QUANTILES = (0.75, 0.9, 0.95)
PREDICTIONS_ADVICE = (
    "a predictions file has the true and the estimated pose of each image; what mspose predict"
    " writes has estimates alone: take predictions/test.csv of mspose evaluate RUN"
)

ONE_SCENE = "all"
"""The scene's name where a predictions file has no `scene` column."""

ERROR_TOLERANCE = (1e-4, 1e-3)
"""Metres and degrees by which a file's error columns may differ from its poses unnoticed."""

log = logging.getLogger("mspose")


def csv_rows(
    path: Path | str, required: Sequence[str], advice: str = ""
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file as (line number, {column: text}) per row; blank lines are skipped.

    advice: ends the message about a missing column.

    Raises MsposeError, with the line where there is one, for a file that is missing, empty or not
    text, for a missing or repeated column, and for a row that has not one value per column.
    """
    path = Path(path)
    try:
        with StringIO(read_bytes(path).decode("utf-8-sig"), newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, values) for values in reader if values]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MsposeError(f"{path} is not a CSV text file in UTF-8: {error}") from error
    if header and (missing := [name for name in required if name not in header]):
        raise MsposeError(
            f"{path}: column {', '.join(missing)} missing; the header has {', '.join(header)}"
            + (f"; {advice}" if advice else "")
        )
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise MsposeError(f"{path}: column {', '.join(twice)} is there twice")
    if not lines:
        raise MsposeError(f"{path} is empty: expected a header with {', '.join(required)} and rows")
    for line, values in lines:
        if len(values) != len(header):
            raise MsposeError(
                f"{path}, line {line}: {len(values)} values, expected {len(header)} as in the"
                " header"
            )
    return [
        (line, dict(zip(header, map(str.strip, values), strict=True))) for line, values in lines
    ]


def csv_number(path: Path | str, line: int, row: Mapping[str, str], column: str) -> float:
    """Read the finite number in a cell; MsposeError with file and line for anything else."""
    try:
        value = number(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MsposeError(
            f"{path}, line {line}: {column} is {row[column]!r}, expected a finite number"
        )
    return value


def with_errors(predictions: pd.DataFrame) -> pd.DataFrame:
    """Add the position error (metres) and orientation error (degrees) of every frame.

    predictions: a table with `image` and POSE_COLUMNS. Raises MsposeError, with the image's name,
    for a pose that is not finite or a quaternion that is zero.
    """
    if fault := _pose_fault(predictions):
        raise MsposeError(f"prediction for {predictions['image'].iloc[fault[0]]}: {fault[1]}")
    return predictions.assign(
        position_error_m=position_error(
            predictions[ESTIMATED_POSITION].to_numpy(), predictions[TRUE_POSITION].to_numpy()
        ),
        orientation_error_deg=orientation_error(
            predictions[ESTIMATED_ORIENTATION].to_numpy(), predictions[TRUE_ORIENTATION].to_numpy()
        ),
    )


def _pose_fault(table: pd.DataFrame) -> tuple[int, str] | None:
    """Find the first pose that is not finite or has a zero quaternion: (row, what is wrong)."""
    values = table[list(POSE_COLUMNS)].to_numpy(dtype=np.float64)
    if (bad := np.argwhere(~np.isfinite(values))).size:
        row, column = bad[0]
        found = f"{POSE_COLUMNS[column]} is {values[row, column]}, expected a finite number"
        return int(row), found
    for which, columns in (("true", TRUE_ORIENTATION), ("estimated", ESTIMATED_ORIENTATION)):
        largest = np.abs(table[columns].to_numpy(dtype=np.float64)).max(axis=1)
        if (zero := np.flatnonzero(largest < 1e-12)).size:
            found = f"the {which} quaternion ({' '.join(columns)}) is zero and names no orientation"
            return int(zero[0]), found
    return None


def write_predictions(path: Path | str, predictions: pd.DataFrame) -> None:
    """Write the PREDICTION_COLUMNS of a table, whole or not at all.

    Every float reads back as the same float64. `predicted_scene` and `scene_probability` are empty
    where no scene was predicted.
    """
    numbers = ("scene_probability", *POSE_COLUMNS, *ERROR_COLUMNS)
    table = predictions[list(PREDICTION_COLUMNS)].astype(dict.fromkeys(numbers, np.float64))
    with whole_file(path) as file:
        table.to_csv(file, index=False, lineterminator="\n")


def read_predictions(path: Path | str) -> pd.DataFrame:
    """Read PREDICTION_COLUMNS from any CSV file with `image` and the fourteen pose columns.

    Without `scene` there is one scene, named `all`; `predicted_scene`, `scene_probability` and the
    errors may be missing too. Poses come back as written (quaternions of any norm). The errors are
    computed from them; where the file has others, a warning counts the rows. Further columns are
    left out. Raises MsposeError, with file and line, for a missing column, a value that is not a
    finite number, a zero quaternion, a frame that is there twice, or an empty file.
    """
    rows = csv_rows(path, ("image", *POSE_COLUMNS), PREDICTIONS_ADVICE)
    has_scene = "scene" in rows[0][1]
    table = pd.DataFrame(
        {
            "image": [row["image"] for _, row in rows],
            "scene": [row.get("scene", ONE_SCENE) for _, row in rows],
            # without scenes to compare them with, predicted scenes mean nothing
            "predicted_scene": [
                (row.get("predicted_scene") or None) if has_scene else None for _, row in rows
            ],
            "scene_probability": _optional_numbers(path, rows, "scene_probability"),
            **{
                name: [csv_number(path, line, row, name) for line, row in rows]
                for name in POSE_COLUMNS
            },
        }
    )
    if fault := _name_fault(table) or _pose_fault(table):
        raise MsposeError(f"{path}, line {rows[fault[0]][0]}: {fault[1]}")
    table = with_errors(table)
    differs = np.zeros(len(table), dtype=bool)
    for column, tolerance in zip(ERROR_COLUMNS, ERROR_TOLERANCE, strict=True):
        stored = _optional_numbers(path, rows, column)
        differs |= np.abs(stored - table[column].to_numpy()) > tolerance
    if differs.any():
        log.warning(
            "%s: the error columns of %d of %d rows differ from those of the poses, which count;"
            " the first is in line %d",
            path, differs.sum(), len(table), rows[int(differs.argmax())][0],
        )  # fmt: skip
    return table[list(PREDICTION_COLUMNS)]


def _name_fault(table: pd.DataFrame) -> tuple[int, str] | None:
    """Find the first frame without a name, or that is there twice: (row, what is wrong)."""
    nameless = (table["image"] == "") | (table["scene"] == "")
    # both, since files of other methods may name images relative to the scene's folder
    twice = table.duplicated(["scene", "image"])
    unpredicted = table["predicted_scene"].isna() & bool(table["predicted_scene"].notna().any())
    for bad, what in (
        (nameless, "image {image!r}, scene {scene!r}: expected two names"),
        (twice, "{image} is there twice in scene {scene}"),
        (unpredicted, "predicted_scene is empty, while other rows have one"),
    ):
        if bad.any():
            row = int(bad.to_numpy().argmax())
            return row, what.format(image=table["image"].iloc[row], scene=table["scene"].iloc[row])
    return None


def _optional_numbers(
    path: Path | str, rows: Sequence[tuple[int, dict[str, str]]], column: str
) -> np.ndarray:
    """Read a column of finite numbers that may be missing or have empty cells: NaN there."""
    return np.array(
        [csv_number(path, line, row, column) if row.get(column) else math.nan for line, row in rows]
    )


def read_errors(path: Path | str) -> pd.DataFrame:
    """Read image, scene and ERROR_COLUMNS of a record's test frames, kept without their poses.

    Raises MsposeError, with file and line, for a broken file, an error below zero, or a frame that
    is there twice.
    """
    names = ("image", "scene", *ERROR_COLUMNS)
    rows = csv_rows(path, names)
    table = pd.DataFrame([row for _, row in rows])[list(names)]
    for column in ERROR_COLUMNS:
        table[column] = [csv_number(path, line, row, column) for line, row in rows]
    below = (table[list(ERROR_COLUMNS)] < 0).any(axis=1)
    twice = table.duplicated(["image", "scene"])
    for bad, what in ((below, "an error is below zero"), (twice, "this frame is there twice")):
        if bad.any():
            raise MsposeError(f"{path}, line {rows[int(bad.to_numpy().argmax())][0]}: {what}")
    return table


def write_errors(path: Path | str, errors: pd.DataFrame) -> None:
    """Write image, scene and ERROR_COLUMNS, to nine digits."""
    with whole_file(path) as file:
        errors[["image", "scene", *ERROR_COLUMNS]].to_csv(
            file, index=False, lineterminator="\n", float_format="%.9g"
        )


def compute_metrics(
    predictions: pd.DataFrame,
    *,
    thresholds: Sequence[tuple[float, float]],
    missing: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Compute `thresholds`, `quantiles`, `scenes` (sorted by name) and `average` of metrics.json.

    predictions: a table of `with_errors` or `read_predictions`.
    thresholds: pairs of metres and degrees; a frame counts where both errors are within (<=) a
        pair.
    missing: scene -> number of frames without a prediction, which recall counts as failed; the
        other metrics are of the frames that there are. They become `missing_frames`.

    `scene_accuracy` is None where no scene was predicted. Raises MsposeError for no rows or an
    impossible threshold.
    """
    pairs = [[float(value) for value in pair] for pair in thresholds]
    for pair in pairs:
        if len(pair) != 2 or not all(0 < value < math.inf for value in pair):
            raise MsposeError(
                f"recall threshold {pair}: expected two positive numbers, metres and degrees"
            )
    if predictions.empty:
        raise MsposeError("no metrics without predictions")
    groups = predictions.groupby("scene", sort=True)
    scenes = {
        str(name): _scene_metrics(frames, pairs, (missing or {}).get(str(name), 0))
        for name, frames in groups
    }
    return {
        "thresholds": pairs,
        "quantiles": list(QUANTILES),
        "scenes": scenes,
        "average": average_over_scenes(scenes),
    }


def _scene_metrics(
    frames: pd.DataFrame, thresholds: Sequence[Sequence[float]], missing: int
) -> dict[str, Any]:
    position, orientation = (frames[column].to_numpy() for column in ERROR_COLUMNS)
    predicted = frames["predicted_scene"]
    accuracy = None if predicted.isna().any() else float((predicted == frames["scene"]).mean())
    return {
        "frames": len(frames),
        **({"missing_frames": missing} if missing else {}),
        "median_position_error_m": float(np.median(position)),
        "median_orientation_error_deg": float(np.median(orientation)),
        "position_error_m_quantiles": np.quantile(position, QUANTILES).tolist(),
        "orientation_error_deg_quantiles": np.quantile(orientation, QUANTILES).tolist(),
        "recall": [
            int(((position <= metres) & (orientation <= degrees)).sum()) / (len(frames) + missing)
            for metres, degrees in thresholds
        ],
        "auc": [
            area_under_recall(
                np.append(
                    np.maximum(position / metres, orientation / degrees), np.full(missing, np.inf)
                )
            )
            for metres, degrees in thresholds
        ],
        "scene_accuracy": accuracy,
    }


def area_under_recall(error_N: np.ndarray) -> float:
    """Area from 0 to 1 under the cumulative curve of errors, from 0 to 1, by the trapezoid rule.

    As in SuperGlue (Sarlin et al., CVPR 2020) and `kornia.metrics.auc_from_errors`, with which a
    test compares it: kornia's import would cost every command a second.
    """
    within = np.sort(error_N[error_N < 1])
    recall = np.arange(len(within) + 1) / len(error_N)
    return float(np.trapezoid([*recall, recall[-1]], [0, *within, 1]))


def average_over_scenes(scenes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Average every metric over scenes, unweighted; `frames` and `missing_frames` are their sums,
    `scene_accuracy` None where one is.
    """
    rows = list(scenes.values())
    missing = sum(row.get("missing_frames", 0) for row in rows)
    accuracies = [row["scene_accuracy"] for row in rows]
    own = ("frames", "missing_frames", "scene_accuracy")
    return {
        "frames": sum(row["frames"] for row in rows),
        **({"missing_frames": missing} if missing else {}),
        **{
            name: np.mean([row[name] for row in rows], axis=0).tolist()
            for name in rows[0]
            if name not in own
        },
        "scene_accuracy": None if None in accuracies else float(np.mean(accuracies)),
    }


_METRICS: Mapping[str, tuple[type, ...]] = {
    "dataset": (str, NoneType),  # null where another method's file does not say
    "ground_truth": (str, NoneType),
    "split": (str, NoneType),
    "scene_selection": (str,),
    "experiment": (str,),
    "variant": (str,),
    "seed": (int, NoneType),
    "thresholds": (list,),
    "scenes": (dict,),
}
_SCENE_METRICS: Mapping[str, tuple[type, ...]] = {
    "frames": (int,),
    "median_position_error_m": (int, float),
    "median_orientation_error_deg": (int, float),
    "recall": (list,),
    "scene_accuracy": (int, float, NoneType),
}
ADDED_LATER = ("position_error_m_quantiles", "orientation_error_deg_quantiles", "auc")
"""Lists of a scene's metrics that files of older versions do not have."""


def write_metrics(path: Path | str, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json, whole or not at all. Raises MsposeError for NaN and infinity."""
    try:
        text = json.dumps(with_checksum(metrics), indent=2, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise MsposeError(f"cannot write metrics to {path}: {error}") from error
    with whole_file(path) as file:
        file.write(text + "\n")


def read_metrics(path: Path | str) -> dict[str, Any]:
    """Read what `write_metrics` wrote. Raises MsposeError for a missing, broken or foreign file."""
    metrics = read_json(Path(path), "run `mspose evaluate` again")
    if fault := _metrics_fault(metrics):
        raise MsposeError(
            f"{path} is not a metrics file of mspose: {fault}; run `mspose evaluate` again"
        )
    return metrics


def _metrics_fault(metrics: Any) -> str | None:
    """Say what keeps a value from being the content of a metrics.json; None where nothing does."""
    if fault := _type_fault(metrics, _METRICS):
        return fault
    for name, scene in [*metrics["scenes"].items(), ("average", metrics.get("average"))]:
        if fault := _type_fault(scene, _SCENE_METRICS):
            return f"{name}: {fault}"
        if len(scene["recall"]) != len(metrics["thresholds"]):
            return f"{name}: recall has not one number per threshold"
        if fault := _type_fault(scene, {key: (list,) for key in ADDED_LATER if key in scene}):
            return f"{name}: {fault}"
    return None if metrics["scenes"] else "scenes is empty"


def _type_fault(values: Any, types: Mapping[str, tuple[type, ...]]) -> str | None:
    if not isinstance(values, Mapping):
        return "expected an object"
    for name, allowed in types.items():
        value = values.get(name, ...)
        if not isinstance(value, allowed) or isinstance(value, bool):
            names = " or ".join(kind.__name__ for kind in allowed).replace("NoneType", "null")
            return f"{name} is {'missing' if value is ... else repr(value)}, expected {names}"
    return None
