"""How cells are started: as processes of this machine, or as jobs of a cluster through submitit."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import torch

from mspose.config import SlurmSettings, write_settings
from mspose.errors import MsposeError
from mspose.studies.ablation.cell import notes
from mspose.studies.ablation.plan import Cell

SAVES_WITHIN = 60
"""Seconds that a process which is asked to stop has to save where it stands."""


class Job(Protocol):
    """A cell that was started."""

    def fault(self) -> str | None:
        """None while it runs; then how it ended, where that was not by itself, or an empty text."""

    def ask_to_stop(self) -> None:
        """Ask it to save and end."""

    def stop(self) -> None:
        """Wait for that, but not for ever."""


class Launcher(Protocol):
    """Starts cells, `at_once` of them at the same time at most."""

    at_once: int
    look_every: float
    """Seconds between two looks at its jobs."""

    def start(self, cell: Cell) -> Job:
        """Start a cell; its output goes to its log."""


class LocalLauncher:
    """Cells as processes of this machine, which share its cores and take its GPUs in turn."""

    look_every = 0.2

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.gpus = visible_gpus()
        self.slots: list[LocalJob | None] = [None] * at_once

    def start(self, cell: Cell) -> "LocalJob":
        """See `Launcher`."""
        slot = next(
            place for place, job in enumerate(self.slots) if job is None or job.fault() is not None
        )
        gpus = self.gpus if cell.settings.device == "auto" else []
        environment = {**os.environ, **share_of_machine(slot, self.at_once, cores(), gpus)}
        job = self.slots[slot] = LocalJob(_command(cell), notes(cell.settings, ".log"), environment)
        return job


class LocalJob:
    """A process. Ctrl-C in a terminal, which goes to all processes there, leaves it to us to ask it
    to stop.
    """

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits
        try:
            with log.open("wb") as output:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
        finally:
            signal.signal(signal.SIGINT, before)

    def fault(self) -> str | None:
        """See `Job`."""
        status = self.process.poll()
        if status is None or status >= 0:
            return None if status is None else ""
        killed = signal.Signals(-status).name
        return f"ended by {killed}" + (" (is memory short?)" if killed == "SIGKILL" else "")

    def ask_to_stop(self) -> None:
        """See `Job`."""
        self.process.terminate()

    def stop(self) -> None:
        """See `Job`."""
        try:
            self.process.wait(timeout=SAVES_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class SlurmLauncher:
    """Cells as jobs of a cluster. What they found is read from their files: no result is unpickled
    here.
    """

    look_every = 5.0

    def __init__(self, folder: Path, settings: SlurmSettings, at_once: int) -> None:
        """`folder` takes submitit's files. Raises MsposeError where submitit or the cluster is
        missing.
        """
        if importlib.util.find_spec("submitit") is None:
            raise MsposeError(
                "--launcher slurm needs submitit: pip install submitit, or take --launcher local"
            )
        import submitit

        try:
            self.executor = submitit.AutoExecutor(folder, cluster=settings.cluster)
        except RuntimeError as error:
            raise MsposeError(f"--launcher slurm: {error}; here, --launcher local") from error
        self.executor.update_parameters(
            name="mspose",
            timeout_min=settings.minutes,
            gpus_per_node=settings.gpus,
            cpus_per_task=settings.cpus,
            mem_gb=settings.memory_gb,
            **({"slurm_partition": settings.partition} if settings.partition else {}),
        )
        self.at_once = at_once

    def start(self, cell: Cell) -> "SlurmJob":
        """See `Launcher`."""
        return SlurmJob(
            self.executor.submit(
                ClusterTask(_command(cell), str(notes(cell.settings, ".log").absolute()))
            )
        )


class ClusterTask:
    """What a job does: the command of a cell. At the cluster's time limit it is queued again, to go
    on.
    """

    def __init__(self, command: list[str], log: str) -> None:
        self.command, self.log = command, log

    def __call__(self) -> int:
        """Run the command; its exit status."""
        with Path(self.log).open("wb") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=subprocess.STDOUT)
        try:
            return self.process.wait()
        finally:
            self.process.terminate()  # where the job is cancelled before its end

    def checkpoint(self) -> Any:
        """Called by submitit before the time is up: let the cell save, and ask for a job that goes
        on.
        """
        import submitit

        self.process.terminate()
        self.process.wait()
        return submitit.helpers.DelayedSubmission(ClusterTask(self.command, self.log))


class SlurmJob:
    """A job of a cluster, by submitit."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def fault(self) -> str | None:
        """See `Job`."""
        if not self.job.done():
            return None
        return (
            ""
            if self.job.state in ("COMPLETED", "FINISHED")
            else f"job {self.job.job_id} is {self.job.state}"
        )

    def ask_to_stop(self) -> None:
        """See `Job`."""
        self.job.cancel(check=False)

    def stop(self) -> None:
        """See `Job`. The cluster does it by itself."""


def _command(cell: Cell) -> list[str]:
    """The command of a cell, whose settings are written for it."""
    path = notes(cell.settings, ".yaml")
    write_settings(path, cell.settings)
    return [sys.executable, "-m", "mspose", "cell", str(path.absolute())]


def cores() -> int:
    """Cores that this process may use, or the threads that OMP_NUM_THREADS allows it."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))


def visible_gpus() -> list[str]:
    """Names, for CUDA_VISIBLE_DEVICES, of the GPUs that this process may use."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def share_of_machine(slot: int, at_once: int, cores: int, gpus: list[str]) -> dict[str, str]:
    """Environment of the process in place `slot` of `at_once`: its share of the cores, and one of
    several GPUs.
    """
    share = {"OMP_NUM_THREADS": str(max(1, cores // at_once))} if at_once > 1 else {}
    return share | (
        {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 and at_once > 1 else {}
    )
