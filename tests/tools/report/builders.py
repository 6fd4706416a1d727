"""Runs as their files say it, without a network: what a report is made from."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.tensorboard import SummaryWriter

from mspose.config import Settings, write_settings
from mspose.metrics import (
    PREDICTION_COLUMNS,
    compute_metrics,
    with_errors,
    write_errors,
    write_metrics,
    write_predictions,
)
from mspose.poses import normalize_quaternion
from mspose.run import Run

THRESHOLDS = [[0.05, 5.0], [0.25, 5.0]]


def predictions(
    scenes: dict[str, int], *, seed: int = 0, shift: float = 0.1, wrong: int = 0
) -> pd.DataFrame:
    """A walk through every scene, estimated with errors of about `shift` metres; the first `wrong`
    frames of each scene are taken for the next one.
    """
    rng = np.random.default_rng(seed)
    parts = []
    names = list(scenes)
    for index, (scene, count) in enumerate(scenes.items()):
        truth_N3 = np.cumsum(np.random.default_rng(index).normal(0, 0.05, (count, 3)), axis=0) * [
            1,
            1,
            0.1,
        ]
        upright = np.array([1, 0, 0, 0])
        quaternion_N4 = normalize_quaternion(
            np.random.default_rng(index).normal(0, 0.2, (count, 4)) + upright
        )
        columns = {
            "image": [f"{scene}/seq-01/frame-{number:06d}.color.png" for number in range(count)],
            "scene": scene,
            "predicted_scene": [
                names[(index + (number < wrong)) % len(names)] for number in range(count)
            ],
            "scene_probability": rng.uniform(0.5, 1, count),
        }
        columns |= dict(zip(("tx", "ty", "tz"), truth_N3.T, strict=True))
        columns |= dict(zip(("qw", "qx", "qy", "qz"), quaternion_N4.T, strict=True))
        estimate_N3 = truth_N3 + shift * rng.normal(0, 0.7, (count, 3))
        turned_N4 = normalize_quaternion(quaternion_N4 + rng.normal(0, 0.02, (count, 4)))
        columns |= dict(zip(("tx_est", "ty_est", "tz_est"), estimate_N3.T, strict=True))
        columns |= dict(zip(("qw_est", "qx_est", "qy_est", "qz_est"), turned_N4.T, strict=True))
        parts.append(pd.DataFrame(columns))
    return with_errors(pd.concat(parts, ignore_index=True))[list(PREDICTION_COLUMNS)]


def write_run(
    folder: Path,
    table: pd.DataFrame,
    *,
    variant: str = "all",
    seed: int | None = 0,
    settings: Settings | None = None,
    logged: bool = False,
    **about: Any,
) -> Path:
    """A finished run; `about` replaces fields of its metrics. Without settings it has no
    config.yaml.
    """
    table = with_errors(table)
    write_predictions(folder / "predictions" / "test.csv", table)
    provenance = {"mspose": "0.1.0", "commit": "0123456789abcdef", "dirty": False}
    metrics = {
        "dataset": "rooms",
        "ground_truth": "made-up",
        "split": "test",
        "scene_selection": "predicted",
        "experiment": "walk",
        "variant": variant,
        "seed": seed,
        "quick": False,
        "bad_frames": 0,
        **compute_metrics(table, thresholds=THRESHOLDS),
        "provenance": {**provenance, "device": "a device"},
    }
    write_metrics(folder / "metrics.json", metrics | about)
    if settings is not None:
        write_settings(folder / "config.yaml", settings)
    if logged:
        with SummaryWriter(str(folder)) as writer:
            for step in range(0, 600, 1):
                writer.add_scalar("loss/total", 5 - 0.01 * step, step)
                writer.add_scalar("learning_rate", 1e-3, step)
            for step in (299, 599):
                for part in ("train", "held_out"):
                    writer.add_scalar(f"median_position_m/{part}", 0.3 - 0.0001 * step, step)
                    writer.add_scalar(f"median_orientation_deg/{part}", 8 - 0.001 * step, step)
                for layer in ("position_layer_1", "orientation_layer_1"):
                    writer.add_scalar(f"attention_entropy/{layer}", 3.0, step)
                    writer.add_scalar(f"query_key_gap/{layer}", 1.0, step)
    return folder


def write_record(run: Path, folder: Path) -> Path:
    """The record of a run: its metrics and errors."""
    write_errors(folder / "predictions" / "errors.csv", Run(run).errors())
    shutil.copy(run / "metrics.json", folder)
    return folder


def data_of(page: str) -> list[dict[str, Any]]:
    """The numbers in a page, per group of runs."""
    text = page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    return json.loads(text)
