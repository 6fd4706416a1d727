"""The query-key gap over training, from a run's TensorBoard events."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

from mspose.attention_study.record import short
from mspose.config import TrainingSettings

GAPS = "query_key_gap/"
LOOK = "median_position_m/train"
"""Logged after the last step of every `training.evaluate_every` epochs."""


def gap_over_training(run: Path, branches: list[str], options: TrainingSettings) -> dict[str, Any] | None:
    """`step` (counted from 0), per branch `query_key_gap` at these steps, and `steps_per_epoch`; None without events.

    Steps that an interrupted process logged and a later one did again count once, as the later one logged them.
    """
    events = EventAccumulator(str(run), size_guidance={SCALARS: 0, IMAGES: 1})
    events.Reload()
    tags = events.Tags()[SCALARS]
    if LOOK not in tags or not all(GAPS + branch in tags for branch in branches):
        return None
    gap = {branch: {event.step: event.value for event in events.Scalars(GAPS + branch)} for branch in branches}
    steps = sorted(set.intersection(*(set(of_branch) for of_branch in gap.values())))
    first_look = min(event.step for event in events.Scalars(LOOK)) + 1
    return {
        "step": steps,
        "query_key_gap": {branch: [short(gap[branch][step]) for step in steps] for branch in branches},
        "steps_per_epoch": first_look // min(options.evaluate_every, options.epochs),
    }
