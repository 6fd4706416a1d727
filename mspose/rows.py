"""Rows of tables: finished runs grouped over seeds, and published medians.

A row is a variant of an experiment over its seeds, or a published method. Published rows come from
`experiments/published.csv`, where `source` and `note` say what each is and users may add their own; ActMST's rows are
not in it, since they were not at hand.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mspose.data.versions import recorded_version
from mspose.errors import MsposeError
from mspose.metrics import csv_number, csv_rows, read_metrics

log = logging.getLogger("mspose")
METRICS = "metrics.json"
PUBLISHED_CSV = Path(__file__).resolve().parents[1] / "experiments" / "published.csv"
ERRORS = ("median_position_error_m", "median_orientation_error_deg")
PUBLISHED_COLUMNS = ("method", "dataset", "ground_truth", "split", "scene", *ERRORS, "source", "note")
PRINTED_AVERAGE = "average"
"""Stands for a scene in the published CSV where the source prints an average over scenes."""

SECTIONS = PUBLISHED, OWN = ("Published", "This repository")


class Group(NamedTuple):
    """What rows must share to be compared."""

    dataset: str
    ground_truth: str
    split: str
    scene_selection: str
    quick: bool = False
    """Toy size, to see that everything runs (`mspose ablate --quick`)."""
    data_version: int | None = None
    """Of a rendered data set, whose versions have other rooms."""

    def __str__(self) -> str:
        dataset = self.dataset + (f" version {self.data_version}" if self.data_version else "")
        text = f"{dataset}, ground truth {self.ground_truth}, split {self.split}, scene {self.scene_selection}"
        return text + (", at toy size (quick)" if self.quick else "")


class Measure(NamedTuple):
    """One figure, with a value per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (divided by n - 1); None for a single seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def percent(self) -> "Measure":
        """A share as a percentage."""
        return Measure(tuple(100 * value for value in self.values))

    def text(self, digits: int) -> str:
        """`0.11`, or `0.11±0.01` over several seeds."""
        return f"{self.mean:.{digits}f}" + ("" if self.std is None else f"±{self.std:.{digits}f}")


@dataclass(frozen=True)
class Figures:
    """What was measured on a scene, or its average over scenes. `recall` has a share (0 to 1) per threshold."""

    position_m: Measure
    orientation_deg: Measure
    recall: tuple[Measure, ...] = ()
    scene_accuracy: Measure | None = None
    frames: int | None = None


@dataclass(frozen=True)
class Row:
    """One method: a variant of an experiment over its seeds, or a published one."""

    name: str
    section: str
    group: Group
    scenes: dict[str, Figures]
    average: Figures
    average_printed: bool = False
    """The average is the source's own and stands even where a scene is missing."""
    thresholds: tuple[tuple[float, float], ...] = ()
    seeds: tuple[int, ...] = ()
    baseline: bool = False
    source: str = ""
    note: str = ""


def find_metrics(paths: Iterable[Path | str], *, other_splits: bool = False) -> list[Path]:
    """The metrics.json of each run folder, and those below any other folder, hidden folders left out.

    other_splits: also `metrics-<split>.json`, which evaluations on anything but a run's own test split leave beside it.
    Raises MsposeError for a path that has none.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        names = (METRICS, "metrics-*.json") if other_splits else (METRICS,)
        files = [path] if path.is_file() else _visible_files(path, names)
        if not files:
            raise MsposeError(f"no {METRICS} in {path} or below it; run `make train` first, or name folders of runs")
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise MsposeError("no runs to tabulate: name folders of runs, such as `runs`; `make train` makes one")
    return list(found.values())


def _visible_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of these names in a run folder, or below any other folder, hidden folders left out."""
    search = folder.glob if (folder / METRICS).is_file() else folder.rglob
    below = sorted(file for name in names for file in search(name))
    return [file for file in below if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def finished_runs(roots: Iterable[Path | str]) -> list[tuple[Path, dict[str, Any]]]:
    """(folder, metrics) of every run in or below the roots, of its own test split; a root need not be there.

    A run that two roots hold, such as a run and its record, counts where it is found first; where the two have other
    figures, the log says so. Raises MsposeError for a broken metrics.json, and for a run that one root holds twice.
    """
    runs: dict[tuple[Any, ...], tuple[Path, dict[str, Any]]] = {}
    for root in map(Path, roots):
        here: dict[tuple[Any, ...], tuple[Path, dict[str, Any]]] = {}
        for file in _visible_files(root, [METRICS]):
            folder, metrics = file.parent, read_metrics(file)
            key = (metrics["experiment"], metrics["variant"], metrics["seed"], group_of(metrics))
            first, known = here.setdefault(key, (folder, metrics))
            if first != folder:
                raise MsposeError(f"{first} and {folder} are both {'/'.join(map(str, key[:3]))}: remove one of them")
        for key, (folder, metrics) in here.items():
            first, known = runs.setdefault(key, (folder, metrics))
            if known["scenes"] != metrics["scenes"]:
                log.warning("%s and %s are one run with different figures: those of the first count", first, folder)
    return list(runs.values())


def collect_runs(
    paths: Iterable[Path | str],
    *,
    dataset: str | None = None,
    ground_truth: str | None = None,
    split: str | None = None,
) -> list[Row]:
    """One row per experiment and variant with all its seeds, of the runs in or below `paths` that pass the filters.

    Without a filter a run has the figures of its metrics.json; with one, those of all its evaluations are looked at.
    Runs at toy size count only where there are no others.
    Raises MsposeError where there are no runs, a metrics.json is broken, the same experiment, variant and seed is at
    two places, or the seeds of a variant were not evaluated on the same frames and thresholds.
    """
    filters = {"dataset": dataset, "ground_truth": ground_truth, "split": split}
    asked = {key: value for key, value in filters.items() if value is not None}
    runs = [(path, read_metrics(path)) for path in find_metrics(paths, other_splits=bool(asked))]
    seeds: dict[tuple[str, str, Group], dict[int | None, tuple[Path, dict[str, Any]]]] = {}
    for path, metrics in _real([run for run in runs if all(run[1][key] == value for key, value in asked.items())]):
        key = (metrics["experiment"], metrics["variant"], group_of(metrics))
        first = seeds.setdefault(key, {}).setdefault(metrics["seed"], (path, metrics))[0]
        if first != path:
            name = f"{metrics['experiment']}/{metrics['variant']}, seed {metrics['seed']}"
            raise MsposeError(f"{first} and {path} are both {name}: name the one that should be in the table")
    if not seeds:
        there = "; ".join(sorted({str(group_of(metrics)) for _, metrics in runs}))
        raise MsposeError(f"no run has {', '.join(f'{k} {v}' for k, v in asked.items())}; there are runs of {there}")
    return [_run_row(*key, list(found.values())) for key, found in seeds.items()]


def _real(runs: list[tuple[Path, dict[str, Any]]]) -> list[tuple[Path, dict[str, Any]]]:
    """Without the runs at toy size, unless all are."""
    real = [(path, metrics) for path, metrics in runs if not metrics.get("quick", False)]
    if real and len(real) < len(runs):
        log.info("evaluations at toy size (quick) share no table with others, left out: %d", len(runs) - len(real))
    return real or runs


def group_of(row: dict[str, Any]) -> Group:
    """Of the content of a metrics.json, or of a line of the published CSV."""
    dataset, ground_truth, split = (row[key] or "unknown" for key in ("dataset", "ground_truth", "split"))
    # published rows, and metrics of older versions, do not have the other two
    selection, quick = row.get("scene_selection", "predicted"), bool(row.get("quick", False))
    return Group(dataset, ground_truth, split, selection, quick, recorded_version(row))


def _run_row(experiment: str, variant: str, group: Group, runs: Sequence[tuple[Path, dict[str, Any]]]) -> Row:
    first_path, first = runs[0]
    every = [metrics for _, metrics in runs]
    for path, metrics in runs[1:]:
        frames = [{name: scene["frames"] for name, scene in m["scenes"].items()} for m in (first, metrics)]
        if frames[0] != frames[1] or metrics["thresholds"] != first["thresholds"]:
            what = "frames" if frames[0] != frames[1] else "recall thresholds"
            name = f"{experiment}/{variant}"
            raise MsposeError(f"{first_path} and {path} are seeds of {name} with different {what}: name one of them")
    bad = max(metrics.get("bad_frames") or 0 for metrics in every)
    return Row(
        name=f"{experiment}/{variant}",
        section=OWN,
        group=group,
        scenes={name: _figures([metrics["scenes"][name] for metrics in every]) for name in first["scenes"]},
        average=_figures([metrics["average"] for metrics in every]),
        thresholds=tuple((float(metres), float(degrees)) for metres, degrees in first["thresholds"]),
        seeds=tuple(metrics["seed"] for metrics in every if metrics["seed"] is not None),
        baseline=variant.startswith("baseline-"),
        note=f"bad frames left out: {bad}" if bad else "",
    )


def _figures(seeds: Sequence[dict[str, Any]]) -> Figures:
    def measure(key: str) -> Measure:
        return Measure(tuple(float(figures[key]) for figures in seeds))

    return Figures(
        position_m=measure(ERRORS[0]),
        orientation_deg=measure(ERRORS[1]),
        recall=tuple(Measure(shares) for shares in zip(*(figures["recall"] for figures in seeds), strict=True)),
        scene_accuracy=None if any(f["scene_accuracy"] is None for f in seeds) else measure("scene_accuracy"),
        frames=seeds[0]["frames"],
    )


def published_rows(path: Path | str = PUBLISHED_CSV, dataset: str | None = None) -> list[Row]:
    """One row per published method of a data set (all data sets where None), in the file's order.

    Published scenes count as predicted; methods with one model per scene say so in their note.
    Raises MsposeError with the line for a value that is not a finite number or a scene that is there twice.
    """
    methods: dict[tuple[str, Group], list[dict[str, str]]] = {}
    figures: dict[tuple[str, Group], dict[str, Figures]] = {}
    for line, row in csv_rows(path, PUBLISHED_COLUMNS):
        key = (row["method"], group_of(row))
        position, orientation = (Measure((csv_number(path, line, row, column),)) for column in ERRORS)
        if row["scene"] in figures.setdefault(key, {}):
            raise MsposeError(f"{path}, line {line}: {row['method']} has scene {row['scene']} twice")
        figures[key][row["scene"]] = Figures(position, orientation)
        methods.setdefault(key, []).append(row)
    rows = []
    for (method, group), lines in methods.items():
        scenes = figures[method, group]
        printed = scenes.pop(PRINTED_AVERAGE, None)
        source, note = ("; ".join(dict.fromkeys(row[key] for row in lines if row[key])) for key in ("source", "note"))
        average = printed or _mean_figures(list(scenes.values()))
        rows.append(Row(method, PUBLISHED, group, scenes, average, printed is not None, source=source, note=note))
    return [row for row in rows if dataset in (None, row.group.dataset)]


def _mean_figures(scenes: Sequence[Figures]) -> Figures:
    position, orientation = np.mean([(f.position_m.mean, f.orientation_deg.mean) for f in scenes], axis=0)
    return Figures(Measure((float(position),)), Measure((float(orientation),)))


def shared_group(rows: Sequence[Row]) -> Group:
    """The group of all rows. A baseline may differ in how its scene is selected (its label then says so).

    Raises MsposeError that names the groups where there are several.
    """
    selections = sorted({row.group.scene_selection for row in rows if not row.baseline})
    selections = selections or [" and ".join(sorted({row.group.scene_selection for row in rows}))]
    groups: dict[Group, list[str]] = {}
    for row in rows:
        group = row.group._replace(scene_selection=selections[0]) if row.baseline else row.group
        groups.setdefault(group, []).append(row.name)
    if len(groups) > 1:
        listed = "; ".join(f"{group} ({', '.join(names)})" for group, names in groups.items())
        raise MsposeError(
            f"these rows were not measured alike and cannot share a table: {listed}. Choose with --dataset, "
            "--ground-truth or --split, or name the runs of one group"
        )
    return next(iter(groups))
