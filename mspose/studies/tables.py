"""Tables as papers print them, from rows of runs and published rows.

Rows share a table only where they were evaluated on the same data: same data set, ground truth and
split, and scene predicted or given.
"""

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pandas as pd

from mspose.errors import MsposeError
from mspose.escaping import csv_text, markdown_text
from mspose.metrics import QUANTILES
from mspose.studies.rows import (
    COSTS,
    OWN,
    PUBLISHED_CSV,
    SECTIONS,
    Group,
    Measure,
    Row,
    SceneMetrics,
    collect_runs,
    published_rows,
    shared_group,
)

Format = Literal["markdown", "latex", "csv"]
Kind = Literal["median", "quantiles", "recall", "recall-scenes", "auc"]
AVERAGE = "Average"
DASH, MINUS = "–", "−"


class Style(NamedTuple):
    """A format's bold, section titles, footnote marks and plain text."""

    bold: Callable[[str], str]
    section: Callable[[str], str]
    mark: Callable[[int], str]
    plain: Callable[[str], str]


_LATEX_SIGNS = str.maketrans(
    {sign: "\\" + sign for sign in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"±": "$\\pm$", "°": "$^{\\circ}$", "†": "$^{\\dagger}$", "‡": "$^{\\ddagger}$"}
    | {DASH: "--", MINUS: "$-$"}
)
MARKDOWN = Style("**{}**".format, "*{}*".format, " [{}]".format, markdown_text)
HTML = Style("<b>{}</b>".format, "<i>{}</i>".format, "<sup>{}</sup>".format, html.escape)
LATEX = Style(
    "\\textbf{{{}}}".format,
    "\\emph{{{}}}".format,
    "$^{{{}}}$".format,
    lambda text: text.translate(_LATEX_SIGNS),
)
SHRUNK = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}"


class PrintedTable(ABC):
    """A table that is written as Markdown, LaTeX, HTML or CSV."""

    @abstractmethod
    def caption(self) -> str:
        """Say which metrics are tabulated, of what, and how they were computed."""

    @abstractmethod
    def closing(self) -> list[str]:
        """List what else a reader must know, in sentences below the table."""

    def aside(self) -> list[str]:
        """List remarks on the files that the table was made from: below it, or LaTeX comments."""
        return []

    @abstractmethod
    def grid(self, style: Style) -> tuple[pd.DataFrame, list[str]]:
        """Format all cells as text, section titles as rows; with the numbered footnotes."""

    @abstractmethod
    def to_csv(self) -> str:
        """Long form, unrounded; an empty field is a missing value."""

    def latex_grids(self) -> tuple[list[pd.DataFrame], list[str]]:
        """Split the grid into those that LaTeX prints one below the other; with the footnotes."""
        grid, notes = self.grid(LATEX)
        return [grid], notes

    def to_markdown(self) -> str:
        """Caption, pipe table, footnotes, closing."""
        grid, notes = self.grid(MARKDOWN)
        align = ("left", *("center" for _ in grid.columns[1:]))
        table = grid.to_markdown(index=False, disable_numparse=True, colalign=align)
        footnotes = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
        parts = [MARKDOWN.plain(self.caption()), table, footnotes]
        parts += map(MARKDOWN.plain, [*self.closing(), *self.aside()])
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_latex(self) -> str:
        """A `table` environment for the packages booktabs and graphicx.

        A grid that is wider than the line is shrunk to its width.
        """
        grids, notes = self.latex_grids()
        tabulars = [
            grid.style.hide(axis="index")
            .to_latex(hrules=True, column_format="l" + "c" * (len(grid.columns) - 1))
            .strip()
            for grid in grids
        ]
        body = "\n\n\\medskip\n".join(f"{SHRUNK}{{%\n{tabular}}}" for tabular in tabulars)
        # a rule above every section but the first, which follows the header's
        body = body.replace("\\\\\n\\emph{", "\\\\\n\\midrule\n\\emph{")
        small = [f"{LATEX.mark(number)} {note}" for number, note in enumerate(notes, 1)]
        small += map(LATEX.plain, self.closing())
        comments = "".join(f"% {' '.join(text.split())}\n" for text in self.aside())
        return (
            f"{comments}\\begin{{table}}[t]\n\\centering\n\\caption{{{LATEX.plain(self.caption())}}}\n"
            f"\\footnotesize\n{body}\n\\par\\smallskip\n{{\\footnotesize\\raggedright\n"
            + "\\par\n".join(small)
            + "\\par}\n\\end{table}\n"
        )

    def to_html(self) -> str:
        """Caption, table in a box that scrolls sideways, footnotes and closing, for a page."""
        grid, notes = self.grid(HTML)
        with pd.option_context("display.max_colwidth", None):  # else pandas cuts long cells
            body = grid.to_html(index=False, escape=False, border=0)
        small = [f"{HTML.mark(number)} {note}" for number, note in enumerate(notes, 1)]
        small += map(HTML.plain, [*self.closing(), *self.aside()])
        below = "".join(f"<p class='small'>{text}</p>" for text in small)
        caption = HTML.plain(self.caption())
        return f"<p class='small'>{caption}</p><div class='wide'>{body}</div>{below}"

    def to_text(self, format: str) -> str:
        """Write in the format of that name. Raises MsposeError where there is no such format."""
        writers = {"markdown": self.to_markdown, "latex": self.to_latex, "csv": self.to_csv}
        if format not in writers:
            raise MsposeError(f"format {format}: expected one of {', '.join(writers)}")
        return writers[format]()


Cell = tuple[Measure, ...]
"""Metrics in a cell, printed with a slash between; none where they are missing."""


class Column(NamedTuple):
    """A column of cells, one per row."""

    header: str
    cells: list[Cell]
    digits: tuple[int, ...]
    larger_is_better: bool | None = False
    """None: no value is the best."""

    def texts(self, style: Style) -> list[str]:
        """Format a text per row.

        The best value of each metric is bold, compared as printed: all of equal ones are, the only
        row of a table is not.
        """
        best_of = max if self.larger_is_better else min
        printed = [
            [float(f"{m.mean:.{n}f}") for m, n in zip(cell, self.digits, strict=False)]
            for cell in self.cells
        ]
        bests = [best_of(values) for values in zip(*filter(None, printed), strict=True)]
        texts = []
        for cell, values in zip(self.cells, printed, strict=True):
            parts = []
            for measure, value, digits, best in zip(cell, values, self.digits, bests, strict=False):
                text = style.plain(measure.text(digits))
                is_best = (
                    value == best and len(self.cells) > 1 and self.larger_is_better is not None
                )
                parts.append(style.bold(text) if is_best else text)
            texts.append(" / ".join(parts) or style.plain(DASH))
        return texts


@dataclass(frozen=True)
class Table(PrintedTable):
    """Rows of one group, ready to be written. `make_table` builds it."""

    group: Group
    rows: list[Row]
    scenes: list[str]
    thresholds: tuple[tuple[float, float], ...]
    kind: Kind
    digits: int
    remarks: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()
    """Further columns, of what the models cost."""

    def average(self, row: Row) -> SceneMetrics | None:
        """Average of a row; None where one of the table's scenes is missing and none is printed."""
        complete = all(scene in row.scenes for scene in self.scenes)
        return row.average if complete or row.average_printed else None

    def _metrics(self, row: Row, scene: str) -> SceneMetrics | None:
        return self.average(row) if scene == AVERAGE else row.scenes.get(scene)

    def columns(self) -> list[Column]:
        """Columns beside the label."""
        return [*self._metric_columns(), *map(self._cost_column, self.costs)]

    def _cost_column(self, cost: str) -> Column:
        measures = [row.costs.get(cost) for row in self.rows]
        if cost == "parameters":
            measures = [m and Measure(tuple(value / 1e6 for value in m.values)) for m in measures]
        cells: list[Cell] = [(measure,) if measure else () for measure in measures]
        return Column(COSTS[cost], cells, (1,), None)

    def _metric_columns(self) -> list[Column]:
        def cells(take: Callable[[SceneMetrics], Cell], scene: str = AVERAGE) -> list[Cell]:
            found = [self._metrics(row, scene) for row in self.rows]
            return [take(metrics) if metrics else () for metrics in found]

        def shares(metrics: SceneMetrics) -> Cell:
            return tuple(share.percent() for share in metrics.recall)

        def accuracy(metrics: SceneMetrics) -> Cell:
            return (metrics.scene_accuracy.percent(),) if metrics.scene_accuracy else ()

        scenes = [*self.scenes, AVERAGE]
        if self.kind == "median":
            return [
                Column(
                    scene,
                    cells(lambda m: (m.position_m, m.orientation_deg), scene),
                    (self.digits, 2),
                )
                for scene in scenes
            ]
        if self.kind == "quantiles":
            return [
                Column(
                    f"{quantile * 100:g} %",
                    cells(lambda m, i=i: m.quantiles[i] if m.quantiles else ()),  # type: ignore[misc]
                    (self.digits, 2),
                )
                for i, quantile in enumerate(QUANTILES)
            ]
        if self.kind == "auc":
            return [
                Column(
                    _threshold_text(pair),
                    cells(lambda m, i=i: tuple(a.percent() for a in m.auc[i : i + 1])),  # type: ignore[misc]
                    (1,),
                    True,
                )
                for i, pair in enumerate(self.thresholds)
            ]
        if self.kind == "recall-scenes":
            places = (1,) * len(self.thresholds)
            columns = [Column(scene, cells(shares, scene), places, True) for scene in scenes]
        else:
            columns = [
                Column(
                    _threshold_text(pair), [cell[i : i + 1] for cell in cells(shares)], (1,), True
                )
                for i, pair in enumerate(self.thresholds)
            ]
        return [*columns, Column("Scene accuracy", cells(accuracy), (1,), True)]

    def label(self, row: Row) -> str:
        """Label of a row: `virtual/all (3 seeds)`."""
        remarks = [seed_count(len(row.seeds))] if row.seeds else []
        if row.group.scene_selection != self.group.scene_selection:
            remarks.append(f"scene {row.group.scene_selection}")
        if row.section == OWN and len(row.scenes) == 1 < len(self.scenes):
            remarks.append("model of one scene" if row.of_one_scene else "one scene")
        if row.lacking:
            remarks.append("not all test frames")
        return f"{row.name} ({', '.join(remarks)})" if remarks else row.name

    def caption(self) -> str:
        """See `PrintedTable`."""
        share = "Share of frames (%) with both errors within "
        metric = {
            "median": (
                "Median position error (m) / median orientation error (°); Average: unweighted mean"
                " over scenes"
            ),
            "quantiles": (
                f"{', '.join(f'{q * 100:g}' for q in QUANTILES)} % quantiles of position error (m)"
                " / orientation error (°); unweighted mean over scenes"
            ),
            "auc": (
                "Area under the recall curve (%) up to the thresholds, both errors as shares of"
                " theirs; unweighted mean over scenes"
            ),
            "recall": share + "the thresholds; unweighted mean over scenes",
            "recall-scenes": share + " / ".join(map(_threshold_text, self.thresholds)),
        }[self.kind]
        several = any(len(row.seeds) > 1 for row in self.rows)
        spread = " Mean ± standard deviation over seeds." if several else ""
        return f"{metric}. Data set {self.group}.{spread}"

    def closing(self) -> list[str]:
        """See `PrintedTable`: number of frames, machines."""
        own = [row for row in self.rows if row.section == OWN]
        counts = {
            scene: dict.fromkeys(
                str(row.scenes[scene].frames) for row in own if scene in row.scenes
            )
            for scene in self.scenes
        }
        frames = [f"{scene} {' or '.join(found)}" for scene, found in counts.items() if found]
        lines = [f"Frames evaluated in this repository: {', '.join(frames)}."] if frames else []
        machines = list(dict.fromkeys(name for row in own for name in row.machines))
        if machines:
            lines.append(f"Evaluated on: {'; '.join(machines)}.")
        if "milliseconds_per_image" in self.costs:
            lines.append("Time: of the whole evaluation, frames read from the cache.")
        return lines

    def aside(self) -> list[str]:
        """See `PrintedTable`: rows to be filled in, remarks."""
        empty = [f"Empty cells of {row.name}: {row.empty}." for row in self.rows if row.empty]
        return [*empty, *self.remarks]

    def grid(self, style: Style) -> tuple[pd.DataFrame, list[str]]:
        """See `PrintedTable`."""
        columns = self.columns()
        notes: list[str] = []
        lines: dict[str, list[tuple[str, ...]]] = {section: [] for section in SECTIONS}
        texts = zip(*(column.texts(style) for column in columns), strict=True)
        for row, cells in zip(self.rows, texts, strict=True):
            label = style.plain(self.label(row))
            if note := "; ".join(filter(None, (row.source, row.note))):
                notes.append(style.plain(note))
                label += style.mark(len(notes))
            lines[row.section].append((label, *cells))
        empty = [""] * len(columns)
        every = [
            line
            for section, inside in lines.items()
            if inside
            for line in ((style.section(section), *empty), *inside)
        ]
        header = ["Method", *(style.plain(column.header) for column in columns)]
        return pd.DataFrame(every, columns=header), notes

    def to_csv(self) -> str:
        """See `PrintedTable`: a line per row and scene, `Average` last."""
        pairs = [f"{metres:g}m_{degrees:g}deg" for metres, degrees in self.thresholds]
        recalls = [f"recall_{pair}" for pair in pairs if self.kind.startswith("recall")]
        areas = [f"auc_{pair}" for pair in pairs if self.kind == "auc"]
        quantiles = [
            f"{name}_{quantile * 100:g}_percent"
            for quantile in QUANTILES
            for name in ("position_m", "orientation_deg")
            if self.kind == "quantiles"
        ]
        lines = []
        for row in self.rows:
            for scene in [*self.scenes, AVERAGE]:
                found = self._metrics(row, scene)
                measures: dict[str, Measure | None] = {
                    "position_m": found.position_m if found else None,
                    "orientation_deg": found.orientation_deg if found else None,
                    "scene_accuracy": found.scene_accuracy if found else None,
                }
                further: list[tuple[list[str], Sequence[Measure]]] = [
                    (recalls, found.recall if found else ()),
                    (areas, found.auc if found else ()),
                    (quantiles, [m for pair in found.quantiles for m in pair] if found else ()),
                ]
                for names, values in further:
                    measures |= dict.fromkeys(names) | dict(zip(names, values, strict=False))
                line = {
                    "label": row.name,
                    "section": row.section,
                    **row.group._asdict(),
                    "scene": scene,
                    "seeds": len(row.seeds) or None,
                    "frames": found and found.frames,
                }
                for name, measure in measures.items():
                    line[name] = measure and measure.mean
                    line[f"{name}_std"] = measure and measure.std
                line |= {name: (m := row.costs.get(name)) and m.mean for name in self.costs}
                lines.append({**line, "source": row.source, "note": row.note})
        plain = [
            {name: csv_text(cell) if isinstance(cell, str) else cell for name, cell in line.items()}
            for line in lines
        ]
        table = pd.DataFrame(plain).astype({"seeds": "Int64", "frames": "Int64"})
        return table.to_csv(index=False, lineterminator="\n")


def seed_count(count: int) -> str:
    """Format `1 seed`, `3 seeds`."""
    return "1 seed" if count == 1 else f"{count} seeds"


def _threshold_text(pair: tuple[float, float]) -> str:
    return f"{pair[0]:g} m, {pair[1]:g}°"


def make_table(
    runs: Sequence[Row],
    published: Sequence[Row] = (),
    *,
    scenes: Sequence[str] = (),
    kind: Kind = "median",
    digits: int = 2,
    remarks: Sequence[str] = (),
    costs: Sequence[str] = (),
) -> Table:
    """Make a table of published rows and runs.

    Args:
        scenes: their columns come first, in this order; the other scenes follow by name.
        kind: `median` (per scene and average), `quantiles` (of both errors, averaged over scenes),
            `recall` or `auc` (a column per threshold, averaged over scenes), or `recall-scenes`.
        digits: decimals of positions; orientations have 2, shares in percent 1.
        costs: further columns, of COSTS.

    Raises MsposeError where rows belong to several groups, and for a recall table where thresholds
    differ.
    """
    rows = [*published, *runs]
    if not rows:
        raise MsposeError("a table needs at least one row")
    if kind not in get_args(Kind) or not 0 <= digits <= 9:
        raise MsposeError(
            f"kind {kind}, digits {digits}: expected one of {', '.join(get_args(Kind))}; digits 0"
            " to 9"
        )
    if unknown := [name for name in costs if name not in COSTS]:
        raise MsposeError(f"column {unknown[0]}: expected one of {', '.join(COSTS)}")
    group = shared_group(rows)
    thresholds = {row.thresholds: row.name for row in runs}
    if kind not in ("median", "quantiles") and (len(thresholds) > 1 or not any(thresholds)):
        found = "; ".join(
            f"{name}: {', '.join(map(_threshold_text, pairs)) or 'none'}"
            for pairs, name in thresholds.items()
        )
        raise MsposeError(
            f"a table of {kind} needs runs with the same thresholds, found {found}; evaluate them"
            " again"
        )
    others = sorted({scene for row in rows for scene in row.scenes} - set(scenes))
    return Table(
        group,
        rows,
        [*scenes, *others],
        next(iter(thresholds), ()),
        kind,
        digits,
        tuple(remarks),
        tuple(costs),
    )


def table_text(
    paths: Iterable[Path | str],
    *,
    format: Format = "markdown",
    published: bool = True,
    dataset: str | None = None,
    ground_truth: str | None = None,
    split: str | None = None,
    digits: int = 2,
    kind: Kind = "median",
    costs: Sequence[str] = (),
    published_csv: Path | str = PUBLISHED_CSV,
) -> str:
    """Format the table of the runs in or below `paths`, as `mspose table` prints it.

    published: put the published medians of the same data set, ground truth and split above the
    runs. Raises MsposeError as `collect_runs`, `published_rows` and `make_table` do.
    """
    rows = collect_runs(paths, dataset=dataset, ground_truth=ground_truth, split=split)
    table = table_of(
        rows,
        published=published,
        digits=digits,
        kind=kind,
        costs=costs,
        published_csv=published_csv,
    )
    return table.to_text(format)


def table_of(
    rows: Sequence[Row],
    *,
    published: bool = True,
    digits: int = 2,
    kind: Kind = "median",
    costs: Sequence[str] = (),
    published_csv: Path | str = PUBLISHED_CSV,
) -> Table:
    """Make the table of runs under the published rows of their group, see `table_text`."""
    group = shared_group(rows)
    known = published_rows(published_csv, group.dataset) if published and kind == "median" else []
    fitting = [row for row in known if row.group == group]
    nothing_fits = [f"No published rows are shown: none is for {group}."]
    remarks = nothing_fits if known and not fitting else []
    return make_table(rows, fitting, kind=kind, digits=digits, remarks=remarks, costs=costs)
