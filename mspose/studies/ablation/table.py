"""Table of an ablation: errors of every variant, intervals of their differences, attention.

Upper part: position errors, beside the position branch's attention; lower part: the same of
orientation.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mspose.attention.attention_json import counted
from mspose.config import BRANCHES
from mspose.errors import MsposeError
from mspose.metrics import ERROR_COLUMNS
from mspose.run import Run
from mspose.studies.ablation.bootstrap import (
    LEVEL,
    RESAMPLES,
    Difference,
    average,
    medians_by_scene,
)
from mspose.studies.ablation.finished import Finished, finished_ablation, named_by_seeds
from mspose.studies.ablation.plan import Ablation, read_ablation
from mspose.studies.ablation.worth import make_worth_table
from mspose.studies.knock_out import DIGITS, SECTIONS
from mspose.studies.rows import ERRORS, Measure, lacking_frames
from mspose.studies.tables import (
    AVERAGE,
    DASH,
    MINUS,
    Cell,
    Format,
    Grid,
    Line,
    PrintedTable,
    metric_cells,
    seed_count,
)

BRANCH_SECTIONS = ("Position branch", "Orientation branch")
"""In place of SECTIONS where the columns are about attention alone."""
ATTENTION_COLUMNS = ("Attention entropy", "Query-key gap", "Layers")
MARKS = {"improvement": "", "worsening": " ‡", "not established": " †"}
"""Signs behind a difference."""


class Attention(NamedTuple):
    """Attention in one branch's encoder layers: means over layers, a value per seed."""

    entropy: Measure
    limit: float
    gap: Measure
    verdicts: str
    """`uniform`, or `uniform 4, selective 2`, counted over the layers of all seeds."""


class Variant(NamedTuple):
    """A row of the table.

    `medians` and `differences` are by error (of ERRORS) and scene or AVERAGE, `attention` by
    branch.
    """

    label: str
    seeds: tuple[int, ...]
    paired: tuple[int, ...]
    """Seeds that the reference has too."""
    medians: Mapping[tuple[str, str], Measure]
    differences: Mapping[tuple[str, str], Difference]
    """Differences to the reference; empty for the reference, and where no seed is paired."""
    attention: Mapping[str, Attention]


def ablation_table(
    ablation: Ablation | Path | str,
    runs: Iterable[Path | str],
    *,
    dataset: str | None = None,
    seeds: Sequence[int] | None = None,
    block: int | None = None,
    format: Format = "markdown",
) -> str:
    """Format the table of the finished runs of an ablation in or below `runs`; below it, except in
    CSV, what self-attention is worth to them, where it was knocked out.

    Args:
        ablation: the object, its file, or its name in `experiments/ablations/`.
        dataset: the experiment that it was run on, by default the file's base.
        seeds: count only these.
        block: see `make_ablation_table`.

    Raises MsposeError as `finished_ablation` and `make_ablation_table` do.
    """
    ablation = ablation if isinstance(ablation, Ablation) else read_ablation(ablation)
    finished = finished_ablation(ablation, runs, dataset=dataset, seeds=seeds)
    text = make_ablation_table(ablation, finished, block=block).to_text(format)
    worth = None if format == "csv" else make_worth_table(ablation, finished)
    return text if worth is None else f"{text}\n{worth.to_text(format)}"


def make_ablation_table(
    ablation: Ablation, finished: Finished, *, block: int | None = None
) -> PrintedTable:
    """Tabulate medians, differences to the reference and attention of finished runs.

    block: neighbouring frames that are resampled together, see `block_length`, which chooses it by
    default. Raises MsposeError where runs were tested on different frames.
    """
    keys = [(label, seed) for label, seeds in finished.runs.items() for seed in seeds]
    runs = [finished.runs[label][seed] for label, seed in keys]
    frames, error_RF = _errors(runs)
    by_scene = medians_by_scene(frames, error_RF, block)
    blocks = {scene: found.block for scene, found in by_scene.items()}
    by_scene[AVERAGE] = average(by_scene.values())
    medians = {
        (error, scene): found.of(slice(number * len(runs), (number + 1) * len(runs)))
        for number, error in enumerate(ERRORS)
        for scene, found in by_scene.items()
    }

    def variant(label: str) -> Variant:
        seeds, reference = finished.runs[label], finished.runs.get(ablation.reference, {})
        paired = [seed for seed in seeds if seed in reference and label != ablation.reference]
        own, with_reference, of_reference = (
            [keys.index((name, seed)) for seed in some]
            for name, some in ((label, seeds), (label, paired), (ablation.reference, paired))
        )
        return Variant(
            label=label,
            seeds=tuple(seeds),
            paired=tuple(paired),
            medians={
                key: Measure(tuple(found.measured_R[own].tolist()))
                for key, found in medians.items()
            },
            differences={
                key: found.difference(with_reference, of_reference)
                for key, found in medians.items()
                if paired
            },
            attention=_attention(list(seeds.values())),
        )

    rows = [variant(label) for label in finished.runs]
    counts = {str(scene): len(part) for scene, part in frames.groupby("scene")}
    grid, narrow = _grid(ablation.reference, rows, list(counts)), []
    if _studied(rows):
        last = len(ATTENTION_COLUMNS)
        narrow = [
            _part(grid, slice(-last), list(SECTIONS.values())),
            _part(grid, slice(-last, None), BRANCH_SECTIONS),
        ]
    return PrintedTable(
        caption=_caption(ablation, finished, rows),
        grid=grid,
        latex_grids=narrow,
        values=_values(ablation, finished, rows, counts),
        closing=[
            *_closing(ablation.reference, rows, counts, lacking_frames(runs), blocks),
            *finished.remarks,
        ],
    )


def _errors(runs: Sequence[Run]) -> tuple[pd.DataFrame, np.ndarray]:
    """Read the frames that all runs share, sorted, and their errors: in metres of all runs, then in
    degrees.
    """
    tables = [run.errors().sort_values(["scene", "image"], ignore_index=True) for run in runs]
    frames = tables[0][["scene", "image"]]
    for run, table in zip(runs, tables, strict=True):
        if not table[["scene", "image"]].equals(frames):
            raise MsposeError(
                f"{run.folder} was tested on other frames than {runs[0].folder}: evaluate both on"
                " the same"
            )
    return frames, np.stack([table[error] for error in ERROR_COLUMNS for table in tables])


def _attention(runs: Sequence[Run]) -> dict[str, Attention]:
    """Summarise attention by branch, over the seeds that were studied."""
    found = {}
    for branch in BRANCHES:
        studied = [
            layers
            for run in runs
            if (study := run.attention_of_metrics)
            and (layers := [layer for layer in study["layers"] if layer["branch"] == branch])
        ]
        if studied:
            entropy, gap = (
                Measure(
                    tuple(float(np.mean([layer[name] for layer in layers])) for layers in studied)
                )
                for name in ("entropy", "query_key_gap")
            )
            verdicts = counted(layer["verdict"] for layers in studied for layer in layers)
            found[branch] = Attention(entropy, studied[0][0]["entropy_limit"], gap, verdicts)
    return found


def _studied(rows: Sequence[Variant]) -> bool:
    return any(row.attention for row in rows)


def _grid(reference: str, rows: Sequence[Variant], scenes: Sequence[str]) -> Grid:
    header = ["Variant", *scenes, AVERAGE]
    if len(rows) > 1:
        header.append(f"{MINUS} {reference} [{LEVEL * 100:g} %]")
    if _studied(rows):
        header += ATTENTION_COLUMNS
    labels = []
    for row in rows:
        role = "reference, " if row.label == reference else ""
        labels.append(f"{row.label} ({role}{seed_count(len(row.seeds))})")
    sections = {}
    for (error, section), branch in zip(SECTIONS.items(), BRANCHES, strict=True):
        digits = DIGITS[error]
        columns: list[Sequence[Cell]] = [
            metric_cells([[row.medians[error, scene]] for row in rows], (digits,))
            for scene in (*scenes, AVERAGE)
        ]
        if len(rows) > 1:
            differences = [row.differences.get((error, AVERAGE)) for row in rows]
            columns.append(
                [d.text(digits) + MARKS[d.finding] if d is not None else DASH for d in differences]
            )
        if _studied(rows):
            texts = [_attention_texts(row.attention.get(branch)) for row in rows]
            columns += zip(*texts, strict=True)
        sections[section] = list(map(Line, labels, zip(*columns, strict=True)))
    return Grid(header, sections)


def _part(grid: Grid, columns: slice, titles: Sequence[str]) -> Grid:
    """Return some columns of a grid, with other titles of its sections."""
    parts = [
        [line._replace(cells=line.cells[columns]) for line in lines]
        for lines in grid.sections.values()
    ]
    return Grid([grid.header[0], *grid.header[1:][columns]], dict(zip(titles, parts, strict=True)))


def _attention_texts(attention: Attention | None) -> tuple[str, str, str]:
    if attention is None:
        return DASH, DASH, DASH
    entropy = f"{attention.entropy.text(2)} of {attention.limit:.2f}"
    return entropy, attention.gap.text(2), attention.verdicts


def _caption(ablation: Ablation, finished: Finished, rows: Sequence[Variant]) -> str:
    """Say what is tabulated, and what the intervals cover."""
    sentences = [
        f"{ablation.title}.",
        "Median error per scene; Average: unweighted mean over scenes.",
        f"Data set {finished.group}.",
    ]
    if any(len(row.seeds) > 1 for row in rows):
        sentences.append("Mean ± standard deviation over seeds.")
    if len(rows) > 1:
        sentences.append("Bold: the smallest mean, established or not.")
    if pairs := {len(row.paired) for row in rows} - {0}:
        over = "blocks of frames and seeds, both parts widened for their small number"
        if pairs == {1}:
            over = (
                "blocks of frames alone, since there is one seed: it is about these very"
                " networks, and another seed may differ"
            )
        one_seed = ", or is of one seed" if 1 in pairs else ""
        sentences.append(
            f"Difference: average minus that of {ablation.reference}, paired by seed and frame,"
            f" with a {LEVEL * 100:g} % bootstrap interval over {over} ({RESAMPLES} resamples;"
            " not corrected for the number of comparisons). † not established: the interval"
            f" includes 0{one_seed}. ‡ an established worsening. No mark: an established"
            " improvement."
        )
    if _studied(rows):
        sentences.append(
            "Attention entropy (nats, of the limit log tokens, where attention is uniform) and"
            " query-key gap: means over the encoder layers of the position branch above, of the"
            " orientation branch below. Layers: their verdicts, counted over seeds where they"
            " differ."
        )
    return " ".join(sentences)


def _closing(
    reference: str,
    rows: Sequence[Variant],
    frames: Mapping[str, int],
    lacking: Sequence[str],
    blocks: Mapping[str, int],
) -> list[str]:
    """Name frames, seeds without a partner, and rows of one seed."""
    lines = [f"Frames evaluated: {_counts(frames)}."]
    if lacking:
        lines.append(f"Not all test frames of the data set: {', '.join(lacking)}.")
    if any(row.paired for row in rows):
        lines.append(f"Neighbouring frames resampled together: {_counts(blocks)}.")
    others = [row for row in rows if row.label != reference]
    seeds = {seed for row in rows if row.label == reference for seed in row.seeds}
    unpaired = [row.label for row in others if not row.paired]
    if others and not seeds:
        lines.append(f"No differences: {reference}, the reference, has no finished run.")
    elif unpaired:
        lines.append(f"No difference, no seed in common with {reference}: {', '.join(unpaired)}.")
    single = [row.label for row in others if len(row.paired) == 1]
    if single and any(len(row.paired) > 1 for row in others):
        lines.append(f"Interval over frames alone, since one seed is paired: {', '.join(single)}.")
    alone = [(row.label, seed) for row in others if row.paired for seed in {*row.seeds} ^ seeds]
    if alone:
        lacking_seeds = f"Not in a difference, since the variant or {reference} lacks them"
        lines.append(f"{lacking_seeds}: {'; '.join(named_by_seeds(alone))}.")
    return lines


def _counts(by_scene: Mapping[str, int]) -> str:
    return ", ".join(f"{scene} {count}" for scene, count in by_scene.items())


def _values(
    ablation: Ablation, finished: Finished, rows: Sequence[Variant], frames: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Make a line per variant and scene, `Average` last."""
    lines = []
    for row in rows:
        is_reference = row.label == ablation.reference
        for scene in [*frames, AVERAGE]:
            line: dict[str, Any] = {
                "ablation": ablation.name,
                **finished.group._asdict(),
                "variant": row.label,
                "reference": is_reference,
                "scene": scene,
                "seeds": len(row.seeds),
                "paired_seeds": None if is_reference else len(row.paired),
                "frames": frames.get(scene, sum(frames.values())),
            }
            for error in ERRORS:
                measure = row.medians[error, scene]
                difference = row.differences.get((error, scene))
                line |= {
                    error: measure.mean,
                    f"{error}_std": measure.std,
                    f"{error}_difference": difference and difference.mean,
                    f"{error}_low": difference and difference.low,
                    f"{error}_high": difference and difference.high,
                    f"{error}_finding": difference and difference.finding,
                }
            for branch in BRANCHES:
                found = row.attention.get(branch) if scene == AVERAGE else None
                line |= {
                    f"{branch}_entropy_nats": found and found.entropy.mean,
                    f"{branch}_entropy_nats_std": found and found.entropy.std,
                    f"{branch}_entropy_limit_nats": found and found.limit,
                    f"{branch}_query_key_gap": found and found.gap.mean,
                    f"{branch}_query_key_gap_std": found and found.gap.std,
                    f"{branch}_layers": found and found.verdicts,
                }
            lines.append(line)
    return lines
