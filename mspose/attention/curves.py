"""Curves of attention entropy and tokens' similarity over layers, and of the query-key gap over
training.

They are drawn from `attention.json` alone, of one run or several. Runs of the same label are seeds
of one variant: the line is their mean, the band goes from the lowest to the highest of them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator
from numpy.typing import NDArray

from mspose import plotting
from mspose.attention.attention_json import Studies, Study, by_label, layers_of, named
from mspose.config import BRANCHES
from mspose.errors import MsposeError

Layers = Mapping[int, Mapping[str, Any]]
"""Encoder layers of a branch in `attention.json`, by number."""


@plotting.printed
def entropy_figure(studies: Studies) -> Figure:
    """Plot the attention entropy in nats of every encoder layer, both branches side by side, with
    the uniform limit log L.

    Raises MsposeError where no study has an encoder layer.
    """

    def entropies(layers: Layers) -> dict[int, float]:
        return {number: layer["entropy"] for number, layer in layers.items()}

    figure, axes_of, explain = _over_layers(
        studies, entropies, "encoder layer", "attention entropy (nats)"
    )
    for branch, axes in axes_of.items():
        every = [layer for _, study in studies for layer in layers_of(study, branch).values()]
        limits = {layer["tokens"]: layer["entropy_limit"] for layer in every}
        _uniform_limits(axes, limits, min(layer["entropy"] for layer in every))
    explain()
    return figure


@plotting.printed
def tokens_figure(studies: Studies) -> Figure:
    """Plot the mean cosine between different tokens of an image behind every encoder layer, and
    before the first, both branches side by side: 1 is over-smoothing (Gong et al., 2021).

    Raises MsposeError where no study has it.
    """

    def similarities(layers: Layers) -> dict[int, float]:
        pairs = {number: layer["token_similarity"] for number, layer in layers.items()}
        if not pairs or None in pairs.values():  # records of before it was measured
            return {}
        return {0: pairs[1]["before"]} | {number: pair["after"] for number, pair in pairs.items()}

    figure, axes_of, explain = _over_layers(
        studies, similarities, "encoder layer (0: before the first)", "cosine between tokens"
    )
    for axes in axes_of.values():
        axes.set_ylim(min(0, axes.get_ylim()[0]), 1.05)
        axes.yaxis.set_major_locator(MultipleLocator(0.2))
    explain()
    return figure


def _over_layers(
    studies: Studies, values_of: Callable[[Layers], Mapping[int, float]], x: str, y: str
) -> tuple[Figure, dict[str, Axes], Callable[[], None]]:
    """Plot a value of every encoder layer by its number, both branches side by side.

    `values_of` takes a branch's layers. Raises MsposeError where no branch has values.

    Returns:
        The figure, the axes of the branches that have values, and what adds the legend, to be
        called when the axes have their limits.
    """
    groups = by_label(studies)
    figure = plotting.empty_figure(2.3)
    entries: dict[str, Line2D] = {}
    drawn: dict[str, Axes] = {}
    for column, branch in enumerate(BRANCHES):
        axes = figure.add_subplot(1, 2, column + 1)
        axes.set_title(f"{branch} branch")
        for index, (label, group) in enumerate(groups.items()):
            seeds = [values_of(layers_of(study, branch)) for study in group]
            if numbers := sorted({number for seed in seeds for number in seed}):
                values = [[seed[number] for seed in seeds if number in seed] for number in numbers]
                entries[label] = _line(axes, index, numbers, values)
                drawn[branch] = axes
        if branch not in drawn:
            plotting.say(axes, "no encoder layers")
            continue
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(drawn) == 1:
            axes.set_ylabel(y)
    if not drawn:
        raise MsposeError(
            f"{y}: no run has an encoder layer of which it is known, so there is nothing to draw"
        )
    missing = "no encoder layers, or recorded without it"
    return figure, drawn, partial(_explain, figure, groups, entries, missing)


@plotting.printed
def gap_figure(studies: Studies) -> Figure:
    """Plot the query-key gap over the steps of training, in the units of queries and keys.

    Above the whole training, below its first epoch enlarged; both branches side by side. A point is
    the mean over images, layers and heads that the log holds of a step.

    Raises MsposeError where no study has a training log with it.
    """
    groups = by_label(studies)
    logged: dict[str, list[Any]] = {}
    for label, study in studies:
        if study.get("training") and any(study["training"]["query_key_gap"].values()):
            logged.setdefault(label, []).append(study["training"])
    if not logged:
        raise MsposeError("query-key gap over training: no run has it in its TensorBoard log")
    figure = plotting.empty_figure(3.7)
    entries: dict[str, Line2D] = {}
    epoch = max(training["steps_per_epoch"] for seeds in logged.values() for training in seeds)
    for column, branch in enumerate(BRANCHES):
        whole, first = figure.add_subplot(2, 2, column + 1), figure.add_subplot(2, 2, column + 3)
        whole.set_title(f"{branch} branch, whole training")
        first.set_title(f"{branch} branch, first epoch enlarged")
        labelled, drawn = bool(entries), False
        for index, label in enumerate(groups):
            logs = logged.get(label, [])
            seeds = [log for log in logs if log["query_key_gap"].get(branch)]
            if not seeds:
                continue
            steps, values_NR = _together(seeds, branch)
            entries[label] = _line(whole, index, steps, values_NR, marked=8)
            early = steps < epoch
            _line(first, index, steps[early], values_NR[early], marked=8)
            drawn = True
        if not drawn:
            plotting.say(whole, "no encoder layers")
            plotting.say(first, "no encoder layers")
            continue
        whole.axvspan(0, epoch, color="0.9", linewidth=0, zorder=0)
        first.set_xlim(-0.02 * epoch, epoch)
        for axes in (whole, first):
            axes.set_ylim(bottom=0)
            axes.set_ylim(top=axes.get_ylim()[1] * 1.05)
            axes.set_xlabel("training (steps)")
            if not labelled:
                axes.set_ylabel("query-key gap\n(units of q and k)")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _explain(figure, groups, entries, "no training log")
    return figure


def _together(
    seeds: Sequence[Mapping[str, Any]], branch: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps that all seeds reached, and value_NR of every step and seed, interpolated
    where a log lacks a step.
    """
    end = min(max(training["step"]) for training in seeds)
    steps = np.unique(
        [step for training in seeds for step in training["step"] if step <= end]
    ).astype(float)
    values = [
        np.interp(steps, training["step"], training["query_key_gap"][branch]) for training in seeds
    ]
    return steps, np.stack(values, axis=1)


def _line(axes: Axes, index: int, x: Any, values: Any, *, marked: int = 0) -> Line2D:
    """Draw the mean over seeds as a line, their range as a band; `marked` points carry the marker,
    all of them if 0.
    """
    style = plotting.line(index)
    mean, low, high = (
        [float(reduce(of_point)) for of_point in values] for reduce in (np.mean, np.min, np.max)
    )
    if any(bottom < top for bottom, top in zip(low, high, strict=True)):
        axes.fill_between(x, low, high, color=style.color, alpha=0.2, linewidth=0)
    every = max(len(mean) // marked, 1) if marked else 1
    start = index * every // 8  # markers of lines on top of each other do not hide each other
    (drawn,) = axes.plot(
        x,
        mean,
        color=style.color,
        marker=style.marker,
        linestyle=style.linestyle,
        markevery=(start, every),
        markeredgecolor="white",
        markeredgewidth=0.4,
    )
    return drawn


def _uniform_limits(axes: Axes, limits: Mapping[int, float], lowest: float) -> None:
    """Draw a dashed line for the entropy of uniform attention, with room for its text above it."""
    highest = max(limits.values())
    reach = max(highest - lowest, 1.0)
    axes.set_ylim(
        max(lowest - 0.12 * reach, 0) if lowest > 0 else -0.03 * reach, highest + 0.16 * reach
    )
    for tokens, limit in limits.items():
        axes.axhline(limit, color=plotting.BLACK, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.annotate(
            f"uniform: log {tokens} = {limit:.2f}",
            (0.02, limit),
            (0, 1.5),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=plotting.SMALL,
            va="bottom",
        )


def _explain(
    figure: Figure,
    groups: Mapping[str, Sequence[Study]],
    entries: Mapping[str, Line2D],
    missing: str,
) -> None:
    """Draw the legend; a run that is not in the figure is named with the reason."""
    blank = Line2D([], [], linestyle="none")
    listed = [
        (named(label, len(group), "" if label in entries else missing), entries.get(label, blank))
        for label, group in groups.items()
    ]
    several = any(len(group) > 1 for group in groups.values())
    plotting.legend(
        figure, listed, title="mean of the seeds; band: lowest to highest" if several else ""
    )
