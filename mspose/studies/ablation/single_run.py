"""One run of an ablation: trained, evaluated, and its attention studied.

It is a process of its own, `mspose cell FILE`, which goes on where an earlier one stopped. The
settings it was given and its output lie beside the runs, as
`runs/<experiment>/cells/<variant>-seed-<n>.yaml` and `.log`.
"""

import logging
from pathlib import Path
from typing import Any

from mspose.config import BRANCHES, Settings, config_hash, differences
from mspose.errors import MsposeError, none_if_broken
from mspose.files import locked
from mspose.run import Run

log = logging.getLogger("mspose")


def run_of(settings: Settings) -> Run:
    """Run that these settings make."""
    return Run(settings.run_folder(""))  # the variant is named, whatever the ground truth


def title(settings: Settings) -> str:
    """Name the run in messages: `both, seed 0`."""
    return f"{settings.variant}, seed {settings.seed}"


def notes(settings: Settings, suffix: str) -> Path:
    """File beside the runs: settings (`.yaml`), output (`.log`) or lock (`.lock`) of a run."""
    folder = Path(settings.runs) / settings.experiment / "cells"
    return folder / f"{settings.variant}-seed-{settings.seed}{suffix}"


def complete(settings: Settings, *, progress: bool) -> Path:
    """Do what is missing of a run; returns its folder.

    Raises MsposeError for a folder that holds a run with other settings, and as training and
    evaluation do; Preempted where a signal asked the training to stop.
    """
    # here, since they take seconds to load, and tables and the command that starts runs need none
    from mspose.evaluation import evaluate_run
    from mspose.studies.attention_study import study_run
    from mspose.training import train

    run = run_of(settings)
    waiting = f"waiting for another process, which is at {run.folder}"
    with locked(notes(settings, ".lock"), waiting=waiting):
        refuse_other_settings(settings)
        if is_complete(settings):
            return run.folder
        if _epochs_trained(run) != settings.training.epochs:  # results of an unfinished model
            run.metrics_file.unlink(missing_ok=True)
            run.attention_file.unlink(missing_ok=True)
        train(settings, progress=progress)
        folders = {"root": settings.data.root, "cache": settings.data.cache}
        options: dict[str, Any] = {
            "data": {name: value for name, value in folders.items() if value is not None},
            "device": settings.device,
            "on_bad_frame": settings.on_bad_frame,
            "progress": progress,
        }
        if not _is_evaluated(run, settings):
            evaluate_run(run.folder, **options)
        if has_self_attention(settings) and not _is_studied(run, settings):
            study_run(
                run.folder,
                samples=0,
                frames=8 if settings.quick else None,
                knock_out=settings.attention.knock_out,
                **options,
            )
    return run.folder


def is_complete(settings: Settings) -> bool:
    """True where all results of a run are there, made with these settings."""
    run = run_of(settings)
    trained = _epochs_trained(run) in (None, settings.training.epochs)  # a record has no model
    studied = not has_self_attention(settings) or _is_studied(run, settings)
    return trained and studied and _is_evaluated(run, settings)


def has_self_attention(settings: Settings) -> bool:
    """True where the network has encoders, whose self-attention can be studied."""
    layers = [getattr(settings.model, f"{branch}_encoder_layers") for branch in BRANCHES]
    return settings.model.kind == "ms-transformer" and any(layers)


def refuse_other_settings(settings: Settings) -> None:
    """Raise MsposeError where the folder holds a run, or a record of one, with other settings."""
    run = run_of(settings)
    files = (run.checkpoint_file, run.weights_file, run.metrics_file)
    if not any(file.exists() for file in files):
        return
    changed = differences(run.settings, settings) if run.config_file.exists() else []
    if not changed and _hash_evaluated(run) in (None, config_hash(settings)):
        return
    what = "; ".join(changed) or f"as the configuration hash of {run.metrics_file.name} says"
    raise MsposeError(
        f"{run.folder} holds a run with other settings ({what}): name another folder with --runs,"
        " or remove it"
    )


def _epochs_trained(run: Run) -> int | None:
    """Epochs that the run's model has learned; None without a model."""
    if not run.model_file.exists():
        return None
    return (none_if_broken(lambda: run.description) or {}).get("epochs", 0)


def _is_evaluated(run: Run, settings: Settings) -> bool:
    """True where the metrics are of these settings on the test split, the scene predicted."""
    metrics = none_if_broken(lambda: run.metrics) or {}
    usual = (metrics.get("split"), metrics.get("scene_selection")) == ("test", "predicted")
    return usual and _hash_evaluated(run) == config_hash(settings)


def _is_studied(run: Run, settings: Settings) -> bool:
    study = none_if_broken(lambda: run.attention)
    if study is None or (settings.attention.knock_out and study["knock_out"] is None):
        return False
    return study.get("config_hash") == config_hash(settings)


def _hash_evaluated(run: Run) -> str | None:
    return none_if_broken(lambda: run.config_hash)
