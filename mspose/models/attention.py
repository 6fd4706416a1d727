"""Multi-head attention, written once.

B images, Q queries, K keys, C channels, H heads, D channels per head (C = H * D).
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.models.attention_map import AttentionMap
from mspose.models.cpu_attention import attend
from mspose.models.query_key_weights import make_query_key_weights
from mspose.models.token_positions import TokenPositions, rotate

Replacement = Literal["mean", "own", "nothing"]
REPLACEMENTS: tuple[Replacement, ...] = get_args(Replacement)
"""Substitutes for self-attention that attend to nothing: each token gets the mean of all values,
its own value, or nothing at all.
"""


def expect_shape(name: str, tensor: Tensor, expected: Sequence[int | str]) -> None:
    """Refuse a tensor of another shape than `expected`, where a word stands for any positive size.

    Raises:
        ValueError: naming the tensor, the expected and the found shape.
    """
    found = tuple(tensor.shape)
    fits = len(found) == len(expected) and all(
        size > 0 if isinstance(want, str) else size == want
        for size, want in zip(found, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(want) for want in expected)
        raise ValueError(f"{name}: expected shape ({wanted}), found {found}")


def xavier_linear(inputs: int, outputs: int) -> nn.Linear:
    """`nn.Linear` whose weight starts Xavier-uniform, as all of MS-Transformer's do."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class Attention(nn.Module):
    """Scaled dot-product attention with `heads` heads (Vaswani et al., 2017), batch first.

    The parameters have the names and shapes of those of `nn.MultiheadAttention`.

    Attributes:
        query_key_weights: parametrisation of the weights of queries and keys; None: plain.
        replacement: what stands in for attention, in self-attention; None: nothing does. Set by
            `mspose.attention.knock_out`.
    """

    replacement: Replacement | None = None

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        dropout: float = 0.0,
        scale: str = "head-dim",
        query_key_weights: str = "plain",
    ) -> None:
        """Weights start Xavier-uniform, biases of projections at zero.

        Args:
            dim: channels C of queries, keys and values, a multiple of `heads`.
            heads: number of heads H.
            dropout: probability with which an attention weight is dropped in training.
            scale: scores are divided by sqrt(D) (`head-dim`) or sqrt(K) (`tokens`).
            query_key_weights: a name in `QUERY_KEY_WEIGHTS`.
        """
        super().__init__()
        self.dim, self.heads, self.dropout, self.scale = dim, heads, dropout, scale
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = xavier_linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)
        matrices_2CC = self.in_proj_weight[: 2 * dim].unflatten(0, (2, dim))
        self.query_key_weights = make_query_key_weights(query_key_weights, matrices_2CC)

    def forward(
        self,
        query_BQC: Tensor,
        key_BKC: Tensor,
        value_BKC: Tensor,
        positions: TokenPositions | None = None,
    ) -> tuple[Tensor, AttentionMap]:
        """Attend, and return what was attended with.

        Args:
            query_BQC, key_BKC: with any encoding that is added to tokens added already.
            value_BKC: never with it.
            positions: encodings that act behind the projection, a rotation or a bias.

        Returns:
            tokens_BQC: the attended values, after the output projection.
            the attention map, of queries and keys after the projection and rotation, unscaled.

        Raises:
            ValueError: a tensor has another shape than its name says.
        """
        expect_shape("query_BQC", query_BQC, ("batch", "queries", self.dim))
        expect_shape("key_BKC", key_BKC, (query_BQC.shape[0], "keys", self.dim))
        expect_shape("value_BKC", value_BKC, tuple(key_BKC.shape))
        rotation_2NP, bias_HQK = (
            (None, None) if positions is None else (positions.rotation_2NP, positions.bias_HNN)
        )
        query_BHQD, key_BHKD, value_BHKD = (
            F.linear(tokens, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip(
                (query_BQC, key_BKC, value_BKC),
                self._weights(),
                self.in_proj_bias.chunk(3),
                strict=True,
            )
        )
        if rotation_2NP is not None:
            query_BHQD, key_BHKD = rotate(query_BHQD, rotation_2NP), rotate(key_BHKD, rotation_2NP)
        divisor = key_BHKD.shape[2] if self.scale == "tokens" else key_BHKD.shape[3]
        scale = divisor**-0.5
        attention = AttentionMap(query_BHQD, key_BHKD, scale=scale, bias=bias_HQK)
        if self.replacement == "nothing":
            return torch.zeros_like(query_BQC), attention
        if self.replacement == "mean":
            attended_BHQD = value_BHKD.mean(dim=2, keepdim=True).expand_as(query_BHQD)
        elif self.replacement == "own":
            attended_BHQD = value_BHKD
        else:
            attended_BHQD = attend(
                query_BHQD,
                key_BHKD,
                value_BHKD,
                scale=scale,
                bias_HQK=bias_HQK,
                dropout=self.dropout if self.training else 0.0,
            )
        return self.out_proj(attended_BHQD.transpose(1, 2).flatten(2)), attention

    def _weights(self) -> tuple[Tensor, ...]:
        """Weights of queries, keys and values as they are used."""
        query_CC, key_CC, value_CC = self.in_proj_weight.chunk(3)
        if self.query_key_weights is not None:
            query_CC, key_CC = self.query_key_weights(torch.stack((query_CC, key_CC))).unbind()
        return query_CC, key_CC, value_CC
