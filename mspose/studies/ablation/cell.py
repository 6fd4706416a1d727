"""One cell of an ablation: a run that is trained, evaluated, and whose attention is studied.

It is a process of its own, `mspose cell FILE`, which goes on where an earlier one stopped. What it
was asked, and what
it said, lie beside the runs: `runs/<experiment>/cells/<label>-seed-<n>.yaml` and `.log`.
"""

import fcntl
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mspose.attention.attention_json import STUDY
from mspose.config import Settings, config_hash, differences, flatten, read_settings
from mspose.errors import MsposeError
from mspose.models.network import BRANCHES
from mspose.run import CHECKPOINT, MODEL, WEIGHTS

log = logging.getLogger("mspose")
CONFIG = "config.yaml"
METRICS = "metrics.json"


def run_folder(settings: Settings) -> Path:
    """The folder of a cell's run."""
    return settings.run_folder("")  # a cell's variant is named, whatever the ground truth


def notes(settings: Settings, suffix: str) -> Path:
    """The file beside the runs for what a cell was asked (`.yaml`), what it said (`.log`), or who
    has it (`.lock`).
    """
    return (
        Path(settings.runs)
        / settings.experiment
        / "cells"
        / f"{settings.variant}-seed-{settings.seed}{suffix}"
    )


def run_cell(settings: Settings, *, progress: bool) -> Path:
    """Do what is missing of a cell; returns the folder of its run.

    Raises MsposeError for a folder that holds a run with other settings, and as training and
    evaluation do; Preempted where a signal asked the training to stop.
    """
    from mspose.evaluation import evaluate_run
    from mspose.studies.attention_study import study_run
    from mspose.training import train

    run, data = run_folder(settings), settings.data
    with _alone(settings):
        refuse_other_settings(settings)
        if is_finished(settings):
            return run
        if _epochs_learned(run) != settings.training.epochs:
            for of_an_unfinished_model in (METRICS, STUDY):
                (run / of_an_unfinished_model).unlink(missing_ok=True)
        train(settings, progress=progress)
        places = {
            name: value
            for name, value in (("root", data.root), ("cache", data.cache))
            if value is not None
        }
        options: dict[str, Any] = {
            "device": settings.device,
            "on_bad_frame": settings.on_bad_frame,
            "progress": progress,
        }
        if not _is_evaluated(run, settings):
            evaluate_run(run, data=places, **options)
        if has_self_attention(flatten(settings)) and not _is_studied(run, settings):
            study_run(run, samples=0, data=places, frames=8 if settings.quick else 64, **options)
    return run


def is_finished(settings: Settings) -> bool:
    """Whether all results of a cell are there, made with these settings."""
    run = run_folder(settings)
    learned = _epochs_learned(run) in (
        None,
        settings.training.epochs,
    )  # the record of a run has no model
    studied = not has_self_attention(flatten(settings)) or _is_studied(run, settings)
    return learned and studied and _is_evaluated(run, settings)


def has_self_attention(settings: Mapping[str, Any]) -> bool:
    """Whether the network of these settings (by dotted name) has encoders, whose attention can be
    studied.
    """
    layers = [settings[f"model.{branch}_encoder_layers"] for branch in BRANCHES]
    return settings["model.kind"] == "ms-transformer" and any(layers)


def refuse_other_settings(settings: Settings) -> None:
    """Raise MsposeError where the cell's folder holds a run, or the record of one, made with other
    settings.
    """
    run = run_folder(settings)
    if not any((run / name).exists() for name in (CHECKPOINT, WEIGHTS, METRICS)):
        return
    changed = differences(read_settings(run / CONFIG), settings) if (run / CONFIG).exists() else []
    if not changed and _metrics_hash(run) in (None, config_hash(settings)):
        return
    what = "; ".join(changed) or "as the configuration hash of its metrics.json says"
    raise MsposeError(
        f"{run} holds a run with other settings ({what}): name another folder with --runs, or"
        " remove it"
    )


def _epochs_learned(run: Path) -> int | None:
    """By the run's model; None where there is none."""
    model = _json(run / MODEL)
    return None if model is None else model.get("epochs", 0)


def _is_evaluated(run: Path, settings: Settings) -> bool:
    """Whether the metrics are those of this configuration on the test split, the scene predicted."""
    metrics = _json(run / METRICS) or {}
    alike = (metrics.get("split"), metrics.get("scene_selection")) == ("test", "predicted")
    return alike and _metrics_hash(run) == config_hash(settings)


def _is_studied(run: Path, settings: Settings) -> bool:
    study = _json(run / STUDY)
    return study is not None and study.get("config_hash") == config_hash(settings)


def _metrics_hash(run: Path) -> str | None:
    """The configuration that the run's metrics were made with; None where there are none, or broken
    ones.
    """
    metrics = _json(run / METRICS) or {}
    return ((metrics.get("provenance") or {}).get("model") or {}).get("config_hash")


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is no file, an empty one where it is broken."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        values = None
    return values if isinstance(values, dict) else {}


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Wait until no other process is at this cell."""
    path = notes(settings, ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which is at %s", run_folder(settings))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
