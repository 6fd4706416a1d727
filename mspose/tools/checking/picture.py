"""A picture of where the cameras stood and looked: every scene from above, training and test frames
apart.
"""

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
TICKS = 60  # frames per split and scene that show where they look
POINTS = 1500  # per split and scene
TICK = 0.05  # of the panel's longer side
COLOURS = {"train": plotting.BLUE, "test": plotting.VERMILLION}


@plotting.printed
def trajectory_picture(ordered: pd.DataFrame) -> Figure:
    """Positions of all frames and the directions of view of some, per scene, along its two widest
    axes.

    ordered: as `mspose.tools.checking.trajectories.in_order` sorts frames.
    """
    scenes = sorted(ordered["scene"].unique())
    splits = [split for split in ("train", "test") if split in set(ordered["split"])]
    splits += sorted(set(ordered["split"]) - set(splits))
    colours = {
        split: COLOURS.get(split, plotting.line(2 + number).color)
        for number, split in enumerate(splits)
    }
    columns = min(len(scenes), MOST_COLUMNS, math.ceil(math.sqrt(len(scenes))))
    rows = math.ceil(len(scenes) / columns)
    width = max(columns * PANEL, 4.0)
    figure = plotting.empty_figure(rows * PANEL * (1.25 if columns == 1 else 1.05), width)
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
    first, second = widest_axes(position_N3)
    flat_N2 = position_N3[:, [first, second]]
    look_N2 = quaternion_to_rotation(part[ORIENTATION].to_numpy())[:, [first, second], 2]
    low_2, high_2 = flat_N2.min(axis=0), flat_N2.max(axis=0)
    side = float((high_2 - low_2).max()) or 1.0
    for order, (split, colour) in enumerate(colours.items()):
        rows = np.flatnonzero((part["split"] == split).to_numpy())
        if not len(rows):
            continue
        faint = (
            0.25 if split == "train" else 0.45
        )  # the many in the background, the few before them
        for line_N2 in _paths(flat_N2, rows, part["sequence"].to_numpy(), side):
            axes.plot(*line_N2.T, color=colour, linewidth=0.4, alpha=faint, zorder=2 + order)
        shown = rows[evenly(len(rows), POINTS)]
        axes.scatter(
            flat_N2[shown, 0],
            flat_N2[shown, 1],
            s=2.5,
            color=colour,
            linewidths=0,
            alpha=2 * faint,
            zorder=4 + order,
            rasterized=True,
        )
        marked = rows[evenly(len(rows), TICKS)]
        ends_M22 = np.stack(
            [flat_N2[marked], flat_N2[marked] + TICK * side * look_N2[marked]], axis=1
        )
        axes.add_collection(
            LineCollection(
                list(ends_M22), colors=colour, linewidths=0.7, alpha=0.8, zorder=6 + order
            )
        )
    margin = 1.6 * TICK * side
    axes.set_xlim(low_2[0] - margin, high_2[0] + margin)
    axes.set_ylim(low_2[1] - margin, high_2[1] + margin)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"{'xyz'[first]} (m)")
    axes.set_ylabel(f"{'xyz'[second]} (m)")
    axes.grid(color="0.92", linewidth=0.5)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def _paths(
    flat_N2: NDArray[np.float64],
    rows: NDArray[np.intp],
    sequence_N: NDArray[np.object_],
    side: float,
) -> list[NDArray[np.float64]]:
    """The positions of one split as lines that end with a sequence, a dropped frame's gap in it, or
    a far step.
    """
    breaks = (np.diff(rows) > 1) | (sequence_N[rows[1:]] != sequence_N[rows[:-1]])
    breaks |= np.linalg.norm(np.diff(flat_N2[rows], axis=0), axis=1) > 0.25 * side
    return [
        flat_N2[piece] for piece in np.split(rows, np.flatnonzero(breaks) + 1) if len(piece) > 1
    ]
