"""Made-up metrics of runs, and the made-up records in tests/golden."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mspose.metrics import average_over_scenes, write_metrics

GOLDEN = Path(__file__).parents[1] / "golden"
FILE, RESULTS = GOLDEN / "remedies.yaml", GOLDEN / "results"


ATTIC = {"attic": (0.1, 4.0)}


def write_run(
    root: Path,
    scenes: Mapping[str, tuple[float, float]] = ATTIC,
    *,
    frames: int = 100,
    recall: tuple[float, ...] = (0.125, 0.5),
    scene_accuracy: float | None = 0.99,
    name: str = "metrics.json",
    **changes: Any,
) -> Path:
    """A run folder with the given medians, in metres and degrees."""
    about: dict[str, Any] = {
        "dataset": "rooms",
        "ground_truth": "original",
        "split": "test",
        "scene_selection": "predicted",
        "experiment": "rooms",
        "variant": "all",
        "seed": 0,
        "thresholds": [[0.05, 5.0], [0.25, 5.0]],
        "bad_frames": 0,
        **changes,
    }
    metrics = {
        scene: {
            "frames": frames,
            "median_position_error_m": position,
            "median_orientation_error_deg": orientation,
            "recall": list(recall[: len(about["thresholds"])]),
            "scene_accuracy": scene_accuracy,
        }
        for scene, (position, orientation) in scenes.items()
    }
    run = root / about["experiment"] / about["variant"] / f"seed-{about['seed']}"
    average = average_over_scenes(metrics)
    write_metrics(run / name, {**about, "scenes": metrics, "average": average, "provenance": {}})
    return run
