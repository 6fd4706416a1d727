"""Runs an ablation, each run as a process or cluster job of its own, and prints its table.

A run whose result is there is skipped, one that was interrupted goes on, and where one fails the
others go on.
"""

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from mspose.config import PLACES, Overrides, Settings, SlurmSettings, flatten
from mspose.data.cards import data_root, read_card
from mspose.data.preparation import render_if_virtual
from mspose.distributed import Preemption
from mspose.errors import MsposeError, Preempted
from mspose.run import EVENTS
from mspose.studies.ablation.launcher import Job, Launcher, LocalLauncher, SlurmLauncher
from mspose.studies.ablation.plan import OURS, read_ablation
from mspose.studies.ablation.progress import DONE, FAILED, RUNNING, SKIPPED, Progress
from mspose.studies.ablation.record import record_runs
from mspose.studies.ablation.single_run import (
    is_complete,
    notes,
    refuse_other_settings,
    run_of,
    title,
)
from mspose.studies.ablation.table import ablation_table
from mspose.tensorboard_log import log_hyper_parameters

log = logging.getLogger("mspose")


def ablate(
    file: str,
    *,
    dataset: str | None = None,
    seeds: list[NonNegativeInt] | None = None,
    variants: list[str] | None = None,
    runs: str = "runs",
    jobs: PositiveInt | None = None,
    launcher: Literal["local", "slurm"] = "local",
    quick: bool = False,
    record: str | None = None,
    progress: bool = True,
    slurm: SlurmSettings,
    overrides: Overrides,
) -> None:
    """Run the variants of an ablation file over its seeds, and print their table.

    What has a result is skipped, what was interrupted goes on. Settings given here hold for all
    variants; what is not given is as in the base experiment, whatever default stands below.

    Args:
        file: an ablation file, or its name in experiments/ablations/.
        dataset: another base experiment, its name in experiments/ or a path; auto: real data that
            is here.
        seeds: in place of the file's, as in --seeds 0 1.
        variants: some rows only, by their labels, as in --variants qka both.
        runs: folder of all runs.
        jobs: runs at once (default: 1; quick: the cores; slurm: all).
        launcher: this machine (default), or a cluster.
        quick: toy size, to see that everything runs.
        record: folder for a copy of the results without models, to keep in git.
        progress: no progress table.

    Raises:
        MsposeError: a file that is not right, or runs that failed.
        Preempted: a signal asked to stop, which the runs then do.
    """
    ablation = read_ablation(file)
    base, shared = (dataset, overrides) if dataset != "auto" else real_data(overrides)
    planned = ablation.runs(base, seeds, quick, shared, runs, variants or ())
    data = planned[0].data
    render_if_virtual(data.dataset, data.root, data.scenes, progress=progress)
    starter = make_launcher(launcher, planned, jobs, slurm)
    failed = run_all(planned, starter, progress=progress)
    if record is not None:
        log.info("%s", record_runs(planned, Path(record)))
    folder = Path(runs) / planned[0].experiment
    if quick:
        print(f"{folder}: at toy size (quick), to see that everything runs: no table")
    elif not any(map(is_complete, planned)):
        print(f"{folder}: no run has a result")
    else:
        print(ablation_table(ablation, [folder], dataset=base))
    if failed:
        raise MsposeError(
            f"{len(failed)} failed: {', '.join(failed)}; the same command tries again"
        )


def run_all(planned: Sequence[Settings], launcher: Launcher, *, progress: bool) -> list[str]:
    """Make the runs that have no result yet, in their order.

    Returns the names of those that failed; the log says why when all have ended. Raises Preempted
    where a signal asked to stop.
    """
    board = Progress(planned, show=progress)
    faults: dict[str, str] = {}
    running: list[tuple[Settings, Job]] = []
    waiting: list[Settings] = []

    def fail(settings: Settings, why: str) -> None:
        faults[title(settings)] = why
        board.set(settings, FAILED)

    def finish(settings: Settings, state: str) -> None:
        run = run_of(settings)
        if any(run.folder.glob(EVENTS)):  # a record has no log
            log_hyper_parameters(run, hyper_parameters(settings, planned))
        board.set(settings, state)

    for settings in planned:
        try:
            refuse_other_settings(settings)
        except MsposeError as error:
            fail(settings, str(error))
        else:
            if is_complete(settings):
                finish(settings, SKIPPED)
            else:
                waiting.append(settings)
    try:
        with Preemption() as preemption:
            while waiting or running:
                while waiting and len(running) < launcher.at_once:
                    settings = waiting.pop(0)
                    running.append((settings, launcher.start(settings)))
                    board.set(settings, RUNNING)
                board.draw()
                time.sleep(launcher.poll_every)
                for settings, job in list(running):
                    if (fault := job.fault()) is not None:
                        running.remove((settings, job))
                        if is_complete(settings):
                            finish(settings, DONE)
                        else:
                            fail(settings, failure(notes(settings, ".log"), fault))
                if asked := preemption.asked():
                    name = signal.Signals(asked).name
                    raise Preempted(
                        f"{name}: the runs are asked to save; the same command goes on from there"
                    )
    finally:
        for _, job in running:
            job.ask_to_stop()
        for _, job in running:
            job.stop()
        board.close()
    for name, why in faults.items():
        log.error("%s failed: %s", name, why)
    return list(faults)


def hyper_parameters(settings: Settings, planned: Sequence[Settings]) -> dict[str, Any]:
    """Variant, seed, and the settings in which the planned runs differ, by dotted name."""
    every = [flatten(other) for other in planned]
    own = {
        name: value
        for name, value in flatten(settings).items()
        if name not in (*OURS, *PLACES) and any(other.get(name) != value for other in every)
    }
    return {"variant": str(settings.variant), "seed": settings.seed, **own}


def failure(path: Path, fault: str) -> str:
    """Say why a run failed: the last error in its log, how it ended, and where the log is."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    prefix = "mspose: error: "
    errors = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    said = [*errors[-1:], *([fault] if fault else [])] or lines[-1:] or ["without any output"]
    return f"{'; '.join(said)} (its log: {path})"


def make_launcher(
    name: str, planned: Sequence[Settings], jobs: int | None, slurm: SlurmSettings
) -> Launcher:
    """Make the launcher of this name.

    Without `jobs`, one run at once; at toy size one per core; on a cluster all.
    """
    if name == "slurm":
        folder = notes(planned[0], "").parent / "submitit"
        return SlurmLauncher(folder, slurm, jobs or len(planned))
    return LocalLauncher(jobs or (len(os.sched_getaffinity(0)) if planned[0].quick else 1))


def real_data(overrides: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Choose (base experiment, overrides) for `--dataset auto`: the real data that is on disk.

    The base is None, the file's own, without any. Where some scenes of a data set are on disk, the
    ablation runs on those.
    """
    for name, split_file in (("7scenes", "TrainSplit.txt"), ("cambridge", "dataset_train.txt")):
        card = read_card(name)
        root = data_root(card, overrides.get("data.root"))
        listed = [scene for scene in card.scenes if (root / scene / split_file).is_file()]
        there = [scene for scene in listed if next((root / scene).rglob("*.png"), None) is not None]
        if there:
            some = {} if len(there) == len(card.scenes) else {"data.scenes": there}
            log.info("on the real data that is here: %s, %s", name, " ".join(there))
            return name, {**some, **overrides}
    return None, dict(overrides)
