"""Rows of tables: runs grouped over seeds, and published medians.

A row is a variant of an experiment over its seeds, or a published method. Published rows come from
`experiments/published.csv`, where `source` and `note` say what each is and users may add their own.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mspose.data.cards import read_card, stated_frames
from mspose.data.versions import recorded_version
from mspose.errors import MsposeError
from mspose.metrics import QUANTILES, csv_number, csv_rows
from mspose.resources import bundled_file
from mspose.run import Run, find_runs

log = logging.getLogger("mspose")
PUBLISHED_CSV = bundled_file("experiments/published.csv")
ERRORS = ("position_m", "orientation_deg")
"""Median errors in tables, and their names in metrics.json."""
MEDIANS = ("median_position_error_m", "median_orientation_error_deg")
PUBLISHED_COLUMNS = (
    *("method", "dataset", "ground_truth", "split", "scene"),
    *MEDIANS,
    *("source", "note"),
)
PRINTED_AVERAGE = "average"
"""In place of a scene in the published CSV: the source's own average over scenes."""

COSTS = {
    "parameters": "Parameters (M)",
    "megabytes": "Weights (MB)",
    "milliseconds_per_image": "ms per image",
}
"""Columns of what a model costs, by their names in metrics.json."""

SECTIONS = PUBLISHED, OWN = ("Published", "This repository")


class Group(NamedTuple):
    """Properties that rows must share to be compared."""

    dataset: str
    ground_truth: str
    split: str
    scene_selection: str
    quick: bool = False
    """Toy size, to see that everything runs (`mspose ablate --quick`)."""
    data_version: int | None = None
    """Version of a rendered data set: each has other rooms."""

    def __str__(self) -> str:
        version = f" version {self.data_version}" if self.data_version else ""
        text = (
            f"{self.dataset}{version}, ground truth {self.ground_truth}, split {self.split}, scene"
            f" {self.scene_selection}"
        )
        return text + (", at toy size (quick)" if self.quick else "")


def group_of(row: Mapping[str, Any]) -> Group:
    """Read the group from the content of a metrics.json, or from a line of the published CSV."""
    dataset, ground_truth, split = (
        row[key] or "unknown" for key in ("dataset", "ground_truth", "split")
    )
    # published rows, and metrics of older versions, do not have the other two
    selection = row.get("scene_selection", "predicted")
    quick = bool(row.get("quick", False))
    return Group(dataset, ground_truth, split, selection, quick, recorded_version(row))


class Measure(NamedTuple):
    """A metric, with a value per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (divided by n - 1); None for a single seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def text(self, digits: int) -> str:
        """Format as `0.11`, or `0.11±0.01` over several seeds."""
        return f"{self.mean:.{digits}f}" + ("" if self.std is None else f"±{self.std:.{digits}f}")


class SceneMetrics(NamedTuple):
    """Metrics of a scene, or their average over scenes."""

    measures: Mapping[str, Measure]
    """By name, as in the CSV: `position_m`, `orientation_deg`, `scene_accuracy`, and, where the
    metrics have them, `position_m_75_percent` ... (`mspose.metrics.QUANTILES`), and for every
    threshold `recall_0.25m_5deg` and `auc_0.25m_5deg`, shares from 0 to 1."""
    frames: int | None = None


@dataclass(frozen=True)
class Row:
    """One method: a variant of an experiment over its seeds, or a published one."""

    name: str
    section: str
    group: Group
    scenes: dict[str, SceneMetrics]
    average: SceneMetrics | None
    """None for a published row whose cells are empty."""
    average_printed: bool = False
    """The average is the source's own and stands even where a scene is missing."""
    empty: str = ""
    """Lines of the published CSV that are still to be filled in, and its name."""
    lacking: tuple[str, ...] = ()
    """Test frames of the data set that were not evaluated: `chess 16 of 2,000`."""
    of_one_scene: bool = False
    """The model was trained on one scene alone."""
    costs: dict[str, float] = field(default_factory=dict)
    """COSTS of the model, as far as they are recorded."""
    thresholds: tuple[tuple[float, float], ...] = ()
    seeds: tuple[int, ...] = ()
    baseline: bool = False
    machines: tuple[str, ...] = ()
    """CPU or GPU, and version of torch, of the evaluations."""
    source: str = ""
    note: str = ""


def finished_runs(roots: Iterable[Path | str]) -> list[Run]:
    """List the runs in or below the roots, evaluated on their test split; a root may be empty.

    A run that two roots hold, such as a run and its record, counts where it is found first; where
    the two have other metrics, the log says so. Raises MsposeError for a broken metrics.json, and
    for a run that one root holds twice.
    """
    runs: dict[tuple[Any, ...], Run] = {}
    for root in map(Path, roots):
        try:
            below = find_runs([root])
        except MsposeError:
            continue
        here: dict[tuple[Any, ...], Run] = {}
        for run in below:
            key = (run.name, run.seed, group_of(run.metrics))
            first = here.setdefault(key, run)
            if first != run:
                raise MsposeError(
                    f"{first.folder} and {run.folder} are both {run.name}/{run.seed}: remove one"
                    " of them"
                )
        for key, run in here.items():
            first = runs.setdefault(key, run)
            if first.metrics["scenes"] != run.metrics["scenes"]:
                log.warning(
                    "%s and %s are one run with different metrics: those of the first count",
                    first.folder,
                    run.folder,
                )
    return list(runs.values())


def collect_runs(
    paths: Iterable[Path | str],
    *,
    dataset: str | None = None,
    ground_truth: str | None = None,
    split: str | None = None,
) -> list[Row]:
    """Make a row per experiment and variant of the runs in or below `paths` that pass the filters.

    Without a filter a run has the metrics of its test split; with one, all its evaluations are
    considered. Runs at toy size count only where there are no others. Raises MsposeError where
    there are no runs, a metrics.json is broken, the same experiment, variant and seed is there
    twice, or the seeds of a variant were not evaluated on the same frames and thresholds.
    """
    filters = {"dataset": dataset, "ground_truth": ground_truth, "split": split}
    asked = {key: value for key, value in filters.items() if value is not None}
    runs = find_runs(paths, other_splits=bool(asked))
    chosen = [run for run in runs if all(run.metrics[key] == asked[key] for key in asked)]
    if not chosen:
        there = "; ".join(sorted({str(group_of(run.metrics)) for run in runs}))
        raise MsposeError(
            f"no run has {', '.join(f'{k} {v}' for k, v in asked.items())}; there are runs of"
            f" {there}"
        )
    return rows_of(chosen)


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Make a row per experiment and variant of runs, see `collect_runs`."""
    real = [run for run in runs if not run.quick]
    if real and len(real) < len(runs):
        log.info(
            "evaluations at toy size (quick) share no table with others, left out: %d",
            len(runs) - len(real),
        )
    seeds: dict[tuple[str, Group], dict[int | None, Run]] = {}
    for run in real or runs:
        first = seeds.setdefault((run.name, group_of(run.metrics)), {}).setdefault(run.seed, run)
        if first != run:
            raise MsposeError(
                f"{first.metrics_file} and {run.metrics_file} are both {run.name}, seed {run.seed}:"
                " name the one that should be in the table"
            )
    return [_row(list(of_seed.values())) for of_seed in seeds.values()]


def _row(seeds: Sequence[Run]) -> Row:
    """Make the row of a variant's runs."""
    first, every = seeds[0], [run.metrics for run in seeds]
    scenes = {name: scene["frames"] for name, scene in first.metrics["scenes"].items()}
    thresholds = first.metrics["thresholds"]
    for run in seeds[1:]:
        frames = {name: scene["frames"] for name, scene in run.metrics["scenes"].items()}
        if frames != scenes or run.metrics["thresholds"] != thresholds:
            what = "frames" if frames != scenes else "recall thresholds"
            raise MsposeError(
                f"{first.metrics_file} and {run.metrics_file} are seeds of {run.name} with"
                f" different {what}: name one of them"
            )
    bad = max(metrics.get("bad_frames") or 0 for metrics in every)
    lacking = lacking_frames(seeds)
    retrieved = max(metrics.get("not_localised") or 0 for metrics in every)
    missing = max(metrics["average"].get("missing_frames") or 0 for metrics in every)
    unpredicted = f"frames without prediction: {missing}, failed in recall, not in medians"
    notes = [
        f"bad frames left out: {bad}" if bad else "",
        f"test frames evaluated: {', '.join(lacking)}" if lacking else "",
        f"frames not localised, which have the retrieved pose: {retrieved}" if retrieved else "",
        unpredicted if missing else "",
    ]
    return Row(
        name=first.name,
        section=OWN,
        group=group_of(first.metrics),
        scenes={
            name: _scene_metrics([metrics["scenes"][name] for metrics in every], thresholds)
            for name in scenes
        },
        average=_scene_metrics([metrics["average"] for metrics in every], thresholds),
        thresholds=tuple((float(metres), float(degrees)) for metres, degrees in thresholds),
        seeds=tuple(run.seed for run in seeds if run.seed is not None),
        baseline=first.is_baseline,
        machines=tuple(dict.fromkeys(filter(None, map(_machine, seeds)))),
        lacking=tuple(lacking),
        of_one_scene=(
            len(scenes) == 1
            and first.config_file.is_file()
            and len(first.settings.data.scenes) == 1
        ),
        costs=_costs(seeds),
        note="; ".join(filter(None, notes)),
    )


def lacking_frames(runs: Iterable[Run]) -> list[str]:
    """List the scenes of which a run has fewer frames than the data set: `chess 16 of 2,000`.

    The data set's number is in metrics.json; in those of older versions, on the card of that name.
    """
    found: dict[str, str] = {}
    for run in runs:
        metrics = run.metrics
        on_card = _frames_of_card(str(metrics["dataset"]), str(metrics["split"]))
        for name, scene in metrics["scenes"].items():
            expected = scene.get("frames_expected") or on_card.get(name, 0)
            if scene["frames"] < expected:
                found[name] = f"{name} {scene['frames']:,} of {expected:,}"
    return list(found.values())


@cache
def _frames_of_card(dataset: str, split: str) -> dict[str, int]:
    """Published number of frames by scene; {} without a card of that name."""
    try:
        return stated_frames(read_card(dataset), split)
    except MsposeError:
        return {}


def _costs(seeds: Sequence[Run]) -> dict[str, float]:
    """Collect the COSTS that all seeds have recorded; of their time, the mean."""
    models = [run.provenance.get("model") or {} for run in seeds]
    return {
        name: float(np.mean([model[name] for model in models]))
        for name in COSTS
        if all(name in model for model in models)
    }


def threshold_name(pair: Sequence[float]) -> str:
    """Name a pair of thresholds, in metres and degrees, in the names of metrics."""
    return f"{pair[0]:g}m_{pair[1]:g}deg"


def quantile_name(error: str, quantile: float) -> str:
    """Name a quantile of an error of ERRORS."""
    return f"{error}_{quantile * 100:g}_percent"


def _scene_metrics(
    seeds: Sequence[Mapping[str, Any]], thresholds: Sequence[Sequence[float]]
) -> SceneMetrics:
    """Collect the metrics that all seeds have; those of older versions have fewer."""
    every = [_named(scene, thresholds) for scene in seeds]
    measures = {
        name: Measure(tuple(float(found[name]) for found in every))
        for name in every[0]
        if all(found.get(name) is not None for found in every)
    }
    return SceneMetrics(measures, seeds[0]["frames"])


def _named(scene: Mapping[str, Any], thresholds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Name the metrics of a scene in metrics.json as in `SceneMetrics`."""
    found = {"scene_accuracy": scene["scene_accuracy"]}
    for error, median in zip(ERRORS, MEDIANS, strict=True):
        found[error] = scene[median]
        quantiles = scene.get(f"{median.removeprefix('median_')}_quantiles", ())
        names = [quantile_name(error, quantile) for quantile in QUANTILES]
        found |= zip(names, quantiles, strict=False)
    for metric in ("recall", "auc"):
        names = [f"{metric}_{threshold_name(pair)}" for pair in thresholds]
        found |= zip(names, scene.get(metric, ()), strict=False)
    return found


def _machine(run: Run) -> str:
    """Return the device and the version of torch of an evaluation, as far as they are recorded."""
    found = run.provenance
    torch = f"torch {found['torch']}" if found.get("torch") else ""
    return ", ".join(filter(None, (str(found.get("device") or ""), torch)))


def published_rows(path: Path | str = PUBLISHED_CSV, dataset: str | None = None) -> list[Row]:
    """Read a row per published method of a data set (all where None), in the file's order.

    Published scenes count as predicted; methods with one model per scene say so in their note. A
    line without the two medians is still to be filled in: its cell is empty. Raises MsposeError
    with the line for a value that is not a finite number or a scene that is there twice.
    """
    lines: dict[tuple[str, Group], list[tuple[int, dict[str, str]]]] = {}
    for line, row in csv_rows(path, PUBLISHED_COLUMNS):
        lines.setdefault((row["method"], group_of(row)), []).append((line, row))
    rows = [_published_row(path, *key, of_method) for key, of_method in lines.items()]
    return [row for row in rows if dataset in (None, row.group.dataset)]


def _published_row(
    path: Path | str, method: str, group: Group, lines: Sequence[tuple[int, dict[str, str]]]
) -> Row:
    """Make the row of a published method, of its lines in the CSV."""
    scenes: dict[str, SceneMetrics] = {}
    seen, empty = set(), []
    for line, row in lines:
        if row["scene"] in seen:
            raise MsposeError(f"{path}, line {line}: {method} has scene {row['scene']} twice")
        seen.add(row["scene"])
        if any(row[column] for column in MEDIANS):
            medians = [Measure((csv_number(path, line, row, column),)) for column in MEDIANS]
            scenes[row["scene"]] = SceneMetrics(dict(zip(ERRORS, medians, strict=True)))
        else:
            empty.append(str(line))
    printed = scenes.pop(PRINTED_AVERAGE, None)
    mean = {
        error: Measure((float(np.mean([of.measures[error].mean for of in scenes.values()])),))
        for error in ERRORS
        if scenes
    }
    source, note = (
        "; ".join(dict.fromkeys(row[key] for _, row in lines if row[key]))
        for key in ("source", "note")
    )
    name = "experiments/published.csv" if Path(path) == PUBLISHED_CSV else path
    return Row(
        name=method,
        section=PUBLISHED,
        group=group,
        scenes=scenes,
        average=printed or (SceneMetrics(mean) if mean else None),
        average_printed=printed is not None,
        empty=f"line{'s' if empty[1:] else ''} {', '.join(empty)} of {name}" if empty else "",
        source=source,
        note=note,
    )


def shared_group(rows: Sequence[Row]) -> Group:
    """Return the group that all rows share.

    A baseline may differ in how its scene is selected; its label then says so. Raises MsposeError
    that names the groups where there are several.
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
            f"these rows were not evaluated on the same data and cannot share a table: {listed}."
            " Choose with --dataset, --ground-truth or --split, or name the runs of one group"
        )
    return next(iter(groups))
