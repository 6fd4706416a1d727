"""Table of what the encoders' self-attention is worth to the variants of an ablation.

By how much the errors of each trained network change where something else replaces its
self-attention (`mspose.studies.knock_out`), with bootstrap intervals over blocks of frames and
seeds.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mspose.attention.knock_out import SAID
from mspose.errors import MsposeError
from mspose.models.attention import REPLACEMENTS
from mspose.run import Run
from mspose.studies.ablation.bootstrap import (
    LEVEL,
    RESAMPLES,
    Difference,
    average,
    medians_by_scene,
)
from mspose.studies.ablation.finished import Finished
from mspose.studies.ablation.plan import Ablation
from mspose.studies.knock_out import (
    DIGITS,
    SECTIONS,
    marked_difference,
    of_branches,
    read_knock_out_errors,
)
from mspose.studies.rows import ERRORS, Measure
from mspose.studies.tables import DASH, Grid, Line, PrintedTable, seed_count


class Worth(NamedTuple):
    """A variant, without the self-attention of one branch or of both."""

    label: str
    branch: str
    seeds: int
    frames: int
    intact: dict[str, Measure]
    """Errors of the networks as they are, by the names in ERRORS."""
    differences: dict[tuple[str, str], Difference]
    """Changes by error and replacement."""


def make_worth_table(ablation: Ablation, finished: Finished) -> PrintedTable | None:
    """Tabulate what self-attention is worth to the variants; None where no run was knocked out.

    Raises MsposeError where the runs of a variant were knocked out on different frames.
    """
    rows: list[Worth] = []
    unmeasured = []
    for label, seeds in finished.runs.items():
        runs = [run for run in seeds.values() if was_knocked_out(run)]
        if runs:
            rows += _rows(label, runs)
        else:
            unmeasured.append(label)
    if not rows:
        return None
    over = (
        "blocks of frames and seeds" if any(row.seeds > 1 for row in rows) else "blocks of frames"
    )
    closing = [f"Frames evaluated: {rows[-1].frames}."]
    if unmeasured:
        closing.append(f"Without a knock-out: {', '.join(unmeasured)}.")
    return PrintedTable(
        caption=(
            f"{ablation.title}: worth of self-attention. Change of the median error, averaged over"
            " scenes, where the self-attention of the trained encoders is replaced by the mean of"
            " all values, by each token's own value, or by nothing, so that the sublayer's"
            f" residual alone remains; nothing is trained again. Data set {finished.group}. In"
            f" brackets a {LEVEL * 100:g} % bootstrap interval over {over}, paired"
            f" by frame ({RESAMPLES} resamples). † not established: the interval includes 0."
        ),
        grid=_grid(rows),
        values=_values(ablation, finished, rows),
        closing=closing,
    )


def was_knocked_out(run: Run) -> bool:
    """True where the study of the evaluated model has a knock-out, with errors of its frames."""
    study = run.attention_of_metrics
    return study is not None and study["knock_out"] is not None and run.knock_out_file.is_file()


def _rows(label: str, runs: Sequence[Run]) -> list[Worth]:
    """Measure a variant, whose runs are its seeds: a row per branch, and one of both."""
    errors = [read_knock_out_errors(run.knock_out_file) for run in runs]
    frames, variants = errors[0].frames, list(errors[0].error_VF2)
    for run, other in zip(runs, errors, strict=True):
        if not other.frames.equals(frames) or [*other.error_VF2] != variants:
            raise MsposeError(
                f"{run.folder} was knocked out on other frames than {runs[0].folder}: run `mspose"
                " attention --knock-out` on both"
            )
    rows = {
        branch: Worth(label, branch, len(runs), len(frames), {}, {})
        for branch in dict.fromkeys(what.branch for what in of_branches())
        if any(what is not None and what.branch == branch for what in variants)
    }
    for column, error in enumerate(ERRORS):
        error_RF = np.stack([of.error_VF2[what][:, column] for of in errors for what in variants])
        medians = average(medians_by_scene(frames, error_RF).values())
        own = {
            what: list(range(index, len(error_RF), len(variants)))
            for index, what in enumerate(variants)
        }
        intact = Measure(tuple(medians.measured_R[own[None]].tolist()))
        for row in rows.values():
            row.intact[error] = intact
        for what in filter(None, variants):
            found = medians.difference(own[what], own[None])
            rows[what.branch].differences[error, what.by] = found
    return list(rows.values())


def _grid(rows: Sequence[Worth]) -> Grid:
    sections: dict[str, list[Line]] = {section: [] for section in SECTIONS.values()}
    for error, section in SECTIONS.items():
        for row in rows:
            differences = [row.differences.get((error, by)) for by in REPLACEMENTS]
            cells = [
                row.branch,
                row.intact[error].text(DIGITS[error]),
                *(marked_difference(d, DIGITS[error]) if d else DASH for d in differences),
            ]
            sections[section].append(Line(f"{row.label} ({seed_count(row.seeds)})", cells))
    return Grid(["Variant", "Branch", "As trained", *(SAID[by] for by in REPLACEMENTS)], sections)


def _values(ablation: Ablation, finished: Finished, rows: Sequence[Worth]) -> list[dict[str, Any]]:
    """Make a line per variant, branch and replacement."""
    lines = []
    for row in rows:
        for by in REPLACEMENTS:
            line: dict[str, Any] = {
                "ablation": ablation.name,
                **finished.group._asdict(),
                "variant": row.label,
                "seeds": row.seeds,
                "branch": row.branch,
                "replaced_by": by,
                "frames": row.frames,
            }
            for error in ERRORS:
                found = row.differences[error, by]
                line |= {
                    error: row.intact[error].mean,
                    f"{error}_difference": found.mean,
                    f"{error}_low": found.low,
                    f"{error}_high": found.high,
                }
            lines.append(line)
    return lines
