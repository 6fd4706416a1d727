"""Several processes that work as one, as torchrun starts them; a single process needs none of it.

Tensors on GPUs go through NCCL, on CPUs through gloo, so that the processes can agree on something
without making a GPU wait. The main process, number 0, alone writes files and messages.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from mspose.errors import MsposeError, Preempted

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""How schedulers announce that they will end a process."""
LOST = r"gloo|NCCL|[Cc]onnection|Broken pipe|[Ss]ocket"
"""In the message of every error that comes from the end of another process."""


def is_main() -> bool:
    """True in the process that writes: number 0 of several, or a single one."""
    return not dist.is_torchelastic_launched() or os.environ["RANK"] == "0"


def rank_and_world_size() -> tuple[int, int]:
    """Return (number of this process from 0, how many there are), once they have joined; (0, 1) for
    a single process.
    """
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def processes() -> int:
    """Return how many processes work as one."""
    return rank_and_world_size()[1]


def own_device(name: str) -> str:
    """Return the name of this process's device: of several processes on a machine, each has the GPU
    of its number there.

    Raises:
        MsposeError: `name` is one GPU, and there are several processes.
    """
    if (
        not dist.is_torchelastic_launched()
        or int(os.environ["WORLD_SIZE"]) == 1
        or not name.startswith("cuda")
    ):
        return name
    if name != "cuda":
        raise MsposeError(
            f"device {name} cannot be shared by {os.environ['WORLD_SIZE']} processes: say --device"
            " cuda"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started until the block ends; a single one does nothing.

    Raises:
        MsposeError: another process ended while this one waited for it.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, rank, world_size = next(rendezvous("env://"))
        if os.environ["GROUP_WORLD_SIZE"] == "1":
            # After a restart the store still holds the addresses of processes that are no more.
            store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
        yield
        # taken down before its threads are done with the last message, gloo hangs in torch 2.6
        dist.barrier()
    except RuntimeError as error:
        if re.search(LOST, str(error)) is None:
            raise
        raise MsposeError(
            f"process {os.environ['RANK']} lost another process of this run, which was killed or"
            " stopped with an error of its own; the same command goes on from the last checkpoint"
        ) from error
    except Preempted:  # all processes raise it
        dist.barrier()
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def one_per_machine_first() -> Iterator[None]:
    """Let the first process of every machine go through the block before the others do."""
    waits = processes() > 1 and os.environ["LOCAL_RANK"] != "0"
    if waits:
        wait_for_all()
    yield
    if processes() > 1 and not waits:
        wait_for_all()


def from_main(make: Callable[[], T]) -> T:
    """Call `make` in the main process, and return its result in every process."""
    if processes() == 1:
        return make()
    box = [make() if is_main() else None]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]  # type: ignore[return-value]


def gather(mine: T) -> list[T]:
    """Return what every process gives, in the order of their numbers."""
    if processes() == 1:
        return [mine]
    everyones: list[Any] = [None] * processes()
    dist.all_gather_object(everyones, mine)
    return everyones


def largest(mine: int) -> int:
    """Return the largest of every process's numbers; a process waits here until all have come."""
    if processes() == 1:
        return mine
    box = torch.tensor(mine)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def wait_for_all() -> None:
    """Wait until every process is here."""
    largest(0)


def average(mine: Mapping[str, float], weight: float = 1.0) -> dict[str, float]:
    """Return the mean over the processes of values that all have under the same names, each
    process's times its weight.
    """
    value_N = torch.tensor(list(mine.values()), dtype=torch.float64) * weight
    if processes() > 1:
        dist.all_reduce(value_N)
    return dict(zip(mine, (value_N / processes()).tolist(), strict=True))


def share_buffers(module: nn.Module) -> None:
    """Give every process the main one's buffers, such as the running statistics of batch norms."""
    if processes() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


class Preemption:
    """Notes SIGTERM and SIGUSR1 while its block runs, in place of ending the process at once."""

    def __enter__(self) -> "Preemption":
        self.noted = 0
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # no other may take signals
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None and processes() > 1:
            # torchrun sends SIGTERM as soon as one process ends: it must not cut off the messages
            # of the others
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.noted = number

    def asked(self) -> int:
        """Return the number of a signal that some process had by now, the same in all processes; 0
        where none had any.
        """
        return largest(self.noted)
