"""Tables as papers print them, from rows of runs and published rows.

Rows share a table only where they were evaluated on the same data: same data set, ground truth and
split, and scene predicted or given.
"""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from mspose.errors import MsposeError
from mspose.escaping import csv_text, markdown_text
from mspose.metrics import QUANTILES
from mspose.studies.rows import (
    COSTS,
    ERRORS,
    OWN,
    PUBLISHED_CSV,
    SECTIONS,
    Measure,
    Row,
    SceneMetrics,
    collect_runs,
    published_rows,
    quantile_name,
    shared_group,
    threshold_name,
)

Format = Literal["markdown", "latex", "csv"]
Kind = Literal["median", "quantiles", "recall", "recall-scenes", "auc"]
AVERAGE = "Average"
COUNTS = ["seeds", "paired_seeds", "frames"]
"""Columns of a CSV that hold whole numbers, which may be missing."""
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


class Number(NamedTuple):
    """A number in a cell, as text."""

    text: str
    bold: bool = False


Cell = str | Sequence[Number]
"""Text, or numbers that are printed with a slash between."""


class Line(NamedTuple):
    """A line of a table, with its footnote."""

    label: str
    cells: Sequence[Cell]
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """Lines of a table by the title of their section, below a header."""

    header: Sequence[str]
    sections: Mapping[str, Sequence[Line]]

    def notes(self) -> list[str]:
        """List the footnotes in the order of their numbers, which are from 1."""
        return [line.note for lines in self.sections.values() for line in lines if line.note]

    def styled(self, style: Style) -> pd.DataFrame:
        """Format all cells as text, titles of sections as rows."""
        texts, number = [], 0
        for title, lines in self.sections.items():
            if lines:
                blank = [""] * (len(self.header) - 1)
                texts.append([style.section(style.plain(title)), *blank])
            for line in lines:
                label = style.plain(line.label)
                if line.note:
                    number += 1
                    label += style.mark(number)
                texts.append([label, *(_cell_text(cell, style) for cell in line.cells)])
        return pd.DataFrame(texts, columns=[style.plain(name) for name in self.header])


def _cell_text(cell: Cell, style: Style) -> str:
    if isinstance(cell, str):
        return style.plain(cell)
    parts = [style.bold(style.plain(text)) if bold else style.plain(text) for text, bold in cell]
    return " / ".join(parts) or style.plain(DASH)


@dataclass(frozen=True)
class PrintedTable:
    """A table that is written as Markdown, LaTeX, HTML or CSV."""

    caption: str
    """Which metrics are tabulated, of what, and how they were computed."""
    grid: Grid
    values: Sequence[Mapping[str, Any]]
    """Lines of the CSV, unrounded."""
    closing: Sequence[str] = ()
    """Sentences below the table: all else that a reader must know."""
    aside: Sequence[str] = ()
    """Remarks on the files that the table was made from: below it, or LaTeX comments."""
    latex_grids: Sequence[Grid] = ()
    """Narrower grids, which LaTeX prints one below the other in place of `grid`."""

    def to_markdown(self) -> str:
        """Caption, pipe table, footnotes, closing."""
        align = ("left", *("center" for _ in self.grid.header[1:]))
        table = self.grid.styled(MARKDOWN).to_markdown(
            index=False, disable_numparse=True, colalign=align
        )
        footnotes = "\n".join(
            f"{number}. {MARKDOWN.plain(note)}" for number, note in enumerate(self.grid.notes(), 1)
        )
        below = map(MARKDOWN.plain, [*self.closing, *self.aside])
        parts = [MARKDOWN.plain(self.caption), table, footnotes, *below]
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_latex(self) -> str:
        """A `table` environment for the packages booktabs and graphicx.

        A grid that is wider than the line is shrunk to its width.
        """
        tabulars = [
            grid.styled(LATEX)
            .style.hide(axis="index")
            .to_latex(hrules=True, column_format="l" + "c" * (len(grid.header) - 1))
            .strip()
            for grid in self.latex_grids or [self.grid]
        ]
        body = "\n\n\\medskip\n".join(f"{SHRUNK}{{%\n{tabular}}}" for tabular in tabulars)
        # a rule above every section but the first, which follows the header's
        body = body.replace("\\\\\n\\emph{", "\\\\\n\\midrule\n\\emph{")
        small = "\\par\n".join(self._small(LATEX, self.closing, " "))
        comments = "".join(f"% {' '.join(text.split())}\n" for text in self.aside)
        return (
            f"{comments}\\begin{{table}}[t]\n\\centering\n\\caption{{{LATEX.plain(self.caption)}}}\n"
            f"\\footnotesize\n{body}\n\\par\\smallskip\n{{\\footnotesize\\raggedright\n"
            f"{small}\\par}}\n\\end{{table}}\n"
        )

    def to_html(self) -> str:
        """Caption, table in a box that scrolls sideways, footnotes and closing, for a page."""
        with pd.option_context("display.max_colwidth", None):  # else pandas cuts long cells
            body = self.grid.styled(HTML).to_html(index=False, escape=False, border=0)
        small = self._small(HTML, [*self.closing, *self.aside])
        below = "".join(f"<p class='small'>{text}</p>" for text in small)
        caption = HTML.plain(self.caption)
        return f"<p class='small'>{caption}</p><div class='wide'>{body}</div>{below}"

    def _small(self, style: Style, closing: Sequence[str], blank: str = "") -> list[str]:
        """Footnotes with their marks, `blank` between, and sentences below them."""
        notes = enumerate(self.grid.notes(), 1)
        marked = [f"{style.mark(number)}{blank}{style.plain(note)}" for number, note in notes]
        return [*marked, *map(style.plain, closing)]

    def to_csv(self) -> str:
        """Long form, unrounded; an empty field is a missing value."""
        lines = [
            {name: csv_text(cell) if isinstance(cell, str) else cell for name, cell in line.items()}
            for line in self.values
        ]
        table = pd.DataFrame(lines)
        counts = table.columns.intersection(COUNTS)
        return table.astype(dict.fromkeys(counts, "Int64")).to_csv(index=False, lineterminator="\n")

    def to_text(self, format: Format) -> str:
        """Write in the format of that name."""
        writers = {"markdown": self.to_markdown, "latex": self.to_latex, "csv": self.to_csv}
        return writers[format]()


def metric_cells(
    cells: Sequence[Sequence[Measure]],
    digits: Sequence[int],
    *,
    scale: float = 1,
    best: Callable[[Iterable[float]], float] | None = min,
) -> list[list[Number]]:
    """Format a column of cells of metrics, each as many or none.

    The best value of each metric is bold, compared as printed: all of equal ones are, the only row
    of a table is not.

    Args:
        digits: decimals of each metric.
        scale: factor of all values, such as 100 for percent.
        best: `min` or `max`; None where no value is the best.
    """
    scaled = [
        [Measure(tuple(scale * value for value in measure.values)) for measure in cell]
        for cell in cells
    ]
    printed = [
        [float(f"{m.mean:.{n}f}") for m, n in zip(cell, digits, strict=False)] for cell in scaled
    ]
    bests: list[float | None] = [None] * len(digits)
    if best is not None and len(cells) > 1:
        bests = [best(values) for values in zip(*filter(None, printed), strict=True)]
    return [
        [
            Number(measure.text(decimals), value == winner)
            for measure, value, decimals, winner in zip(cell, values, digits, bests, strict=False)
        ]
        for cell, values in zip(scaled, printed, strict=True)
    ]


def _columns(
    kind: Kind, scenes: Sequence[str], thresholds: Sequence[Sequence[float]]
) -> list[tuple[str, str, Sequence[str]]]:
    """List header, scene and names of metrics (as in `SceneMetrics`) of every column."""
    every = [*scenes, AVERAGE]
    if kind == "median":
        return [(scene, scene, ERRORS) for scene in every]
    if kind == "quantiles":
        return [
            (f"{share * 100:g} %", AVERAGE, [quantile_name(error, share) for error in ERRORS])
            for share in QUANTILES
        ]
    metric = kind.removesuffix("-scenes")
    names = {pair: f"{metric}_{threshold_name(pair)}" for pair in thresholds}
    columns: list[tuple[str, str, Sequence[str]]]
    if kind == "recall-scenes":
        columns = [(scene, scene, list(names.values())) for scene in every]
    else:
        columns = [(_threshold_text(pair), AVERAGE, [name]) for pair, name in names.items()]
    if kind != "auc":
        columns.append(("Scene accuracy", AVERAGE, ["scene_accuracy"]))
    return columns


def seed_count(count: int) -> str:
    """Format `1 seed`, `3 seeds`."""
    return "1 seed" if count == 1 else f"{count} seeds"


def _threshold_text(pair: Sequence[float]) -> str:
    """Format a pair of thresholds."""
    return f"{pair[0]:g} m, {pair[1]:g}°"


def make_table(
    runs: Sequence[Row],
    published: Sequence[Row] = (),
    *,
    kind: Kind = "median",
    digits: int = 2,
    remarks: Sequence[str] = (),
    costs: Sequence[str] = (),
) -> PrintedTable:
    """Make a table of published rows and runs.

    Args:
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
    if unknown := [name for name in costs if name not in COSTS]:
        raise MsposeError(f"column {unknown[0]}: expected one of {', '.join(COSTS)}")
    group = shared_group(rows)
    found = {row.thresholds: row.name for row in runs}
    of_errors = kind in ("median", "quantiles")
    if not of_errors and (len(found) > 1 or not any(found)):
        listed = "; ".join(
            f"{name}: {', '.join(map(_threshold_text, pairs)) or 'none'}"
            for pairs, name in found.items()
        )
        raise MsposeError(
            f"a table of {kind} needs runs with the same thresholds, found {listed}; evaluate them"
            " again"
        )
    thresholds = next(iter(found), ())
    scenes = sorted({scene for row in rows for scene in row.scenes})

    def metrics(row: Row, scene: str) -> SceneMetrics:
        """Return the metrics that stand in the table; no average where a scene is missing, unless
        the source prints one.
        """
        if scene != AVERAGE:
            return row.scenes.get(scene, SceneMetrics({}))
        complete = all(scene in row.scenes for scene in scenes)
        shown = row.average if complete or row.average_printed else None
        return shown or SceneMetrics({})

    header, columns = ["Method"], []
    shown = _columns(kind, scenes, thresholds)
    for title, scene, names in shown:
        measures = [metrics(row, scene).measures for row in rows]
        cells = [[of[name] for name in names if name in of] for of in measures]
        header.append(title)
        if of_errors:
            columns.append(metric_cells(cells, (digits, 2)))
        else:
            columns.append(metric_cells(cells, (1,) * len(names), scale=100, best=max))
    for cost in costs:
        unit = 1e6 if cost == "parameters" else 1
        cells = [[Measure((row.costs[cost] / unit,))] if cost in row.costs else [] for row in rows]
        header.append(COSTS[cost])
        columns.append(metric_cells(cells, (1,), best=None))
    sections: dict[str, list[Line]] = {section: [] for section in SECTIONS}
    for index, row in enumerate(rows):
        note = "; ".join(filter(None, (row.source, row.note)))
        line = Line(
            _label(row, scenes, group.scene_selection), [column[index] for column in columns], note
        )
        sections[row.section].append(line)

    every_name = dict.fromkeys([*ERRORS, "scene_accuracy"])
    every_name |= dict.fromkeys(name for _, _, names in shown for name in names)
    spread = any(len(row.seeds) > 1 for row in rows)
    caption = f"{_caption(kind, thresholds)}. Data set {group}."
    empty = [f"Empty cells of {row.name}: {row.empty}." for row in rows if row.empty]
    return PrintedTable(
        caption=caption + (" Mean ± standard deviation over seeds." if spread else ""),
        grid=Grid(header, sections),
        values=_values(rows, [*scenes, AVERAGE], metrics, every_name, costs),
        closing=_closing(rows, scenes, costs),
        aside=[*empty, *remarks],
    )


def _label(row: Row, scenes: Sequence[str], scene_selection: str) -> str:
    """Label of a row: `virtual/all (3 seeds)`."""
    remarks = [seed_count(len(row.seeds))] if row.seeds else []
    if row.group.scene_selection != scene_selection:
        remarks.append(f"scene {row.group.scene_selection}")
    if row.section == OWN and len(row.scenes) == 1 < len(scenes):
        remarks.append("model of one scene" if row.of_one_scene else "one scene")
    if row.lacking:
        remarks.append("not all test frames")
    return f"{row.name} ({', '.join(remarks)})" if remarks else row.name


def _caption(kind: Kind, thresholds: Sequence[Sequence[float]]) -> str:
    share = "Share of frames (%) with both errors within "
    return {
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
        "recall-scenes": share + " / ".join(map(_threshold_text, thresholds)),
    }[kind]


def _closing(rows: Sequence[Row], scenes: Sequence[str], costs: Sequence[str]) -> list[str]:
    """Say on how many frames and which machines the runs were evaluated."""
    own = [row for row in rows if row.section == OWN]
    counts = {
        scene: dict.fromkeys(str(row.scenes[scene].frames) for row in own if scene in row.scenes)
        for scene in scenes
    }
    frames = [f"{scene} {' or '.join(found)}" for scene, found in counts.items() if found]
    lines = [f"Frames evaluated in this repository: {', '.join(frames)}."] if frames else []
    machines = list(dict.fromkeys(name for row in own for name in row.machines))
    if machines:
        lines.append(f"Evaluated on: {'; '.join(machines)}.")
    if "milliseconds_per_image" in costs:
        lines.append("Time: of the whole evaluation, frames read from the cache.")
    return lines


def _values(
    rows: Sequence[Row],
    scenes: Sequence[str],
    metrics: Callable[[Row, str], SceneMetrics],
    names: Iterable[str],
    costs: Sequence[str],
) -> list[dict[str, Any]]:
    """Make a line per row and scene, with the metrics of these names and the costs."""
    lines = []
    for row in rows:
        for scene in scenes:
            found = metrics(row, scene)
            line: dict[str, Any] = {
                "label": row.name,
                "section": row.section,
                **row.group._asdict(),
                "scene": scene,
                "seeds": len(row.seeds) or None,
                "frames": found.frames,
            }
            for name in names:
                measure = found.measures.get(name)
                line |= {name: measure and measure.mean, f"{name}_std": measure and measure.std}
            line |= {name: row.costs.get(name) for name in costs}
            lines.append({**line, "source": row.source, "note": row.note})
    return lines


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
) -> PrintedTable:
    """Make the table of runs under the published rows of their group, see `table_text`."""
    group = shared_group(rows)
    known = published_rows(published_csv, group.dataset) if published and kind == "median" else []
    fitting = [row for row in known if row.group == group]
    nothing_fits = [f"No published rows are shown: none is for {group}."]
    remarks = nothing_fits if known and not fitting else []
    return make_table(rows, fitting, kind=kind, digits=digits, remarks=remarks, costs=costs)
