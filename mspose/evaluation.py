"""Evaluation: a run's predictions on one split, and the metrics that are computed from that file alone."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mspose.checkpoint import whole_file
from mspose.config import DataSettings, config_hash, read_settings
from mspose.data.batches import Batches
from mspose.data.cache import open_split
from mspose.data.cards import read_card
from mspose.errors import MsposeError
from mspose.metrics import compute_metrics, provenance, read_predictions, write_metrics, write_predictions
from mspose.prediction import load, predict_frames

INDOOR_THRESHOLDS = ((0.05, 5.0), (0.1, 5.0), (0.25, 5.0), (0.5, 10.0))
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
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> tuple[dict[str, Any], Path]:
    """Predict a split with a run's model, write `predictions/<split>.csv`, then the metrics; returns them and their file.

    `data` overrides fields of the run's data settings (`root`, `scenes`, `dataset`, ...). The scene is predicted unless
    `given_scene`. On another data set or ground truth than the run's own, both stand in the names of the two files.
    """
    estimator = load(run, device)
    settings = read_settings(run / "config.yaml")
    own = settings.data
    chosen: DataSettings = replace(own, **(data or {}))
    card = read_card(chosen.dataset)
    scenes = chosen.scenes or [name for name in estimator.scenes if chosen.dataset == own.dataset]
    if unknown := [name for name in scenes if name not in estimator.scenes]:
        known = ", ".join(estimator.scenes)
        raise MsposeError(f"scene {', '.join(unknown)} is unknown to the model of {run}, which knows: {known}")
    frames, cache, bad_frames = open_split(
        card,
        split,
        **replace(chosen, scenes=scenes).source(),
        short_side=estimator.preprocessing.resize,
        on_bad_frame=on_bad_frame,
        progress=progress,
    )
    parameter = next(estimator.network.parameters())
    batches = Batches(
        frames,
        cache,
        scenes=estimator.scenes,
        crop=estimator.preprocessing.crop,
        mean=estimator.preprocessing.mean,
        std=estimator.preprocessing.std,
        batch_size=batch_size,
        device=parameter.device,
    )
    table = predict_frames(estimator.network, batches, given_scene=given_scene, progress=progress)

    ground_truth = str(frames["ground_truth"].iloc[0])
    trained_on = estimator.description.get("trained_on", {})
    same = (card.name, ground_truth) == (trained_on.get("dataset"), trained_on.get("ground_truth"))
    name = split if same else f"{card.name}-{ground_truth}-{split}"
    path = store_predictions(
        run,
        name,
        table,
        dataset=card.name,
        ground_truth=ground_truth,
        split=split,
        scene_selection="given" if given_scene else "predicted",
        experiment=settings.experiment,
        variant=run.resolve().parent.name,
        seed=settings.seed,
        bad_frames=bad_frames,
        model={"config_hash": config_hash(settings), **trained_on},
        device=str(parameter.device),
    )
    return evaluate_predictions(path, thresholds=thresholds or card.thresholds)


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

    What the file cannot say (data set, ground truth, split, who made it) comes from the JSON beside it where mspose
    wrote one, else from the arguments. The metrics of `runs/.../predictions/test.csv` are `runs/.../metrics.json`, those
    of another split `metrics-<split>.json` there; a file from elsewhere gets `metrics.json` beside it.
    """
    predictions = read_predictions(path)
    beside = path.with_suffix(".json")
    about: dict[str, Any] = {
        "dataset": dataset,
        "ground_truth": ground_truth,
        "split": split,
        "scene_selection": "predicted",
        "experiment": "external",
        "variant": method or path.stem,
        "seed": None,
        "bad_frames": 0,
    }
    own = path.parent.name == "predictions" and beside.is_file()
    if own:
        try:
            about = json.loads(beside.read_text(encoding="utf-8"))
            known = (about["dataset"], about["ground_truth"], about["split"])
        except (ValueError, KeyError, TypeError) as error:
            raise MsposeError(f"{beside} is not what mspose writes beside predictions: remove it, or evaluate anew") from error
        for name, given, stored in zip(("dataset", "ground_truth", "split"), (dataset, ground_truth, split), known, strict=True):
            if given not in (None, stored):
                raise MsposeError(f"{path} was predicted on {name} {stored}, not {given}")
    if not thresholds:
        thresholds = read_card(about["dataset"]).thresholds if about["dataset"] else INDOOR_THRESHOLDS
    made_by = {"model": about.pop("model", None), "device": about.pop("device", None)}
    metrics = {**about, **compute_metrics(predictions, thresholds=thresholds)}
    metrics["provenance"] = {**provenance(), **made_by, "predictions": str(path)}
    folder = path.parent.parent if own else path.parent
    target = folder / ("metrics.json" if path.stem == "test" or not own else f"metrics-{path.stem}.json")
    write_metrics(target, metrics)
    return metrics, target


def summary(metrics: dict[str, Any]) -> str:
    """Medians, scene accuracy and recall per scene, as a Markdown table."""
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
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
