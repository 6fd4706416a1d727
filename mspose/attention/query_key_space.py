"""Queries and keys of one head in two dimensions (t-SNE or PCA), and their keys in the image.

The t-SNE picture is an illustration: it may differ between machines, whose rounding differs, and no
measure is taken from it. Entropy, query-key gap and purity come from the full dimensions.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mspose import plotting
from mspose.attention.attention_json import Arrays
from mspose.errors import MsposeError

Projection = Literal["tsne", "pca"]
MARKED = 8
"""Attended keys that are marked at most."""
ACROSS = 3  # runs beside each other


@plotting.printed
def space_figure(
    samples: Sequence[tuple[str, Arrays]],
    branch: str,
    layer: int,
    head: int,
    *,
    projection: Projection = "tsne",
) -> Figure:
    """Plot the query-key space of one head (layer and head counted from 1) on the first sample
    frame, of one run or several.

    Each run has its queries and keys in two dimensions, and the frame below them (beside them where
    it is the only run). In both the keys are marked that most queries attend to: of each query the
    key with the largest weight counts. Every run is projected by itself, so only shapes compare
    between runs, not coordinates.

    Args:
        projection: `tsne` (t-SNE, van der Maaten and Hinton, 2008) or `pca` (fast, linear).

    Raises:
        MsposeError: no run has this branch, layer and head in its samples.
    """
    name = f"space/{branch}/{layer}/{head}"
    samples = [(label, arrays) for label, arrays in samples if f"{name}/query" in arrays]
    if not samples:
        raise MsposeError(
            f"query-key space: no run has a head {head} in layer {layer} of the {branch} branch"
        )
    across = 2 if len(samples) == 4 else min(len(samples), ACROSS)
    bands = -(-len(samples) // across)
    side = 1.65 if across == ACROSS else 2.5 if bands == 1 else 1.8
    figure = plotting.empty_figure(bands * (2 * side + 0.65) if len(samples) > 1 else side + 0.3)
    grid = figure.add_gridspec(2 * bands, across) if len(samples) > 1 else figure.add_gridspec(1, 2)
    for index, (label, arrays) in enumerate(samples):
        band, column = divmod(index, across)
        plane = figure.add_subplot(grid[2 * band, column])
        picture = figure.add_subplot(grid[2 * band + 1, column] if len(samples) > 1 else grid[0, 1])
        height, width = arrays[f"grid/{branch}"]
        votes_HW = arrays[f"encoder/{branch}/{layer}/votes"][0, head - 1]
        received_HW = arrays[f"encoder/{branch}/{layer}/received"][0, head - 1]
        attended = attended_keys(votes_HW, received_HW, MARKED)
        token_P = arrays[f"space/{branch}/tokens"]
        _plane(
            plane,
            arrays[f"{name}/query"],
            arrays[f"{name}/key"],
            np.isin(token_P, attended),
            projection,
        )
        plane.set_title(plotting.wrapped(label, round(72 / max(across, 2))))
        _picture(picture, arrays["image_F"][0], (int(height), int(width)), attended)
        share = votes_HW.ravel()[attended].sum() / votes_HW.sum()
        words = f"{len(attended)} keys: first choice of {share:.0%} of queries"
        if hidden := int((~np.isin(attended, token_P)).sum()):
            words += f" ({hidden} of these keys not among the points drawn)"
        picture.set_xlabel(
            plotting.wrapped(words, round(84 / max(across, 2))), fontsize=plotting.SMALL
        )
    plotting.legend(
        figure,
        {
            "queries": _mark(plotting.QUERIES, plotting.QUERY_MARK),
            "keys": _mark(plotting.KEYS, plotting.KEY_MARK),
            "keys that most queries attend to": Line2D(
                [],
                [],
                linestyle="none",
                color="none",
                markersize=6,
                marker=plotting.ATTENDED_MARK,
                markeredgecolor=plotting.ATTENDED,
                markeredgewidth=1.2,
            ),
        },
        title=f"{branch} branch, layer {layer}, head {head}",
    )
    return figure


def attended_keys(
    votes_HW: NDArray[Any], received_HW: NDArray[Any], most: int
) -> NDArray[np.int64]:
    """Return the numbers of the tokens, row-major, whose keys get the most votes: at most `most`,
    and only keys with any.

    Args:
        votes_HW: number of queries that attend to this key more than to every other one.
        received_HW: mean attention that the key receives; decides between as many votes.
    """
    order = np.lexsort((-received_HW.ravel().astype(float), -votes_HW.ravel().astype(int)))[:most]
    return order[votes_HW.ravel()[order] > 0]


def project(
    points_PD: NDArray[Any], projection: Projection
) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """Project points to two dimensions; returns point_P2 and the names of the dimensions.

    t-SNE (van der Maaten and Hinton, 2008; scikit-learn's) starts from PCA and a fixed seed, but
    another machine's rounding may lead it to another picture. Raises MsposeError for another
    projection.
    """
    points_PD = np.asarray(points_PD, dtype=np.float64)
    if projection == "pca":
        from sklearn.decomposition import PCA  # here, since it takes a second to load

        fitted = PCA(n_components=2, svd_solver="full").fit(points_PD)
        first, second = (
            f"PC {n + 1} ({share:.0%} of variance)"
            for n, share in enumerate(np.nan_to_num(fitted.explained_variance_ratio_))
        )
        return fitted.transform(points_PD), (first, second)
    if projection == "tsne":
        from sklearn.manifold import TSNE

        start: Any = "pca" if np.ptp(points_PD, axis=0).any() else "random"
        perplexity = min(30.0, (len(points_PD) - 1) / 3)
        embedded_P2 = TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(
            points_PD
        )
        return embedded_P2.astype(np.float64), (
            "t-SNE, dimension 1 (no unit)",
            "t-SNE, dimension 2 (no unit)",
        )
    raise MsposeError(f"projection: expected tsne or pca, found {projection!r}")


def _plane(
    axes: Axes, query_PD: Any, key_PD: Any, attended_P: NDArray[np.bool_], projection: Projection
) -> None:
    points_P2, names = project(np.concatenate([query_PD, key_PD]), projection)
    query_P2, key_P2 = points_P2[: len(query_PD)], points_P2[len(query_PD) :]
    for kind_P2, color, mark, size, alpha in (
        (query_P2, plotting.QUERIES, plotting.QUERY_MARK, 7, 0.6),
        (key_P2, plotting.KEYS, plotting.KEY_MARK, 9, 0.8),
    ):
        axes.scatter(
            kind_P2[:, 0],
            kind_P2[:, 1],
            s=size,
            color=color,
            marker=mark,
            alpha=alpha,
            linewidths=0,
        )
    marked_M2 = key_P2[attended_P]
    ring: Any = {"s": 26, "facecolor": "none", "marker": plotting.ATTENDED_MARK}
    for color, width in (("white", 2.4), (plotting.ATTENDED, 1.2)):
        axes.scatter(marked_M2[:, 0], marked_M2[:, 1], edgecolor=color, linewidths=width, **ring)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.set_aspect("equal", adjustable="datalim")
    if projection == "tsne":
        axes.set_xticks([])
        axes.set_yticks([])


def _picture(
    axes: Axes, image_HW3: NDArray[np.uint8], grid: tuple[int, int], attended: NDArray[np.int64]
) -> None:
    axes.imshow(image_HW3)
    height, width = image_HW3.shape[0] / grid[0], image_HW3.shape[1] / grid[1]
    for color, line in (("white", 2.4), (plotting.ATTENDED, 1.2)):
        for row, column in zip(*np.divmod(attended, grid[1]), strict=True):
            corner = (column + 0.1) * width - 0.5, (row + 0.1) * height - 0.5
            square = Rectangle(corner, 0.8 * width, 0.8 * height)  # a gap to the neighbours
            square.set(facecolor="none", edgecolor=color, linewidth=line)
            axes.add_patch(square)
    axes.set_xticks([])
    axes.set_yticks([])


def _mark(color: str, marker: str) -> Line2D:
    return Line2D([], [], linestyle="none", color=color, marker=marker)
