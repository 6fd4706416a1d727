"""What is measured: memory and time of a training step, prediction, loading; the two sides in turn."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from mspose.allocator import keep_freed_memory
from mspose.inference import resolve_device
from mspose.models.compilation import Compiled
from mspose.models.network import PoseOutput
from mspose.tools.bench.alone import measure_memory
from mspose.tools.bench.loading import measure_loading
from mspose.tools.bench.report import PRECISIONS, Results
from mspose.tools.bench.sides import (
    Call,
    make_sides,
    our_training_step,
    prediction,
    random_batch,
    reference_module,
    reference_training_step,
)
from mspose.tools.bench.timing import interleaved

log = logging.getLogger("mspose")
Part = Literal["train", "predict", "load", "all"]
TRAINED = 8  # images in a batch
LARGE = (64, 128, 256)  # what fills a GPU
PREDICTED = (1, 32)
MEMORY = 32
SIZES = ((640, 480), (1920, 1080))


def benchmark(
    part: Part = "all",
    *,
    device: str = "auto",
    repeat: int = 7,
    quick: bool = False,
    compile: bool = False,
) -> dict[str, Any]:
    """Measure one part or all, ours against the reference; returns what the JSON file holds.

    Args:
        part: what to measure.
        device: auto, cpu, cuda, ...
        repeat: samples of each figure.
        quick: toy sizes, to see that everything runs.
        compile: measure our side through `torch.compile` as well.

    Raises:
        MsposeError: no checkout with the reference, a device that is not there, or a process that
            failed.
    """
    reference_module()
    results = Results(resolve_device(device), repeat, quick)
    if part in ("train", "all"):
        measure_all_memory(results)  # first, while this process is small
    if part in ("load", "all"):
        measure_all_loading(results)
    # The allocator's settings hold for the whole process, and what was kept once stays: both sides
    # without, then with.
    for allocator in (
        ("default_allocator", "kept_memory") if results.device.type == "cpu" else ("",)
    ):
        if allocator == "kept_memory":
            keep_freed_memory()
        if part in ("train", "all"):
            measure_training(results, allocator, compile=compile)
        if part in ("predict", "all"):
            measure_prediction(results, allocator, compile=compile)
    return results.as_dict()


def measure_all_memory(results: Results) -> None:
    """Peak memory of a training step of either side; of ours, also without computing the backbone
    twice.
    """
    log.info("measuring memory")
    name = f"memory_b{MEMORY}"
    for side, recompute in (("reference", False), ("ours", True), ("ours_not_recomputed", False)):
        found = measure_memory(
            side.partition("_")[0],
            MEMORY,
            results.device,
            quick=results.quick,
            recompute_backbone=recompute,
        )
        results.memory[side] = found
        if "reason" in found:
            smaller = " and ".join(map(str, found["extrapolated_from"]))
            results.note(
                f"{name} of {side} is extrapolated from batches {smaller}: {found['reason']}"
            )
    for ratio, side, figure in (
        (name, "ours", "peak_bytes"),
        (f"{name}_increment", "ours", "increment_bytes"),
        (f"{name}_not_recomputed", "ours_not_recomputed", "peak_bytes"),
    ):
        results.ratio[ratio] = results.memory["reference"][figure] / results.memory[side][figure]


def measure_training(results: Results, allocator: str, *, compile: bool) -> None:
    """Time of a training step; with kept memory, ours also with the backbone computed twice."""
    log.info("measuring training steps %s", allocator)
    device = results.device
    ours, reference = make_sides(results.workload, device)
    batch = random_batch(results.workload, TRAINED, device)
    name = f"train_b{TRAINED}"
    calls = {f"reference_{name}_float32": reference_training_step(reference, batch)}
    for precision, compiles in _variants(PRECISIONS, compile):
        calls[f"ours_{name}_{precision}{compiles}"] = our_training_step(
            ours, batch, precision, bool(compiles)
        )
    _time(results, calls, TRAINED, allocator)
    if allocator == "default_allocator":
        return
    ours.recompute_backbone = True
    _time(
        results,
        {f"ours_{name}_float32_recomputed": our_training_step(ours, batch)},
        TRAINED,
        allocator,
    )
    ours.recompute_backbone = False
    for count in LARGE if device.type == "cuda" else ():
        batch = random_batch(results.workload, count, device)
        for precision, compiles in _variants(("bfloat16",), compile):
            name = f"ours_train_b{count}_{precision}{compiles}"
            _time(
                results,
                {name: our_training_step(ours, batch, precision, bool(compiles))},
                count,
                allocator,
            )


def measure_prediction(results: Results, allocator: str, *, compile: bool) -> None:
    """Time of a forward pass as evaluation does it, and how far the two sides' poses are apart."""
    log.info("measuring prediction %s", allocator)
    ours, reference = make_sides(results.workload, results.device)
    ours.eval()
    reference.eval()
    for count in PREDICTED:
        batch = random_batch(results.workload, count, results.device)
        calls = {f"reference_predict_b{count}": prediction(reference, batch)}
        for precision, compiles in _variants(PRECISIONS, compile):
            name = f"ours_predict_b{count}{f'_{precision}' if precision != 'float32' else ''}{compiles}"
            calls[name] = prediction(ours, batch, precision, bool(compiles))
        _time(results, calls, count, allocator)
        with torch.inference_mode():
            results.difference[f"predict_b{count}"] = _difference(
                ours(batch.image_B3HW, batch.scene_B), reference(batch.image_B3HW, batch.scene_B)
            )


def measure_all_loading(results: Results) -> None:
    """Time of loading an image of either size."""
    for width, height in SIZES:
        log.info("measuring loading, %dx%d", width, height)
        samples = measure_loading(
            results.workload, width, height, device=results.device, repeat=results.repeat
        )
        for name, seconds in samples.items():
            results.add(name, seconds, images=1)
        for name in samples:
            if name.startswith("ours_"):
                of_reference = name.replace("ours_", "reference_").replace("_held", "")
                results.compare(name.removeprefix("ours_"), of_reference, name)


def _variants(precisions: Sequence[str], compile: bool) -> Iterator[tuple[str, str]]:
    """(precision, "" or "_compiled") of what is measured of our side."""
    return itertools.product(precisions, ("", "_compiled") if compile else ("",))


def _time(results: Results, calls: Mapping[str, Call], images: int, allocator: str) -> None:
    """Time the calls in turn, and compare ours with the reference among them.

    On a CPU a ratio without an allocator in its name compares either side as its users run it: the
    reference with the allocator's defaults, ours with freed memory kept.
    """
    if any(isinstance(call.forward, Compiled) for call in calls.values()):
        # a function is compiled for a few kinds of calls; those of other networks count too
        torch.compiler.reset()
    samples = interleaved(
        {name: call.run for name, call in calls.items()},
        device=results.device,
        repeat=results.repeat,
    )
    usual = {
        "": ("reference", "ours"),
        "default_allocator": ("reference",),
        "kept_memory": ("ours",),
    }[allocator]
    reference = None
    for name, call in calls.items():
        if call.fell_back:
            results.note(f"{name} was not measured: torch.compile cannot be used here")
            continue
        side = name.partition("_")[0]
        stored = name if side in usual else f"{name}_{allocator}"
        results.add(stored, samples[name], images, "bfloat16" if "bfloat16" in name else "float32")
        if side == "reference":
            reference, as_used = stored, name
        elif reference is not None:
            figure = name.removeprefix("ours_")
            if allocator:
                results.compare(f"{figure}_{allocator}", reference, stored)
            if side in usual:
                results.compare(figure, as_used, stored)


def _difference(ours: PoseOutput, reference: PoseOutput) -> float:
    """Largest difference of a number of a pose, relative to the largest number."""
    pairs = (
        (ours.position_B3, reference.position_B3),
        (ours.orientation_B4, reference.orientation_B4),
    )
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
