"""Runs of a report (records, baselines and other methods too): checked, grouped, labelled."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mspose.config import flatten
from mspose.errors import MsposeError, none_if_broken
from mspose.metrics import ERROR_COLUMNS, ERROR_TOLERANCE
from mspose.run import Run, find_runs
from mspose.studies.rows import Group, group_of


def evaluated_runs(paths: Iterable[Path | str], split: str | None = None) -> list[Run]:
    """Find the runs in or below `paths` that were evaluated on a split, in the order given.

    split: by default the run's own test split. Raises MsposeError for a path without one, a broken
    file, and predictions that the metrics were not computed from.
    """
    paths, split = list(paths), split or "test"
    runs = [run for run in find_runs(paths, other_splits=split != "test") if run.split == split]
    if not runs:
        raise MsposeError(
            f"no {Run(Path(), split).metrics_file} in {', '.join(map(str, paths))}: run `mspose"
            f" evaluate RUN --split {split}` first"
        )
    for run in runs:
        _check_belong_together(run)
    return runs


def _check_belong_together(run: Run) -> None:
    """Refuse metrics and predictions that are not of the same frames."""
    remedy = (
        f"compute the metrics again with `mspose evaluate --predictions {run.frames_file}`, or"
        " evaluate the run again"
    )
    frames = {str(scene): part for scene, part in run.frames.groupby("scene")}
    stated = run.metrics["scenes"]
    if frames.keys() != stated.keys():
        raise MsposeError(f"{run.frames_file} has other scenes than {run.metrics_file}: {remedy}")
    for scene, part in frames.items():
        medians = part[list(ERROR_COLUMNS)].median()
        expected = [stated[scene][f"median_{column}"] for column in ERROR_COLUMNS]
        same = np.isclose(medians, expected, rtol=1e-6, atol=ERROR_TOLERANCE).all()
        if not same or len(part) != stated[scene]["frames"]:
            raise MsposeError(
                f"{run.frames_file}: frames or median errors of {scene} are not those of"
                f" {run.metrics_file}: {remedy}"
            )


def settings_of(run: Run) -> dict[str, Any]:
    """Settings by dotted name; empty where there are none that can be read."""
    if not run.config_file.is_file():
        return {}
    return none_if_broken(lambda: flatten(run.settings)) or {}


def study_of(run: Run) -> Mapping[str, Any] | None:
    """Study of attention of the evaluated model; None where there is none that can be read."""
    return none_if_broken(lambda: run.attention_of_metrics)


def faults(run: Run) -> list[str]:
    """Say what of a run cannot be read although it is there."""
    found = []
    for read in (lambda: run.config_file.is_file() and run.settings, lambda: run.attention):
        try:
            read()
        except MsposeError as error:
            found.append(str(error))
    return found


def grouped(runs: Sequence[Run]) -> dict[Group, list[Run]]:
    """Sort runs by what rows of a table must share.

    Baselines go with the runs on their data, however their scene was chosen.
    """
    groups: dict[Group, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.is_baseline):
        group = group_of(run.metrics)
        if run.is_baseline:
            fitting = (
                known
                for known in groups
                if known == group._replace(scene_selection=known.scene_selection)
            )
            group = next(fitting, group)
        groups.setdefault(group, []).append(run)
    return groups


def labels(runs: Sequence[Run]) -> list[str]:
    """Label runs as briefly as distinguishes them, with a mark where one was a quick try."""
    several = len({run.experiment for run in runs}) > 1
    names = [run.name for run in runs]
    found = []
    for run in runs:
        text = run.name if several or len(runs) == 1 else run.variant
        if run.seed is not None and names.count(run.name) > 1:
            text += f", seed {run.seed}"
        found.append(text + (" (quick)" if run.quick else ""))
    return [
        f"{text} on {group_of(run.metrics)}" if found.count(text) > 1 else text
        for text, run in zip(found, runs, strict=True)
    ]


def in_short(names: Iterable[str]) -> list[str]:
    """Join the labels of a variant's seeds: `both, seeds 0, 1, 2`."""
    seeds: dict[str, list[str]] = {}
    for name in names:
        variant, _, seed = name.rpartition(", seed ")
        seeds.setdefault(variant or name, []).extend([seed] if variant else [])
    return [
        f"{name}, seed{'s' if len(found) > 1 else ''} {', '.join(found)}" if found else name
        for name, found in seeds.items()
    ]
