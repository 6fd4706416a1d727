"""Figure of the distances between tokens under position encodings, of `encoding_distance`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from mspose import plotting
from mspose.attention.attention_json import Arrays, Studies
from mspose.config import BRANCHES
from mspose.errors import MsposeError

ACROSS = 4  # matrices beside each other


@plotting.printed
def encoding_figure(studies: Studies, samples: Sequence[Arrays | None] | None = None) -> Figure:
    """Plot the distances of tokens under the position encodings that are added to them, both
    branches.

    At the bottom is a profile: the mean distance of two encodings over the distance of their tokens
    on the map, a line per encoding. With `samples`, one per study, matrices stand above it: the
    distance of each token to each other one, tokens in row-major order. Runs whose profiles are
    equal, such as those with the same fixed encoding, share a line and a matrix; of several runs of
    the same label the first one is drawn.

    Raises MsposeError where no run adds an encoding to its tokens.
    """
    equal: dict[str, list[tuple[str, Mapping[str, Any], Arrays | None]]] = {}
    seen = set()
    for (label, study), arrays in zip(studies, samples or [None] * len(studies), strict=True):
        if study.get("encoding") and label not in seen:
            seen.add(label)
            equal.setdefault(json.dumps(study["encoding"]), []).append(
                (label, study["encoding"], arrays)
            )
    if not equal:
        raise MsposeError(
            "distances under the position encoding: no run adds an encoding to its tokens (learned"
            " or sine do)"
        )
    encodings, matrices = {}, []
    names = {f"encoding/{branch}" for branch in BRANCHES}
    for group in equal.values():
        kind = next(iter(group[0][1].values()))["kind"]
        encodings[f"{kind}: {', '.join(label for label, _, _ in group)}"] = group[0][1]
        title = f"{kind} ({len(group)} runs)" if len(group) > 1 else f"{kind}: {group[0][0]}"
        drawable = [arrays for _, _, arrays in group if arrays and names & arrays.keys()]
        matrices += [(title, arrays) for arrays in drawable[:1]]

    bands = [matrices[first : first + ACROSS] for first in range(0, len(matrices), ACROSS)]
    across = min(len(matrices), ACROSS)
    heights = [*[2.4 if across == 1 else 2 * min(1.7, 4.2 / across) + 1.0 for _ in bands], 2.0]
    figure = plotting.empty_figure(sum(heights))
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for index, band in enumerate(bands):
        _draw_matrices(figure.add_subfigure(grid[index]), band, across)
    plotting.legend(figure, _draw_profiles(figure.add_subfigure(grid[-1]), encodings))
    return figure


def _draw_matrices(part: SubFigure, matrices: Sequence[tuple[str, Arrays]], across: int) -> None:
    """Draw a column per encoding and a row per branch, each with its own colours; a single encoding
    has a column per branch.
    """
    grid = part.add_gridspec(1, 2) if across == 1 else part.add_gridspec(2, across)
    for row, branch in enumerate(BRANCHES):
        found = [(title, arrays.get(f"encoding/{branch}")) for title, arrays in matrices]
        highest = max(
            (float(distance_NN.max()) for _, distance_NN in found if distance_NN is not None),
            default=0,
        )
        drawn, image = [], None
        for column, (title, distance_NN) in enumerate(found):
            axes = part.add_subplot(grid[0, row] if across == 1 else grid[row, column])
            drawn.append(axes)
            if row == 0 or across == 1:
                axes.set_title(
                    plotting.wrapped(title, round(80 / (max(across, 2) + 0.5))),
                    fontsize=plotting.SMALL,
                )
            if distance_NN is None:
                plotting.say(axes, f"none in the {branch} branch")
                continue
            image = axes.imshow(
                distance_NN, cmap=plotting.HEAT, vmin=0, vmax=highest, interpolation="nearest"
            )
            last = len(distance_NN) - 1
            axes.set_xticks([0, last], ["1", str(last + 1)])
            axes.set_yticks([0, last], ["1", str(last + 1)] if column == 0 else [])
            axes.set_xlabel("token", labelpad=-6)
        drawn[0].set_ylabel(f"{branch}\ntoken", labelpad=-6)
        if image is not None:
            bar = part.colorbar(
                image, ax=drawn, aspect=14, pad=0.02, shrink=0.7 if across == 1 else 0.85
            )
            bar.set_label("distance\n(L2 norm)", fontsize=plotting.SMALL)


def _draw_profiles(
    part: SubFigure, encodings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Line2D]:
    """Draw a column per branch, a line per encoding."""
    entries: dict[str, Line2D] = {}
    for column, branch in enumerate(BRANCHES):
        axes = part.add_subplot(1, 2, column + 1)
        axes.set_title(f"{branch} branch")
        for index, (label, encoding) in enumerate(encodings.items()):
            if branch not in encoding:
                continue
            style = plotting.line(index)
            distance = encoding[branch]["grid_distance"]
            (entries[label],) = axes.plot(
                distance,
                encoding[branch]["token_distance"],
                color=style.color,
                marker=style.marker,
                linestyle=style.linestyle,
                markevery=(index, max(len(distance) // 6, 1)),
                markeredgecolor="white",
                markeredgewidth=0.4,
            )
        axes.set_xlabel("distance on the map (grid cells)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if column == 0:
            axes.set_ylabel("mean distance of\nencodings (L2 norm)")
    return entries
