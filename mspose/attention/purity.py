"""Purity of the query region: the share of queries among the neighbours of each query.

B images, H heads, Q queries, K keys, D channels per head, R queries of a chunk, P = Q + K points of
the pool.
"""

import torch
from torch import Tensor

from mspose.errors import MsposeError

TIE = 1e-12
"""Squared distances that differ by less than this share of the pool's largest squared norm are
equal.
"""


def query_purity(
    query_BHQD: Tensor, key_BHKD: Tensor, neighbours: int, *, chunk: int = 256
) -> Tensor:
    """Compute the share of queries among the nearest neighbours of each query, in the pooled
    queries and keys of its image and head.

    ActMST (Lee, Kim and Heo, NeurIPS 2024) measures the purity of the region that queries occupy;
    how it draws the region is not published in detail, so this definition by neighbours is ours.
    Distances are Euclidean, in float64; a query is no neighbour of itself; of points that are
    equally far, each counts in part. The memory is bounded to a few times H * chunk * P numbers.

    Args:
        neighbours: how many neighbours of a query count.

    Returns:
        purity_BHQ: 1 in a region of queries only, 0 among keys only; where queries and keys lie
            mixed its expectation is (Q - 1) / (Q + K - 1), about 0.5 for as many of both.

    Raises:
        MsposeError: `neighbours` is below 1, or not below the number of points.
    """
    queries, points = query_BHQD.shape[2], query_BHQD.shape[2] + key_BHKD.shape[2]
    if not 1 <= neighbours < points:
        raise MsposeError(
            f"neighbours: expected 1 to {points - 1}, fewer than the {queries} queries and"
            f" {points - queries} keys of an image, found {neighbours}"
        )
    purity_BHQ = query_BHQD.new_empty(query_BHQD.shape[:3], dtype=torch.float32)
    with torch.autocast(query_BHQD.device.type, enabled=False):
        for image in range(len(query_BHQD)):
            pool_HPD = torch.cat((query_BHQD[image], key_BHKD[image]), dim=1).double()
            pool_HPD = pool_HPD - pool_HPD.mean(dim=1, keepdim=True)
            for start in range(0, queries, chunk):
                rows = slice(start, min(start + chunk, queries))
                purity_BHQ[image, :, rows] = _purity(pool_HPD, rows, queries, neighbours)
    return purity_BHQ


def _purity(pool_HPD: Tensor, rows: slice, queries: int, neighbours: int) -> Tensor:
    """Compute purity_HR of the queries `rows`; queries are the first of the pool's points."""
    norm_HP = pool_HPD.square().sum(dim=-1)
    square_HRP = (
        torch.baddbmm(norm_HP[:, None], pool_HPD[:, rows], pool_HPD.mT, alpha=-2)
        + norm_HP[:, rows, None]
    )
    square_HRP[:, :, rows].diagonal(dim1=1, dim2=2).fill_(torch.inf)  # itself
    farthest_HR1 = square_HRP.topk(neighbours, largest=False).values.amax(dim=-1, keepdim=True)
    tie_H11 = TIE * norm_HP.amax(dim=-1)[:, None, None]
    closer_HRP = square_HRP < farthest_HR1 - tie_H11
    tied_HRP = (square_HRP <= farthest_HR1 + tie_H11) & ~closer_HRP
    # points that are equally far share what closer ones leave of the neighbours
    part_HR = (neighbours - closer_HRP.sum(dim=-1)) / tied_HRP.sum(dim=-1)
    found_HR = closer_HRP[..., :queries].sum(dim=-1) + part_HR * tied_HRP[..., :queries].sum(dim=-1)
    return found_HR / neighbours
