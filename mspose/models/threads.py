"""Work of many equal parts, on as many threads as PyTorch computes with.

PyTorch spreads each operation over its threads and waits for them at its end. Where work consists
of thousands of short operations, that waiting costs more than the work on a machine that has other
things to do. Here each thread takes whole parts, and computes each by itself.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

PARTS_PER_THREAD = 8  # fewer are done sooner one after the other, each operation on all threads


def in_threads(work: Callable[..., None], parts: Sequence[tuple[Any, ...]]) -> None:
    """Call `work(*part)` for every part, in no particular order; parts must not depend on each
    other.

    Raises what `work` raises.
    """
    threads = torch.get_num_threads()
    if threads < 2 or len(parts) < PARTS_PER_THREAD * threads:
        for part in parts:
            work(*part)
        return
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    left = iter(parts)

    def take() -> None:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradients),
        ):  # settings of each thread
            for part in left:
                work(*part)

    # waiting for all of them also where one fails
    for finished in [
        pool.submit(take) for pool in [_pool(os.getpid(), threads)] for _ in range(threads)
    ]:
        finished.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Threads that compute by themselves; after a fork, of the new process."""
    all_started = threading.Barrier(threads + 1)

    def start() -> None:
        # a thread takes the process's number when first asked: before it gets its own
        torch.get_num_threads()
        torch.set_num_threads(1)
        all_started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="mspose")
    for _ in range(threads):
        pool.submit(start)
    all_started.wait()
    torch.set_num_threads(
        threads
    )  # it is this thread's own number, but also that of threads still to come
    return pool
