"""Where a token lies on its feature map, as a vector added to queries and keys.

Three encodings: `learned` (MS-Transformer: a row and a column table), `sine` (ActMST: fixed, 2-D,
not normalised) and `sine-normalized` (DETR's: the same, positions scaled to 2 pi). Another one is
added in `make_position_encoding`; `mspose.models.relative_position` has those that are not added to
tokens.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mspose.errors import MsposeError

ADDED_ENCODINGS = ("learned", "sine", "sine-normalized")
POSITION_ENCODINGS = (*ADDED_ENCODINGS, "rotary", "relative-bias", "none")
TABLE_SIZE = 50  # rows and columns of the learned tables
TEMPERATURE = 10000.0


def make_position_encoding(name: str, dim: int) -> nn.Module:
    """The encoding called `name` (one of `POSITION_ENCODINGS`), with `dim` channels, that is added
    to tokens.

    `rotary`, `relative-bias` and `none` concern encoders, whose tokens have places relative to each
    other. A scene's query has none, and a decoder without any encoding could not tell where in the
    image it reads, so that under these
    three the keys of the decoders have the fixed `sine` encoding: rows that compare them differ in
        the encoders alone.

    Its forward takes a map's height and width and the dtype and device of its tokens, and returns
    position_NC, the encoding of the map's tokens in row-major order.

    Raises:
        ValueError: unknown name, or channels that do not divide into the two axes.
    """
    if name == "learned":
        return LearnedEncoding(dim)
    if name == "sine-normalized":
        return RememberedEncoding(SineEncoding(dim, normalized=True))
    if name in POSITION_ENCODINGS:
        return RememberedEncoding(SineEncoding(dim, normalized=False))
    raise ValueError(
        f"position_encoding: expected one of {', '.join(POSITION_ENCODINGS)}, found {name!r}"
    )


def sine_encoding(
    height: int,
    width: int,
    dim: int,
    *,
    normalized: bool,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Fixed 2-D sine encoding of a map: row half first, then column half; sines and cosines
    alternate.

    Positions count from 1; `normalized` scales each axis so that the last position is 2 pi (Carion
    et al., DETR, 2020). Channels 2i and 2i + 1 of a half have the frequency 10000^(-2i / (dim /
    2)).

    Computed in float32 whatever `dtype` is, as in the released code, so that a float64 network with
    released weights answers what that code answers in float64; on the CPU, then cast. Within 3e-6
    of exact on a map of 28 x 28 tokens.

    Returns:
        position_NC: (height * width, dim), row-major.

    Raises:
        ValueError: `dim` is not a multiple of 4.
    """
    if dim < 4 or dim % 4:
        raise ValueError(
            "sine encoding: expected a multiple of 4 channels (2 axes, sine and cosine), found"
            f" {dim}"
        )
    half = dim // 2
    wavelength = (TEMPERATURE ** (torch.arange(0, half, 2, dtype=torch.float64) / half)).to(
        torch.float32
    )

    def one_axis(length: int) -> Tensor:
        place = torch.arange(1, length + 1, dtype=torch.float32)
        if normalized:
            place = place / length * (2 * math.pi)
        angle = place[:, None] / wavelength
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)

    row_HWC = one_axis(height)[:, None].expand(height, width, half)
    column_HWC = one_axis(width)[None].expand(height, width, half)
    return torch.cat((row_HWC, column_HWC), dim=-1).flatten(0, 1).to(device=device, dtype=dtype)


class SineEncoding(nn.Module):
    """`sine_encoding` as a module. No parameters, no buffers.

    A buffer would keep the rounding of a `.half()` followed by a `.float()`; these are made from
    float32 each time.
    """

    def __init__(self, dim: int, *, normalized: bool) -> None:
        super().__init__()
        self.dim = dim
        self.normalized = normalized
        sine_encoding(1, 1, dim, normalized=normalized)  # refuses odd channels at once

    def forward(self, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """position_NC of a map of `height` times `width` tokens."""
        return sine_encoding(
            height, width, self.dim, normalized=self.normalized, dtype=dtype, device=device
        )


class RememberedEncoding(nn.Module):
    """An encoding that no longer changes, with its answers remembered per map size, dtype and
    device.
    """

    def __init__(self, encoding: nn.Module) -> None:
        super().__init__()
        self.encoding = encoding
        self._remembered: dict[tuple[int, int, torch.dtype, torch.device], Any] = {}

    def forward(self, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Any:
        """The encoding of a map of `height` times `width` tokens: the same tensors each time."""
        if (
            torch.compiler.is_compiling()
        ):  # a compiler would make its code anew whenever more is remembered
            with torch.no_grad():
                return self.encoding(height, width, dtype, device)
        key = (height, width, dtype, device)
        if key not in self._remembered:
            if len(self._remembered) >= 16:
                self._remembered.clear()
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # what is remembered must serve training as well
                self._remembered[key] = self.encoding(height, width, dtype, device)
        return self._remembered[key]


class LearnedEncoding(nn.Module):
    """One learned vector per row and one per column, concatenated: column part first
    (MS-Transformer).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(
                f"learned encoding: expected an even number of channels (2 axes), found {dim}"
            )
        self.row = nn.Parameter(torch.rand(TABLE_SIZE, dim // 2))
        self.column = nn.Parameter(torch.rand(TABLE_SIZE, dim // 2))

    def forward(self, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """position_NC of a map of `height` times `width` tokens; `device` is that of the tables.

        Raises:
            MsposeError: the map is larger than the tables.
        """
        rows, columns = self.row.shape[0], self.column.shape[0]
        if height > rows or width > columns:
            raise MsposeError(
                f"learned encoding: the table holds {rows} rows and {columns} columns, the feature"
                f" map has {height} and {width}: use smaller images or `--model.position_encoding"
                " sine`"
            )
        column_HWC = self.column[None, :width].expand(height, -1, -1)
        row_HWC = self.row[:height, None].expand(-1, width, -1)
        return torch.cat((column_HWC, row_HWC), dim=-1).flatten(0, 1).to(device=device, dtype=dtype)
