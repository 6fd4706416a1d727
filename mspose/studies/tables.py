"""Tables as papers print them, from rows of runs and published rows.

Rows share a table only where they were measured alike: same data set, ground truth, split, and
scene predicted or given.
"""

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pandas as pd

from mspose.errors import MsposeError
from mspose.studies.rows import (
    OWN,
    PUBLISHED_CSV,
    SECTIONS,
    Figures,
    Group,
    Measure,
    Row,
    collect_runs,
    published_rows,
    shared_group,
)

Format = Literal["markdown", "latex", "csv"]
Kind = Literal["median", "recall", "recall-scenes"]
DASH = "–"
SHRUNK = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}"
MINUS = "−"


class Style(NamedTuple):
    """How a format writes bold, section titles, footnote marks and plain text."""

    bold: Callable[[str], str]
    section: Callable[[str], str]
    mark: Callable[[int], str]
    plain: Callable[[str], str]


_MARKDOWN_SIGNS = str.maketrans({sign: "\\" + sign for sign in "\\|*`"})
_LATEX_SIGNS = str.maketrans(
    {sign: "\\" + sign for sign in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {
        "±": "$\\pm$",
        "°": "$^{\\circ}$",
        DASH: "--",
        MINUS: "$-$",
        "†": "$^{\\dagger}$",
        "‡": "$^{\\ddagger}$",
    }
)
MARKDOWN = Style(
    "**{}**".format, "*{}*".format, " [{}]".format, lambda text: text.translate(_MARKDOWN_SIGNS)
)
HTML = Style("<b>{}</b>".format, "<i>{}</i>".format, "<sup>{}</sup>".format, html.escape)
LATEX = Style(
    "\\textbf{{{}}}".format,
    "\\emph{{{}}}".format,
    "$^{{{}}}$".format,
    lambda text: text.translate(_LATEX_SIGNS),
)


Cell = tuple[Measure, ...]
"""The measures in a cell, printed with a slash between; none where they are missing."""


class Column(NamedTuple):
    """A column of cells, one per row."""

    header: str
    cells: list[Cell]
    digits: tuple[int, ...]
    larger_is_better: bool = False

    def texts(self, style: Style) -> list[str]:
        """A text per row. The best of each part is bold, compared as printed: ties all are, a
        single row is not.
        """
        printed = [
            [float(f"{m.mean:.{n}f}") for m, n in zip(cell, self.digits, strict=True)]
            for cell in self.cells
            if cell
        ]
        bests = [
            (max if self.larger_is_better else min)(part) for part in zip(*printed, strict=True)
        ]
        texts = []
        for cell in self.cells:
            parts = []
            for measure, digits, best in zip(cell, self.digits, bests, strict=False):
                text = style.plain(measure.text(digits))
                wins = len(self.cells) > 1 and float(f"{measure.mean:.{digits}f}") == best
                parts.append(style.bold(text) if wins else text)
            texts.append(" / ".join(parts) or style.plain(DASH))
        return texts


@dataclass(frozen=True)
class Table:
    """Rows that were measured alike, ready to be written. `make_table` builds it."""

    group: Group
    rows: list[Row]
    scenes: list[str]
    thresholds: tuple[tuple[float, float], ...]
    kind: Kind
    digits: int
    remarks: tuple[str, ...] = ()

    def average(self, row: Row) -> Figures | None:
        """The average of a row: None where one of the table's scenes is missing, unless its source
        printed one.
        """
        complete = all(scene in row.scenes for scene in self.scenes)
        return row.average if complete or row.average_printed else None

    def columns(self) -> list[Column]:
        """The columns beside the label."""

        def cells(take: Callable[[Figures], Cell], scene: str | None = None) -> list[Cell]:
            found = [row.scenes.get(scene) if scene else self.average(row) for row in self.rows]
            return [take(figures) if figures else () for figures in found]

        def errors(figures: Figures) -> Cell:
            return figures.position_m, figures.orientation_deg

        def shares(figures: Figures) -> Cell:
            return tuple(share.percent() for share in figures.recall)

        def accuracy(figures: Figures) -> Cell:
            return (figures.scene_accuracy.percent(),) if figures.scene_accuracy else ()

        places: list[tuple[str, str | None]] = [
            *((scene, scene) for scene in self.scenes),
            ("Average", None),
        ]
        if self.kind == "median":
            return [
                Column(header, cells(errors, scene), (self.digits, 2)) for header, scene in places
            ]
        if self.kind == "recall-scenes":
            digits = tuple(1 for _ in self.thresholds)
            columns = [
                Column(header, cells(shares, scene), digits, True) for header, scene in places
            ]
        else:
            columns = [
                Column(
                    _threshold_text(pair), [cell[i : i + 1] for cell in cells(shares)], (1,), True
                )
                for i, pair in enumerate(self.thresholds)
            ]
        return [*columns, Column("Scene accuracy", cells(accuracy), (1,), True)]

    def label(self, row: Row) -> str:
        """`virtual/all (3 seeds)`."""
        remarks = [f"{len(row.seeds)} seed{'s' * (len(row.seeds) > 1)}"] if row.seeds else []
        if row.group.scene_selection != self.group.scene_selection:
            remarks.append(f"scene {row.group.scene_selection}")
        return row.name + (f" ({', '.join(remarks)})" if remarks else "")

    def caption(self) -> str:
        """What the figures are, of what, and how they were taken."""
        share = "Share of frames (%) with both errors within "
        what = {
            "median": (
                "Median position error (m) / median orientation error (°); Average: unweighted mean"
                " over scenes"
            ),
            "recall": share + "the thresholds; unweighted mean over scenes",
            "recall-scenes": share + " / ".join(map(_threshold_text, self.thresholds)),
        }[self.kind]
        spread = (
            " Mean ± standard deviation over seeds."
            if any(len(row.seeds) > 1 for row in self.rows)
            else ""
        )
        return f"{what}. Data set {self.group}.{spread}"

    def closing(self) -> list[str]:
        """How many frames the runs were evaluated on, and what else a reader must know."""
        counts: dict[str, dict[int | None, None]] = {scene: {} for scene in self.scenes}
        for row in self.rows:
            for scene, figures in row.scenes.items() if row.section == OWN else ():
                counts[scene][figures.frames] = None
        frames = ", ".join(
            f"{scene} {' or '.join(map(str, found))}" for scene, found in counts.items() if found
        )
        return [
            *([f"Frames evaluated in this repository: {frames}."] if frames else []),
            *self.remarks,
        ]

    def grid(self, style: Style) -> tuple[pd.DataFrame, list[str]]:
        """(all cells as text, a line per section and its rows below it; the footnotes, numbered
        from 1).
        """
        columns = self.columns()
        notes, lines = [], []
        for row, *texts in zip(
            self.rows, *(column.texts(style) for column in columns), strict=True
        ):
            label = style.plain(self.label(row))
            if note := "; ".join(filter(None, (row.source, row.note))):
                notes.append(style.plain(note))
                label += style.mark(len(notes))
            lines.append((row.section, label, *texts))
        cells: list[tuple[str, ...]] = []
        for section in SECTIONS:
            inside = [tuple(texts) for where, *texts in lines if where == section]
            cells += [(style.section(section), *("" for _ in columns)), *inside] if inside else []
        return (
            pd.DataFrame(
                cells, columns=["Method", *(style.plain(column.header) for column in columns)]
            ),
            notes,
        )

    def to_markdown(self) -> str:
        """Caption, pipe table, footnotes."""
        grid, notes = self.grid(MARKDOWN)
        numbered = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
        return markdown_text(self.caption(), grid, (numbered, *map(MARKDOWN.plain, self.closing())))

    def to_latex(self) -> str:
        """A `table` environment for the packages booktabs and graphicx."""
        grid, notes = self.grid(LATEX)
        numbered = [f"{LATEX.mark(number)} {note}" for number, note in enumerate(notes, 1)]
        return latex_text(
            self.caption(), [grid], (*numbered, *map(LATEX.plain, self.closing())), SECTIONS
        )

    def to_html(self) -> str:
        """Caption, table, footnotes, for a page of HTML."""
        grid, notes = self.grid(HTML)
        numbered = [f"{HTML.mark(number)} {note}" for number, note in enumerate(notes, 1)]
        return html_text(self.caption(), grid, (*numbered, *map(HTML.plain, self.closing())))

    def to_csv(self) -> str:
        """Long form, a line per row and scene (`Average` last), unrounded; an empty field is a
        missing value.
        """
        names = [
            f"recall_{metres:g}m_{degrees:g}deg"
            for metres, degrees in self.thresholds
            if self.kind != "median"
        ]
        lines = []
        for row in self.rows:
            for scene in [*self.scenes, "Average"]:
                found = self.average(row) if scene == "Average" else row.scenes.get(scene)
                line = {
                    "label": row.name,
                    "section": row.section,
                    **row.group._asdict(),
                    "scene": scene,
                }
                line |= {"seeds": len(row.seeds) or None, "frames": found and found.frames}
                measures: dict[str, Measure | None] = {
                    "position_m": found.position_m if found else None,
                    "orientation_deg": found.orientation_deg if found else None,
                    "scene_accuracy": found.scene_accuracy if found else None,
                    **dict.fromkeys(names),
                    **dict(zip(names, found.recall if found else (), strict=False)),
                }
                for name, measure in measures.items():
                    line |= {
                        name: measure.mean if measure else None,
                        f"{name}_std": measure.std if measure else None,
                    }
                lines.append({**line, "source": row.source, "note": row.note})
        table = pd.DataFrame(lines).astype({"seeds": "Int64", "frames": "Int64"})
        return table.to_csv(index=False, lineterminator="\n")


def markdown_text(caption: str, grid: pd.DataFrame, closing: Sequence[str]) -> str:
    """Caption (plain text), the grid as a pipe table, paragraphs below it (grid and closing as
    Markdown).
    """
    align = ("left", *("center" for _ in grid.columns[1:]))
    table = grid.to_markdown(index=False, disable_numparse=True, colalign=align)
    return "\n\n".join(filter(None, (MARKDOWN.plain(caption), table, *closing))) + "\n"


def latex_text(
    caption: str, grids: Sequence[pd.DataFrame], closing: Sequence[str], sections: Sequence[str]
) -> str:
    """A `table` environment for the packages booktabs and graphicx: caption (plain text), grids one
    below the other, each shrunk to the line's width where it is wider, small print below them.

    grids and closing are LaTeX. sections: plain titles of lines that a rule stands above, unless
        the header is there.
    """
    tabulars = [
        grid.style.hide(axis="index")
        .to_latex(hrules=True, column_format="l" + "c" * (len(grid.columns) - 1))
        .strip()
        for grid in grids
    ]
    shrunk = "\n\n\\medskip\n".join(f"{SHRUNK}{{%\n{tabular}}}" for tabular in tabulars)
    head = (
        f"\\begin{{table}}[t]\n\\centering\n\\caption{{{LATEX.plain(caption)}}}\n\\footnotesize\n"
    )
    text = f"{head}{shrunk}\n\\end{{table}}\n"
    for title in sections:
        line = "\\\\\n" + LATEX.section(
            LATEX.plain(title)
        )  # of a line before it, which the header is not
        text = text.replace(line, line.replace("\n", "\n\\midrule\n"))
    small = (
        "\\par\\smallskip\n{\\footnotesize\\raggedright\n" + "\\par\n".join(closing) + "\\par}\n"
    )
    return text.replace("\\end{table}", small + "\\end{table}")


def html_text(caption: str, grid: pd.DataFrame, closing: Sequence[str]) -> str:
    """Caption (plain text), the grid in a box that scrolls sideways, paragraphs below it (grid and
    closing as HTML).
    """
    with pd.option_context(
        "display.max_colwidth", None
    ):  # else pandas cuts long cells, markup and all
        body = grid.to_html(index=False, escape=False, border=0)
    small = "".join(f"<p class='small'>{text}</p>" for text in closing)
    return f"<p class='small'>{HTML.plain(caption)}</p><div class='wide'>{body}</div>{small}"


def _threshold_text(pair: tuple[float, float]) -> str:
    return f"{pair[0]:g} m, {pair[1]:g}°"


def make_table(
    runs: Sequence[Row], published: Sequence[Row] = (), *,
    scenes: Sequence[str] = (), kind: Kind = "median", digits: int = 2, remarks: Sequence[str] = (),
) -> Table:  # fmt: skip
    """A table of published rows and runs.

    scenes: these columns come first, in this order; the other scenes of the rows follow by name.
    kind: `median` (per scene and average), `recall` (a column per threshold, averaged over scenes)
        or `recall-scenes`.
    digits: decimals of positions; orientations have 2, shares in percent 1. Raises MsposeError
    where rows were not measured alike, and for a recall table where thresholds differ.
    """
    rows = [*published, *runs]
    if not rows:
        raise MsposeError("a table needs at least one row")
    if kind not in get_args(Kind) or not 0 <= digits <= 9:
        raise MsposeError(
            f"kind {kind}, digits {digits}: expected one of {', '.join(get_args(Kind))}; digits 0"
            " to 9"
        )
    group = shared_group(rows)
    thresholds = {row.thresholds: row.name for row in runs}
    if kind != "median" and (len(thresholds) > 1 or not any(thresholds)):
        found = "; ".join(
            f"{name}: {', '.join(map(_threshold_text, t)) or 'none'}"
            for t, name in thresholds.items()
        )
        raise MsposeError(
            f"a recall table needs runs with the same thresholds, found {found}; evaluate them"
            " again"
        )
    others = sorted({scene for row in rows for scene in row.scenes} - set(scenes))
    return Table(
        group, rows, [*scenes, *others], next(iter(thresholds), ()), kind, digits, tuple(remarks)
    )


def table_text(
    paths: Iterable[Path | str], *,
    format: Format = "markdown", published: bool = True,
    dataset: str | None = None, ground_truth: str | None = None, split: str | None = None,
    digits: int = 2, kind: Kind = "median", published_csv: Path | str = PUBLISHED_CSV,
) -> str:  # fmt: skip
    """The table of the runs in or below `paths`, as text: what `mspose table` prints.

    published: put the published medians of the same data set, ground truth and split above the
    runs. Raises MsposeError as `collect_runs`, `published_rows` and `make_table` do.
    """
    writers = {"markdown": Table.to_markdown, "latex": Table.to_latex, "csv": Table.to_csv}
    if format not in writers:
        raise MsposeError(f"format {format}: expected one of {', '.join(writers)}")
    filters = {"dataset": dataset, "ground_truth": ground_truth, "split": split}
    table = table_of(
        paths, published=published, digits=digits, kind=kind, published_csv=published_csv, **filters
    )
    return writers[format](table)


def table_of(
    paths: Iterable[Path | str], *,
    published: bool = True, digits: int = 2, kind: Kind = "median", published_csv: Path | str = PUBLISHED_CSV,
    **filters: str | None,
) -> Table:  # fmt: skip
    """The table of the runs in or below `paths` that pass the filters of `collect_runs`; arguments
    as `table_text`.
    """
    runs = collect_runs(paths, **filters)
    group = shared_group(runs)
    known = published_rows(published_csv, group.dataset) if published and kind == "median" else []
    fitting = [row for row in known if row.group == group]
    remarks = (
        [f"No published rows are shown: none is for {group}."] if known and not fitting else []
    )
    return make_table(runs, fitting, kind=kind, digits=digits, remarks=remarks)
