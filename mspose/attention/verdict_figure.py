"""Figures of every encoder layer: histograms of purity, the verdict on it, and what its
self-attention is worth.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mspose import plotting
from mspose.attention.attention_json import (
    Studies,
    Study,
    by_label,
    encoder_layers,
    layers_of,
    named,
    share_of_limit,
)
from mspose.config import BRANCHES
from mspose.errors import MsposeError
from mspose.verdict import COLLAPSED, SELECTIVE, UNIFORM

VERDICTS = {
    SELECTIVE: (plotting.GREEN, "o"),
    UNIFORM: (plotting.ORANGE, "s"),
    COLLAPSED: (plotting.VERMILLION, "X"),
}
"""Colour and mark of a verdict."""
HEADS_SHOWN = 2  # runs of which each head is drawn as well


@plotting.printed
def purity_figure(studies: Studies, *, head: int | None = None) -> Figure:
    """Plot histograms of purity, a row per encoder layer and a column per branch, of one run or of
    several overlaid.

    Purity is the share of queries among the nearest neighbours of a query in the pooled queries and
    keys of a head: 1 means queries only, about 0.5 mixed. The bold outline is the mean over heads
    (and over runs of the same label), the thin ones are the heads; with `head`, counted from 1, the
    outline is that head.

    Raises:
        MsposeError: no study has an encoder layer, or there is no such head.
    """
    groups = by_label(studies)
    found = encoder_layers(studies)
    if not found:
        raise MsposeError(
            "purity: no run has an encoder layer, so there are no queries and keys to draw"
        )
    rows = max(number for _, number in found)
    figure = plotting.empty_figure(0.55 + 0.95 * rows + (0.5 if rows == 1 else 0))
    entries: dict[str, Any] = {}
    for branch, number in found:
        axes = figure.add_subplot(rows, 2, 2 * number - 1 + BRANCHES.index(branch))
        for index, (label, group) in enumerate(groups.items()):
            having = [study for study in group if number in layers_of(study, branch)]
            if not having:
                continue
            edges, share_RHN = _shares(having, (branch, number), head)
            style = plotting.line(index)
            entries[label] = axes.stairs(
                100 * share_RHN.mean(axis=(0, 1)),
                edges,
                edgecolor=style.color,
                linewidth=1.3,
                fill=index == 0,
                facecolor=(style.color, 0.15),
                hatch=style.hatch if index == 0 else None,
                linestyle=style.linestyle,
            )
            if head is None and len(groups) <= HEADS_SHOWN:
                for share_N in share_RHN.mean(axis=0):
                    axes.stairs(
                        100 * share_N,
                        edges,
                        color=style.color,
                        linewidth=0.4,
                        linestyle=style.linestyle,
                    )
        _purity_axes(axes, branch, number, last=(branch, number + 1) not in found)
    highest = max(axes.get_ylim()[1] for axes in figure.axes)
    for axes in figure.axes:
        axes.set_ylim(0, highest)
    for column, branch in enumerate(BRANCHES):
        if (branch, 1) not in found:
            axes = figure.add_subplot(rows, 2, column + 1)
            axes.set_title(f"{branch} branch")
            plotting.say(axes, "no encoder layers")
    figure.supxlabel(
        "purity (share of queries among a query's nearest neighbours)", fontsize=plotting.TEXT
    )
    title = "mean of all heads" + ("; thin: each head" if len(groups) <= HEADS_SHOWN else "")
    title = title if head is None else f"head {head}"
    plotting.legend(
        figure,
        [(named(label, len(groups[label])), drawn) for label, drawn in entries.items()],
        title=title,
    )
    return figure


def _shares(
    studies: Sequence[Study], layer: tuple[str, int], head: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the edges of bins, and share_RHN of studies, heads and bins; of one head where `head`
    is given.
    """
    histograms = [layers_of(study, layer[0])[layer[1]]["purity_histogram"] for study in studies]
    edges, share_RHN = (
        np.asarray(histograms[0]["edges"]),
        np.asarray([of["share"] for of in histograms], dtype=float),
    )
    if head is not None:
        if not 1 <= head <= share_RHN.shape[1]:
            raise MsposeError(f"head: expected 1..{share_RHN.shape[1]}, found {head}")
        share_RHN = share_RHN[:, head - 1 : head]
    return centred(edges, share_RHN, studies[0]["neighbours"])


def centred(
    edges: NDArray[np.float64], share_N: NDArray[np.float64], neighbours: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Merge the bins of a histogram (of any leading axes) into one around each value that purity
    can have: 0, 1/k, 2/k ... 1.

    Between these there is nothing but shared ties: finer bins would be empty in turn. A histogram
    whose bins are not finer stays as it is.
    """
    bins = share_N.shape[-1]
    if neighbours >= bins:
        return edges, share_N
    value = np.ceil(edges[:-1] * neighbours - 1e-6)
    value = np.where(
        value / neighbours < edges[1:] - 1e-6, value, (edges[:-1] + edges[1:]) / 2 * neighbours
    )
    value[-1] = neighbours
    belongs = value.round()[:, None] == np.arange(neighbours + 1)
    return (np.arange(neighbours + 2) - 0.5) / neighbours, share_N @ belongs


def _purity_axes(axes: Any, branch: str, number: int, *, last: bool) -> None:
    axes.set_xlim(-0.06, 1.06)
    for purity in (0.5, 1.0):
        axes.axvline(purity, color=plotting.GREY, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
    if number == 1:
        axes.set_title(f"{branch} branch", pad=12)
        for purity, text, side in ((0.5, "mixed", "center"), (1.0, "queries only", "right")):
            axes.annotate(
                text,
                (purity, 1),
                (0, 1.5),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha=side,
                va="bottom",
                fontsize=plotting.SMALL,
                color=plotting.GREY,
            )
    axes.tick_params(labelbottom=last)
    axes.set_ylabel(f"layer {number}\nqueries (%)")


@plotting.printed
def verdict_figure(studies: Studies) -> Figure:
    """Tabulate the verdict on every encoder layer of every run, in words, colours and marks, with
    the measures behind it.

    Below the word: entropy as a share of its limit log L, and similarity of different queries'
    attention; then what a knock-out says, where all runs had one. Of several runs of the same label
    the most frequent word, and how many of them have it, with means.

    Raises MsposeError where no study has an encoder layer.
    """
    groups = by_label(studies)
    shown = encoder_layers(studies)
    if not shown:
        raise MsposeError(
            "verdicts: no run has an encoder layer, so there is no self-attention to judge"
        )
    knocked_out = any(layer["worth"] for _, study in studies for layer in study["layers"])
    width = min(plotting.WIDTH, 1.5 + 0.9 * len(groups))
    letters = round((width - 1.3) / len(groups) * 72 / (0.62 * plotting.SMALL))
    names = [plotting.wrapped(named(label, len(group)), letters) for label, group in groups.items()]
    figure = plotting.empty_figure(
        0.55
        + 0.13 * max(name.count("\n") + 1 for name in names)
        + (0.42 if knocked_out else 0.3) * len(shown),
        width,
    )
    axes = figure.add_subplot()
    for row, (branch, number) in enumerate(shown):
        for column, group in enumerate(groups.values()):
            layers = [
                layers_of(study, branch)[number]
                for study in group
                if number in layers_of(study, branch)
            ]
            _cell(axes, column, row, layers, lines=3 if knocked_out else 2)
    axes.set_xlim(0, len(groups))
    axes.set_ylim(len(shown), 0)
    axes.set_xticks(np.arange(len(groups)) + 0.5, names, fontsize=plotting.SMALL)
    axes.set_yticks(
        np.arange(len(shown)) + 0.5, [f"{branch}, layer {number}" for branch, number in shown]
    )
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    below = (
        "below the word: entropy (share of log L), similarity of different queries' attention"
        " (cosine)"
    )
    if knocked_out:
        below += "; whether errors change where something else replaces the attention (knock-out)"
    figure.supxlabel(plotting.wrapped(below, round(17 * width)), fontsize=plotting.TINY)
    return figure


def _cell(
    axes: Any, column: int, row: int, layers: Sequence[Mapping[str, Any]], *, lines: int
) -> None:
    """Fill a cell of so many lines of text."""

    def write(text: str, x: float, line: float, size: float, **style: Any) -> None:
        y = row + 0.06 + (line + 0.5) * 0.88 / lines
        axes.text(column + x, y, text, fontsize=size, ha="center", va="center", **style)

    if not layers:
        write("no such layer", 0.5, (lines - 1) / 2, plotting.TINY, color=plotting.GREY)
        return
    text = _most_frequent(layer["verdict"] for layer in layers)
    color, mark = VERDICTS[text.split()[0]]
    axes.add_patch(
        Rectangle((column + 0.03, row + 0.05), 0.94, 0.9, facecolor=(color, 0.35), edgecolor=color)
    )
    axes.plot(
        column + 0.13,
        row + 0.06 + 0.44 / lines,
        marker=mark,
        color=color,
        markeredgecolor=plotting.BLACK,
        markeredgewidth=0.5,
    )
    write(text, 0.56, 0, plotting.TINY)
    share = np.mean([share_of_limit(layer["entropy"], layer["entropy_limit"]) for layer in layers])
    similarity = np.mean([layer["similarity"] for layer in layers])
    write(f"{share:.2f}, {similarity:.2f}", 0.5, 1, plotting.TINY - 0.5)
    if all(layer["worth"] for layer in layers):
        worth = _most_frequent(layer["worth"] for layer in layers)
        write(worth, 0.5, 2, plotting.TINY - 0.5)


def _most_frequent(words: Iterable[str]) -> str:
    """Format the most frequent word, and its share `2/3` where it is not the only one."""
    counts = Counter(words)
    word, count = counts.most_common(1)[0]
    return word if count == counts.total() else f"{word} {count}/{counts.total()}"
