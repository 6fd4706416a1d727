"""What `mspose bench` measures, and the JSON and the Markdown table that come of it.

A measurement has a name such as `ours_train_b8_bfloat16` or `reference_predict_b1` (in float32). A
ratio is the reference's seconds (or bytes) by ours: above 1 ours is better.
"""

import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mspose.files import whole_file
from mspose.losses import PRECISION
from mspose.tools.bench.machine import copy_rate, describe_machine, matrix_rate
from mspose.tools.bench.sides import WORKLOADS, Workload, operations_per_image

log = logging.getLogger("mspose")
FORMAT = 1
PRECISIONS = ("float32", "bfloat16")
ABOUT = {
    "ratio": "the reference's median seconds (or bytes) divided by ours: above 1 ours is better",
    "compared": "for each ratio, the measurements that it is taken of",
    "seconds": (
        "median of `samples`, measured in turn in one process: per step (train), batch (predict),"
        " image (load)"
    ),
    "train": (
        "forward, loss with QKA, backward, Adam; ours in bfloat16 is compared with the reference in"
        " float32; *_recomputed: with training.recompute_backbone"
    ),
    "allocator": (
        "on a CPU a ratio without an allocator in its name compares either side as its users run"
        " it: the reference with the C library's defaults, ours with freed memory kept, as our"
        " command line sets it (mspose.allocator); *_default_allocator: both with the defaults, in"
        " turn; *_kept_memory: both with memory kept, in turn; all in one process, those with the"
        " defaults first"
    ),
    "predict": "ours",
    "load": (
        "reference: PNG, PIL decode, resize, crop, normalise; ours: warm frame cache, crop,"
        " normalise; one core; *_jitter: with random crop and colour jitter on both sides; *_held:"
        " the GPU holds all frames"
    ),
    "memory": (
        "peak of a float32 training step in a process of its own: on a CPU the resident memory of"
        " the whole process (VmHWM), on a GPU the memory of PyTorch's tensors; memory_b32 divides"
        " these peaks, ours with training.recompute_backbone and the allocator's defaults, as the"
        " command line sets them then (its time is ours_train_b8_float32_recomputed),"
        " memory_b32_not_recomputed without; memory_b32_increment divides what they add to the"
        " memory before the step"
    ),
    "share_of_matrix_rate": (
        "the reference's operations (matrix products and convolutions of the forward pass, three "
        "times that for training) per second, by the machine's own measured rate in that precision"
    ),
}


@dataclass
class Results:
    """Figures as they are measured, and what they are held against."""

    device: torch.device
    repeat: int
    quick: bool = False
    ratio: dict[str, float] = field(default_factory=dict)
    compared: dict[str, tuple[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    images_per_second: dict[str, float] = field(default_factory=dict)
    share_of_matrix_rate: dict[str, float] = field(default_factory=dict)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Measures the machine."""
        log.info("measuring the machine")
        sizes = self.workload.matrices[self.device.type]
        self.rate = {
            name: matrix_rate(PRECISION[name], self.device, sizes, self.repeat)
            for name in PRECISIONS
        }
        self.copied = copy_rate(self.device, self.workload.copied, self.repeat)
        self.machine = describe_machine(self.device)
        self.operations = operations_per_image(self.workload)

    @property
    def workload(self) -> Workload:
        """What is measured."""
        return WORKLOADS[self.quick]

    def add(
        self, name: str, samples: Sequence[float], images: int, precision: str | None = None
    ) -> None:
        """Seconds of several calls, each of `images` images; with `precision`, of the network."""
        self.samples[name] = list(samples)
        self.seconds[name] = statistics.median(samples)
        self.images_per_second[name] = images / self.seconds[name]
        if precision is not None:
            work = self.operations["train" if "train" in name else "predict"]
            self.share_of_matrix_rate[name] = (
                work * self.images_per_second[name] / self.rate[precision][0]
            )

    def compare(self, name: str, reference: str, ours: str) -> None:
        """Note the ratio of two measurements."""
        self.compared[name] = (reference, ours)
        self.ratio[name] = self.seconds[reference] / self.seconds[ours]

    def note(self, text: str) -> None:
        """Say what was left out or is not as usual, in the log and in the results."""
        log.warning("%s", text)
        self.notes.append(text)

    def as_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        return {
            "format": FORMAT,
            "quick": self.quick,
            "machine": self.machine,
            "repeat": self.repeat,
            "workload": {
                "architecture": dict(self.workload.architecture),
                "image": self.workload.image,
            },
            "operations_per_image": self.operations,
            "rate": {
                **{
                    name: {"operations_per_second": rate, "by": how}
                    for name, (rate, how) in self.rate.items()
                },
                "copy_bytes_per_second": self.copied,
            },
            "ratio": self.ratio,
            "compared": self.compared,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "share_of_matrix_rate": self.share_of_matrix_rate,
            "memory": self.memory,
            "difference": self.difference,
            "samples": self.samples,
            "notes": self.notes,
            "about": ABOUT,
        }


def write(results: dict[str, Any], json_file: str | None, markdown_file: str | None) -> None:
    """Print the table, then write the files that are asked for, each whole or not at all. Raises
    MsposeError.
    """
    table = markdown(results)
    print(table, end="", flush=True)
    for name, text in ((json_file, json.dumps(results, indent=2) + "\n"), (markdown_file, table)):
        if name is not None:
            with whole_file(name) as file:
                file.write(text)


def markdown(results: dict[str, Any]) -> str:
    """The table of what the JSON file holds."""
    machine, rate = results["machine"], results["rate"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    commit = (
        "commit"
        f" {(machine['commit'] or 'unknown')[:9]}{' with changes' if machine['dirty'] else ''}"
    )
    lines = [
        (
            f"{machine['device']}, {threads}, torch {machine['torch']}, {machine['time_utc'][:10]},"
            f" {commit}. Matrix rate {_rate(rate['float32'])} in float32, {_rate(rate['bfloat16'])}"
            f" in bfloat16; copy rate {rate['copy_bytes_per_second'] / 1e9:.3g} GB/s."
        ),
        *(["Toy sizes: these figures say nothing about speed."] if results["quick"] else []),
        "",
        "| | reference | ours | ratio | ours, images/s | ours, of the matrix rate |",
        "|:---|---:|---:|---:|---:|---:|",
    ]
    lines += [_row(name, results) for name in results["ratio"]]
    compared = {ours for _, ours in results["compared"].values()}
    alone = [
        name for name in results["seconds"] if name.startswith("ours_") and name not in compared
    ]
    lines += [_timed(name.removeprefix("ours_"), None, name, None, results) for name in alone]
    lines += [f"\n{note}" for note in results["notes"]]
    return "\n".join(lines) + "\n"


def _rate(rate: dict[str, Any]) -> str:
    return f"{rate['operations_per_second'] / 1e9:,.0f} GFLOP/s"


def _row(name: str, results: dict[str, Any]) -> str:
    ratio = f"**{results['ratio'][name]:.2f}**"
    if name.startswith("memory"):
        key = "increment_bytes" if name.endswith("increment") else "peak_bytes"
        side = "ours_not_recomputed" if name.endswith("not_recomputed") else "ours"
        reference, ours = (
            f"{results['memory'][side][key] / 1e9:.2f} GB" for side in ("reference", side)
        )
        return f"| {name} | {reference} | {ours} | {ratio} | | |"
    reference, ours = results["compared"][name]
    return _timed(name, reference, ours, ratio, results)


def _timed(
    name: str, reference: str | None, ours: str, ratio: str | None, results: dict[str, Any]
) -> str:
    share = results["share_of_matrix_rate"].get(ours)
    cells = (
        _seconds(results["seconds"][reference]) if reference else "",
        _seconds(results["seconds"][ours]),
        ratio or "",
        f"{results['images_per_second'][ours]:,.4g}",
        "" if share is None else f"{share:.0%}",
    )
    return f"| {name} | {' | '.join(cells)} |"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
