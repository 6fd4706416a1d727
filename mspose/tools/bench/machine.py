"""What the machine can do: its own measured matrix and copy rates, which the measurements are held
against.
"""

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mspose.provenance import provenance
from mspose.tools.bench.timing import interleaved


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory and versions. Memory in bytes."""
    about = {
        **provenance(device),
        "device_type": device.type,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": _meminfo("MemTotal"),
        "cpu": provenance("cpu")["device"],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        about |= {
            "cuda": torch.version.cuda,
            "gpu_memory_bytes": torch.cuda.get_device_properties(device).total_memory,
        }
    return about


def free_memory(device: torch.device) -> int:
    """Bytes that the device can still give away."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _meminfo("MemAvailable")


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def matrix_rate(
    dtype: torch.dtype, device: torch.device, sizes: tuple[int, ...], repeat: int
) -> tuple[float, str]:
    """(floating-point operations per second, what reached them): the best of several ways to
    multiply matrices.

    For every size N, the product of two N x N matrices by `torch.matmul`, by `F.linear`, by this
    package's `linear` and as a 1x1 convolution with its channels last. On a CPU these run in
    different libraries.
    """
    best, how = 0.0, ""
    for size in sizes:
        for name, call in _products(size, dtype, device).items():
            samples = interleaved({name: call}, device=device, repeat=repeat)[name]
            rate = 2 * size**3 / statistics.median(samples)
            if rate > best:
                best, how = rate, f"{name} {size}"
    return best, how


def _products(
    size: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[], object]]:
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    edge = 1 << (size.bit_length() // 2)
    map_1CHW = left.T.reshape(1, size, edge, size // edge).contiguous(
        memory_format=torch.channels_last
    )
    kernel = right.reshape(size, size, 1, 1)

    def run(function: Callable[..., object], *arguments: torch.Tensor) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return function(*arguments)

        return call

    return {
        "torch.matmul": run(torch.matmul, left, right),
        "F.linear": run(F.linear, left, right),
        "1x1 convolution": run(F.conv2d, map_1CHW, kernel),
    }


def copy_rate(device: torch.device, numbers: int, repeat: int) -> float:
    """Bytes per second of a copy within the device's memory, read and written bytes counted, of
    float32 numbers.
    """
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    samples = interleaved({"copy": lambda: target.copy_(source)}, device=device, repeat=repeat)[
        "copy"
    ]
    return 2 * source.nbytes / statistics.median(samples)
