"""The network with which a finished training began, built anew from its seed."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mspose.data.cards import read_card
from mspose.errors import MsposeError
from mspose.inference import resolve_device
from mspose.models.network import PoseNetwork
from mspose.run import Run
from mspose.training import (
    TrainState,
    epoch_batches,
    make_initial_network,
    open_frames,
    split_into_batches,
    step_seed,
)

TOLERANCE = 1e-4
"""Relative difference of two losses that rounding on another processor may make."""


def initial_network(run: Path, device: str, data: dict[str, Any] | None = None) -> PoseNetwork:
    """Build the network anew with which the training of a run began, in evaluation mode.

    A seed makes another network under another version of this code or of PyTorch. The network is
    therefore the initial one only if its first training batch has the loss that the log of the
    training has of it.

    Args:
        data: overrides of where frames and their cache are (`root`, `cache`).

    Raises:
        MsposeError: no log, no training frames, or another loss.
    """
    settings = Run(run).settings
    places = {name: value for name, value in (data or {}).items() if name in ("root", "cache")}
    settings = replace(settings, data=replace(settings.data, **places))
    logged = Run(run).scalars()
    if "loss/total" not in logged or math.isnan(wanted := logged["loss/total"].get(0, math.nan)):
        raise MsposeError("there is no log of its first step")
    place = resolve_device(device)
    frames, cache = open_frames(settings, read_card(settings.data.dataset), place, progress=False)
    scenes = sorted(frames["scene"].unique())
    tried = make_initial_network(settings, scenes, place)
    batches = split_into_batches(frames, cache, settings, tried, place)["train"]
    state = TrainState.create(settings, tried, batches)
    state.learning.train()
    torch.manual_seed(step_seed(settings.seed, 0, 0))
    with torch.no_grad():
        loss, _ = state.objective(next(epoch_batches(batches, settings, 0, first=0)))
    if not math.isclose(float(loss), wanted, rel_tol=TOLERANCE):
        raise MsposeError(
            f"its seed now makes another network, whose first loss is {float(loss):.4f}, not"
            f" {wanted:.4f}"
        )
    # the one that was tried has seen a batch: its batch norms have other statistics
    return make_initial_network(settings, scenes, place).eval()
