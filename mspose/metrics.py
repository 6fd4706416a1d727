"""From predictions to figures: the predictions file, the metrics computed from it alone, and where they came from.

Protocol (Shavit et al., ICCV 2021): per scene the median position error (metres) and the median orientation error
(degrees); a data set's average is the unweighted mean over its scenes. Recall is the share of frames whose two errors
are both within a pair of thresholds. Errors are always computed from the poses, never taken from a file.
"""

import csv
import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mspose.checkpoint import whole_file
from mspose.errors import MsposeError
from mspose.poses import orientation_error, position_error

TRUE_POSITION, TRUE_ORIENTATION = ["tx", "ty", "tz"], ["qw", "qx", "qy", "qz"]
ESTIMATED_POSITION, ESTIMATED_ORIENTATION = ["tx_est", "ty_est", "tz_est"], ["qw_est", "qx_est", "qy_est", "qz_est"]
POSE_COLUMNS = (*TRUE_POSITION, *TRUE_ORIENTATION, *ESTIMATED_POSITION, *ESTIMATED_ORIENTATION)
ERROR_COLUMNS = ("position_error_m", "orientation_error_deg")
PREDICTION_COLUMNS = ("image", "scene", "predicted_scene", "scene_probability", *POSE_COLUMNS, *ERROR_COLUMNS)
"""Columns of a predictions file: camera-to-world poses in metres, quaternions w x y z; `_est` is the estimate."""

ONE_SCENE = "all"
"""The scene's name where a predictions file has no `scene` column."""

ERROR_TOLERANCE = (1e-4, 1e-3)
"""Metres and degrees by which a file's error columns may differ from its poses before a warning says so."""

PACKAGES = ("mspose", "torch", "torchvision", "numpy", "pandas", "timm")

log = logging.getLogger("mspose")


def csv_rows(path: Path | str, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Every row of a CSV file as (line number, {column: text without surrounding spaces}), without blank lines.

    Raises MsposeError, with the line where there is one, for a file that is missing, empty, not text, without one of
    the `required` columns or with a column twice, and for a row that has not one value per column.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, values) for values in reader if values]
    except OSError as error:
        raise MsposeError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise MsposeError(f"{path} is not a CSV text file in UTF-8: {error}") from error
    if not header:
        raise MsposeError(f"{path} is empty: expected a header line with {', '.join(required)}")
    if missing := [name for name in required if name not in header]:
        raise MsposeError(f"{path}: column {', '.join(missing)} missing; the header has {', '.join(header)}")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise MsposeError(f"{path}: column {', '.join(twice)} is there twice")
    if not lines:
        raise MsposeError(f"{path} is empty: it has a header line and no rows")
    for line, values in lines:
        if len(values) != len(header):
            raise MsposeError(f"{path}, line {line}: {len(values)} values, expected {len(header)} as in the header")
    return [(line, dict(zip(header, map(str.strip, values), strict=True))) for line, values in lines]


def csv_number(path: Path | str, line: int, row: Mapping[str, str], column: str) -> float:
    """The finite number in a cell; MsposeError with file and line for anything else."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MsposeError(f"{path}, line {line}: {column} is {row[column]!r}, expected a finite number")
    return value


def with_errors(predictions: pd.DataFrame) -> pd.DataFrame:
    """A copy whose two error columns are computed from its poses.

    Raises MsposeError, with the image's name, for a pose that is not finite or a quaternion that is zero.
    """
    if fault := _pose_fault(predictions):
        raise MsposeError(f"prediction for {predictions['image'].iloc[fault[0]]}: {fault[1]}")
    position = position_error(predictions[ESTIMATED_POSITION].to_numpy(), predictions[TRUE_POSITION].to_numpy())
    orientation = orientation_error(
        predictions[ESTIMATED_ORIENTATION].to_numpy(), predictions[TRUE_ORIENTATION].to_numpy()
    )
    return predictions.assign(position_error_m=position, orientation_error_deg=orientation)


def _pose_fault(table: pd.DataFrame) -> tuple[int, str] | None:
    """(row, what is wrong) of the first pose that is not finite or has a zero quaternion."""
    values = table[list(POSE_COLUMNS)].to_numpy(dtype=np.float64)
    if (bad := np.argwhere(~np.isfinite(values))).size:
        row, column = bad[0]
        return int(row), f"{POSE_COLUMNS[column]} is {values[row, column]}, expected a finite number"
    for which, columns in (("true", TRUE_ORIENTATION), ("estimated", ESTIMATED_ORIENTATION)):
        largest = np.abs(table[columns].to_numpy(dtype=np.float64)).max(axis=1)
        if (zero := np.flatnonzero(largest < 1e-12)).size:
            return int(zero[0]), f"the {which} quaternion ({' '.join(columns)}) is zero and names no orientation"
    return None


def _row_fault(table: pd.DataFrame) -> tuple[int, str] | None:
    """(row, what is wrong) of the first row that no predictions file may hold."""
    predicted = table["predicted_scene"].notna() & (table["predicted_scene"] != "")
    seen: set[tuple[str, str]] = set()
    for row, (image, scene, known) in enumerate(zip(table["image"], table["scene"], predicted, strict=True)):
        if not (isinstance(image, str) and image and isinstance(scene, str) and scene):
            return row, f"image {image!r}, scene {scene!r}: expected two names"
        if not known and predicted.any():
            return row, "predicted_scene is empty, while other rows have one"
        if (scene, image) in seen:  # both, since foreign files may name images relative to the scene's folder
            return row, f"{image} is there twice in scene {scene}"
        seen.add((scene, image))
    return _pose_fault(table)


def write_predictions(path: Path | str, table: pd.DataFrame) -> None:
    """Write a predictions file, whole or not at all; every float reads back as the same float64.

    `table` has PREDICTION_COLUMNS; the error columns may be missing and are computed from the poses in any case.
    `predicted_scene` and `scene_probability` may be None or NaN throughout (nothing was predicted).
    Raises MsposeError for another set of columns and for rows that `read_predictions` would refuse.
    """
    missing = [name for name in PREDICTION_COLUMNS if name not in table and name not in ERROR_COLUMNS]
    unknown = [str(name) for name in table if name not in PREDICTION_COLUMNS]
    if missing or unknown or table.empty:
        wrong = [f"{kind} {', '.join(names)}" for kind, names in (("missing", missing), ("unknown", unknown)) if names]
        raise MsposeError(f"cannot write predictions to {path}: columns {'; '.join(wrong) or 'without rows'}")
    full = table.astype(dict.fromkeys(("scene_probability", *POSE_COLUMNS), np.float64))
    if fault := _row_fault(full):
        raise MsposeError(f"cannot write predictions to {path}: {full['image'].iloc[fault[0]]}: {fault[1]}")
    with whole_file(path) as file:
        with_errors(full)[list(PREDICTION_COLUMNS)].to_csv(file, index=False, lineterminator="\n")


def read_predictions(path: Path | str) -> pd.DataFrame:
    """Predictions with PREDICTION_COLUMNS from any CSV file that has `image` and the fourteen pose columns.

    `scene` may be missing (one scene, named `all`), and so may `predicted_scene`, `scene_probability` and the errors.
    Poses come back as written (quaternions of any norm), the errors as computed from them; where the file's own error
    columns disagree, a warning counts the rows. Columns of other names are left out.
    Raises MsposeError, with file and line, for a missing column, a value that is not a finite number, a zero
    quaternion, a frame that is there twice, or an empty file.
    """
    rows = csv_rows(path, ("image", *POSE_COLUMNS))
    has_scene = "scene" in rows[0][1]
    columns: dict[str, Any] = {
        "image": [row["image"] for _, row in rows],
        "scene": [row.get("scene", ONE_SCENE) for _, row in rows],
        # without scenes to compare them with, predicted scenes mean nothing
        "predicted_scene": [(row.get("predicted_scene") or None) if has_scene else None for _, row in rows],
        "scene_probability": _optional_numbers(path, rows, "scene_probability"),
    }
    columns |= {name: [csv_number(path, line, row, name) for line, row in rows] for name in POSE_COLUMNS}
    table = pd.DataFrame(columns)
    if fault := _row_fault(table):
        raise MsposeError(f"{path}, line {rows[fault[0]][0]}: {fault[1]}")
    table = with_errors(table)[list(PREDICTION_COLUMNS)]
    _compare_errors(path, rows, table)
    return table


def _optional_numbers(path: Path | str, rows: Sequence[tuple[int, dict[str, str]]], column: str) -> np.ndarray:
    """A column of finite numbers that may be missing or have empty cells: NaN there."""
    return np.array([csv_number(path, line, row, column) if row.get(column) else math.nan for line, row in rows])


def _compare_errors(path: Path | str, rows: Sequence[tuple[int, dict[str, str]]], table: pd.DataFrame) -> None:
    disagree = np.zeros(len(table), dtype=bool)
    for column, tolerance in zip(ERROR_COLUMNS, ERROR_TOLERANCE, strict=True):
        disagree |= np.abs(_optional_numbers(path, rows, column) - table[column].to_numpy()) > tolerance
    if disagree.any():
        log.warning(
            "%s: the error columns of %d of %d rows disagree with the poses, first in line %d; the poses count",
            path, disagree.sum(), len(table), rows[int(np.flatnonzero(disagree)[0])][0],
        )  # fmt: skip


def compute_metrics(predictions: pd.DataFrame, *, thresholds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """`thresholds`, `scenes` (sorted by name) and `average` as they stand in metrics.json.

    predictions: a table with PREDICTION_COLUMNS; the errors are computed anew from its poses.
    thresholds: pairs of metres and degrees; a frame counts where both errors are within (<=) a pair.
    `scene_accuracy` is None where no scene was predicted. Raises MsposeError for no rows or an impossible threshold.
    """
    pairs = [[float(value) for value in pair] for pair in thresholds]
    if bad := [pair for pair in pairs if len(pair) != 2 or not all(0 < value < math.inf for value in pair)]:
        raise MsposeError(f"recall threshold {bad[0]}: expected two positive numbers, metres and degrees")
    if predictions.empty or predictions["scene"].isna().any():
        raise MsposeError("no metrics without predictions: every row needs a scene, and there must be one")
    groups = with_errors(predictions).groupby("scene", sort=True)
    scenes = {str(name): _scene_metrics(frames, pairs) for name, frames in groups}
    return {"thresholds": pairs, "scenes": scenes, "average": average_over_scenes(scenes)}


def _scene_metrics(frames: pd.DataFrame, thresholds: Sequence[Sequence[float]]) -> dict[str, Any]:
    position, orientation = (frames[column].to_numpy() for column in ERROR_COLUMNS)
    predicted = frames["predicted_scene"]
    return {
        "frames": len(frames),
        "median_position_error_m": float(np.median(position)),
        "median_orientation_error_deg": float(np.median(orientation)),
        "recall": [float(np.mean((position <= metres) & (orientation <= degrees))) for metres, degrees in thresholds],
        "scene_accuracy": None if predicted.isna().any() else float((predicted == frames["scene"]).mean()),
    }


def average_over_scenes(scenes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The unweighted mean over scenes of each figure; `frames` is their sum, `scene_accuracy` None where one is."""
    rows = list(scenes.values())
    accuracies = [row["scene_accuracy"] for row in rows]
    return {
        "frames": sum(row["frames"] for row in rows),
        "median_position_error_m": float(np.mean([row["median_position_error_m"] for row in rows])),
        "median_orientation_error_deg": float(np.mean([row["median_orientation_error_deg"] for row in rows])),
        "recall": [float(np.mean(shares)) for shares in zip(*(row["recall"] for row in rows), strict=True)],
        "scene_accuracy": None if None in accuracies else float(np.mean(accuracies)),
    }


def write_metrics(path: Path | str, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json, whole or not at all. Raises MsposeError for NaN, infinity, or what `read_metrics` refuses."""
    try:
        if fault := _metrics_fault(metrics):
            raise ValueError(fault)
        text = json.dumps(metrics, indent=2, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise MsposeError(f"cannot write metrics to {path}: {error}") from error
    with whole_file(path) as file:
        file.write(text + "\n")


def read_metrics(path: Path | str) -> dict[str, Any]:
    """What `write_metrics` wrote. Raises MsposeError in one line for a missing, broken or foreign file."""
    try:
        metrics = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MsposeError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise MsposeError(f"{path} is not JSON: {error}; run `mspose evaluate` again") from error
    if fault := _metrics_fault(metrics):
        raise MsposeError(f"{path} is not a metrics file of mspose: {fault}; run `mspose evaluate` again")
    return metrics


def _metrics_fault(metrics: Any) -> str | None:
    """What keeps `metrics` from being the content of a metrics.json; None where nothing does."""
    if not isinstance(metrics, Mapping):
        return "expected an object at the top"
    for key in ("dataset", "ground_truth", "split"):  # None: another method's file does not say
        if key not in metrics or not isinstance(metrics[key], str | None):
            return f"{key} is {metrics.get(key, 'missing')!r}, expected text or null"
    for key in ("scene_selection", "experiment", "variant"):
        if not isinstance(metrics.get(key), str):
            return f"{key} is {metrics.get(key, 'missing')!r}, expected text"
    version = metrics.get("data_version")
    if not (version is None or (_is_whole(version) and version > 0)):
        return f"data_version is {version!r}, expected a whole number from 1 on, or null"
    if not isinstance(metrics.get("quick", False), bool):
        return f"quick is {metrics['quick']!r}, expected true or false"
    seed, thresholds, scenes = metrics.get("seed"), metrics.get("thresholds"), metrics.get("scenes")
    if not (seed is None or _is_whole(seed)):
        return f"seed is {seed!r}, expected a whole number or null"
    if not isinstance(thresholds, list | tuple) or not all(_is_pair(pair) for pair in thresholds):
        return f"thresholds are {thresholds!r}, expected pairs of metres and degrees"
    if not isinstance(scenes, Mapping) or not scenes:
        return "scenes is missing or empty"
    for name, figures in [*scenes.items(), ("average", metrics.get("average"))]:
        if fault := _figures_fault(figures, len(thresholds)):
            return f"{name}: {fault}"
    return None


def _figures_fault(figures: Any, recalls: int) -> str | None:
    if not isinstance(figures, Mapping):
        return "expected an object"
    if not _is_whole(figures.get("frames")):
        return f"frames is {figures.get('frames')!r}, expected a whole number"
    for key in ("median_position_error_m", "median_orientation_error_deg"):
        if not _is_number(figures.get(key)):
            return f"{key} is {figures.get(key)!r}, expected a finite number"
    recall, accuracy = figures.get("recall"), figures.get("scene_accuracy")
    if not isinstance(recall, list) or len(recall) != recalls or not all(map(_is_number, recall)):
        return f"recall is {recall!r}, expected {recalls} finite numbers, one per threshold"
    if not (accuracy is None or _is_number(accuracy)):
        return f"scene_accuracy is {accuracy!r}, expected a finite number or null"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300  # no NaN, infinity


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Where figures come from: versions, the commit of the code and whether it was changed since, machine, UTC time.

    device: the one that the figures were computed on. `commit` and `dirty` are None where the package is not in a git
    repository; a package is None where it is not installed.
    """
    commit, dirty = _git_state(Path(__file__).resolve().parent)
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": dirty,
        "platform": platform.platform(),
        "device": device_name(torch.device(device)),
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(package: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty). A package that merely lies inside somebody's repository, untracked, has no commit of its own."""
    # inside a git hook GIT_DIR and the like name another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30)
        return run.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def device_name(device: torch.device) -> str:
    """What the machine's maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
