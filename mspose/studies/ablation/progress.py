"""Progress of an ablation: a table that renews itself on a terminal, a line per change in a log."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

import numpy as np
from tabulate import tabulate

from mspose.config import Settings
from mspose.errors import MsposeError
from mspose.studies.ablation.single_run import run_of, title

WAITING, RUNNING, DONE, SKIPPED, FAILED = "waiting", "running", "done", "skipped", "failed"
"""States of a run. Skipped: its result was there already."""


class Progress:
    """State of every run, and its errors as soon as they are known."""

    def __init__(
        self, runs: Sequence[Settings], *, show: bool, stream: TextIO | None = None
    ) -> None:
        """show: write at all, to `stream` (by default standard error)."""
        self.runs, self.show = list(runs), show
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.state = {title(settings): WAITING for settings in runs}
        self.errors: dict[str, tuple[float, float]] = {}
        self.drawn: list[str] = []

    def set(self, settings: Settings, state: str) -> None:
        """Note that a run has come to a state."""
        name = title(settings)
        self.state[name] = state
        if state in (DONE, SKIPPED):
            self.errors[name] = average_errors(settings)
        if self.show and not self.terminal:
            ended = sum(value not in (WAITING, RUNNING) for value in self.state.values())
            position, orientation = self.errors.get(name, (None, None))
            errors = "" if position is None else f", {position:.3f} m / {orientation:.2f} deg"
            line = f"{name}: {state}{errors} ({ended} of {len(self.runs)} ended)"
            print(time.strftime("%H:%M:%S"), line, file=self.stream, flush=True)

    def draw(self) -> None:
        """Renew the table on a terminal."""
        if self.show and self.terminal:
            width = shutil.get_terminal_size().columns  # a wrapped line would be two to go back
            lines = [line[:width] for line in self.table().splitlines()]
            if lines != self.drawn:
                back = f"\x1b[{len(self.drawn)}F\x1b[J" if self.drawn else ""
                print(back + "\n".join(lines), file=self.stream, flush=True)
                self.drawn = lines

    def close(self) -> None:
        """Write the final table."""
        self.draw()
        if self.show and not self.terminal:
            print(self.table(), file=self.stream, flush=True)

    def table(self) -> str:
        """Tabulate states, and medians averaged over scenes, of variants (rows) and seeds."""
        by_label: dict[str | None, list[Settings]] = {}
        for settings in self.runs:
            by_label.setdefault(settings.variant, []).append(settings)
        rows = []
        for label, runs in by_label.items():
            known = [self.errors[name] for name in map(title, runs) if name in self.errors]
            mean = _short(np.mean(known, axis=0)) if known else "-"
            rows.append([label, *map(self._text, runs), mean])
        seeds = dict.fromkeys(f"seed {settings.seed}" for settings in self.runs)
        return tabulate(rows, headers=["", *seeds, "mean (m / deg)"])

    def _text(self, settings: Settings) -> str:
        name = title(settings)
        state = self.state[name]
        if state == RUNNING:
            return f"{state} {_epochs_done(settings)}/{settings.training.epochs}"
        return f"{state} {_short(self.errors[name])}" if name in self.errors else state


def average_errors(settings: Settings) -> tuple[float, float]:
    """Medians (metres, degrees) of a finished run, averaged over scenes; NaN where unreadable."""
    try:
        average = run_of(settings).metrics["average"]
    except MsposeError:
        return float("nan"), float("nan")
    return average["median_position_error_m"], average["median_orientation_error_deg"]


def _short(errors: Sequence[float] | np.ndarray) -> str:
    return f"{errors[0]:.3f} / {errors[1]:.2f}"


def _epochs_done(settings: Settings) -> int:
    try:
        return int(run_of(settings).description["epochs"])
    except (MsposeError, KeyError):
        return 0
