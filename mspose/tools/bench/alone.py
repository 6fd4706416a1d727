"""One side's training step in a process of its own, `python -m mspose.tools.bench.alone TASK`: its
peak memory.

A process of its own, because the largest memory that a process ever had cannot be told apart by
side, and because settings of the memory allocator hold for a whole process.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mspose.allocator import keep_freed_memory
from mspose.errors import MsposeError
from mspose.tools.bench.machine import free_memory
from mspose.tools.bench.sides import (
    WORKLOADS,
    make_sides,
    our_training_step,
    random_batch,
    reference_training_step,
)

SMALLER = (4, 8)  # batches from which memory is extrapolated where the whole batch does not fit


@dataclass(frozen=True)
class Task:
    """What the process is to do."""

    side: str
    """`ours` or `reference`."""
    batches: tuple[int, ...]
    """Batch sizes, in growing order, one after the other."""
    device: str
    quick: bool
    keep_freed_memory: bool
    """Whether the process keeps the memory that it frees, as our command line does."""
    recompute_backbone: bool = False


@dataclass(frozen=True)
class Finished:
    """What came of one batch size. Memory in bytes: of the process (CPU) or of PyTorch's tensors
    (GPU).
    """

    batch: int
    before: int
    """Memory with the network built, before the first step."""
    peak: int
    """Most memory until the end of the second step."""


def run_alone(task: Task) -> list[Finished]:
    """The task in a fresh process. Raises MsposeError where that runs out of memory, or fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run(
        [sys.executable, "-m", "mspose.tools.bench.alone", json.dumps(asdict(task))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 0:
        return [Finished(**found) for found in json.loads(run.stdout.splitlines()[-1])]
    last = next(iter(run.stderr.strip().splitlines()[-1:]), "no message")
    reason = (
        "killed by the system, most likely for want of memory" if run.returncode == -9 else last
    )
    raise MsposeError(f"a training step of {task.side} at batch {task.batches[-1]}: {reason}")


def do(task: Task) -> list[Finished]:
    """The task, in this process."""
    device, workload = torch.device(task.device), WORKLOADS[task.quick]
    ours, reference = make_sides(workload, device)
    ours.recompute_backbone = task.recompute_backbone
    found = []
    for count in task.batches:
        batch = random_batch(workload, count, device)
        step = (
            our_training_step(ours, batch)
            if task.side == "ours"
            else reference_training_step(reference, batch)
        )
        before = _memory("VmRSS", device)
        for _ in range(2):  # Adam's state is there from the second on
            step.run()
        found.append(Finished(count, before, _memory("VmHWM", device)))
    return found


def _memory(name: str, device: torch.device) -> int:
    if device.type == "cuda":
        return (
            torch.cuda.max_memory_allocated(device)
            if name == "VmHWM"
            else torch.cuda.memory_allocated(device)
        )
    # VmHWM, not getrusage's ru_maxrss: that one starts at the size of the process which started
    # this one
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure_memory(
    side: str, batch: int, device: torch.device, *, quick: bool, recompute_backbone: bool = False
) -> dict[str, Any]:
    """Peak memory of a training step in float32, in a fresh process.

    Where the machine has too little, the peak is extrapolated from two measured smaller batches,
    and says so.

    Returns:
        `peak_bytes`, `increment_bytes` (what that is above the memory with the network built,
        before the first step) and, where `batch` itself was not measured, `extrapolated_from`
        (batch sizes) and `reason`.

    Raises:
        MsposeError: not even the smaller batches could be run.
    """

    def run(*batches: int) -> list[Finished]:
        keep = side == "ours" and not recompute_backbone  # as our command line does
        return run_alone(Task(side, batches, str(device), quick, keep, recompute_backbone))

    most = WORKLOADS[quick].memory_per_image * batch
    if (free := free_memory(device)) < most:
        first, second = run(*SMALLER)
        per_image = (second.peak - first.peak) / (second.batch - first.batch)
        expected = round(second.peak + per_image * (batch - second.batch))
        reason = f"batch {batch} needs about {expected / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        if expected > 0.95 * free:
            return _extrapolated(expected, first.before, reason)
    try:
        (found,) = run(batch)
    except MsposeError as error:
        if free < most:
            return _extrapolated(expected, first.before, str(error))
        raise
    return {"peak_bytes": found.peak, "increment_bytes": found.peak - found.before}


def _extrapolated(peak: int, before: int, reason: str) -> dict[str, Any]:
    return {
        "peak_bytes": peak,
        "increment_bytes": peak - before,
        "extrapolated_from": list(SMALLER),
        "reason": reason,
    }


def main(argument: str) -> None:
    """Print what `do` found for a task in JSON."""
    # if memory runs out, the system is to end this process and no other
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    task = Task(**json.loads(argument))
    if task.keep_freed_memory:
        keep_freed_memory()
    print(json.dumps([asdict(found) for found in do(task)]))


if __name__ == "__main__":
    main(sys.argv[1])
