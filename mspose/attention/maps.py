"""Attention maps over the image, of chosen encoder queries and of every scene's decoder query.

Colours show the weight of a key as a multiple of the weight 1/L that uniform attention gives to
each of L keys, so that the branches, with maps of different sizes, share one scale: 1 is uniform,
on a logarithmic scale.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from mspose import plotting
from mspose.attention.attention_json import Arrays
from mspose.config import BRANCHES
from mspose.errors import MsposeError

LOWEST = 0.1
"""Multiples of uniform attention below this share one colour."""
OPACITY = 0.65
LARGEST_PANEL = 1.15  # inches
FRAMES_ACROSS = 3


def layer_numbers(arrays: Arrays, part: str, branch: str) -> list[int]:
    """Return the numbers, from 1, of the `encoder` or `decoder` layers in the samples."""
    names = (name.split("/") for name in arrays)
    return sorted(
        int(name[2]) for name in names if name[:2] == [part, branch] and name[3:] == ["attention"]
    )


def first_middle_last(layers: Sequence[int]) -> list[int]:
    """Return these three of the layers, fewer where there are fewer."""
    return sorted({layers[0], layers[(len(layers) - 1) // 2], layers[-1]}) if layers else []


@plotting.printed
def encoder_maps_figure(
    arrays: Arrays, *, frame: int = 0, layer: int | None = None, head: int | None = None
) -> Figure:
    """Plot the attention of a few encoder queries in a sample frame, both branches side by side.

    A row per query, with a ring around its own token, and a column per layer.

    Args:
        layer: from 1; the first, middle and last where none is given.
        head: from 1; the mean over heads where none is given.

    Raises:
        MsposeError: the samples have no such encoder layer, head or frame.
    """
    chosen = _chosen(arrays, "encoder", layer, first_middle_last)
    if not chosen:
        raise MsposeError(
            "attention of encoder queries: the run has no encoder layer of those asked for"
        )
    maps = {shown: _relative(arrays, "encoder", shown, frame, head) for shown in chosen}
    rows = max(map(len, maps.values()))
    figure, grid, norm = _sheet(rows, len(chosen), maps.values())
    image_HW3 = arrays["image_F"][frame]
    for column, ((branch, number), weight_MHW) in enumerate(maps.items()):
        queries = arrays[f"encoder/{branch}/queries"]
        for row, (weight_HW, token) in enumerate(zip(weight_MHW, queries, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            _overlay(axes, image_HW3, weight_HW, norm)
            cell = image_HW3.shape[0] / weight_HW.shape[0], image_HW3.shape[1] / weight_HW.shape[1]
            for color, width in (("white", 2.2), (plotting.ATTENDED, 1.1)):
                axes.plot(
                    (token[1] + 0.5) * cell[1] - 0.5,
                    (token[0] + 0.5) * cell[0] - 0.5,
                    marker="o",
                    markersize=5,
                    color="none",
                    markeredgecolor=color,
                    markeredgewidth=width,
                    clip_on=False,
                )
            if row == 0:
                axes.set_title(f"{branch}\nlayer {number}", fontsize=plotting.SMALL)
            if column == 0:
                axes.set_ylabel(f"query {row + 1}", fontsize=plotting.SMALL)
    _bar(figure, norm)
    _title(
        figure,
        f"{arrays['scenes'][frame]}: encoder attention, {_heads(head)}",
        "ring: the query's own token",
    )
    return figure


@plotting.printed
def decoder_maps_figure(
    arrays: Arrays,
    *,
    frames: Sequence[int] | None = None,
    layer: int | None = None,
    head: int | None = None,
) -> Figure:
    """Plot the attention of every scene's decoder query in sample frames, both branches side by
    side.

    Two columns per frame, below the frame itself, and a row per scene; each frame's true scene is
    framed.

    Args:
        frames: of the samples, from 0; the first `FRAMES_ACROSS` where none are given.
        layer: of the decoders, from 1; each branch's last where none is given.
        head: from 1; the mean over heads where none is given.

    Raises:
        MsposeError: the samples have no such decoder layer, head or frame.
    """
    frames = range(len(arrays["image_F"]))[:FRAMES_ACROSS] if frames is None else frames
    chosen = _chosen(arrays, "decoder", layer, lambda numbers: numbers[-1:])
    if not chosen or not frames:
        raise MsposeError(
            "attention of decoder queries: the samples have no frame and decoder layer of those"
            " asked for"
        )
    maps = {
        (frame, shown): _relative(arrays, "decoder", shown, frame, head)
        for frame in frames
        for shown in chosen
    }
    names = [str(name) for name in arrays["scene_names"]]
    figure, grid, norm = _sheet(1 + len(names), len(maps), maps.values())
    for column, ((frame, (branch, number)), weight_SHW) in enumerate(maps.items()):
        if column % len(chosen) == 0:
            _overlay(
                figure.add_subplot(grid[0, column : column + len(chosen)]), arrays["image_F"][frame]
            )
            figure.axes[-1].set_title(str(arrays["scenes"][frame]), fontsize=plotting.SMALL)
        for row, (name, weight_HW) in enumerate(zip(names, weight_SHW, strict=True), start=1):
            axes = figure.add_subplot(grid[row, column])
            _overlay(axes, arrays["image_F"][frame], weight_HW, norm)
            if row == 1:
                axes.set_title(f"{branch}\nlayer {number}", fontsize=plotting.SMALL)
            if column == 0:
                axes.set_ylabel(plotting.wrapped(name, 14), fontsize=plotting.SMALL)
            if name == arrays["scenes"][frame]:
                axes.spines[:].set(visible=True, color=plotting.ATTENDED, linewidth=2)
    _bar(figure, norm)
    _title(
        figure, f"each scene's decoder attention, {_heads(head)}", "framed: the frame's true scene"
    )
    return figure


def _chosen(
    arrays: Arrays, part: str, layer: int | None, default: Callable[[list[int]], list[int]]
) -> list[tuple[str, int]]:
    """List branch and number of a layer in the samples, or by default of some."""
    there = {branch: layer_numbers(arrays, part, branch) for branch in BRANCHES}
    return [
        (branch, number)
        for branch, numbers in there.items()
        for number in (default(numbers) if layer is None else numbers)
        if layer in (None, number)
    ]


def _heads(head: int | None) -> str:
    return "mean of heads" if head is None else f"head {head}"


def _relative(
    arrays: Arrays, part: str, layer: tuple[str, int], frame: int, head: int | None
) -> NDArray[np.float64]:
    """Return weight_MHW of every query of a frame, as multiples of uniform attention."""
    weight_FHMHW = arrays[f"{part}/{layer[0]}/{layer[1]}/attention"]
    frames, heads = weight_FHMHW.shape[:2]
    if not 0 <= frame < frames:
        raise MsposeError(f"frame: the samples have {frames}, counted from 0; found {frame}")
    if head is not None and not 1 <= head <= heads:
        raise MsposeError(f"head: expected 1..{heads}, found {head}")
    weight_HMHW = weight_FHMHW[frame].astype(np.float64)
    weight_MHW = weight_HMHW.mean(axis=0) if head is None else weight_HMHW[head - 1]
    return weight_MHW * weight_MHW[0].size


def _sheet(
    rows: int, columns: int, maps: Iterable[NDArray[np.float64]]
) -> tuple[Figure, GridSpec, LogNorm]:
    """Make a figure for so many square panels, their grid, and the one scale of all maps."""
    panel = min(LARGEST_PANEL, (plotting.WIDTH - 0.5) / columns)
    figure = plotting.empty_figure(rows * (panel + 0.05) + 1.4, max(panel * columns + 0.5, 3.4))
    norm = LogNorm(LOWEST, max(10.0, *(float(weight_MHW.max()) for weight_MHW in maps)))
    return figure, figure.add_gridspec(rows, columns), norm


def _overlay(
    axes: Axes, image_HW3: NDArray[Any], weight_HW: NDArray[Any] | None = None, norm: Any = None
) -> None:
    """Draw the image, in grey below the weights where there are any."""
    height, width = image_HW3.shape[:2]
    if weight_HW is None:
        axes.imshow(image_HW3)
    else:
        grey_HW = image_HW3 @ np.array([0.299, 0.587, 0.114])
        axes.imshow(grey_HW, cmap="gray", vmin=0, vmax=255)
        axes.imshow(
            np.maximum(weight_HW, LOWEST),
            cmap=plotting.HEAT,
            norm=norm,
            alpha=OPACITY,
            interpolation="nearest",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _title(figure: Figure, *lines: str) -> None:
    figure.suptitle(
        "\n".join(plotting.wrapped(line, round(14 * figure.get_figwidth())) for line in lines)
    )


def _bar(figure: Figure, norm: LogNorm) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm, plotting.HEAT),
        ax=figure.axes,
        location="bottom",
        extend="min",
        shrink=0.6,
        aspect=30,
        pad=0.02,
    )
    bar.set_label("attention (multiples of uniform, 1/L)", fontsize=plotting.SMALL)
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
