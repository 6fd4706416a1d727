"""How attention learns where tokens lie on their feature map: one registry of encodings.

To add an encoding, write a module whose `forward(height, width, dtype, device)` returns
`TokenPositions` for a map of `height` x `width` tokens in row-major order, and name it in
`TOKEN_POSITIONS` below. N tokens, H heads, C channels, D channels per head, P = D / 2 pairs.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.errors import MsposeError

TABLE_SIZE = 50  # rows and columns of the learned tables
TEMPERATURE = 10000.0
ROTARY_BASE = 100.0
BUCKETS = 32
MAX_DISTANCE = 128


class TokenPositions(NamedTuple):
    """Positions of tokens in the three forms that attention takes; None: not in this form."""

    added_NC: Tensor | None = None
    """Added to the tokens from which queries and keys are projected."""
    rotation_2NP: Tensor | None = None
    """Cosine and sine of the angle by which each pair of channels of queries and keys is turned."""
    bias_HNN: Tensor | None = None
    """Added to the attention scores (query, key)."""


class LearnedEncoding(nn.Module):
    """One learned vector per row and one per column, concatenated, column part first; both start
    uniform in 0..1 (MS-Transformer).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.rand(TABLE_SIZE, dim // 2))
        self.column = nn.Parameter(torch.rand(TABLE_SIZE, dim // 2))

    def forward(
        self, height: int, width: int, dtype: torch.dtype, _: torch.device
    ) -> TokenPositions:
        """Raise MsposeError for a map that is larger than the tables."""
        if max(height, width) > TABLE_SIZE:
            raise MsposeError(
                f"position_encoding learned: the tables hold {TABLE_SIZE} rows and columns, the"
                f" feature map has {height} and {width}: use smaller images or"
                " `--model.position_encoding sine`"
            )
        column_HWC = self.column[None, :width].expand(height, -1, -1)
        row_HWC = self.row[:height, None].expand(-1, width, -1)
        return TokenPositions(torch.cat((column_HWC, row_HWC), dim=-1).flatten(0, 1).to(dtype))


class SineEncoding(nn.Module):
    """Fixed 2-D sine encoding: row half first, then column half, sines and cosines alternating.

    Rows and columns count from 1. With `normalized` (DETR; Carion et al., ECCV 2020) they are
    scaled so that the last one is 2 pi; without, they stay as they are (ActMST). Channels 2i and
    2i + 1 of a half have the frequency 10000^(-2i / (C / 2)).

    Computed in float32 whatever the network's precision, as in the released code, and not kept in
    a buffer, which would keep the rounding of a `.half()`.
    """

    def __init__(self, dim: int, *, normalized: bool = False) -> None:
        """`dim` is a multiple of 4: two axes, sine and cosine."""
        super().__init__()
        self.dim, self.normalized = dim, normalized

    def forward(
        self, height: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> TokenPositions:
        half = self.dim // 2
        exponent = torch.arange(0, half, 2, dtype=torch.float64, device="cpu") / half
        wavelength = (TEMPERATURE**exponent).to(device, torch.float32)

        def one_axis(length: int) -> Tensor:
            index = torch.arange(1, length + 1, dtype=torch.float32, device=device)
            if self.normalized:
                index = index / length * (2 * math.pi)
            angle = index[:, None] / wavelength
            return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)

        row_HWC = one_axis(height)[:, None].expand(height, width, half)
        column_HWC = one_axis(width)[None].expand(height, width, half)
        return TokenPositions(torch.cat((row_HWC, column_HWC), dim=-1).flatten(0, 1).to(dtype))


class Rotary(nn.Module):
    """Axial rotary encoding (Su et al., RoFormer, arXiv 2104.09864; in 2-D, Heo et al., ECCV 2024):
    scores depend on the offset from query to key, in rows and in columns.

    The pair (2t, 2t + 1) of the first half of a head's channels is turned by row * theta_t, that of
    the other half by column * theta_t; theta_t = 100^(-t / (D / 4)), rows and columns from 0.
    """

    def __init__(self, dim: int, heads: int) -> None:
        """Raises MsposeError where a head's channels are not a multiple of 4."""
        super().__init__()
        self.channels = dim // heads
        if self.channels % 4:
            raise MsposeError(
                "position_encoding rotary: expected a multiple of 4 channels per head, found"
                f" {self.channels} (dim {dim}, heads {heads})"
            )

    def forward(
        self, height: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> TokenPositions:
        count = self.channels // 4
        theta = ROTARY_BASE ** (-torch.arange(count, dtype=torch.float64, device="cpu") / count)
        row_HWT = (torch.arange(height)[:, None, None] * theta).expand(-1, width, -1)
        column_HWT = (torch.arange(width)[:, None] * theta).expand(height, -1, -1)
        angle_NP = torch.cat((row_HWT, column_HWT), dim=-1).flatten(0, 1)
        rotation_2NP = torch.stack((angle_NP.cos(), angle_NP.sin()))
        return TokenPositions(rotation_2NP=rotation_2NP.to(device, dtype))


def rotate(token_BHND: Tensor, rotation_2NP: Tensor) -> Tensor:
    """Turn each pair of channels (2t, 2t + 1) in its plane; in the tokens' dtype."""
    cosine_NP, sine_NP = rotation_2NP
    first, second = token_BHND.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack(
        (first * cosine_NP - second * sine_NP, first * sine_NP + second * cosine_NP), dim=-1
    )
    return turned.flatten(-2).to(token_BHND.dtype)


class RelativeBias(nn.Module):
    """T5's relative position bias (Raffel et al., JMLR 2020) on a map: for each head, a learned
    number for the offset in rows plus one for that in columns is added to the score; the same in
    all layers.

    Offsets, key minus query, fall into 32 buckets, half of them for positive ones. On each side
    distances up to 7 have a bucket each; the others share eight whose ends grow by a constant
    factor (T5's `_relative_position_bucket`, bidirectional, maximal distance 128). The tables start
    as T5's, normal with a deviation of 1 / sqrt(C).
    """

    first_distance: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # other weights start as they do without these
            self.row = nn.Parameter(torch.randn(BUCKETS, heads) * dim**-0.5)
            self.column = nn.Parameter(torch.randn(BUCKETS, heads) * dim**-0.5)
        exact = BUCKETS // 4
        grown = (exact * (MAX_DISTANCE / exact) ** (k / exact) for k in range(1, exact))
        # smallest distance of each bucket of one side, from the second bucket on
        first = torch.tensor([*range(1, exact + 1), *map(math.ceil, grown)])
        self.register_buffer("first_distance", first, persistent=False)

    def forward(
        self, height: int, width: int, dtype: torch.dtype, _: torch.device
    ) -> TokenPositions:
        row_HYY, column_HXX = self._axis_bias(self.row, height), self._axis_bias(self.column, width)
        bias_HYXYX = row_HYY[:, :, None, :, None] + column_HXX[:, None, :, None, :]
        return TokenPositions(bias_HNN=bias_HYXYX.flatten(3, 4).flatten(1, 2).to(dtype))

    def _axis_bias(self, table: Tensor, length: int) -> Tensor:
        """Table entries (head, query, key) along one axis."""
        index = torch.arange(length, device=table.device)
        return F.embedding(self.bucket(index - index[:, None]), table).permute(2, 0, 1)

    def bucket(self, offset: Tensor) -> Tensor:
        """Bucket number of each offset, key minus query."""
        side = torch.bucketize(offset.abs(), self.first_distance, right=True)
        return side + (offset > 0) * (BUCKETS // 2)


class NoEncoding(nn.Module):
    """Attention that does not know where its tokens lie."""

    def __init__(self, dim: int, heads: int) -> None:  # noqa: ARG002
        super().__init__()

    def forward(self, *grid: object) -> TokenPositions:  # noqa: ARG002
        return TokenPositions()


class Encoding(NamedTuple):
    """The parts of one position encoding, a value of the setting `position_encoding`."""

    added: Callable[[int], nn.Module]
    """Builds, from the channels `dim`, the encoding that is added to the keys of the decoders."""
    encoder: Callable[[int, int], nn.Module] | None = None
    """Builds, from `dim` and `heads`, the encoders' own; None: the encoders add the same one."""


# A scene's query lies nowhere on the map, so that it has no offset to a token, and a decoder
# without any encoding could not tell where in the image it reads. Encodings of offsets, and none,
# therefore concern the encoders alone: the decoders' keys then have the fixed sine encoding.
TOKEN_POSITIONS = {
    "learned": Encoding(LearnedEncoding),
    "sine": Encoding(SineEncoding),
    "sine-normalized": Encoding(lambda dim: SineEncoding(dim, normalized=True)),
    "rotary": Encoding(SineEncoding, encoder=Rotary),
    "relative-bias": Encoding(SineEncoding, encoder=RelativeBias),
    "none": Encoding(SineEncoding, encoder=NoEncoding),
}
