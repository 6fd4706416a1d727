"""`attention.json`, the study of a run's attention: written, read and tabulated.

Its content is described in `mspose.studies.attention_study`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from mspose.errors import MsposeError
from mspose.files import whole_file
from mspose.run import ATTENTION, Run

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
    with whole_file(Run(run).attention_file) as file:
        json.dump(study, file, allow_nan=False, separators=(",", ":"))
        file.write("\n")
    return study


def read_study(run: Path) -> dict[str, Any]:
    """Read `attention.json` of a run. Raises MsposeError for a missing or broken file."""
    study = Run(run).attention
    if study is None:
        raise MsposeError(
            f"{run} holds no study of its attention ({ATTENTION} is missing): run `mspose"
            f" attention {run}`"
        )
    return study


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
