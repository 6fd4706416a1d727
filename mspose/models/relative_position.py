"""Where tokens lie, as encoder self-attention takes it in other ways than by a vector added to the
tokens.

Two of relative positions: `rotary` turns queries and keys, `relative-bias` adds to the scores; and
    `none`. Each stands
for the encoders alone: a scene's query in a decoder lies nowhere on the map, so that it has no
    relative position.

N tokens, H heads, D channels per head, P = D / 2 pairs of channels.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.models.position_encoding import RememberedEncoding

ROTARY_BASE = 100.0
BUCKETS = 32
MAX_DISTANCE = 128
_EXACT = BUCKETS // 4  # distances below have a bucket each
FIRST_DISTANCES = (
    *range(1, _EXACT + 1),
    *(math.ceil(_EXACT * (MAX_DISTANCE / _EXACT) ** (k / _EXACT)) for k in range(1, _EXACT)),
)
"""The smallest distance of each bucket on one side, from the second on; distances grow by a
constant factor.
"""


class TokenPositions(NamedTuple):
    """What self-attention is told of where its tokens lie; what is None takes no part."""

    added_NC: Tensor | None = None
    """Added to the tokens that queries and keys are made of."""
    rotation_2NP: Tensor | None = None
    """Cosines and sines of the angles by which pairs of channels of queries and keys are turned."""
    bias_HNN: Tensor | None = None
    """Added to the scores of query (second to last) and key (last)."""


def make_relative_position(name: str, dim: int, heads: int) -> nn.Module | None:
    """What tells an encoder's tokens their places under the encoding `name`, None where that is
    added to the tokens.

    Its forward takes what a position encoding's does, and returns `TokenPositions`.

    Raises:
        ValueError: the channels of a head do not divide as the encoding needs.
    """
    if name == "rotary":
        return RememberedEncoding(Rotary(dim // heads))
    if name == "relative-bias":
        return RelativeBias(dim, heads)
    return NoPositions() if name == "none" else None


class NoPositions(nn.Module):
    """Nothing tells the tokens their places."""

    def forward(self, *grid: Any) -> TokenPositions:  # noqa: ARG002
        """Nothing at all."""
        return TokenPositions()


class Rotary(nn.Module):
    """Axial rotary encoding (Su et al., RoFormer, arXiv 2104.09864; in 2-D, Heo et al., Rotary
    Position Embedding for Vision Transformer, ECCV 2024): the scores depend on how far apart query
    and key are, in rows and in columns.

    The pair (2t, 2t + 1) of the first half of a head's channels is turned by the angle row *
    theta_t, that of the other half by column * theta_t; theta_t = 100^(-t / (D / 4)), t = 0 .. D /
    4 - 1, rows and columns counted from 0.
    """

    def __init__(self, channels: int) -> None:
        """For heads of `channels` channels. Raises ValueError where these are not a multiple of 4."""
        super().__init__()
        if channels < 4 or channels % 4:
            raise ValueError(
                f"rotary encoding: expected a multiple of 4 channels per head, found {channels}"
            )
        self.channels = channels

    def forward(
        self, height: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> TokenPositions:
        """The rotation of a map of `height` times `width` tokens; computed in float64 on the CPU,
        then cast.
        """
        count = self.channels // 4
        theta = ROTARY_BASE ** (-torch.arange(count, dtype=torch.float64) / count)
        row_HWT = (torch.arange(height)[:, None, None] * theta).expand(-1, width, -1)
        column_HWT = (torch.arange(width)[:, None] * theta).expand(height, -1, -1)
        angle_NP = torch.cat((row_HWT, column_HWT), dim=-1).flatten(0, 1)
        return TokenPositions(
            rotation_2NP=torch.stack((angle_NP.cos(), angle_NP.sin())).to(
                device=device, dtype=dtype
            )
        )


def rotate(token_BHND: Tensor, rotation_2NP: Tensor) -> Tensor:
    """Each pair of channels (2t, 2t + 1) turned in its plane; in the tokens' dtype."""
    cosine_NP, sine_NP = rotation_2NP
    first, second = token_BHND.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack(
        (first * cosine_NP - second * sine_NP, first * sine_NP + second * cosine_NP), dim=-1
    )
    return turned.flatten(-2).to(token_BHND.dtype)


class RelativeBias(nn.Module):
    """T5's relative position bias (Raffel et al., JMLR 2020) on a map: of each head, a learned
    number for the distance in rows from query to key plus one for that in columns, added to the
    score; the same in all layers.

    Distances fall into 32 buckets, half of them for keys below or to the right of the query. On
    each side those up to 7 have a bucket each, the others share eight whose ends grow by a constant
    factor, the last from 91 on (all of T5's `_relative_position_bucket`, bidirectional, with a
    maximal distance of 128). The tables start as T5's, normal with a deviation of 1 / sqrt(C).
    """

    boundary: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.empty(BUCKETS, heads))
        self.column = nn.Parameter(torch.empty(BUCKETS, heads))
        with torch.random.fork_rng(
            devices=[]
        ):  # a network's other weights start as they do without these
            for table in (self.row, self.column):
                nn.init.normal_(table, std=dim**-0.5)
        self.register_buffer("boundary", torch.tensor(FIRST_DISTANCES), persistent=False)

    def forward(
        self,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,  # noqa: ARG002
    ) -> TokenPositions:
        """The bias of a map of `height` times `width` tokens; `device` is that of the tables."""
        row_HYY, column_HXX = self._of_axis(self.row, height), self._of_axis(self.column, width)
        bias_HYXYX = row_HYY[:, :, None, :, None] + column_HXX[:, None, :, None, :]
        return TokenPositions(bias_HNN=bias_HYXYX.flatten(3, 4).flatten(1, 2).to(dtype))

    def _of_axis(self, table: Tensor, length: int) -> Tensor:
        """Of each head, the table's entry for every query (second to last) and key (last) along one
        axis.
        """
        place = torch.arange(length, device=table.device)
        return F.embedding(self.bucket(place - place[:, None]), table).permute(2, 0, 1)

    def bucket(self, offset: Tensor) -> Tensor:
        """The bucket of each offset, key less query."""
        return torch.bucketize(offset.abs(), self.boundary, right=True) + (offset > 0) * (
            BUCKETS // 2
        )
