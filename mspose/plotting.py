"""Style of plots: sizes for print, colours and markers that every reader can distinguish.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind readers
can distinguish; a marker and a line style go with each, for print in grey. Heat maps are viridis:
perceptually uniform, for colour-blind readers and in grey too.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mspose.files import whole_file

WIDTH = 5.5
"""Inches: the width of a page's text."""
DPI = 300
TEXT, SMALL, TINY = 8.0, 7.0, 6.0
"""Points."""

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#666666"
HEAT = "viridis"
QUERIES, KEYS, ATTENDED = BLUE, ORANGE, VERMILLION
QUERY_MARK, KEY_MARK, ATTENDED_MARK = "o", "^", "s"

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "figure.titlesize": TEXT,
    "figure.dpi": 150,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "hatch.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "pdf.fonttype": 42,  # TrueType: text stays text
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "mspose",
}


class Line(NamedTuple):
    """Style of one of several runs."""

    color: str
    marker: str
    linestyle: Any
    hatch: str


_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
_HATCHES = ("////", "....", "\\\\\\\\", "xxxx", "----", "||||", "++++", "oooo")


def line(index: int) -> Line:
    """Colour, marker, line style and hatch of the run with this index; eight are different."""
    return Line(
        _COLORS[index % len(_COLORS)],
        _MARKERS[index % len(_MARKERS)],
        _DASHES[index % len(_DASHES)],
        _HATCHES[index % len(_HATCHES)],
    )


Arguments = ParamSpec("Arguments")


def printed(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """A function that returns a figure, drawn and laid out with the settings above whoever calls
    it.
    """

    @wraps(draw)
    def styled(*arguments: Arguments.args, **named: Arguments.kwargs) -> Figure:
        with rc_context(RC):
            figure = draw(*arguments, **named)
            figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out: saving need not do it again
        return figure

    return styled


def empty_figure(height: float, width: float = WIDTH) -> Figure:
    """Make a figure of `width` times `height` inches whose layout avoids overlaps."""
    return Figure(figsize=(width, height), layout="constrained")


def say(axes: Axes, text: str) -> None:
    """Words in place of a diagram that there is nothing to draw in."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, wrapped(text, 26), transform=axes.transAxes, ha="center", va="center", color=GREY
    )


def wrapped(text: str, width: int) -> str:
    """Wrap `text` to lines of at most `width` letters, at spaces and hyphens where it can."""
    return textwrap.fill(text, width)


def legend(
    figure: Figure, entries: Mapping[str, Artist] | Sequence[tuple[str, Artist]], *, title: str = ""
) -> None:
    """A legend above all axes, of as many columns as the figure is wide; the figure grows by its
    height.
    """
    pairs = list(entries.items() if isinstance(entries, Mapping) else entries)
    labels, handles = [wrapped(label, 60) for label, _ in pairs], [handle for _, handle in pairs]
    for columns in range(min(len(pairs), 4), 0, -1):
        drawn = figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=columns,
            title=title,
            title_fontsize=SMALL,
        )
        figure.draw_without_rendering()
        extent = drawn.get_window_extent()
        if columns == 1 or extent.width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
            return
        drawn.remove()


def save_figure(figure: Figure, path: Path) -> Path:
    """Write `path`, whole, in the format that its ending names (.png, .pdf, .svg), the same bytes
    for the same figure.

    Raises MsposeError where it cannot be written.
    """
    kind = path.suffix[1:]
    metadata = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None},
        "svg": {"Date": None},
    }.get(kind)
    with rc_context(RC), whole_file(path, "wb") as file:
        figure.savefig(file, format=kind, dpi=DPI, metadata=metadata)
    return path
