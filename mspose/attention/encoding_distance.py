"""Distances between tokens under a position encoding that is added to them.

N tokens of a map in row-major order, C channels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GRID_STEP = 0.5
"""Distances on the grid, in tokens, are rounded to whole multiples of this."""


def token_distances(encoding_NC: Tensor) -> NDArray[np.float64]:
    """Compute (N, N), the Euclidean distances of every two tokens' encodings."""
    encoding_NC = encoding_NC.double()
    return (
        torch.cdist(encoding_NC, encoding_NC, compute_mode="donot_use_mm_for_euclid_dist")
        .cpu()
        .numpy()
    )


def distance_profile(
    distance_NN: NDArray[np.float64], height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average the distance of two tokens' encodings over their distance on the map.

    Returns:
        grid_distance: rising, Euclidean, in tokens, rounded to multiples of `GRID_STEP`.
        token_distance: the mean at each of them.
    """
    row_N, column_N = np.divmod(np.arange(height * width), width)
    grid_NN = np.hypot(row_N[:, None] - row_N, column_N[:, None] - column_N)
    step, index_NN = np.unique((grid_NN / GRID_STEP).round(), return_inverse=True)
    sums = np.bincount(index_NN.ravel(), weights=distance_NN.ravel())
    return step * GRID_STEP, sums / np.bincount(index_NN.ravel())
