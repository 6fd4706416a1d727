"""`attention.json`, the study of a run's attention: how it is written, read and tabulated.

Its content is described in `mspose.studies.attention_study`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from mspose.errors import MsposeError
from mspose.files import whole_file
from mspose.models.attention_map import COLLAPSED, HEALTHY, UNIFORM
from mspose.models.network import BRANCHES

STUDY = "attention/attention.json"
SAMPLES = "attention/samples.npz"
FORMAT = 2
"""Format 1 called the query-key gap `gap`; it is read as well."""
MEASURES = ("entropy", "similarity", "query_key_gap", "purity")
Study = Mapping[str, Any]
"""Content of `attention.json`."""
Studies = Sequence[tuple[str, Study]]
"""Studies under the labels that legends show. Those of the same label are seeds of one variant."""
Arrays = Mapping[str, NDArray[Any]]
"""Content of `samples.npz`."""


def short(value: float) -> float:
    """Round a value to six significant digits, as the file keeps it."""
    return float(f"{value:.6g}")


def write_study(run: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Write `attention.json` of a run, whole or not at all; returns its content."""
    with whole_file(run / STUDY) as file:
        json.dump(study, file, allow_nan=False, separators=(",", ":"))
        file.write("\n")
    return study


def read_study(run: Path) -> dict[str, Any]:
    """Read `attention.json` of a run. Raises MsposeError for a missing, broken or foreign file."""
    path, remedy = run / STUDY, f"run `mspose attention {run}`"
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MsposeError(
            f"{run} holds no study of its attention ({STUDY} is missing): {remedy}"
        ) from error
    except OSError as error:
        raise MsposeError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise MsposeError(f"{path} is not JSON: {error}; {remedy} again") from error
    try:
        return _checked(study)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise MsposeError(
            f"{path} is not a study of attention of this version: {reason}; {remedy} again"
        ) from error


def study_table(studies: Sequence[Study]) -> str:
    """Format `study_grid` as a Markdown table."""
    return study_grid(studies).to_markdown(index=False, disable_numparse=True)


def study_grid(studies: Sequence[Study]) -> pd.DataFrame:
    """Tabulate entropy, similarity, gap, purity and verdict of every layer of studies, as text."""
    rows = [
        {
            "run": label(study),
            "branch": layer["branch"],
            "layer": layer["layer"],
            "entropy / limit (nats)": f"{layer['entropy']:.3f} / {layer['entropy_limit']:.3f}",
            "similarity": f"{layer['similarity']:.3f}",
            "query-key gap": f"{layer['query_key_gap']:.3f}",
            "purity": f"{layer['purity']:.3f}",
            "verdict": layer["verdict"],
        }
        for study in studies
        for layer in study["layers"]
    ]
    return pd.DataFrame(rows)


def label(study: Study) -> str:
    """Name a study in tables: experiment, variant and seed, and a mark for a quick try."""
    name = f"{study['experiment']}/{study['variant']}/seed-{study['seed']}"
    return f"{name} (quick)" if study["quick"] else name


def by_label(studies: Iterable[tuple[str, Study]]) -> dict[str, list[Study]]:
    """Group studies by label, labels in the order of their first study.

    Raises MsposeError where there are none.
    """
    groups: dict[str, list[Study]] = {}
    for name, study in studies:
        groups.setdefault(name, []).append(study)
    if not groups:
        raise MsposeError(
            "there is no study of attention to draw: run `mspose attention RUN` first"
        )
    return groups


def layers_of(study: Study, branch: str) -> dict[int, Mapping[str, Any]]:
    """Return the encoder layers of a branch by their numbers, counted from 1."""
    return {int(layer["layer"]): layer for layer in study["layers"] if layer["branch"] == branch}


def named(name: str, seeds: int, note: str = "") -> str:
    """Name a label in a legend."""
    name = f"{name} ({seeds} seeds)" if seeds > 1 else name
    return f"{name} ({note})" if note else name


def _checked(study: Any) -> dict[str, Any]:
    """Return the content in the present format; raises ValueError, TypeError or KeyError for
    anything that figures and tables could not read.
    """
    if study.get("format") not in (1, FORMAT):
        raise ValueError(f"format is {study.get('format', 'missing')!r}, expected {FORMAT}")
    _check_types(study, str, "experiment", "variant", "dataset", "split")
    _check_types(study, int, "seed", "frames", "neighbours")
    _check_types(study, bool, "quick")
    for layer in study["layers"]:
        for values in (layer, *layer["heads"]):
            if study["format"] == 1 and "gap" in values:
                values["query_key_gap"] = values.pop("gap")
            _check_types(values, float, *MEASURES)
        _check_types(layer, int, "layer", "tokens")
        _check_types(layer, float, "entropy_limit")
        if layer["branch"] not in BRANCHES or layer["verdict"] not in (HEALTHY, UNIFORM, COLLAPSED):
            raise ValueError(f"unknown branch or verdict: {layer['branch']}, {layer['verdict']}")
        histogram = layer["purity_histogram"]
        _check_curves(histogram["edges"][1:], *histogram["share"])
        if len(histogram["share"]) != len(layer["heads"]):
            raise ValueError("purity_histogram does not have a share for every head")
    if not study["layers"]:
        raise ValueError("there are no layers")
    for profile in study["encoding"].values():
        _check_curves(profile["grid_distance"], profile["token_distance"])
    if (training := study.get("training")) is not None:
        _check_types(training, int, "steps_per_epoch")
        _check_curves(training["step"], *training["query_key_gap"].values())
    return {**study, "format": FORMAT}


def _check_types(values: Mapping[str, Any], kind: type, *names: str) -> None:
    for name in names:
        found = values[name]
        fits = isinstance(found, kind) and (kind is bool or not isinstance(found, bool))
        if kind is float:
            fits = isinstance(found, int | float) and math.isfinite(found)
        if not fits:
            raise ValueError(f"{name} is {found!r}, expected {kind.__name__}")


def _check_curves(x: Sequence[float], *curves: Sequence[float]) -> None:
    for curve in curves:
        if len(curve) != len(x) or not all(map(math.isfinite, (*x, *curve))):
            raise ValueError(f"expected {len(x)} finite numbers, found {curve!r:.40}")
