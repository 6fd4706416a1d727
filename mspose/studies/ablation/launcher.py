"""Launchers start runs: as processes of this machine, or as cluster jobs through submitit.

A launcher starts `at_once` runs at the same time at most; `poll_every` is the number of seconds
between two polls of its jobs. The output of a run goes to its log.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mspose.config import Settings, SlurmSettings, write_settings
from mspose.errors import MsposeError
from mspose.libraries import require
from mspose.studies.ablation.single_run import notes

SAVES_WITHIN = 60
"""Seconds that a process has to save when it is asked to stop."""


class LocalLauncher:
    """Starts runs as processes of this machine, which share its cores and take GPUs in turn."""

    poll_every = 0.2

    def __init__(self, at_once: int) -> None:
        """Start so many at once."""
        self.at_once = at_once
        self.gpus = visible_gpus()
        self.slots: list[LocalJob | None] = [None] * at_once

    def start(self, settings: Settings) -> "LocalJob":
        """Start a run on a free share of the machine."""
        free = (i for i, job in enumerate(self.slots) if job is None or job.fault() is not None)
        slot = next(free)
        gpus = self.gpus if settings.device == "auto" else []
        environment = {**os.environ, **share_of_machine(slot, self.at_once, cores(), gpus)}
        job = LocalJob(_command(settings), notes(settings, ".log"), environment)
        self.slots[slot] = job
        return job


class LocalJob:
    """A process. It ignores Ctrl-C, which a terminal sends to it too: we ask it to stop."""

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
        """Return None while it runs; afterwards how it was ended from outside, or an empty text."""
        status = self.process.poll()
        if status is None or status >= 0:
            return None if status is None else ""
        killed = signal.Signals(-status).name
        return f"ended by {killed}" + (" (is memory short?)" if killed == "SIGKILL" else "")

    def ask_to_stop(self) -> None:
        """Ask it to save and end."""
        self.process.terminate()

    def stop(self) -> None:
        """Wait until it has ended; kill it after a minute."""
        try:
            self.process.wait(timeout=SAVES_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class SlurmLauncher:
    """Starts runs as cluster jobs. Results are read from the runs' files, none is unpickled."""

    poll_every = 5.0

    def __init__(self, folder: Path, settings: SlurmSettings, at_once: int) -> None:
        """Keep submitit's files in `folder`.

        Raises MsposeError where submitit or the cluster is missing.
        """
        submitit: Any = require("submitit")
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

    def start(self, settings: Settings) -> "SlurmJob":
        """Submit a run."""
        task = ClusterTask(_command(settings), str(notes(settings, ".log").absolute()))
        return SlurmJob(self.executor.submit(task))


class ClusterTask:
    """Command of a run as a cluster job, which is queued again at the cluster's time limit."""

    def __init__(self, command: list[str], log: str) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command; its exit status."""
        with Path(self.log).open("wb") as output:
            process = subprocess.Popen(self.command, stdout=output, stderr=subprocess.STDOUT)
        self.process = process
        try:
            return process.wait()
        finally:
            process.terminate()  # where the job is cancelled before its end

    def checkpoint(self) -> Any:
        """Let the run save and ask for another job; submitit calls it before the time is up."""
        import submitit

        if self.process is not None:
            self.process.terminate()
            # The signal interrupts wait() in this thread, which holds the lock of Popen.wait.
            with contextlib.suppress(ChildProcessError):  # the command had ended
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(ClusterTask(self.command, self.log))


class SlurmJob:
    """A job of a cluster, by submitit."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def fault(self) -> str | None:
        """Return None while it runs; afterwards how it failed, or an empty text."""
        if not self.job.done():
            return None
        if self.job.state in ("COMPLETED", "FINISHED"):
            return ""
        return f"job {self.job.job_id} is {self.job.state}"

    def ask_to_stop(self) -> None:
        """Ask it to save and end."""
        self.job.cancel(check=False)

    def stop(self) -> None:
        """Leave the end to the cluster."""


Launcher = LocalLauncher | SlurmLauncher
Job = LocalJob | SlurmJob


def _command(settings: Settings) -> list[str]:
    """Write the settings of a run; returns the command that makes it."""
    path = notes(settings, ".yaml")
    write_settings(path, settings)
    return [sys.executable, "-m", "mspose", "cell", str(path.absolute())]


def cores() -> int:
    """Count the cores that this process may use, or the threads that OMP_NUM_THREADS allows."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))


def visible_gpus() -> list[str]:
    """Name the GPUs that this process may use, for CUDA_VISIBLE_DEVICES."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def share_of_machine(slot: int, at_once: int, cores: int, gpus: list[str]) -> dict[str, str]:
    """Environment of process number `slot` of `at_once`: its share of the cores and its GPU."""
    if at_once == 1:
        return {}
    share = {"OMP_NUM_THREADS": str(max(1, cores // at_once))}
    return share | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else {})
