"""Plot positions and viewing directions of every scene from above, training and test frames."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mspose import plotting
from mspose.data.frames import evenly
from mspose.poses import quaternion_to_rotation, widest_axes
from mspose.tools.checking.trajectories import ORIENTATION, POSITION

MOST_COLUMNS = 4
PANEL = 2.75  # inches
DIRECTIONS, POINTS = 60, 1500  # most per split and scene
DIRECTION = 0.05  # length of a viewing direction, over the panel's longer side
COLOURS = {"train": plotting.BLUE, "test": plotting.VERMILLION}


@plotting.printed
def trajectory_plot(ordered: pd.DataFrame) -> Figure:
    """Positions of all frames and viewing directions of some, per scene, along its widest axes.

    ordered: as `trajectories.in_order` sorts frames.
    """
    scenes = sorted(ordered["scene"].unique())
    splits = [split for split in COLOURS if split in set(ordered["split"])]
    splits += sorted(set(ordered["split"]) - set(splits))
    colours = {
        split: COLOURS.get(split, plotting.line(2 + number).color)
        for number, split in enumerate(splits)
    }
    columns = min(len(scenes), MOST_COLUMNS, math.ceil(math.sqrt(len(scenes))))
    rows = math.ceil(len(scenes) / columns)
    height = rows * PANEL * (1.25 if columns == 1 else 1.05)
    figure = plotting.empty_figure(height, max(columns * PANEL, 4.0))
    for index, scene in enumerate(scenes):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_scene(axes, ordered[ordered["scene"] == scene], colours)
        axes.set_title(str(scene), fontweight="bold", parse_math=False)
    handles = [
        (
            f"{split} ({(ordered['split'] == split).sum()})",
            Line2D([], [], color=colour, marker="o", lw=0.8, ms=3),
        )
        for split, colour in colours.items()
    ]
    handles.append(("direction of view", Line2D([], [], color=plotting.GREY, lw=0.8)))
    plotting.legend(figure, handles)
    return figure


def _draw_scene(axes: Axes, part: pd.DataFrame, colours: dict[str, str]) -> None:
    position_N3 = part[POSITION].to_numpy()
    shown = widest_axes(position_N3)
    flat_N2 = position_N3[:, shown]
    look_N2 = quaternion_to_rotation(part[ORIENTATION].to_numpy())[:, shown, 2]
    low_2, high_2 = flat_N2.min(axis=0), flat_N2.max(axis=0)
    side = float((high_2 - low_2).max()) or 1.0
    for order, (split, colour) in enumerate(colours.items()):
        rows = np.flatnonzero((part["split"] == split).to_numpy())
        if not len(rows):
            continue
        alpha = 0.25 if split == "train" else 0.45  # the many in the background
        for line_N2 in _paths(flat_N2, rows, part["sequence"].to_numpy(), side):
            axes.plot(*line_N2.T, color=colour, linewidth=0.4, alpha=alpha, zorder=2 + order)
        points = flat_N2[rows[evenly(len(rows), POINTS)]]
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=2.5,
            color=colour,
            alpha=2 * alpha,
            zorder=4 + order,
            linewidths=0,
            rasterized=True,
        )
        marked = rows[evenly(len(rows), DIRECTIONS)]
        ends_M2 = flat_N2[marked] + DIRECTION * side * look_N2[marked]
        lines = list(np.stack([flat_N2[marked], ends_M2], axis=1))
        axes.add_collection(
            LineCollection(lines, colors=colour, linewidths=0.7, alpha=0.8, zorder=6 + order)
        )
    margin = 1.6 * DIRECTION * side
    axes.set_xlim(low_2[0] - margin, high_2[0] + margin)
    axes.set_ylim(low_2[1] - margin, high_2[1] + margin)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"{'xyz'[shown[0]]} (m)")
    axes.set_ylabel(f"{'xyz'[shown[1]]} (m)")
    axes.grid(color="0.92", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _paths(
    flat_N2: NDArray[np.float64],
    rows: NDArray[np.intp],
    sequence_N: NDArray[np.object_],
    side: float,
) -> list[NDArray[np.float64]]:
    """The positions of one split as lines that end at a sequence's end, a gap, or a far step."""
    breaks = (np.diff(rows) > 1) | (sequence_N[rows[1:]] != sequence_N[rows[:-1]])
    breaks |= np.linalg.norm(np.diff(flat_N2[rows], axis=0), axis=1) > 0.25 * side
    pieces = np.split(rows, np.flatnonzero(breaks) + 1)
    return [flat_N2[piece] for piece in pieces if len(piece) > 1]
