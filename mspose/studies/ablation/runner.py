"""Runs the cells of an ablation, each as a process or job of its own, and prints their table.

A cell whose result is there is skipped, one that was interrupted goes on, and where one fails the
others go on.
"""

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mspose.config import SlurmSettings
from mspose.data.cards import data_root, read_card
from mspose.data.preparation import render_if_virtual
from mspose.distributed import Preemption
from mspose.errors import MsposeError, Preempted
from mspose.studies.ablation.cell import is_finished, notes, refuse_other_settings
from mspose.studies.ablation.launcher import Job, Launcher, LocalLauncher, SlurmLauncher
from mspose.studies.ablation.plan import Cell, read_ablation
from mspose.studies.ablation.progress import DONE, FAILED, RUNNING, SKIPPED, Board
from mspose.studies.ablation.record import record_cells
from mspose.studies.ablation.table import ablation_table

log = logging.getLogger("mspose")


def ablate(
    file: str,
    *,
    dataset: str | None = None,
    seeds: Sequence[int] | None = None,
    variants: Sequence[str] = (),
    runs: str = "runs",
    jobs: int | None = None,
    launcher: str = "local",
    slurm: SlurmSettings | None = None,
    quick: bool = False,
    record: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[str, list[str]]:
    """Run the cells of an ablation file that have no result yet; returns the table of all, and the
    cells that failed.

    Args: see `mspose ablate --help`, and `Ablation.cells`.

    Raises MsposeError for a file that is not right; Preempted where a signal asked to stop, which
    the cells then do.
    """
    ablation = read_ablation(file)
    base, shared = (dataset, overrides or {}) if dataset != "auto" else real_data(overrides or {})
    cells = ablation.cells(base, seeds, quick, shared, runs, variants)
    settings = cells[0].settings
    render_if_virtual(
        settings.data.dataset, settings.data.root, settings.data.scenes, progress=progress
    )
    failed = run_cells(
        cells, make_launcher(launcher, cells, jobs, slurm or SlurmSettings()), progress=progress
    )
    if record is not None:
        log.info("%s", record_cells(cells, Path(record)))
    folder = Path(runs) / settings.experiment
    if quick:
        return f"{folder}: at toy size (quick), to see that everything runs: no table", failed
    if not any(is_finished(cell.settings) for cell in cells):
        return f"{folder}: no cell has a result", failed
    return ablation_table(ablation, [folder], dataset=base), failed


def run_cells(cells: Sequence[Cell], launcher: Launcher, *, progress: bool) -> list[str]:
    """Run the cells that have no result yet, in their order; returns the names of those that
    failed.

    Why they did is said when all have ended. Raises Preempted where a signal asked to stop.
    """
    board = Board(cells, show=progress)
    faults: dict[str, str] = {}
    running: list[tuple[Cell, Job]] = []
    waiting = []

    def fail(cell: Cell, why: str) -> None:
        faults[str(cell)] = why
        board.set(cell, FAILED)

    for cell in cells:
        try:
            refuse_other_settings(cell.settings)
        except MsposeError as error:
            fail(cell, str(error))
        else:
            if is_finished(cell.settings):
                board.set(cell, SKIPPED)
            else:
                waiting.append(cell)
    try:
        with Preemption() as preemption:
            while waiting or running:
                while waiting and len(running) < launcher.at_once:
                    cell = waiting.pop(0)
                    running.append((cell, launcher.start(cell)))
                    board.set(cell, RUNNING)
                board.draw()
                time.sleep(launcher.look_every)
                for cell, job in list(running):
                    if (fault := job.fault()) is not None:
                        running.remove((cell, job))
                        if is_finished(cell.settings):
                            board.set(cell, DONE)
                        else:
                            fail(cell, f"{last_words(notes(cell.settings, '.log'), fault)}")
                if asked := preemption.asked():
                    name = signal.Signals(asked).name
                    raise Preempted(
                        f"{name}: the cells are asked to save; the same command goes on from there"
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


def last_words(path: Path, fault: str) -> str:
    """The last line of a cell's log that says what went wrong, how it ended, and where the log is."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [
        line.removeprefix("mspose: error: ") for line in lines if line.startswith("mspose: error: ")
    ]
    said = [*errors[-1:], *([fault] if fault else [])] or lines[-1:] or ["it said nothing"]
    return f"{'; '.join(said)} (its log: {path})"


def make_launcher(
    name: str, cells: Sequence[Cell], jobs: int | None, slurm: SlurmSettings
) -> Launcher:
    """The launcher of this name. Without `jobs`, one cell at once; at toy size one per core; on a
    cluster all.
    """
    if name == "slurm":
        return SlurmLauncher(
            notes(cells[0].settings, "").parent / "submitit", slurm, jobs or len(cells)
        )
    return LocalLauncher(jobs or (len(os.sched_getaffinity(0)) if cells[0].settings.quick else 1))


def real_data(overrides: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """(base experiment, overrides) for `--dataset auto`: the real data that is on disk, or None for
    the file's own.

    Where some scenes of a data set are on disk, the ablation runs on those.
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
