"""Table of what the encoders' self-attention is worth to the variants of an ablation.

By how much the errors of each trained network change where something else replaces its
self-attention (`mspose.studies.knock_out`), with bootstrap intervals over blocks of frames and
seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mspose.attention.knock_out import KnockOut
from mspose.errors import MsposeError
from mspose.models.attention import REPLACEMENTS
from mspose.run import Run
from mspose.studies.ablation.bootstrap import (
    LEVEL,
    RESAMPLES,
    SEED,
    Difference,
    bootstrap_medians,
    in_sequences,
    paired_difference,
)
from mspose.studies.ablation.finished import Finished
from mspose.studies.ablation.plan import Ablation
from mspose.studies.knock_out import (
    ERRORS,
    SAID,
    difference_text,
    of_branches,
    read_knock_out_errors,
)
from mspose.studies.rows import Group, Measure
from mspose.studies.tables import DASH, PrintedTable, Style, seed_count

SECTIONS = {"position_m": "Position (m)", "orientation_deg": "Orientation (°)"}


@dataclass(frozen=True)
class WorthRow:
    """A variant, without the self-attention of one branch or of both."""

    label: str
    branch: str
    seeds: tuple[int, ...]
    intact: Mapping[str, Measure]
    """Errors of the networks as they are, by the names in ERRORS."""
    differences: Mapping[tuple[str, str], Difference]
    """Changes by error and replacement."""


@dataclass(frozen=True)
class WorthTable(PrintedTable):
    """Rows of an ablation, ready to be written. `make_worth_table` builds it."""

    name: str
    title: str
    group: Group
    frames: int
    rows: list[WorthRow]
    unmeasured: list[str]
    """Labels of variants without a knock-out."""

    def caption(self) -> str:
        """See `PrintedTable`."""
        over = (
            "blocks of frames and seeds"
            if any(len(row.seeds) > 1 for row in self.rows)
            else "blocks of frames"
        )
        return (
            f"{self.title}: worth of self-attention. Change of the median error, averaged over"
            " scenes, where the self-attention of the trained encoders is replaced by the mean of"
            " all values, by each token's own value, or by nothing, so that the sublayer's"
            f" residual alone remains; nothing is trained again. Data set {self.group}. In brackets"
            f" a {LEVEL * 100:g} % bootstrap interval over {over}, paired by frame"
            f" ({RESAMPLES} resamples). † not established: the interval includes 0."
        )

    def closing(self) -> list[str]:
        """See `PrintedTable`."""
        lines = [f"Frames evaluated: {self.frames}."]
        if self.unmeasured:
            lines.append(f"Without a knock-out: {', '.join(self.unmeasured)}.")
        return lines

    def grid(self, style: Style) -> tuple[pd.DataFrame, list[str]]:
        """See `PrintedTable`; without footnotes."""
        lines = []
        for error, section in SECTIONS.items():
            lines.append([style.section(style.plain(section)), "", "", *("" for _ in REPLACEMENTS)])
            for row in self.rows:
                cells = [
                    f"{row.label} ({seed_count(len(row.seeds))})",
                    row.branch,
                    row.intact[error].text(ERRORS[error]),
                    *(
                        difference_text(found._asdict() | {"difference": found.mean}, ERRORS[error])
                        if (found := row.differences.get((error, by)))
                        else DASH
                        for by in REPLACEMENTS
                    ),
                ]
                lines.append(list(map(style.plain, cells)))
        header = ["Variant", "Branch", "As trained", *(SAID[by] for by in REPLACEMENTS)]
        return pd.DataFrame(lines, columns=list(map(style.plain, header))), []

    def to_csv(self) -> str:
        """See `PrintedTable`: a line per variant, branch and replacement."""
        lines: list[dict[str, Any]] = []
        for row in self.rows:
            for by in REPLACEMENTS:
                line: dict[str, Any] = {"ablation": self.name, **self.group._asdict()}
                line |= {"variant": row.label, "seeds": len(row.seeds), "branch": row.branch}
                line |= {"replaced_by": by, "frames": self.frames}
                for error in ERRORS:
                    found = row.differences[error, by]
                    line |= {
                        error: row.intact[error].mean,
                        f"{error}_difference": found.mean,
                        f"{error}_low": found.low,
                        f"{error}_high": found.high,
                    }
                lines.append(line)
        return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")


def make_worth_table(ablation: Ablation, finished: Finished) -> WorthTable | None:
    """Compute what self-attention is worth to the variants; None where no run was knocked out.

    Raises MsposeError where the runs of a variant were knocked out on different frames.
    """
    rows: list[WorthRow] = []
    unmeasured, frames = [], 0
    for label, seeds in finished.runs.items():
        runs = {seed: run for seed, run in seeds.items() if was_knocked_out(run)}
        if runs:
            found, frames = _rows(label, runs)
            rows += found
        else:
            unmeasured.append(label)
    if not rows:
        return None
    return WorthTable(ablation.name, ablation.title, finished.group, frames, rows, unmeasured)


def was_knocked_out(run: Run) -> bool:
    """True where the study of the evaluated model has a knock-out, with errors of its frames."""
    study = run.attention_of_metrics
    return study is not None and study["knock_out"] is not None and run.knock_out_file.is_file()


def _rows(label: str, runs: Mapping[int, Run]) -> tuple[list[WorthRow], int]:
    """Return the rows of a variant, and the number of frames."""
    errors = [read_knock_out_errors(run.knock_out_file) for run in runs.values()]
    first = errors[0]
    variants = list(first.error_VF2)
    for run, other in zip(runs.values(), errors, strict=True):
        if not other.frames.equals(first.frames) or [*other.error_VF2] != variants:
            raise MsposeError(
                f"{run.folder} was knocked out on other frames than"
                f" {next(iter(runs.values())).folder}: run `mspose attention --knock-out` on both"
            )
    scenes = list(first.frames.groupby("scene", sort=True).indices.values())
    median: dict[str, np.ndarray] = {}
    resampled: dict[str, np.ndarray] = {}
    for column, error in enumerate(ERRORS):
        error_SVF = np.stack(
            [[of.error_VF2[what][:, column] for what in variants] for of in errors]
        )
        medians, draws = [], []
        for number, frames in enumerate(scenes):
            order, sequence_F = in_sequences(first.frames["image"].iloc[frames].tolist())
            error_RF = error_SVF[:, :, frames[order]].reshape(-1, len(frames))
            generator = np.random.default_rng([SEED, number])
            medians.append(np.median(error_RF, axis=1).reshape(error_SVF.shape[:2]))
            median_BR = bootstrap_medians(error_RF, generator, sequence_F=sequence_F)
            draws.append(median_BR.reshape(RESAMPLES, *error_SVF.shape[:2]))
        median[error], resampled[error] = np.mean(medians, axis=0), np.mean(draws, axis=0)

    intact = variants.index(None)

    def difference(error: str, what: KnockOut) -> Difference:
        index = variants.index(what)
        return paired_difference(
            median[error][:, index] - median[error][:, intact],
            resampled[error][:, :, index] - resampled[error][:, :, intact],
        )

    there: Sequence[str] = list(dict.fromkeys(what.branch for what in of_branches()))
    rows = [
        WorthRow(
            label,
            branch,
            tuple(runs),
            {error: Measure(tuple(median[error][:, intact].tolist())) for error in ERRORS},
            {
                (error, what.by): difference(error, what)
                for what in variants
                if what is not None and what.branch == branch
                for error in ERRORS
            },
        )
        for branch in there
        if any(what is not None and what.branch == branch for what in variants)
    ]
    return rows, len(first.frames)
