"""What a report is made from: the files that runs, records, baselines and other methods'
predictions leave behind.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from mspose.attention.attention_json import read_study
from mspose.attention.training_log import read_scalars
from mspose.config import flatten
from mspose.errors import MsposeError
from mspose.evaluation import EXTERNAL
from mspose.metrics import ERROR_COLUMNS, ERROR_TOLERANCE, read_metrics, read_predictions
from mspose.run import MODEL
from mspose.studies.ablation.errors import RECORDED, read_errors
from mspose.studies.ablation.finished import study_of
from mspose.studies.rows import METRICS, Group, find_metrics, group_of

CONFIG = "config.yaml"


@dataclass(frozen=True, eq=False)
class Result:
    """One evaluation of one run."""

    folder: Path
    file: Path
    """Its metrics.json, or `metrics-<split>.json`."""
    metrics: Mapping[str, Any]
    frames: pd.DataFrame
    """A predictions file's columns, or those of a record: image, scene and the two errors."""
    source: Path
    """The file that the frames are from."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`config.yaml` by dotted name; empty where there is none."""
    study: Mapping[str, Any] | None = None
    """`attention.json`."""
    scalars: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """TensorBoard's scalars: tag -> step -> value."""
    notes: Sequence[str] = ()
    """What could not be read, in one line each."""

    @property
    def variant(self) -> tuple[str, str]:
        """Experiment and variant: what seeds share."""
        return self.metrics["experiment"], self.metrics["variant"]

    @property
    def has_poses(self) -> bool:
        """A record keeps errors alone."""
        return "tx_est" in self.frames

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Of the metrics; empty where they do not say, and so is its `model`."""
        return self.metrics["provenance"]


def read_results(paths: Iterable[Path | str], split: str | None = None) -> list[Result]:
    """The evaluations of the runs in or below `paths`, in the order given.

    split: `train` for `metrics-train.json` and so on; by default the run's own test split,
        `metrics.json`.

    Raises MsposeError for a path that is not there, a run that was not evaluated, a broken file,
    and for predictions that the metrics were not computed from.
    """
    name = METRICS if split in (None, "test") else f"metrics-{split}.json"
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        for file in _metrics_files(path, name):
            files.setdefault(file.resolve(), file)
    return [_read(file) for file in files.values()]


def _metrics_files(path: Path, name: str) -> list[Path]:
    if not path.exists():
        raise MsposeError(
            f"no such run: {path}; name folders of evaluated runs (`make train` and `make eval`"
            " make one)"
        )
    if path.is_file():
        raise MsposeError(f"{path} is a file: name the folder of a run")
    if (path / name).is_file():
        return [path / name]
    if any((path / sign).is_file() for sign in (CONFIG, MODEL, METRICS)):
        option = (
            ""
            if name == METRICS
            else f" --split {name.removeprefix('metrics-').removesuffix('.json')}"
        )
        raise MsposeError(f"{path} has no {name}: run `mspose evaluate {path}{option}` first")
    found = [
        file for file in find_metrics([path], other_splits=name != METRICS) if file.name == name
    ]
    if not found:
        raise MsposeError(f"no {name} in {path} or below it: evaluate its runs on that split first")
    return found


def _read(file: Path) -> Result:
    folder, metrics = file.parent, read_metrics(file)
    made = metrics.get("provenance")  # which nobody has checked
    made = made if isinstance(made, dict) else {}
    model = made.get("model")
    metrics["provenance"] = {**made, "model": model if isinstance(model, dict) else {}}
    frames, source = _frames(file, metrics)
    _check_belongs(metrics, frames, file, source)
    notes: list[str] = []
    settings = _settings(folder, notes) if metrics["experiment"] != EXTERNAL else {}
    study = None
    try:
        study = (
            read_study(folder)
            if metrics.get("quick") and _has_study(folder)
            else study_of(folder, metrics)
        )
    except MsposeError as reason:
        notes.append(str(reason))
    return Result(
        folder, file, metrics, frames, source, settings, study, read_scalars(folder), notes
    )


def _has_study(folder: Path) -> bool:
    return (folder / "attention" / "attention.json").is_file()


def _frames(file: Path, metrics: Mapping[str, Any]) -> tuple[pd.DataFrame, Path]:
    folder = file.parent
    if metrics["experiment"] == EXTERNAL:
        stated = Path(str(metrics["provenance"].get("predictions"))).name
        if not (folder / stated).is_file():
            raise MsposeError(
                f"{file} was computed from {stated}, which is not beside it: put it there, or run "
                f"`mspose evaluate --predictions {stated}` again"
            )
        return read_predictions(folder / stated), folder / stated
    split = "test" if file.name == METRICS else file.stem.removeprefix("metrics-")
    own = folder / "predictions" / f"{split}.csv"
    if own.is_file():
        return read_predictions(own), own
    if file.name == METRICS and (folder / RECORDED).is_file():
        return read_errors(folder), folder / RECORDED
    option = "" if split == "test" else f" --split {split}"
    raise MsposeError(
        f"{folder} has no predictions/{split}.csv: run `mspose evaluate {folder}{option}` again"
    )


def _check_belongs(
    metrics: Mapping[str, Any], frames: pd.DataFrame, file: Path, source: Path
) -> None:
    """The figures of the table and those of the plots are of the same frames."""
    remedy = (
        f"compute the metrics again with `mspose evaluate --predictions {source}`, or evaluate the"
        " run again"
    )
    here = {str(scene): part for scene, part in frames.groupby("scene")}
    if sorted(here) != sorted(metrics["scenes"]):
        raise MsposeError(f"{source} has other scenes than {file}: {remedy}")
    for scene, part in here.items():
        stated = metrics["scenes"][scene]
        if len(part) != stated["frames"]:
            raise MsposeError(
                f"{source}: {len(part)} frames of {scene}, {file} says {stated['frames']}: {remedy}"
            )
        for column, tolerance in zip(ERROR_COLUMNS, ERROR_TOLERANCE, strict=True):
            median = float(np.median(part[column].to_numpy(dtype=np.float64)))
            if not np.isclose(median, stated[f"median_{column}"], rtol=1e-6, atol=tolerance):
                raise MsposeError(
                    f"{source}: median {column} of {scene} is not that of {file}: {remedy}"
                )


def _settings(folder: Path, notes: list[str]) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        return flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (
        OSError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
        AttributeError,
        TypeError,
    ) as error:
        notes.append(f"{path} holds no settings: {' '.join(str(error).split())[:200]}")
        return {}


def grouped(results: Sequence[Result]) -> dict[Group, list[Result]]:
    """By what rows of a table must share; baselines are with the runs of their data, however their
    scene was chosen.
    """
    groups: dict[Group, list[Result]] = {}
    for of_baselines in (False, True):
        for result in results:
            if result.variant[1].startswith("baseline-") != of_baselines:
                continue
            group = group_of(dict(result.metrics))
            if of_baselines:
                alike = (
                    known
                    for known in groups
                    if known._replace(scene_selection="") == _any_scene(group)
                )
                group = next(alike, group)
            groups.setdefault(group, []).append(result)
    return groups


def _any_scene(group: Group) -> Group:
    return group._replace(scene_selection="")


def labels(results: Sequence[Result]) -> list[str]:
    """What the page calls the runs: as short as tells them apart, a mark where the run was a quick
    try.

    No two are alike: a run that was evaluated on several data sets carries their names.
    """
    several = len({result.variant[0] for result in results}) > 1
    counts: dict[tuple[str, str], int] = {}
    for result in results:
        counts[result.variant] = counts.get(result.variant, 0) + 1
    found = []
    for result in results:
        (experiment, variant), seed = result.variant, result.metrics["seed"]
        text = f"{experiment}/{variant}" if several or len(results) == 1 else variant
        if seed is not None and counts[result.variant] > 1:
            text += f", seed {seed}"
        found.append(text + (" (quick)" if result.metrics.get("quick") else ""))
    twice = {text for text in found if found.count(text) > 1}
    return [
        f"{text} on {group_of(dict(result.metrics))}" if text in twice else text
        for text, result in zip(found, results, strict=True)
    ]


def in_short(names: Iterable[str]) -> list[str]:
    """The labels, seeds of a variant as one: `both, seeds 0, 1, 2`."""
    seeds: dict[str, list[str]] = {}
    for name in names:
        variant, _, seed = name.rpartition(", seed ")
        seeds.setdefault(variant or name, []).extend([seed] if variant else [])
    return [
        f"{name}, seed{'s' * (len(found) > 1)} {', '.join(found)}" if found else name
        for name, found in seeds.items()
    ]
