"""Multi-head attention, written once.

Shapes: B images, Q queries, K keys, C channels, H heads, D channels per head (C = H * D).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.models.attention_map import AttentionMap
from mspose.models.kernels import Linear, attend, dropout, linear
from mspose.models.query_key_weights import NormalizedWeights, make_query_key_weights
from mspose.models.relative_position import TokenPositions, rotate

ATTENTION_SCALES = ("head-dim", "tokens")


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


class Attention(nn.Module):
    """Scaled dot-product attention with `heads` heads (Vaswani et al., 2017), batch first.

    The parameters have the names, shapes and initialisation of `nn.MultiheadAttention`, so that its
    weights fit.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0) -> None:
        """Initialised as `nn.MultiheadAttention` is.

        Args:
            dim: channels C of queries, keys and values.
            heads: number of heads; divides `dim`.
            dropout: probability with which an attention weight is dropped in training.

        Raises:
            ValueError: `dim` is not a multiple of `heads`.
        """
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"attention: {dim} channels do not divide into {heads} heads")
        self.dim = dim
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _split_heads(self, tokens_BNC: Tensor) -> Tensor:
        return tokens_BNC.unflatten(-1, (self.heads, self.dim // self.heads)).transpose(1, 2)


class SelfAttention(Attention):
    """Attention of tokens to each other, with their positions added to queries and keys, never to
    values.

    Attributes:
        query_key_weights: what the weights of queries and keys go through before they are used;
            None: nothing.
        remembers_positions: keep the projected positions while the same tensor of positions comes
            in: for a network whose weights no longer change.
    """

    def __init__(
        self, dim: int, heads: int, *, dropout: float = 0.0, attention_scale: str = "head-dim"
    ) -> None:
        """As `Attention`; scores are divided by sqrt(D) (`head-dim`) or by sqrt(N), N the number of
        `tokens`.
        """
        super().__init__(dim, heads, dropout=dropout)
        self.attention_scale = attention_scale
        self.query_key_weights: NormalizedWeights | None = None
        self.remembers_positions = False
        self._remembered: tuple[Tensor, Tensor] | None = None

    def forward(self, tokens_BNC: Tensor, positions: TokenPositions) -> tuple[Tensor, AttentionMap]:
        """Attend, and hand out what was attended with.

        Returns:
            tokens_BNC: the attended values, after the output projection.
            the attention map: queries and keys after the in-projection with bias and after a
                rotation, before the scaling.

        Raises:
            ValueError: a tensor has another shape than its name says.
        """
        expect_shape("tokens_BNC", tokens_BNC, ("batch", "tokens", self.dim))
        tokens = tokens_BNC.shape[1]
        weight_3CC = self._weights()
        projected_BN3C = linear(tokens_BNC, weight_3CC, self.in_proj_bias)
        if positions.added_NC is not None:
            expect_shape("position_NC", positions.added_NC, (tokens, self.dim))
            # W (x + p) = W x + W p: the positions, the same in every image, are projected once
            position_N3C = self._project_positions(positions.added_NC, weight_3CC)
            projected_BN3C = projected_BN3C + position_N3C.to(projected_BN3C.dtype)
        query_BNC, key_BNC, value_BNC = projected_BN3C.chunk(3, dim=-1)
        query_BHND, key_BHND, value_BHND = map(self._split_heads, (query_BNC, key_BNC, value_BNC))
        if positions.rotation_2NP is not None:
            query_BHND, key_BHND = (
                rotate(part, positions.rotation_2NP) for part in (query_BHND, key_BHND)
            )
        scale = (tokens if self.attention_scale == "tokens" else query_BHND.shape[-1]) ** -0.5
        attended_BHND = attend(
            query_BHND,
            key_BHND,
            value_BHND,
            scale=scale,
            bias_HQK=positions.bias_HNN,
            dropout=self.dropout if self.training else 0.0,
        )
        attention = AttentionMap(query_BHND, key_BHND, scale=scale, bias=positions.bias_HNN)
        return self.out_proj(attended_BHND.transpose(1, 2).flatten(2)), attention

    def normalize_query_key_weights(self, name: str) -> None:
        """From now on use the weights of queries and of keys, as they are now, under the
        parametrisation `name` (see `make_query_key_weights`).
        """
        self.query_key_weights = make_query_key_weights(name, self._query_key_matrices())

    def fuse(self) -> None:
        """For a network whose weights no longer change: what they make is made once."""
        with torch.no_grad():
            self.in_proj_weight.copy_(self._weights())
        self.query_key_weights = None
        self.remembers_positions = True

    def _query_key_matrices(self) -> Tensor:
        return self.in_proj_weight[: 2 * self.dim].unflatten(0, (2, self.dim))

    def _weights(self) -> Tensor:
        """The weights of queries, keys and values as they are used."""
        if self.query_key_weights is None:
            return self.in_proj_weight
        query_key_2CC = self.query_key_weights(self._query_key_matrices())
        return torch.cat((query_key_2CC.flatten(0, 1), self.in_proj_weight[2 * self.dim :]))

    def _project_positions(self, position_NC: Tensor, weight_3CC: Tensor) -> Tensor:
        """What positions add to queries, keys and values; to values, nothing."""
        if self._remembered is not None and self._remembered[0] is position_NC:
            return self._remembered[1]
        position_N2C = linear(position_NC.to(weight_3CC.dtype), weight_3CC[: 2 * self.dim])
        position_N3C = F.pad(position_N2C, (0, self.dim))
        if (
            self.remembers_positions and position_N2C.dtype == position_NC.dtype
        ):  # not what autocast made
            self._remembered = (position_NC, position_N3C)
        return position_N3C


class CrossAttention(Attention):
    """Attention of a few queries to many keys: the key and value projections are applied to the
    queries and to what they attended, in place of all keys and values. It is cheaper where heads
    times queries are fewer than `dim`.

    With q a projected query, q . (W_k x + b_k) = (W_k^T q) . x + q . b_k, whose last term is the
    same for every key and leaves the softmax as it is; and sum_j A_j (W_v x_j + b_v) = W_v (sum_j
    A_j x_j) + b_v sum_j A_j.
    """

    def forward(
        self, query_BQC: Tensor, key_BKC: Tensor, value_BKC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns tokens_BQC, the attended values after the output projection, and weight_BHQK, the
        attention map before dropout.

        Raises:
            ValueError: a tensor has another shape than its name says.
        """
        expect_shape("query_BQC", query_BQC, ("batch", "queries", self.dim))
        batch = query_BQC.shape[0]
        expect_shape("key_BKC", key_BKC, (batch, "keys", self.dim))
        expect_shape("value_BKC", value_BKC, (batch, key_BKC.shape[1], self.dim))

        query_weight_CC, key_weight_CC, value_weight_CC = self.in_proj_weight.chunk(3)
        query_bias_C, _, value_bias_C = self.in_proj_bias.chunk(3)
        head = (self.heads, self.dim // self.heads)
        query_BHQD = (
            self._split_heads(linear(query_BQC, query_weight_CC, query_bias_C)) * head[1] ** -0.5
        )
        absorbed_BHQC = torch.einsum("bhqd,hdc->bhqc", query_BHQD, key_weight_CC.unflatten(0, head))
        score_BHQK = (absorbed_BHQC.flatten(1, 2) @ key_BKC.mT).unflatten(1, (self.heads, -1))
        weight_BHQK = score_BHQK.softmax(dim=-1)
        kept_BHQK = dropout(weight_BHQK, self.dropout, training=self.training)
        memory_BHQC = (kept_BHQK.flatten(1, 2) @ value_BKC).unflatten(1, (self.heads, -1))
        bias_BHQD = kept_BHQK.sum(dim=-1, keepdim=True) * value_bias_C.view(*head)[:, None]
        attended_BHQD = (
            torch.einsum("bhqc,hdc->bhqd", memory_BHQC, value_weight_CC.unflatten(0, head))
            + bias_BHQD
        )
        return self.out_proj(attended_BHQD.transpose(1, 2).flatten(2)), weight_BHQK
