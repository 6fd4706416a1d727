"""Evaluation: a run's predictions on one split, and the metrics that are computed from that file alone."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mspose import distributed
from mspose.checkpoint import whole_file
from mspose.config import DataSettings, Settings, config_hash, read_settings
from mspose.data.batches import Batches
from mspose.data.cache import open_split
from mspose.data.cards import INDOOR_THRESHOLDS, Card, data_root, read_card
from mspose.data.versions import recorded_version, rendered_version
from mspose.data.virtual import VERSION
from mspose.errors import MsposeError
from mspose.metrics import (
    ONE_SCENE,
    compute_metrics,
    device_name,
    provenance,
    read_metrics,
    read_predictions,
    write_metrics,
    write_predictions,
)
from mspose.prediction import PoseEstimator, load, predict_frames

EXTERNAL = "external"
"""The experiment's name in the metrics of a predictions file that no run of mspose wrote."""
log = logging.getLogger("mspose")


def evaluate_run(
    run: Path,
    *,
    split: str = "test",
    given_scene: bool = False,
    data: dict[str, Any] | None = None,
    thresholds: Sequence[tuple[float, float]] = (),
    batch_size: int = 32,
    device: str = "auto",
    compile: bool = False,
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> tuple[dict[str, Any], Path]:
    """Predict a split with a run's model into `predictions/<split>.csv`, then its metrics; returns them and their file.

    `data` overrides fields of the run's data settings (`root`, `scenes`, `dataset`, ...); of another data set only they
    and the cache's folder count. The scene is predicted unless `given_scene`. On another data set or ground truth than
    the run's own, both stand in the names of the two files. `compile` compiles the network first: for GPUs.
    """
    estimator = load(run, device)
    device_used = next(estimator.network.parameters()).device
    with distributed.joined(device_used):
        opened = open_for_run(
            run, estimator, split, data=data, batch_size=batch_size, on_bad_frame=on_bad_frame, progress=progress
        )
        batches, settings = opened.batches, opened.settings
        table = predict_frames(estimator.fused, batches, given_scene=given_scene, compile=compile, progress=progress)

        dataset, ground_truth = opened.dataset, opened.ground_truth
        trained_on = estimator.description.get("trained_on") or {}
        same = (dataset, ground_truth) == (trained_on.get("dataset"), trained_on.get("ground_truth"))
        name = split if same else f"{dataset}-{ground_truth}-{split}"
        about = {
            "dataset": dataset,
            "ground_truth": ground_truth,
            "data_version": opened.data_version,
            "split": split,
            "scene_selection": "given" if given_scene else "predicted",
            "experiment": settings.experiment,
            "variant": settings.variant or run.resolve().parent.name,
            "seed": settings.seed,
            "quick": settings.quick,
            "bad_frames": opened.bad_frames,
            "thresholds": list(thresholds or opened.thresholds),
            "model": {"config_hash": estimator.description.get("config_hash"), **trained_on},
            "device": device_name(device_used),
        }
        return distributed.from_main(lambda: evaluate_predictions(store_predictions(run, name, table, **about)))


@dataclass(frozen=True)
class OpenedSplit:
    """One split of a data set, ready for the model of a run."""

    settings: Settings
    """The run's own."""
    batches: Batches
    dataset: str
    ground_truth: str
    data_version: int | None
    """Of a rendered data set."""
    thresholds: Sequence[tuple[float, float]]
    """Recall pairs (m, deg) of the data set's card."""
    bad_frames: int
    """Frames left out as bad."""


def open_for_run(
    run: Path,
    estimator: PoseEstimator,
    split: str,
    *,
    data: dict[str, Any] | None = None,
    batch_size: int,
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> OpenedSplit:
    """Open a split for a run's model, as the run's data settings say; `data` overrides them, see `evaluate_run`.

    Raises MsposeError where the data is not there, of scenes that the model does not know, or of another version of
    rendered rooms than the model learned.
    """
    settings = read_settings(run / "config.yaml")
    data = data or {}
    own = settings.data if data.get("dataset") in (None, settings.data.dataset) else None
    chosen: DataSettings = replace(own or DataSettings(cache=settings.data.cache), **data)
    card = read_card(chosen.dataset)
    scenes = chosen.scenes or list(() if chosen.labels else estimator.scenes if own else card.scenes)
    if unknown := [name for name in scenes if name not in estimator.scenes]:
        known = ", ".join(estimator.scenes)
        raise MsposeError(f"scene {', '.join(unknown)} is unknown to the model of {run}, which knows: {known}")
    learned = recorded_version(estimator.description.get("trained_on") or {})
    version = rendered_version(card, chosen.root, scenes)
    if learned and version and learned != version:
        raise MsposeError(
            f"{run} was trained on version {learned} of {settings.data.dataset}, whose rooms are others than those of "
            f"version {version} in {data_root(card, chosen.root)}: train it anew"
        )
    if config_hash(settings) != estimator.description.get("config_hash"):
        log.warning("%s: config.yaml was changed since the model was made, or made by another version of mspose", run)
    with distributed.one_per_machine_first():
        frames, cache, bad_frames = open_split(
            card,
            split,
            **replace(chosen, scenes=scenes).source(),
            short_side=estimator.preprocessing.resize,
            on_bad_frame=on_bad_frame,
            progress=progress,
        )
    batches = Batches(
        frames,
        cache,
        scenes=estimator.scenes,
        crop=estimator.preprocessing.crop,
        mean=estimator.preprocessing.mean,
        std=estimator.preprocessing.std,
        batch_size=batch_size,
        device=next(estimator.network.parameters()).device,
    )
    ground_truth = str(frames["ground_truth"].iloc[0])
    return OpenedSplit(settings, batches, card.name, ground_truth, version, card.thresholds, bad_frames)


def store_predictions(run: Path, name: str, table: pd.DataFrame, **about: Any) -> Path:
    """Write `predictions/<name>.csv` and, beside it, a JSON of what its columns cannot say; returns the CSV's path."""
    path = run / "predictions" / f"{name}.csv"
    write_predictions(path, table)
    with whole_file(path.with_suffix(".json")) as file:
        json.dump(about, file, indent=2)
    return path


def evaluate_predictions(
    path: Path,
    *,
    thresholds: Sequence[tuple[float, float]] = (),
    dataset: str | None = None,
    ground_truth: str | None = None,
    split: str | None = None,
    method: str | None = None,
) -> tuple[dict[str, Any], Path]:
    """Write `metrics.json` from a predictions file alone, our own or another method's; returns both.

    What the file cannot say (data set, ground truth, split, who made it, thresholds) comes from the JSON beside it
    where mspose wrote one, else from the arguments; `dataset` is the name or path of a card. The metrics of
    `runs/.../predictions/test.csv` are `runs/.../metrics.json`, those of another split `metrics-<split>.json` there; a
    file from elsewhere gets `metrics.json` beside it.
    """
    predictions = read_predictions(path)
    card = read_card(dataset) if dataset else None
    beside = path.with_suffix(".json")
    own = path.parent.name == "predictions" and beside.is_file()
    if own:
        about = _stored_about(beside)
        asked = {"dataset": card.name if card else None, "ground_truth": ground_truth, "split": split}
        for name, given in asked.items():
            if given not in (None, about[name]):
                raise MsposeError(f"{path} was predicted on {name} {about[name]}, not {given}")
    else:
        if card:
            _check_fits(card, ground_truth, predictions, path)
        about = {
            "dataset": card.name if card else None,
            "ground_truth": ground_truth or (card.ground_truths[0] if card else None),
            "data_version": VERSION if card and card.format == "virtual" else None,
            "split": split,
            "scene_selection": "predicted",
            "experiment": EXTERNAL,
            "variant": method or path.stem,
            "seed": None,
            "quick": False,
            "bad_frames": 0,
            "thresholds": card.thresholds if card else INDOOR_THRESHOLDS,
        }
    pairs = thresholds or about["thresholds"]
    made_by = {"model": about.pop("model", None), "device": about.pop("device", None)}
    metrics = {**about, **compute_metrics(predictions, thresholds=pairs)}
    metrics["provenance"] = {**provenance(), **made_by, "predictions": str(path)}
    folder = path.parent.parent if own else path.parent
    target = folder / ("metrics.json" if path.stem == "test" or not own else f"metrics-{path.stem}.json")
    if not own:
        _refuse_to_replace(target, path)
    write_metrics(target, metrics)
    return metrics, target


def _stored_about(beside: Path) -> dict[str, Any]:
    """What `store_predictions` wrote beside a predictions file."""
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        for name in ("dataset", "ground_truth", "split"):
            about[name] = str(about[name])
        about["thresholds"] = [(float(metres), float(degrees)) for metres, degrees in about["thresholds"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise MsposeError(
            f"{beside} is not what mspose writes beside predictions: remove it, or evaluate anew"
        ) from error
    return about


def _check_fits(card: Card, ground_truth: str | None, predictions: pd.DataFrame, path: Path) -> None:
    """Another method's file can be of a data set that has its scenes; one without scenes can be of any."""
    if ground_truth not in (None, *card.ground_truths):
        raise MsposeError(f"{card.name} has no ground truth {ground_truth!r}; it has: {', '.join(card.ground_truths)}")
    if strange := sorted(set(predictions["scene"]) - {ONE_SCENE, *card.known_scenes}) if card.known_scenes else []:
        scenes = ", ".join(card.known_scenes)
        raise MsposeError(f"{path}: {card.name} has no scene {strange[0]!r}; its scenes: {scenes}")


def _refuse_to_replace(target: Path, path: Path) -> None:
    """The metrics of another file in this folder, or of the run whose folder this is, are not to be lost."""
    if not target.is_file():
        return
    there = read_metrics(target)
    source = (there.get("provenance") or {}).get("predictions", "another file")
    if there["experiment"] != EXTERNAL or Path(source).name != path.name:
        raise MsposeError(f"{target} holds the metrics of {source}: put {path.name} into a folder of its own")


def summary(metrics: dict[str, Any]) -> str:
    """`summary_grid` as a Markdown table."""
    return summary_grid(metrics).to_markdown(index=False, disable_numparse=True)


def summary_grid(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Medians, scene accuracy and recall per scene and their average, as text."""
    rows = []
    for name, figures in [*metrics["scenes"].items(), ("average", metrics["average"])]:
        accuracy = figures["scene_accuracy"]
        rows.append(
            {
                "scene": name,
                "frames": figures["frames"],
                "position (m)": f"{figures['median_position_error_m']:.3f}",
                "orientation (deg)": f"{figures['median_orientation_error_deg']:.2f}",
                "scene accuracy": "-" if accuracy is None else f"{accuracy:.3f}",
                **{
                    f"{metres:g} m, {degrees:g} deg": f"{100 * recall:.1f} %"
                    for (metres, degrees), recall in zip(metrics["thresholds"], figures["recall"], strict=True)
                },
            }
        )
    return pd.DataFrame(rows)
