"""Table of an ablation: errors of every variant, intervals of their differences, attention.

Upper part: position errors, beside the position branch's attention; lower part: the same of
orientation.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    SEED,
    Difference,
    block_length,
    bootstrap_medians,
    in_sequences,
    paired_difference,
)
from mspose.studies.ablation.finished import Finished, finished_ablation, named_by_seeds
from mspose.studies.ablation.plan import Ablation, read_ablation
from mspose.studies.ablation.worth import make_worth_table
from mspose.studies.rows import Group, Measure, lacking_frames
from mspose.studies.tables import (
    AVERAGE,
    DASH,
    LATEX,
    MINUS,
    Column,
    Format,
    PrintedTable,
    Style,
    seed_count,
)

ERRORS = ("position_m", "orientation_deg")
SECTIONS = ("Position (m)", "Orientation (°)")
BRANCH_SECTIONS = ("Position branch", "Orientation branch")
"""In place of SECTIONS where the columns are about attention alone."""
DIGITS = (3, 2)
ATTENTION_COLUMNS = ("Attention entropy", "Query-key gap", "Layers")
MARKS = {"improvement": "", "worsening": " ‡", "not established": " †"}
"""Signs behind a difference."""


class Attention(NamedTuple):
    """Attention in one branch's encoder layers: means over layers, a value per seed."""

    entropy: Measure
    limit: float
    gap: Measure
    verdicts: Mapping[str, int]
    """Number of layers, of all seeds, by verdict."""


@dataclass(frozen=True)
class AblationRow:
    """A variant.

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


@dataclass(frozen=True)
class AblationTable(PrintedTable):
    """Rows of an ablation on one data set, ready to be written. `make_ablation_table` builds it."""

    name: str
    title: str
    reference: str
    group: Group
    frames: Mapping[str, int]
    """Number of frames by scene."""
    lacking: list[str]
    """Test frames of the data set that were not evaluated: `chess 16 of 2,000`."""
    blocks: Mapping[str, int]
    """Length of the blocks that frames were resampled in, by scene."""
    rows: list[AblationRow]
    remarks: list[str]
    """Notes below the table."""

    def caption(self) -> str:
        """See `PrintedTable`; with what the intervals cover."""
        sentences = [
            f"{self.title}.",
            "Median error per scene; Average: unweighted mean over scenes.",
            f"Data set {self.group}.",
        ]
        if any(len(row.seeds) > 1 for row in self.rows):
            sentences.append("Mean ± standard deviation over seeds.")
        if len(self.rows) > 1:
            sentences.append("Bold: the smallest mean, established or not.")
        if pairs := {len(row.paired) for row in self.rows} - {0}:
            over = "blocks of frames and seeds, both parts widened for their small number"
            if pairs == {1}:
                over = (
                    "blocks of frames alone, since there is one seed: it is about these very"
                    " networks, and another seed may differ"
                )
            one_seed = ", or is of one seed" if 1 in pairs else ""
            sentences.append(
                f"Difference: average minus that of {self.reference}, paired by seed and frame,"
                f" with a {LEVEL * 100:g} % bootstrap interval over {over} ({RESAMPLES} resamples;"
                " not corrected for the number of comparisons). † not established: the interval"
                f" includes 0{one_seed}. ‡ an established worsening. No mark: an established"
                " improvement."
            )
        if self._studied():
            sentences.append(
                "Attention entropy (nats, of the limit log tokens, where attention is uniform) and"
                " query-key gap: means over the encoder layers of the position branch above, of the"
                " orientation branch below. Layers: their verdicts, counted over seeds where they"
                " differ."
            )
        return " ".join(sentences)

    def closing(self) -> list[str]:
        """See `PrintedTable`: frames, seeds without a partner, rows of one seed, remarks."""
        frames = ", ".join(f"{scene} {count}" for scene, count in self.frames.items())
        lines = [f"Frames evaluated: {frames}."]
        if self.lacking:
            lines.append(f"Not all test frames of the data set: {', '.join(self.lacking)}.")
        if any(row.paired for row in self.rows):
            blocks = ", ".join(f"{scene} {length}" for scene, length in self.blocks.items())
            lines.append(f"Neighbouring frames resampled together: {blocks}.")
        others = [row for row in self.rows if row.label != self.reference]
        reference = [row for row in self.rows if row.label == self.reference]
        unpaired = [row.label for row in others if not row.paired]
        if others and not reference:
            lines.append(f"No differences: {self.reference}, the reference, has no finished run.")
        elif unpaired:
            lines.append(
                f"No difference, no seed in common with {self.reference}: {', '.join(unpaired)}."
            )
        single = [row.label for row in others if len(row.paired) == 1]
        if single and any(len(row.paired) > 1 for row in others):
            lines.append(
                f"Interval over frames alone, since one seed is paired: {', '.join(single)}."
            )
        alone = [
            (row.label, seed)
            for row in others
            if row.paired
            for seed in {*row.seeds} ^ {*reference[0].seeds}
        ]
        if alone:
            lacking = f"Not in a difference, since the variant or {self.reference} lacks them"
            lines.append(f"{lacking}: {'; '.join(named_by_seeds(alone))}.")
        return [*lines, *self.remarks]

    def label(self, row: AblationRow) -> str:
        """Label of a row: `both (3 seeds)`."""
        role = "reference, " if row.label == self.reference else ""
        return f"{row.label} ({role}{seed_count(len(row.seeds))})"

    def _studied(self) -> bool:
        return any(row.attention for row in self.rows)

    def grid(self, style: Style) -> tuple[pd.DataFrame, list[str]]:
        """See `PrintedTable`; without footnotes."""
        scenes = [*self.frames, AVERAGE]
        header = ["Variant", *scenes]
        if len(self.rows) > 1:
            header.append(f"{MINUS} {self.reference} [{LEVEL * 100:g} %]")
        if self._studied():
            header += ATTENTION_COLUMNS
        lines = []
        for error, branch, section, digits in zip(ERRORS, BRANCHES, SECTIONS, DIGITS, strict=True):
            columns = [[style.plain(self.label(row)) for row in self.rows]]
            for scene in scenes:
                cells: list[tuple[Measure, ...]] = [
                    (row.medians[error, scene],) for row in self.rows
                ]
                columns.append(Column(scene, cells, (digits,)).texts(style))
            if len(self.rows) > 1:
                differences = [row.differences.get((error, AVERAGE)) for row in self.rows]
                columns.append([style.plain(_difference_text(d, digits)) for d in differences])
            if self._studied():
                texts = [_attention_texts(row.attention.get(branch)) for row in self.rows]
                columns += [list(map(style.plain, column)) for column in zip(*texts, strict=True)]
            lines.append([style.section(style.plain(section)), *[""] * (len(columns) - 1)])
            lines += map(list, zip(*columns, strict=True))
        return pd.DataFrame(lines, columns=[style.plain(name) for name in header]), []

    def latex_grids(self) -> tuple[list[pd.DataFrame], list[str]]:
        """See `PrintedTable`: errors and, below them, attention."""
        grid, notes = self.grid(LATEX)
        errors = [name for name in grid.columns if name not in ATTENTION_COLUMNS]
        if len(errors) == len(grid.columns):
            return [grid], notes
        titles = [
            [LATEX.section(LATEX.plain(name)) for name in names]
            for names in (SECTIONS, BRANCH_SECTIONS)
        ]
        renamed = grid["Variant"].replace(*titles)
        attention = grid[["Variant", *ATTENTION_COLUMNS]].assign(Variant=renamed)
        return [grid[errors], attention], notes

    def to_csv(self) -> str:
        """See `PrintedTable`: a line per variant and scene, `Average` last."""
        lines = []
        for row in self.rows:
            for scene in [*self.frames, AVERAGE]:
                line: dict[str, Any] = {
                    "ablation": self.name,
                    **self.group._asdict(),
                    "variant": row.label,
                    "reference": row.label == self.reference,
                    "scene": scene,
                    "seeds": len(row.seeds),
                    "paired_seeds": None if row.label == self.reference else len(row.paired),
                    "frames": self.frames.get(scene, sum(self.frames.values())),
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
                        f"{branch}_layers": found and _verdict_text(found.verdicts),
                    }
                lines.append(line)
        table = pd.DataFrame(lines).astype({"paired_seeds": "Int64"})
        return table.to_csv(index=False, lineterminator="\n")


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
) -> AblationTable:
    """Compute medians, differences to the reference and attention of finished runs.

    block: neighbouring frames that are resampled together, see `block_length`, which chooses it by
    default. Raises MsposeError where runs were tested on different frames.
    """
    keys = [(label, seed) for label, seeds in finished.runs.items() for seed in seeds]
    runs = [finished.runs[label][seed] for label, seed in keys]
    errors, sequences = _errors_by_scene(runs)
    measured: dict[tuple[str, str], np.ndarray] = {}
    resampled: dict[tuple[str, str], np.ndarray] = {}
    blocks: dict[str, int] = {}
    for number, (scene, error_2RF) in enumerate(errors.items()):
        generator = np.random.default_rng([SEED, number])
        error_RF = error_2RF.reshape(2 * len(keys), -1)
        blocks[scene] = block or block_length(error_RF, sequences[scene])
        median_B2R = bootstrap_medians(
            error_RF, generator, sequence_F=sequences[scene], block=blocks[scene]
        )
        for which, error in enumerate(ERRORS):
            measured[error, scene] = np.median(error_2RF[which], axis=1)
            resampled[error, scene] = median_B2R[:, which * len(keys) : (which + 1) * len(keys)]
    for error in ERRORS:
        for medians in (measured, resampled):
            medians[error, AVERAGE] = np.mean([medians[error, scene] for scene in errors], axis=0)

    def row(label: str) -> AblationRow:
        own = {seed: keys.index((label, seed)) for seed in finished.runs[label]}
        paired = tuple(
            seed
            for seed in own
            if (ablation.reference, seed) in keys and label != ablation.reference
        )
        a = [own[seed] for seed in paired]
        b = [keys.index((ablation.reference, seed)) for seed in paired]
        return AblationRow(
            label=label,
            seeds=tuple(own),
            paired=paired,
            medians={
                key: Measure(tuple(values[list(own.values())].tolist()))
                for key, values in measured.items()
            },
            differences={
                key: paired_difference(
                    values[a] - values[b], resampled[key][:, a] - resampled[key][:, b]
                )
                for key, values in (measured.items() if paired else ())
            },
            attention=_attention(list(finished.runs[label].values())),
        )

    return AblationTable(
        name=ablation.name,
        title=ablation.title,
        reference=ablation.reference,
        group=finished.group,
        frames={scene: error_2RF.shape[-1] for scene, error_2RF in errors.items()},
        lacking=lacking_frames(runs),
        blocks=blocks,
        rows=[row(label) for label in finished.runs],
        remarks=finished.remarks,
    )


def _errors_by_scene(
    runs: Sequence[Run],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read errors by scene, (2, runs, frames) in metres and degrees, frames in their order in
    sequences; with the number of each frame's sequence (frames).
    """
    tables = [run.errors().sort_values(["scene", "image"], ignore_index=True) for run in runs]
    frames = tables[0][["scene", "image"]]
    for run, table in zip(runs, tables, strict=True):
        if not table[["scene", "image"]].equals(frames):
            raise MsposeError(
                f"{run.folder} was tested on other frames than {runs[0].folder}: evaluate both on"
                " the same"
            )
    error_RF2 = np.stack([table[list(ERROR_COLUMNS)].to_numpy() for table in tables])
    errors, sequences = {}, {}
    for scene, rows in frames.groupby("scene", sort=True).indices.items():
        order, sequences[str(scene)] = in_sequences(frames["image"].iloc[rows].tolist())
        errors[str(scene)] = error_RF2[:, rows[order]].transpose(2, 0, 1)
    return errors, sequences


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
            verdicts = Counter(layer["verdict"] for layers in studied for layer in layers)
            found[branch] = Attention(entropy, studied[0][0]["entropy_limit"], gap, verdicts)
    return found


def _difference_text(difference: Difference | None, digits: int) -> str:
    if difference is None:
        return DASH
    mean, low, high = (f"{value:+.{digits}f}".replace("-", MINUS) for value in difference[:3])
    return f"{mean} [{low}, {high}]{MARKS[difference.finding]}"


def _attention_texts(attention: Attention | None) -> tuple[str, str, str]:
    if attention is None:
        return DASH, DASH, DASH
    entropy = f"{attention.entropy.text(2)} of {attention.limit:.2f}"
    return entropy, attention.gap.text(2), _verdict_text(attention.verdicts)


def _verdict_text(verdicts: Mapping[str, int]) -> str:
    """Format `uniform`, or `uniform 4, selective 2`, the most frequent first."""
    return counted(Counter(verdicts).elements())
