"""Multi-head attention, written once, and what is measured on its queries and keys.

Shapes: B images, Q queries, K keys, C channels, H heads, D channels per head (C = H * D).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def expect_shape(name: str, tensor: Tensor, expected: Sequence[int | str]) -> None:
    """Refuse a tensor of another shape than `expected`, where a word stands for any positive size.

    Raises:
        ValueError: naming the tensor, the expected and the found shape.
    """
    found = tuple(tensor.shape)
    fits = len(found) == len(expected) and all(
        size > 0 if isinstance(want, str) else size == want for size, want in zip(found, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(want) for want in expected)
        raise ValueError(f"{name}: expected shape ({wanted}), found {found}")


class Attention(nn.Module):
    """Scaled dot-product attention with `heads` heads (Vaswani et al., 2017), batch first.

    The parameters have the names, shapes and initialisation of `nn.MultiheadAttention`, so that its weights fit.
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
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query_BQC: Tensor, key_BKC: Tensor, value_BKC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend, and hand out what was attended with.

        Returns:
            tokens_BQC: the attended values, after the output projection.
            query_BHQD, key_BHKD: queries and keys after the in-projection with bias, before the scaling by 1/sqrt(D).

        Raises:
            ValueError: a tensor has another shape than its name says.
        """
        expect_shape("query_BQC", query_BQC, ("batch", "queries", self.dim))
        batch = query_BQC.shape[0]
        expect_shape("key_BKC", key_BKC, (batch, "keys", self.dim))
        expect_shape("value_BKC", value_BKC, (batch, key_BKC.shape[1], self.dim))

        weight, bias, dim = self.in_proj_weight, self.in_proj_bias, self.dim
        if query_BQC is key_BKC:
            projected_BN2C = F.linear(query_BQC, weight[: 2 * dim], bias[: 2 * dim])
            query_BQC, key_BKC = projected_BN2C.chunk(2, dim=-1)
        else:
            query_BQC = F.linear(query_BQC, weight[:dim], bias[:dim])
            key_BKC = F.linear(key_BKC, weight[dim : 2 * dim], bias[dim : 2 * dim])
        value_BKC = F.linear(value_BKC, weight[2 * dim :], bias[2 * dim :])

        query_BHQD, key_BHKD, value_BHKD = map(self._split_heads, (query_BQC, key_BKC, value_BKC))
        attended_BHQD = F.scaled_dot_product_attention(
            query_BHQD, key_BHKD, value_BHKD, dropout_p=self.dropout if self.training else 0.0
        )
        tokens_BQC = self.out_proj(attended_BHQD.transpose(1, 2).flatten(2))
        return tokens_BQC, query_BHQD, key_BHKD

    def _split_heads(self, tokens_BNC: Tensor) -> Tensor:
        return tokens_BNC.unflatten(-1, (self.heads, self.dim // self.heads)).transpose(1, 2)


def query_key_gap(query_BHQD: Tensor, key_BHKD: Tensor) -> Tensor:
    """Distance between the mean query and the mean key of every head: the norm that the QKA loss averages (ActMST).

    Computed in at least float32. Gradients reach both queries and keys; at a gap of zero they are zero.

    Returns:
        gap_BH: L2 norm, not squared, in the units of q and k.
    """
    dtype = torch.promote_types(query_BHQD.dtype, torch.float32)
    difference_BHD = query_BHQD.mean(dim=2, dtype=dtype) - key_BHKD.mean(dim=2, dtype=dtype)
    return torch.linalg.vector_norm(difference_BHD, dim=-1)


def attention_entropy(query_BHQD: Tensor, key_BHKD: Tensor, *, chunk: int = 256) -> Tensor:
    """Mean over queries of -sum_j A_ij log A_ij, A the softmax of q k^T / sqrt(D) (Zhai et al., ICML 2023).

    Computed in at least float32; between 0 (every query attends to one key) and log K (to all keys alike).

    Args:
        chunk: queries whose attention weights are held at once; bounds the memory to B * H * chunk * K numbers.

    Returns:
        entropy_BH: in nats.
    """
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 query at a time, found {chunk}")
    dtype = torch.promote_types(query_BHQD.dtype, torch.float32)
    with torch.autocast(query_BHQD.device.type, enabled=False):
        scaled_BHQD = query_BHQD.to(dtype) / math.sqrt(query_BHQD.shape[-1])
        key_BHDK = key_BHKD.to(dtype).transpose(-1, -2)
        sums_BH = []
        for chunk_BHQD in scaled_BHQD.split(chunk, dim=2):
            log_weight_BHQK = torch.log_softmax(chunk_BHQD @ key_BHDK, dim=-1)
            sums_BH.append(-(log_weight_BHQK.exp() * log_weight_BHQK).sum(dim=(-1, -2)))
        return torch.stack(sums_BH).sum(dim=0) / query_BHQD.shape[2]
