"""Distances between tokens under a position encoding that is added to them.

N tokens of a map in row-major order, C channels.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mspose.attention.attention_json import short
from mspose.models.network import PoseNetwork
from mspose.models.token_positions import TOKEN_POSITIONS

GRID_STEP = 0.5
"""Distances on the grid, in tokens, are rounded to whole multiples of this."""


def encoding_distances(
    network: PoseNetwork, sides: Mapping[str, int]
) -> dict[str, NDArray[np.float64]]:
    """Compute (N, N), the distances of tokens' encodings, by branch, where encoders add these to
    their tokens.

    sides: height and width of each branch's map, in tokens.
    """
    if TOKEN_POSITIONS[network.settings.position_encoding].encoder is not None:
        return {}
    distance_of, encoding = {}, network.get_submodule("position_encoding")
    parameter = next(network.parameters())
    with torch.inference_mode():
        for branch, side in sides.items():
            added_NC = encoding(side, side, parameter.dtype, parameter.device).added_NC
            distance_of[branch] = token_distances(added_NC)
    return distance_of


def token_distances(encoding_NC: Tensor) -> NDArray[np.float64]:
    """Compute (N, N), the Euclidean distances of every two tokens' encodings."""
    encoding_NC = encoding_NC.double()
    return (
        torch.cdist(encoding_NC, encoding_NC, compute_mode="donot_use_mm_for_euclid_dist")
        .cpu()
        .numpy()
    )


def distance_profile(distance_NN: NDArray[np.float64], width: int) -> dict[str, list[float]]:
    """Average the distance of two tokens' encodings over their distance on a map of that width.

    Returns:
        `grid_distance` (rising, Euclidean, in tokens, rounded to multiples of `GRID_STEP`), and
        `token_distance`, the mean at each of them.
    """
    row_N, column_N = np.divmod(np.arange(len(distance_NN)), width)
    grid_NN = np.hypot(row_N[:, None] - row_N, column_N[:, None] - column_N)
    step, index_NN = np.unique((grid_NN / GRID_STEP).round(), return_inverse=True)
    sums = np.bincount(index_NN.ravel(), weights=distance_NN.ravel())
    mean = sums / np.bincount(index_NN.ravel())
    return {
        "grid_distance": (step * GRID_STEP).tolist(),
        "token_distance": [short(value) for value in mean],
    }
