"""Figure of what the encoders' self-attention is worth: errors of every knock-out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mspose import plotting
from mspose.attention.attention_json import Studies, Study, by_label, named
from mspose.attention.knock_out import SAID
from mspose.errors import MsposeError
from mspose.models.attention import REPLACEMENTS

TITLES = {"position_m": "position error (m)", "orientation_deg": "orientation error (°)"}


@plotting.printed
def knock_out_figure(studies: Studies) -> Figure:
    """Plot by how much the median errors change where something else replaces the encoders'
    self-attention: of both branches, of each, and of each layer.

    A mark per replacement. Its line is the bootstrap interval over frames; of several runs of the
    same label the mark is their mean, and the line goes from the lowest to the highest of them. Two
    panels for each label, one below the other.

    Raises MsposeError where no study has a knock-out.
    """
    groups = {
        label: having
        for label, group in by_label(studies).items()
        if (having := [study for study in group if study["knock_out"] is not None])
    }
    if not groups:
        raise MsposeError("knock-out: no run has one, which `mspose attention --knock-out` makes")
    counts = [len(_places(group)) for group in groups.values()]
    figure = plotting.empty_figure(sum(0.55 + 0.2 * count for count in counts))
    axes_LE = figure.subplots(
        len(groups), len(TITLES), squeeze=False, sharex="col", height_ratios=counts
    )
    for (label, group), axes_E in zip(groups.items(), axes_LE, strict=True):
        for axes, error in zip(axes_E, TITLES, strict=True):
            _draw(axes, group, error)
        title = named(label, len(group)) if len(groups) > 1 or len(group) > 1 else ""
        axes_E[0].set_title(title, loc="left")
        axes_E[1].tick_params(labelleft=False)
    for axes, title in zip(axes_LE[-1], TITLES.values(), strict=True):
        axes.set_xlabel(f"change of the {title}")
        axes.xaxis.set_major_locator(MaxNLocator(4))  # more labels would run into each other
    marks = [(SAID[by], _mark(index)) for index, by in enumerate(REPLACEMENTS)]
    several = any(len(group) > 1 for group in groups.values())
    lines = "lines: lowest to highest seed" if several else "lines: 95 % interval over frames"
    plotting.legend(figure, marks, title=f"self-attention replaced by; {lines}")
    return figure


Place = tuple[str, int | None]
"""Branch and layer that were knocked out."""


def _places(group: Sequence[Study]) -> list[Place]:
    """List what was knocked out, in the order of the first study."""
    rows = group[0]["knock_out"]["rows"]
    return list(dict.fromkeys((row["branch"], row["layer"]) for row in rows))


def _draw(axes: Axes, group: Sequence[Study], error: str) -> None:
    places = _places(group)
    for index, by in enumerate(REPLACEMENTS):
        style = plotting.line(index)
        for row, place in enumerate(places):
            mean, low, high = _change(group, place, by, error)
            height = row + 0.24 * (index - 1)
            axes.plot([low, high], [height, height], color=style.color, linewidth=1.0)
            axes.plot(mean, height, marker=style.marker, color=style.color, markersize=3.5)
    axes.axvline(0, color=plotting.GREY, linewidth=0.7, zorder=0)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_yticks(range(len(places)), [_said(place) for place in places])
    axes.tick_params(axis="y", length=0)


def _change(group: Sequence[Study], place: Place, by: str, error: str) -> tuple[float, ...]:
    """Return mean, lower and upper end of a line."""
    found: list[Mapping[str, Any]] = [
        row[error]
        for study in group
        for row in study["knock_out"]["rows"]
        if (row["branch"], row["layer"], row["by"]) == (*place, by)
    ]
    if len(found) == 1:
        return found[0]["difference"], found[0]["low"], found[0]["high"]
    changes = [of["difference"] for of in found]
    return float(np.mean(changes)), min(changes), max(changes)


def _said(place: Place) -> str:
    branch, layer = place
    if layer is None:
        return "both branches" if branch == "both" else f"{branch} branch"
    return f"{branch}, layer {layer}"


def _mark(index: int) -> Line2D:
    style = plotting.line(index)
    return Line2D([], [], color=style.color, marker=style.marker, markersize=3.5, linewidth=1.0)
