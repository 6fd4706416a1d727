"""Evaluation: a run's predictions on one split, and the metrics computed from that file alone."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mspose import distributed
from mspose.config import DataSettings, Settings, config_hash
from mspose.data.batches import Batches
from mspose.data.cache import open_split
from mspose.data.cards import (
    INDOOR_THRESHOLDS,
    Card,
    data_root,
    labels_are_there,
    load_frames,
    read_card,
    stated_frames,
)
from mspose.data.images import IMAGE_SUFFIXES
from mspose.data.versions import recorded_version, rendered_version
from mspose.data.virtual import VERSION
from mspose.errors import MsposeError
from mspose.escaping import markdown_text
from mspose.files import checksum, read_bytes, read_json, whole_file, with_checksum
from mspose.inference import PoseEstimator, load, predict_frames
from mspose.metrics import (
    ONE_SCENE,
    PREDICTIONS_CHECKSUM,
    TRUE_ORIENTATION,
    TRUE_POSITION,
    compute_metrics,
    read_predictions,
    write_metrics,
    write_predictions,
)
from mspose.poses import orientation_error, position_error
from mspose.provenance import device_name, provenance
from mspose.run import EXTERNAL, Run

SAME_METRES, SAME_DEGREES = 1e-3, 0.1  # between a label and a copy of it, as rounding makes it
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
    """Predict a split with a run's model into `predictions/<split>.csv`, then compute its metrics.

    Args:
        given_scene: take every frame's true scene in place of the predicted one.
        data: overrides fields of the run's data settings (`root`, `scenes`, `dataset`, ...); of
            another data set only they and the cache's folder count. On another data set or ground
            truth than the run's own, both stand in the names of the two files.
        thresholds: pairs of metres and degrees for recall; by default those of the data set's card.
        compile: compile the network first, for GPUs.

    Returns:
        The metrics and their file.
    """
    estimator = load(run, device)
    device_used = next(estimator.network.parameters()).device
    with distributed.joined(device_used):
        opened = open_for_run(
            run,
            estimator,
            split,
            data=data,
            batch_size=batch_size,
            on_bad_frame=on_bad_frame,
            progress=progress,
        )
        began = time.perf_counter()
        predictions = predict_frames(
            estimator.network,
            opened.batches,
            given_scene=given_scene,
            compile=compile,
            progress=progress,
        )
        seconds = time.perf_counter() - began
        costs = {
            "parameters": sum(weight.numel() for weight in estimator.network.parameters()),
            "megabytes": Run(run).weights_file.stat().st_size / 1e6,
            "milliseconds_per_image": 1000 * seconds / len(opened.batches.frames),
        }
        trained_on = estimator.description.get("trained_on") or {}
        on = {"dataset": opened.card.name, "ground_truth": opened.ground_truth}
        same = all(trained_on.get(name) == value for name, value in on.items())
        name = split if same else f"{opened.card.name}-{opened.ground_truth}-{split}"
        settings = opened.settings
        about = {
            **on,
            "data_version": opened.data_version,
            "split": split,
            "scene_selection": "given" if given_scene else "predicted",
            "experiment": settings.experiment,
            "variant": settings.variant or run.resolve().parent.name,
            "seed": settings.seed,
            "quick": settings.quick,
            "bad_frames": opened.bad_frames,
            "frames_expected": stated_frames(opened.card, split),
            "thresholds": list(thresholds or opened.card.thresholds),
            "model": {
                "config_hash": estimator.description.get("config_hash"),
                **trained_on,
                **costs,
            },
            "device": device_name(device_used),
        }
        return distributed.from_main(
            lambda: evaluate_predictions(store_predictions(Run(run, name), predictions, **about))
        )


@dataclass(frozen=True)
class OpenedSplit:
    """One split of a data set, ready for the model of a run."""

    settings: Settings
    """Settings of the run's training."""
    batches: Batches
    card: Card
    """Card of the data set."""
    ground_truth: str
    data_version: int | None
    """Version of a rendered data set."""
    bad_frames: int
    """Number of frames left out as bad."""


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
    """Open a split for a run's model, as the run's data settings say and `data` overrides.

    Raises MsposeError where the data is missing, has scenes that the model does not know, or is
    another version of the rendered rooms than the model was trained on.
    """
    settings, data = Run(run).settings, data or {}
    own = settings.data if data.get("dataset") in (None, settings.data.dataset) else None
    chosen: DataSettings = replace(own or DataSettings(cache=settings.data.cache), **data)
    card = read_card(chosen.dataset)
    scenes = chosen.scenes
    if not scenes and not chosen.labels:
        scenes = list(estimator.scenes if own else card.scenes)
    if unknown := [name for name in scenes if name not in estimator.scenes]:
        known = ", ".join(estimator.scenes)
        raise MsposeError(
            f"scene {', '.join(unknown)} is unknown to the model of {run}, which knows: {known}"
        )
    trained = recorded_version(estimator.description.get("trained_on") or {})
    version = rendered_version(card, chosen.root, scenes)
    if trained and version and trained != version:
        raise MsposeError(
            f"{run} was trained on version {trained} of {settings.data.dataset}, which has other"
            f" rooms than version {version} in {data_root(card, chosen.root)}: train it anew"
        )
    if config_hash(settings) != estimator.description.get("config_hash"):
        log.warning(
            "%s: the settings were changed since the model was made, or made by another version of"
            " mspose",
            Run(run).config_file,
        )
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
    return OpenedSplit(settings, batches, card, ground_truth, version, bad_frames)


def store_predictions(run: Run, predictions: pd.DataFrame, **about: Any) -> Path:
    """Write the predictions of a run's `split` and, beside them, a JSON of what they are of.

    Returns the CSV's path.
    """
    path = run.predictions_file
    write_predictions(path, predictions)
    content = with_checksum({**about, PREDICTIONS_CHECKSUM: checksum(read_bytes(path))})
    with whole_file(path.with_suffix(".json")) as file:
        json.dump(content, file, indent=2)
    return path


def evaluate_predictions(
    path: Path,
    *,
    thresholds: Sequence[tuple[float, float]] = (),
    split: str | None = None,
    method: str | None = None,
    **data: Any,
) -> tuple[dict[str, Any], Path]:
    """Compute the metrics of a predictions file, of a run or of another method, and write them.

    What the file cannot say (data set, ground truth, split, who made it, thresholds) comes from the
    JSON beside it where mspose wrote one, else from the arguments; `data` are fields of
    `DataSettings`. The metrics of a run's predictions go into the run's folder, `metrics.json` for
    its test split and `metrics-<split>.json` for others; a file from elsewhere gets `metrics.json`
    beside it, and, with a `dataset`, is compared with the frames of its `split` (by default `test`)
    as `root`, `scenes` and `labels` choose them, see `compare_with_labels`. Returns the metrics and
    their file.
    """
    predictions = read_predictions(path)
    missing: dict[str, int] = {}
    chosen = DataSettings(**data)
    ground_truth = chosen.ground_truth
    card = read_card(chosen.dataset) if "dataset" in data else None
    beside = path.with_suffix(".json")
    if path.parent.name == "predictions" and beside.is_file():
        target = Run(path.parent.parent, path.stem).metrics_file
        about = _stored_about(beside)
        if about.get(PREDICTIONS_CHECKSUM) not in (None, checksum(read_bytes(path))):
            raise MsposeError(
                f"{path} was changed since it was predicted: predict it again with `mspose evaluate"
                f" {path.parent.parent}`, or evaluate a copy of it in another folder"
            )
        asked = {"dataset": card and card.name, "ground_truth": ground_truth, "split": split}
        for name, given in asked.items():
            if given not in (None, about[name]):
                raise MsposeError(f"{path} was predicted on {name} {about[name]}, not {given}")
    else:
        target = Run(path.parent).metrics_file
        _refuse_to_replace(target, path)
        if card:
            split = split or "test"
            _check_fits(card, ground_truth, predictions, path)
            predictions, missing = compare_with_labels(predictions, card, split, path, chosen)
        about = {
            "dataset": card and card.name,
            "ground_truth": ground_truth or (card and card.ground_truths[0]),
            "data_version": VERSION if card and card.format == "virtual" else None,
            "split": split,
            "scene_selection": "predicted",
            "experiment": EXTERNAL,
            "variant": method or path.stem,
            "seed": None,
            "quick": False,
            "bad_frames": 0,
            "frames_expected": stated_frames(card, split) if card else {},
            "thresholds": card.thresholds if card else INDOOR_THRESHOLDS,
        }
    pairs = thresholds or about["thresholds"]
    expected = about.pop("frames_expected", {})
    made_by = {"model": about.pop("model", None), "device": about.pop("device", None)}
    computed = compute_metrics(predictions, thresholds=pairs, missing=missing)
    for name in computed["scenes"].keys() & expected.keys():
        computed["scenes"][name]["frames_expected"] = expected[name]
    metrics = {
        **about,
        **computed,
        PREDICTIONS_CHECKSUM: checksum(read_bytes(path)),
        "provenance": {**provenance(), **made_by, "predictions": str(path)},
    }
    write_metrics(target, metrics)
    return metrics, target


def compare_with_labels(
    predictions: pd.DataFrame, card: Card, split: str, path: Path, data: DataSettings
) -> tuple[pd.DataFrame, dict[str, int]]:
    """(the predictions of frames of a split, scene -> number of its frames without prediction).

    Frames without prediction, and predictions of no frame of the split, are named in warnings; so
    are scenes without any prediction, whose frames are not counted. An image may be named relative
    to any folder above it, or by an absolute path. Where the labels are not there, the numbers of
    frames are those of the card.

    Raises MsposeError where no image is a frame of the split, one could be several frames, and
    where a true pose is not that of the labels.
    """
    named = set(predictions["scene"]) - {ONE_SCENE}
    if not labels_are_there(card, data.root, data.labels):
        log.warning("%s: not compared with the labels of %s, which are not here", path, card.name)
        return predictions, _missing_by_number(predictions, card, split, path)
    frames = load_frames(
        card,
        root=data.root,
        split=split,
        scenes=data.scenes or sorted(named),
        ground_truth=data.ground_truth,
        labels=data.labels,
        on_bad_frame="skip",
    )
    rows = match_images(predictions, frames, path)
    known = rows >= 0
    what = f"{split} frames of {card.name}"
    if not known.any():
        raise MsposeError(
            f"{path}: none of its images is among the {what}: {predictions['image'].iloc[0]}, ...;"
            f" there: {frames['image'].iloc[0]}, ..."
        )
    if not known.all():
        log.warning(
            "%s: left out, not among the %s: %s",
            path,
            what,
            _some(predictions.loc[~known, "image"]),
        )
    predictions, rows = predictions[known].reset_index(drop=True), rows[known]
    _refuse_other_truths(predictions, frames.iloc[rows], path, what)
    absent = frames.drop(index=frames.index[rows])
    counted = set(frames["scene"].iloc[rows])
    if others := sorted(set(data.scenes or card.scenes or frames["scene"]) - counted):
        log.warning(
            "%s: no predictions of scene %s, which is not evaluated", path, ", ".join(others)
        )
    absent = absent[absent["scene"].isin(counted)]
    if not absent.empty:
        log.warning(
            "%s: %d of the %d %s have no prediction; they count as failed in recall, medians are of"
            " the others: %s",
            path, len(absent), len(absent) + len(predictions), what, _some(absent["image"]),
        )  # fmt: skip
    if not named:
        return predictions, {ONE_SCENE: len(absent)}
    return predictions, {str(scene): int(n) for scene, n in absent["scene"].value_counts().items()}


def _missing_by_number(
    predictions: pd.DataFrame, card: Card, split: str, path: Path
) -> dict[str, int]:
    """Scene -> frames without prediction, by the card's number of frames, where it has one."""
    missing = {}
    for scene, found in predictions["scene"].value_counts().items():
        facts = card.scene_facts.get(str(scene))
        count = facts.frames.get(split, 0) - int(found) if facts else 0
        if count > 0:
            missing[str(scene)] = count
            log.warning(
                "%s: %d frames of %s have no prediction, by the number in the card; they count as"
                " failed in recall, medians are of the others",
                path, count, scene,
            )  # fmt: skip
    return missing


def match_images(predictions: pd.DataFrame, frames: pd.DataFrame, path: Path) -> NDArray[np.int64]:
    """The row in `frames` of each prediction's image (B,), -1 for none.

    Raises MsposeError where it could be several, or two predictions are of one frame.
    """
    whole: dict[str, int] = {}
    ends: dict[tuple[str, str], list[int]] = {}
    for row, (scene, image) in enumerate(zip(frames["scene"], frames["image"], strict=True)):
        parts = _stem(image).split("/")
        whole["/".join(parts)] = row
        for first in range(len(parts)):
            for name in (scene, ONE_SCENE):
                ends.setdefault((name, "/".join(parts[first:])), []).append(row)
    found = np.full(len(predictions), -1)
    for number, (scene, image) in enumerate(
        zip(predictions["scene"], predictions["image"], strict=True)
    ):
        parts = _stem(image).split("/")
        rows = ends.get((scene, "/".join(parts)), [])
        absolute = ("/".join(parts[first:]) for first in range(1, len(parts)))
        rows = rows or [whole[name] for name in absolute if name in whole][:1]
        rows = [row for row in rows if scene in (ONE_SCENE, frames["scene"].iloc[row])]
        if len(rows) > 1:
            several = ", ".join(frames["image"].iloc[rows[:3]])
            raise MsposeError(
                f"{path}: {image} could be several frames ({several}): name images as the labels"
                " do, or add a column scene, or give --scenes"
            )
        found[number] = rows[0] if rows else -1
    numbers, counts = np.unique(found[found >= 0], return_counts=True)
    if (counts > 1).any():
        twice = frames["image"].iloc[int(numbers[counts > 1][0])]
        raise MsposeError(f"{path}: there are several predictions of {twice}")
    return found


def _stem(image: str) -> str:
    """An image's name with `/` and without the ending of an image, which copies change."""
    name = image.replace("\\", "/").removeprefix("./")
    stem, dot, ending = name.rpartition(".")
    return stem if f"{dot}{ending.lower()}" in IMAGE_SUFFIXES else name


def _refuse_other_truths(
    predictions: pd.DataFrame, frames: pd.DataFrame, path: Path, what: str
) -> None:
    """Raise MsposeError where true poses are not those of the labels, but for rounding."""
    position_B3, quaternion_B4 = (
        frames[names].to_numpy() for names in (TRUE_POSITION, TRUE_ORIENTATION)
    )
    metres_B = position_error(predictions[TRUE_POSITION].to_numpy(), position_B3)
    degrees_B = orientation_error(predictions[TRUE_ORIENTATION].to_numpy(), quaternion_B4)
    rounding_B = SAME_METRES + 1e-6 * np.linalg.norm(position_B3, axis=1)
    if (other := (metres_B > rounding_B) | (degrees_B > SAME_DEGREES)).any():
        first = int(other.argmax())
        raise MsposeError(
            f"{path}: the true poses of {int(other.sum())} of its {len(other)} images are not those"
            f" of the {what} ({predictions['image'].iloc[first]}: {metres_B[first]:.3g} m and"
            f" {degrees_B[first]:.3g} degrees off): take them from the labels, or name their"
            " --ground-truth"
        )


def _some(images: pd.Series) -> str:
    more = f" and {len(images) - 10} more" if len(images) > 10 else ""
    return ", ".join(images.iloc[:10]) + more


def _stored_about(beside: Path) -> dict[str, Any]:
    """Read what `store_predictions` wrote beside a predictions file."""
    about = read_json(beside, "evaluate anew")
    try:
        for name in ("dataset", "ground_truth", "split"):
            about[name] = str(about[name])
        about["thresholds"] = [
            (float(metres), float(degrees)) for metres, degrees in about["thresholds"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise MsposeError(
            f"{beside} is not what mspose writes beside predictions: remove it, or evaluate anew"
        ) from error
    return about


def _check_fits(
    card: Card, ground_truth: str | None, predictions: pd.DataFrame, path: Path
) -> None:
    """Refuse a ground truth or scenes that the data set does not have."""
    if ground_truth not in (None, *card.ground_truths):
        raise MsposeError(
            f"{card.name} has no ground truth {ground_truth!r}; it has:"
            f" {', '.join(card.ground_truths)}"
        )
    # a file without scenes can be of any data set
    unknown = sorted(set(predictions["scene"]) - {ONE_SCENE, *card.known_scenes})
    if card.known_scenes and unknown:
        scenes = ", ".join(card.known_scenes)
        raise MsposeError(f"{path}: {card.name} has no scene {unknown[0]!r}; its scenes: {scenes}")


def _refuse_to_replace(target: Path, path: Path) -> None:
    """Refuse to overwrite the metrics of a run, or of another file than `path`."""
    if not target.is_file():
        return
    there = Run(target.parent)
    source = there.provenance.get("predictions", "another file")
    if there.experiment != EXTERNAL or Path(source).name != path.name:
        raise MsposeError(
            f"{target} holds the metrics of {source}: put {path.name} into a folder of its own"
        )


def summary(metrics: Mapping[str, Any]) -> str:
    """Format `summary_grid` as a Markdown table."""
    grid = summary_grid(metrics)
    grid["scene"] = grid["scene"].map(markdown_text)
    return grid.to_markdown(index=False, disable_numparse=True)


def summary_grid(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulate medians, scene accuracy and recall per scene and their average, as text."""
    rows = []
    lacking = "missing_frames" in metrics["average"]
    for name, scene in [*metrics["scenes"].items(), ("average", metrics["average"])]:
        accuracy = scene["scene_accuracy"]
        recalls = zip(metrics["thresholds"], scene["recall"], strict=True)
        rows.append(
            {
                "scene": name,
                "frames": scene["frames"],
                **({"without prediction": scene.get("missing_frames", 0)} if lacking else {}),
                "position (m)": f"{scene['median_position_error_m']:.3f}",
                "orientation (deg)": f"{scene['median_orientation_error_deg']:.2f}",
                "scene accuracy": "-" if accuracy is None else f"{accuracy:.3f}",
                **{f"{m:g} m, {deg:g} deg": f"{100 * share:.1f} %" for (m, deg), share in recalls},
            }
        )
    return pd.DataFrame(rows)
