"""Seconds per call, measured in turn, so that a machine that slows down slows all sides alike."""

import math
import time
from collections.abc import Callable, Mapping

import torch

SHORTEST = 0.05  # seconds of one sample; a faster call is repeated within it


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    *,
    device: torch.device,
    repeat: int,
    warm_up: int = 2,
    shortest: float = SHORTEST,
) -> dict[str, list[float]]:
    """`repeat` samples of the seconds that a call of every side takes, in the order A B C A B C ...

    Before that each side is called `warm_up` times, at least once; the last of these says how many
    calls make a sample of at least `shortest` seconds.
    """
    calls = {}
    for name, call in sides.items():
        for _ in range(max(1, warm_up)):
            seconds = _seconds(call, 1, device)
        calls[name] = max(1, math.ceil(shortest / max(seconds, 1e-6)))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeat):
        for name, call in sides.items():
            samples[name].append(_seconds(call, calls[name], device))
    return samples


def _seconds(call: Callable[[], object], calls: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / calls
