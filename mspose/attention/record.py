"""`attention.json`: how it is written, read and shown."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mspose.errors import MsposeError
from mspose.files import whole_file
from mspose.models.attention_map import COLLAPSED, HEALTHY, UNIFORM
from mspose.models.network import BRANCHES

STUDY = "attention/attention.json"
SAMPLES = "attention/samples.npz"
FORMAT = 1
FIGURES = ("entropy", "similarity", "gap", "purity")


def short(value: float) -> float:
    """The value to six digits: what a figure is good for, in a file that is kept."""
    return float(f"{value:.6g}")


def write_study(run: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Write `attention.json` of a run, whole or not at all; returns what it holds."""
    if fault := _fault(study):
        raise MsposeError(f"cannot write {run / STUDY}: {fault}")
    with whole_file(run / STUDY) as file:
        json.dump(study, file, allow_nan=False, separators=(",", ":"))
        file.write("\n")
    return study


def read_study(run: Path) -> dict[str, Any]:
    """What `mspose attention` wrote of a run. Raises MsposeError in one line for a missing, broken
    or foreign file.
    """
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
    if fault := _fault(study):
        raise MsposeError(
            f"{path} is not a study of attention of this version: {fault}; {remedy} again"
        )
    return study


def study_table(studies: Sequence[Mapping[str, Any]]) -> str:
    """`study_grid` as a Markdown table."""
    return study_grid(studies).to_markdown(index=False, disable_numparse=True)


def study_grid(studies: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Entropy, similarity, gap, purity and verdict of every layer of every study, as text."""
    rows = [
        {
            "run": label(study),
            "branch": layer["branch"],
            "layer": layer["layer"],
            "entropy / limit (nats)": f"{layer['entropy']:.3f} / {layer['entropy_limit']:.3f}",
            "similarity": f"{layer['similarity']:.3f}",
            "query-key gap": f"{layer['gap']:.3f}",
            "purity": f"{layer['purity']:.3f}",
            "verdict": layer["verdict"],
        }
        for study in studies
        for layer in study["layers"]
    ]
    return pd.DataFrame(rows)


def label(study: Mapping[str, Any]) -> str:
    """What a study is called in tables: experiment, variant and seed, and a mark where the run was
    a quick try.
    """
    return f"{study['experiment']}/{study['variant']}/seed-{study['seed']}{' (quick)' if study['quick'] else ''}"


def _fault(study: Any) -> str | None:
    """What keeps `study` from being the content of an attention.json; None where nothing does."""
    if not isinstance(study, Mapping):
        return "expected an object at the top"
    if study.get("format") != FORMAT:
        return f"format is {study.get('format', 'missing')!r}, expected {FORMAT}"
    for name in ("experiment", "variant", "dataset", "split"):
        if not isinstance(study.get(name), str):
            return f"{name} is {study.get(name, 'missing')!r}, expected text"
    for name in ("seed", "frames", "neighbours"):
        if not _is_whole(study.get(name)):
            return f"{name} is {study.get(name, 'missing')!r}, expected a whole number"
    if not isinstance(study.get("quick"), bool):
        return f"quick is {study.get('quick', 'missing')!r}, expected true or false"
    if not isinstance(study.get("layers"), list) or not study["layers"]:
        return "layers is missing or empty"
    for place, layer in enumerate(study["layers"], start=1):
        if fault := _layer_fault(layer):
            return f"layers, number {place}: {fault}"
    if not isinstance(study.get("encoding"), Mapping):
        return "encoding is missing"
    for branch, profile in study["encoding"].items():
        if not isinstance(profile, Mapping) or not _alike(
            profile.get("grid_distance"), profile.get("token_distance")
        ):
            return f"encoding, {branch}: expected as many grid_distance as token_distance"
    return _training_fault(study.get("training"))


def _layer_fault(layer: Any) -> str | None:
    if not isinstance(layer, Mapping):
        return "expected an object"
    if layer.get("branch") not in BRANCHES:
        return f"branch is {layer.get('branch', 'missing')!r}, expected position or orientation"
    for name in ("layer", "tokens"):
        if not _is_whole(layer.get(name)):
            return f"{name} is {layer.get(name, 'missing')!r}, expected a whole number"
    if layer.get("verdict") not in (HEALTHY, UNIFORM, COLLAPSED):
        return f"verdict is {layer.get('verdict', 'missing')!r}"
    heads, histogram = layer.get("heads"), layer.get("purity_histogram")
    if (
        not isinstance(heads, list)
        or not heads
        or not all(isinstance(head, Mapping) for head in heads)
    ):
        return "heads is missing or empty"
    for figures in (layer, *heads):
        for name in FIGURES:
            if not _is_number(figures.get(name)):
                return f"{name} is {figures.get(name, 'missing')!r}, expected a finite number"
    if not _is_number(layer.get("entropy_limit")):
        return (
            f"entropy_limit is {layer.get('entropy_limit', 'missing')!r}, expected a finite number"
        )
    if not isinstance(histogram, Mapping) or not _is_histogram(
        histogram.get("edges"), histogram.get("share"), len(heads)
    ):
        return "purity_histogram: expected edges, and for every head a share between any two"
    return None


def _is_histogram(edges: Any, share: Any, heads: int) -> bool:
    return (
        isinstance(edges, list)
        and isinstance(share, list)
        and len(share) == heads
        and all(_alike(edges[1:], of_head) for of_head in share)
    )


def _training_fault(training: Any) -> str | None:
    if training is None:
        return None
    gap = training.get("query_key_gap") if isinstance(training, Mapping) else None
    if not isinstance(gap, Mapping) or not all(
        _alike(training.get("step"), values) for values in gap.values()
    ):
        return "training: expected step, and as many values of query_key_gap per branch"
    if not _is_whole(training.get("steps_per_epoch")):
        return (
            f"training: steps_per_epoch is {training.get('steps_per_epoch', 'missing')!r}, expected"
            " a whole number"
        )
    return None


def _alike(one: Any, other: Any) -> bool:
    """Two lists of as many finite numbers."""
    return (
        isinstance(one, list)
        and isinstance(other, list)
        and len(one) == len(other)
        and all(_is_number(value) for value in (*one, *other))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
