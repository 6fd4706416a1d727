"""The finished cells of an ablation, wherever their runs or records lie, and what is missing or cannot be compared."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from mspose.ablation.cell import has_self_attention
from mspose.ablation.errors import has_errors, read_errors
from mspose.ablation.plan import Ablation
from mspose.attention_study.record import STUDY, read_study
from mspose.config import PLACES, Settings, flatten
from mspose.data.versions import recorded_version
from mspose.errors import MsposeError
from mspose.metrics import ERROR_COLUMNS
from mspose.rows import Group, finished_runs, group_of

CONFIG = "config.yaml"
ROOTS = ("runs", "experiments/results")
"""Where runs and records are looked for."""


@dataclass(frozen=True)
class FinishedCell:
    """One variant under one seed, with its errors on every frame."""

    folder: Path
    metrics: dict[str, Any]
    errors: Mapping[str, np.ndarray]
    """Per scene a (2, frames) array: metres and degrees, frames in the order of their images' names."""
    study: dict[str, Any] | None
    """`attention.json`, where there is one of this very training."""
    has_attention: bool
    """Whether its encoders have any self-attention to study."""


class Finished(NamedTuple):
    """What there is of an ablation on one data set."""

    group: Group
    cells: Mapping[str, Mapping[int, FinishedCell]]
    """By label, in the order of the file, and seed; labels without a cell are left out."""
    missing: list[str]
    """Cells that should be there: `seed 2 of qka, both`."""
    overrides: Mapping[str, str]
    """By dotted name, what all cells have in place of the file's settings."""
    remarks: list[str]
    """What a reader of the table must know."""


class Change(NamedTuple):
    """A setting, its value in a run, and that of the file, as text (lists cannot be counted)."""

    name: str
    value: str
    of_file: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}, not {self.of_file}"


@dataclass(frozen=True, eq=False)
class _Found:
    """A run of the ablation's experiment."""

    label: str
    seed: int
    folder: Path
    metrics: dict[str, Any]
    changes: tuple[Change, ...]
    """Settings that differ from the file's."""


def finished_cells(
    ablation: Ablation, roots: Iterable[Path | str], *,
    dataset: str | None = None, seeds: Sequence[int] | None = None,
) -> Finished:  # fmt: skip
    """The finished cells of an ablation in or below `roots`.

    Args:
        dataset: name or path of the experiment that it was run on; by default the file's base.
        seeds: count only these; by default all that there are, and those of the file should be there.

    Quick tries are left out. So are cells with other settings than the file's and the shared overrides': where no cell
    has the file's settings, those count that most cells share. Both are named in `remarks`.
    Raises MsposeError where there is no cell at all, for a broken file, and for cells tested on different frames.
    """
    settings = ablation.rows(dataset)
    experiment = next(iter(settings.values())).experiment
    runs = [_found(*run, settings) for run in finished_runs(roots) if run[1]["experiment"] == experiment]
    runs = [run for run in runs if seeds is None or run.seed in seeds]
    known = [run for run in runs if run.label in settings]
    real = [run for run in known if not run.metrics.get("quick")]
    tested = [run for run in real if has_errors(run.folder)]
    counts = Counter(run.changes for run in tested)
    shared = () if () in counts or not counts else counts.most_common(1)[0][0]
    chosen = {(run.label, run.seed): run for run in tested if run.changes == shared}
    if not chosen:
        places = ", ".join(map(str, roots)) or "no folder"
        raise MsposeError(f"{places}: no finished cell of {experiment}; run `mspose ablate {ablation.name}` first")

    cells = _read_cells(chosen, list(settings))
    expected = seeds if seeds is not None else sorted({*ablation.seeds, *(seed for _, seed in chosen)})
    missing = [(label, seed) for label in settings for seed in expected if (label, seed) not in chosen]
    studyable = [(label, seed) for label in cells for seed in cells[label] if cells[label][seed].has_attention]
    unstudied = [(label, seed) for label, seed in studyable if cells[label][seed].study is None]
    file = ablation.path.name
    remarks = {
        "Missing": named_by_seeds(missing),
        f"Left out, not in {file}": sorted({run.label for run in runs if run.label not in settings}),
        "Left out, quick tries at toy size": named_by_seeds((run.label, run.seed) for run in set(known) - set(real)),
        "Left out, no errors of their frames": named_by_seeds((run.label, run.seed) for run in set(real) - set(tested)),
        f"All cells have other settings than {file}": list(map(str, shared)),
        f"Left out, other settings than {'the other cells' if shared else file}": [
            f"seed {run.seed} of {run.label} ({', '.join(map(str, run.changes))})"
            for run in tested
            if run.changes != shared
        ],
        "No attention figures of this training (mspose attention RUN makes them)": named_by_seeds(unstudied),
    }
    lines = [f"{what}: {'; '.join(names)}." for what, names in remarks.items() if names]
    group = group_of(next(iter(chosen.values())).metrics)
    # an older version cannot be rendered: what is missing would be made on this one
    overrides = {change.name: change.value for change in shared if change.name != "data.version"}
    return Finished(group, cells, named_by_seeds(missing), overrides, lines)


def named_by_seeds(cells: Iterable[tuple[str, int]]) -> list[str]:
    """`seeds 1, 2 of neither, qka` of (label, seed) pairs, a text for labels with the same seeds."""
    seeds: dict[str, list[int]] = {}
    for label, seed in cells:
        seeds.setdefault(label, []).append(seed)
    labels: dict[tuple[int, ...], list[str]] = {}
    for label, found in seeds.items():
        labels.setdefault(tuple(sorted(found)), []).append(label)
    return [
        f"seed{'s' * (len(found) > 1)} {', '.join(map(str, found))} of {', '.join(names)}"
        for found, names in labels.items()
    ]


def _read_cells(chosen: Mapping[tuple[str, int], _Found], labels: Sequence[str]) -> dict[str, dict[int, FinishedCell]]:
    """The cells of these runs by label and seed. Raises MsposeError where they were not measured alike."""
    cells: dict[str, dict[int, FinishedCell]] = {}
    first, first_images = next(iter(chosen.values())), None
    for (label, seed), run in sorted(chosen.items(), key=lambda item: (labels.index(item[0][0]), item[0][1])):
        groups = [group_of(metrics) for metrics in (first.metrics, run.metrics)]
        if groups[0] != groups[1]:
            raise MsposeError(
                f"{first.folder} ({groups[0]}) and {run.folder} ({groups[1]}) were not measured alike: evaluate them "
                "alike, or name the folders of those that were"
            )
        images, errors = _frame_errors(run.folder)
        first_images = first_images or images
        if images != first_images:
            raise MsposeError(f"{run.folder} was tested on other frames than {first.folder}: evaluate them alike")
        study = study_of(run.folder, run.metrics)
        found = FinishedCell(run.folder, run.metrics, errors, study, has_attention(run.folder))
        cells.setdefault(label, {})[seed] = found
    return cells


def _found(folder: Path, metrics: dict[str, Any], settings: Mapping[str, Settings]) -> _Found:
    label, seed = metrics["variant"], metrics["seed"] or 0
    changes: tuple[Change, ...] = ()
    if label in settings:
        wanted, there = flatten(replace(settings[label], seed=seed)), _settings_of(folder)
        there["data.version"] = there["data.version"] or recorded_version(metrics)
        changes = tuple(
            Change(name, str(there.get(name)), str(wanted.get(name)))
            for name in {**wanted, **there}
            if name not in PLACES and wanted.get(name) != there.get(name)
        )
    return _Found(label, seed, folder, metrics, changes)


def _settings_of(run: Path) -> dict[str, Any]:
    """By dotted name; a setting that is younger than the run has its default."""
    path = run / CONFIG
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MsposeError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise MsposeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise MsposeError(f"{path} holds no settings")
    return {**flatten(Settings()), **flatten(found)}


def _frame_errors(run: Path) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """(images, (2, frames) errors in metres and degrees) by scene, in the order of the names."""
    table: pd.DataFrame = read_errors(run).sort_values(["scene", "image"])
    scenes = {str(scene): frames for scene, frames in table.groupby("scene", sort=True)}
    images = {scene: frames["image"].tolist() for scene, frames in scenes.items()}
    return images, {scene: frames[list(ERROR_COLUMNS)].to_numpy().T.copy() for scene, frames in scenes.items()}


def has_attention(run: Path) -> bool:
    """Whether its settings say that its encoders have self-attention; not where there are none, as of baselines."""
    if not (run / CONFIG).is_file():
        return False
    return has_self_attention(_settings_of(run))


def study_of(run: Path, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run's `attention.json` holds; None where there is none, or none of the training that the metrics are of.

    Raises MsposeError where it is broken.
    """
    if not (run / STUDY).is_file():
        return None
    study = read_study(run)
    trained = ((metrics.get("provenance") or {}).get("model") or {}).get("config_hash")
    hashes = {trained, study.get("config_hash")} - {None}
    alike = not study["quick"] and study["split"] == metrics["split"] and len(hashes) < 2
    return study if alike else None
