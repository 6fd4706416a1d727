"""Where an ablation stands: a table that renews itself on a terminal; in a log, a line for each
change.
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

import numpy as np
from tabulate import tabulate

from mspose.errors import MsposeError
from mspose.metrics import read_metrics
from mspose.run import MODEL
from mspose.studies.ablation.cell import METRICS
from mspose.studies.ablation.plan import Cell

WAITING, RUNNING, DONE, SKIPPED, FAILED = "waiting", "running", "done", "skipped", "failed"
"""States of a cell. Skipped: its result was there already."""
ERRORS = ("median_position_error_m", "median_orientation_error_deg")


class Board:
    """The state of every cell, and its errors as soon as they are known."""

    def __init__(self, cells: Sequence[Cell], *, show: bool, stream: TextIO | None = None) -> None:
        """`show`: whether anything is written, to `stream` (by default standard error)."""
        self.cells, self.show = list(cells), show
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.state = dict.fromkeys(map(_key, cells), WAITING)
        self.errors: dict[tuple[str, int], tuple[float, float]] = {}
        self.drawn: list[str] = []

    def set(self, cell: Cell, state: str) -> None:
        """A cell has come to a state."""
        self.state[_key(cell)] = state
        if state in (DONE, SKIPPED):
            self.errors[_key(cell)] = average_errors(cell)
        if self.show and not self.terminal:
            ended = sum(value not in (WAITING, RUNNING) for value in self.state.values())
            figures = f", {_figures(self.errors[_key(cell)])}" if _key(cell) in self.errors else ""
            line = (
                f"{time.strftime('%H:%M:%S')} {cell}: {state}{figures} ({ended} of"
                f" {len(self.cells)} ended)"
            )
            print(line, file=self.stream, flush=True)

    def draw(self) -> None:
        """Renew the table on a terminal."""
        if self.show and self.terminal:
            width = (
                shutil.get_terminal_size().columns
            )  # a line that wraps would be two to go back over
            lines = [line[:width] for line in self.table().splitlines()]
            if lines != self.drawn:
                back = f"\x1b[{len(self.drawn)}F\x1b[J" if self.drawn else ""
                print(back + "\n".join(lines), file=self.stream, flush=True)
                self.drawn = lines

    def close(self) -> None:
        """The table as it is in the end."""
        self.draw()
        if self.show and not self.terminal:
            print(self.table(), file=self.stream, flush=True)

    def table(self) -> str:
        """Rows: variants; columns: seeds, with medians (averaged over scenes) where they are known,
        and their means.
        """
        seeds = list(dict.fromkeys(cell.seed for cell in self.cells))
        by_label: dict[str, dict[int, Cell]] = {}
        for cell in self.cells:
            by_label.setdefault(cell.label, {})[cell.seed] = cell
        rows = []
        for label, of_seed in by_label.items():
            known = [
                self.errors[_key(cell)] for cell in of_seed.values() if _key(cell) in self.errors
            ]
            mean = _short(tuple(np.mean(known, axis=0))) if known else "-"
            rows.append([label, *(self._cell(of_seed[seed]) for seed in seeds), mean])
        return tabulate(rows, headers=["", *(f"seed {seed}" for seed in seeds), "mean (m / deg)"])

    def _cell(self, cell: Cell) -> str:
        state = self.state[_key(cell)]
        if state == RUNNING:
            return f"{state} {_epochs_done(cell)}/{cell.settings.training.epochs}"
        return f"{state} {_short(self.errors[_key(cell)])}" if _key(cell) in self.errors else state


def average_errors(cell: Cell) -> tuple[float, float]:
    """The medians (m, deg) of a finished cell, averaged over scenes; NaN where its metrics cannot
    be read.
    """
    try:
        average = read_metrics(cell.folder / METRICS)["average"]
    except MsposeError:
        return float("nan"), float("nan")
    return average[ERRORS[0]], average[ERRORS[1]]


def _key(cell: Cell) -> tuple[str, int]:
    return cell.label, cell.seed


def _figures(errors: Sequence[float]) -> str:
    return f"{errors[0]:.3f} m / {errors[1]:.2f} deg"


def _short(errors: Sequence[float]) -> str:
    return f"{errors[0]:.3f} / {errors[1]:.2f}"


def _epochs_done(cell: Cell) -> int:
    try:
        return int(json.loads((cell.folder / MODEL).read_text(encoding="utf-8"))["epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
