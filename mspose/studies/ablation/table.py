"""The table of an ablation: errors of every variant, how sure their differences are, and what
attention did.

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

from mspose.errors import MsposeError
from mspose.models.network import BRANCHES
from mspose.studies.ablation.finished import Finished, FinishedCell, finished_cells, named_by_seeds
from mspose.studies.ablation.plan import Ablation, read_ablation
from mspose.studies.ablation.statistics import (
    LEVEL,
    RESAMPLES,
    SEED,
    Difference,
    bootstrap_medians,
    paired_difference,
)
from mspose.studies.rows import Group, Measure
from mspose.studies.tables import (
    DASH,
    HTML,
    LATEX,
    MARKDOWN,
    MINUS,
    Column,
    Format,
    Style,
    html_text,
    latex_text,
    markdown_text,
)

AVERAGE = "Average"
ERRORS = ("position_m", "orientation_deg")
SECTIONS = ("Position (m)", "Orientation (°)")
OF_BRANCH = ("Position branch", "Orientation branch")
"""In place of SECTIONS where there is attention alone."""
DIGITS = (3, 2)
ATTENTION_COLUMNS = ("Attention entropy", "Query-key gap", "Layers")
MARKS = {"improvement": "", "worsening": " ‡", "not established": " †"}
"""Behind a difference, after what it shows."""


class Attention(NamedTuple):
    """Of one branch's encoder layers: means over layers, a value per seed; verdicts counted over
    layers and seeds.
    """

    entropy: Measure
    limit: float
    gap: Measure
    verdicts: Mapping[str, int]


@dataclass(frozen=True)
class AblationRow:
    """A variant. `medians` and `differences` are by error (of ERRORS) and scene or AVERAGE,
    `attention` by branch.
    """

    label: str
    seeds: tuple[int, ...]
    paired: tuple[int, ...]
    """Seeds that the reference has too."""
    medians: Mapping[tuple[str, str], Measure]
    differences: Mapping[tuple[str, str], Difference]
    """To the reference; none of the reference, and where no seed is paired."""
    attention: Mapping[str, Attention]


@dataclass(frozen=True)
class AblationTable:
    """The rows of an ablation on one data set, ready to be written. `make_ablation_table` builds
    it.
    """

    name: str
    title: str
    reference: str
    group: Group
    frames: Mapping[str, int]
    """By scene."""
    rows: list[AblationRow]
    remarks: list[str]
    """What else a reader must know."""

    def caption(self) -> str:
        """What the figures are, how they were taken, and what the intervals cover."""
        pairs = {len(row.paired) for row in self.rows} - {0}
        over = "frames and seeds, the seeds' part widened for their small number"
        if pairs == {1}:
            over = (
                "frames alone, since there is one seed: it is about these very networks, and"
                " another seed may differ"
            )
        interval = (
            f" Difference: average minus that of {self.reference}, paired by seed and frame, with a"
            f" {LEVEL * 100:g} % bootstrap interval over {over} ({RESAMPLES} resamples; frames"
            " count as independent; not corrected for the number of comparisons). † not"
            f" established: the interval includes 0{', or is of one seed' * (1 in pairs)}. ‡ an"
            " established worsening. No mark: an established improvement."
        )
        attention = (
            " Attention entropy (nats, of the limit log tokens, where attention is uniform) and"
            " query-key gap: means over the encoder layers of the position branch above, of the"
            " orientation branch below. Layers: their verdicts, counted over seeds where they"
            " differ."
        )
        studied = any(row.attention for row in self.rows)
        bold = " Bold: the smallest mean, established or not." if len(self.rows) > 1 else ""
        spread = (
            " Mean ± standard deviation over seeds."
            if any(len(row.seeds) > 1 for row in self.rows)
            else ""
        )
        return (
            f"{self.title}. Median error per scene; Average: unweighted mean over scenes. Data set"
            f" {self.group}.{spread}{bold}{interval * bool(pairs)}{attention * studied}"
        )

    def closing(self) -> list[str]:
        """Frames, seeds without a partner, rows of a single seed, and what `finished_cells`
        remarked.
        """
        frames = ", ".join(f"{scene} {count}" for scene, count in self.frames.items())
        lines = [f"Frames evaluated: {frames}."]
        others = [row for row in self.rows if row.label != self.reference]
        if others and all(row.label != self.reference for row in self.rows):
            lines.append(f"No differences: {self.reference}, the reference, has no finished cell.")
        elif unpaired := [row for row in others if not row.paired]:
            lines.append(
                f"No difference, no seed in common with {self.reference}: {_labels(unpaired)}."
            )
        if single := [
            row for row in others if len(row.paired) == 1 and any(len(r.paired) > 1 for r in others)
        ]:
            lines.append(
                f"Interval over frames alone, since one seed is paired: {_labels(single)}."
            )
        reference = next((row.seeds for row in self.rows if row.label == self.reference), ())
        alone = [
            (row.label, seed)
            for row in others
            if row.paired
            for seed in {*row.seeds} ^ {*reference}
        ]
        if alone:
            lacking = f"Not in a difference, since the variant or {self.reference} lacks them"
            lines.append(f"{lacking}: {'; '.join(named_by_seeds(alone))}.")
        return [*lines, *self.remarks]

    def label(self, row: AblationRow) -> str:
        """`both (3 seeds)`."""
        role = "reference, " if row.label == self.reference else ""
        return f"{row.label} ({role}{len(row.seeds)} seed{'s' * (len(row.seeds) > 1)})"

    def grid(self, style: Style) -> tuple[pd.DataFrame, list[str]]:
        """(all cells as text, a line per section and its rows below it; no footnotes)."""
        places = [*self.frames, AVERAGE]
        attention = any(row.attention for row in self.rows)
        more = [f"{MINUS} {self.reference} [{LEVEL * 100:g} %]"] if len(self.rows) > 1 else []
        more += ATTENTION_COLUMNS if attention else []
        lines = []
        for error, branch, section, digits in zip(ERRORS, BRANCHES, SECTIONS, DIGITS, strict=True):
            columns = [
                Column(place, [(row.medians[error, place],) for row in self.rows], (digits,)).texts(
                    style
                )
                for place in places
            ]
            if len(self.rows) > 1:
                columns.append(
                    [
                        _difference_text(row.differences.get((error, AVERAGE)), digits)
                        for row in self.rows
                    ]
                )
                columns[-1] = [style.plain(text) for text in columns[-1]]
            if attention:
                texts = [_attention_texts(row.attention.get(branch)) for row in self.rows]
                columns += [
                    [style.plain(text) for text in column] for column in zip(*texts, strict=True)
                ]
            lines.append((style.section(style.plain(section)), *("" for _ in columns)))
            lines += zip([style.plain(self.label(row)) for row in self.rows], *columns, strict=True)
        header = ["Variant", *(style.plain(name) for name in [*places, *more])]
        return pd.DataFrame(lines, columns=header), []

    def to_markdown(self) -> str:
        """Caption, pipe table, what else a reader must know."""
        return markdown_text(
            self.caption(),
            self.grid(MARKDOWN)[0],
            [MARKDOWN.plain(line) for line in self.closing()],
        )

    def to_latex(self) -> str:
        """A `table` environment for booktabs and graphicx: errors and, below them, what attention
        did.
        """
        closing = [LATEX.plain(line) for line in self.closing()]
        grid = self.grid(LATEX)[0]
        errors = [name for name in grid.columns if name not in ATTENTION_COLUMNS]
        grids = [grid[errors]]
        if len(errors) < len(grid.columns):
            old, new = (
                [LATEX.section(LATEX.plain(name)) for name in names]
                for names in (SECTIONS, OF_BRANCH)
            )
            branch = dict(zip(old, new, strict=True))
            grids.append(grid[["Variant", *ATTENTION_COLUMNS]].replace({"Variant": branch}))
        return latex_text(self.caption(), grids, closing, [*SECTIONS, *OF_BRANCH])

    def to_html(self) -> str:
        """Caption, table, what else a reader must know, for a page of HTML."""
        return html_text(
            self.caption(), self.grid(HTML)[0], [HTML.plain(line) for line in self.closing()]
        )

    def to_csv(self) -> str:
        """Long form, a line per variant and scene (`Average` last), unrounded; an empty field is a
        missing value.
        """
        lines = []
        for row in self.rows:
            for place in [*self.frames, AVERAGE]:
                line: dict[str, Any] = {
                    "ablation": self.name,
                    **self.group._asdict(),
                    "variant": row.label,
                }
                line |= {
                    "reference": row.label == self.reference,
                    "scene": place,
                    "seeds": len(row.seeds),
                }
                line |= {"paired_seeds": len(row.paired) if row.label != self.reference else None}
                line["frames"] = self.frames.get(place, sum(self.frames.values()))
                for error in ERRORS:
                    measure, difference = (
                        row.medians[error, place],
                        row.differences.get((error, place)),
                    )
                    line |= {error: measure.mean, f"{error}_std": measure.std}
                    line |= {
                        f"{error}_difference": difference.mean if difference else None,
                        f"{error}_low": difference.low if difference else None,
                        f"{error}_high": difference.high if difference else None,
                        f"{error}_finding": difference.finding if difference else None,
                    }
                for branch in BRANCHES:
                    of = row.attention.get(branch) if place == AVERAGE else None
                    line |= {
                        f"{branch}_entropy_nats": of.entropy.mean if of else None,
                        f"{branch}_entropy_nats_std": of.entropy.std if of else None,
                        f"{branch}_entropy_limit_nats": of.limit if of else None,
                        f"{branch}_query_key_gap": of.gap.mean if of else None,
                        f"{branch}_query_key_gap_std": of.gap.std if of else None,
                        f"{branch}_layers": _verdict_text(of.verdicts) if of else None,
                    }
                lines.append(line)
        table = pd.DataFrame(lines).astype({"paired_seeds": "Int64"})
        return table.to_csv(index=False, lineterminator="\n")


def ablation_table(
    ablation: Ablation | Path | str, runs: Iterable[Path | str], *,
    dataset: str | None = None, seeds: Sequence[int] | None = None, format: Format = "markdown",
) -> str:  # fmt: skip
    """The table of the finished cells of an ablation in or below `runs`, as text.

    ablation: the object, its file, or its name in `experiments/ablations/`. dataset: the experiment
    that it was run on, by default the file's base. seeds: count only these. Raises MsposeError as
    `finished_cells` does.
    """
    writers = {
        "markdown": AblationTable.to_markdown,
        "latex": AblationTable.to_latex,
        "csv": AblationTable.to_csv,
    }
    if format not in writers:
        raise MsposeError(f"format {format}: expected one of {', '.join(writers)}")
    ablation = ablation if isinstance(ablation, Ablation) else read_ablation(ablation)
    return writers[format](
        make_ablation_table(ablation, finished_cells(ablation, runs, dataset=dataset, seeds=seeds))
    )


def make_ablation_table(ablation: Ablation, finished: Finished) -> AblationTable:
    """Medians, differences to the reference and attention figures of the finished cells."""
    cells = finished.cells
    runs = [(label, seed) for label, seeds in cells.items() for seed in seeds]
    first = cells[runs[0][0]][runs[0][1]]
    frames = {scene: errors.shape[1] for scene, errors in first.errors.items()}
    measured: dict[tuple[str, str], np.ndarray] = {}
    resampled: dict[tuple[str, str], np.ndarray] = {}
    for number, scene in enumerate(frames):
        error_2RF = np.stack([cells[label][seed].errors[scene] for label, seed in runs], axis=1)
        median_B2R = bootstrap_medians(
            error_2RF.reshape(2 * len(runs), -1), np.random.default_rng([SEED, number])
        )
        for which, error in enumerate(ERRORS):
            measured[error, scene] = np.median(error_2RF[which], axis=1)
            resampled[error, scene] = median_B2R[:, which * len(runs) : (which + 1) * len(runs)]
    for error in ERRORS:
        for figures in (measured, resampled):
            figures[error, AVERAGE] = np.mean([figures[error, scene] for scene in frames], axis=0)

    def row(label: str) -> AblationRow:
        own = {seed: runs.index((label, seed)) for seed in cells[label]}
        of_reference = {
            seed: runs.index((ablation.reference, seed))
            for seed in cells.get(ablation.reference, ())
        }
        paired = tuple(seed for seed in own if seed in of_reference and label != ablation.reference)
        a, b = [own[seed] for seed in paired], [of_reference[seed] for seed in paired]
        return AblationRow(
            label=label,
            seeds=tuple(own),
            paired=paired,
            medians={
                key: Measure(tuple(map(float, values[list(own.values())])))
                for key, values in measured.items()
            },
            differences={
                key: paired_difference(
                    values[a] - values[b], resampled[key][:, a] - resampled[key][:, b]
                )
                for key, values in (measured.items() if paired else ())
            },
            attention=_attention(list(cells[label].values())),
        )

    return AblationTable(
        name=ablation.name,
        title=ablation.title,
        reference=ablation.reference,
        group=finished.group,
        frames=frames,
        rows=[row(label) for label in cells],
        remarks=finished.remarks,
    )


def _attention(cells: Sequence[FinishedCell]) -> dict[str, Attention]:
    """By branch, of the seeds that were studied; a branch without encoder layers is left out."""
    found = {}
    for branch in BRANCHES:
        studied = [
            layers
            for cell in cells
            if cell.study
            and (layers := [layer for layer in cell.study["layers"] if layer["branch"] == branch])
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
    """`healthy`, or `collapsed 4, healthy 2`: the most frequent first."""
    if len(verdicts) == 1:
        return next(iter(verdicts))
    return ", ".join(
        f"{name} {count}"
        for name, count in sorted(verdicts.items(), key=lambda item: (-item[1], item[0]))
    )


def _labels(rows: Sequence[AblationRow]) -> str:
    return ", ".join(row.label for row in rows)
