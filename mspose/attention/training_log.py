"""A run's TensorBoard events, read back: its scalars, and the query-key gap over training."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

from mspose.attention.attention_json import short
from mspose.config import TrainingSettings

EVENTS = "events.out.tfevents.*"
GAPS = "query_key_gap/"
EVALUATION = "median_position_m/train"
"""Logged after the last step of every `training.evaluate_every` epochs."""


def read_scalars(run: Path) -> dict[str, dict[int, float]]:
    """Return tag -> step (from 0, in order) -> value, of the run's own events; empty without any.

    Of steps that an interrupted process logged and a later one did again, the later ones count.
    """
    if not any(run.glob(EVENTS)):
        return {}
    events = EventAccumulator(str(run), size_guidance={SCALARS: 0, IMAGES: 1})
    events.Reload()
    logged = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()[SCALARS]
    }
    return {tag: dict(sorted(values.items())) for tag, values in logged.items()}


def gap_over_training(
    run: Path, branches: list[str], options: TrainingSettings
) -> dict[str, Any] | None:
    """Return `step` (counted from 0), per branch `query_key_gap` at these steps, `steps_per_epoch`;
    None without events.
    """
    logged = read_scalars(run)
    if EVALUATION not in logged or not all(GAPS + branch in logged for branch in branches):
        return None
    gap = {branch: logged[GAPS + branch] for branch in branches}
    steps = sorted(set.intersection(*(set(of_branch) for of_branch in gap.values())))
    return {
        "step": steps,
        "query_key_gap": {
            branch: [short(gap[branch][step]) for step in steps] for branch in branches
        },
        "steps_per_epoch": (min(logged[EVALUATION]) + 1)
        // min(options.evaluate_every, options.epochs),
    }
