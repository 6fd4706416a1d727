"""An attention map as the queries and keys that make it, and what is measured on it.

The measures go through the map a chunk of queries at a time, so that the whole is never held.

B images, H heads, Q queries, K keys, R queries of a chunk, D channels per head.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class AttentionMap(NamedTuple):
    """The attention map softmax(scale q k^T + bias), over keys, without being computed."""

    query_BHQD: Tensor
    key_BHKD: Tensor
    scale: float
    bias: Tensor | None = None
    """Added to the scores, of a shape that broadcasts to (B, H, Q, K); -inf hides a key."""

    def log_weight(self) -> Tensor:
        """Compute log_weight_BHQK, the logarithm of the whole map, in at least float32."""
        dtype = torch.promote_types(self.query_BHQD.dtype, torch.float32)
        with torch.autocast(self.query_BHQD.device.type, enabled=False):
            score_BHQK = self.scale * self.query_BHQD.to(dtype) @ self.key_BHKD.to(dtype).mT
            return torch.log_softmax(
                score_BHQK if self.bias is None else score_BHQK + self.bias, dim=-1
            )

    def chunks(self, chunk: int = 256) -> Iterator["AttentionMap"]:
        """Yield the map in chunks of at most `chunk` queries."""
        for start in range(0, self.query_BHQD.shape[2], chunk):
            yield self.of_queries(slice(start, start + chunk))

    def of_queries(self, chosen: slice | Tensor) -> "AttentionMap":
        """Return the map of the chosen queries alone."""
        bias = self.bias
        if bias is not None and bias.shape[-2] != 1:
            bias = bias[..., chosen, :]
        return self._replace(query_BHQD=self.query_BHQD[:, :, chosen], bias=bias)

    def log_weights(self, chunk: int = 256) -> Iterator[Tensor]:
        """Yield log_weight_BHRK of one chunk of queries after the other: memory for a few times
        B * H * chunk * K numbers.
        """
        for part in self.chunks(chunk):
            yield part.log_weight()


class Observer:
    """Gets the attention of a forward pass, layer by layer; this one does nothing with it.

    `branch` is "position" or "orientation"; `layer` counts from 0.
    """

    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        """Called with the self-attention of every encoder layer."""

    def tokens(self, branch: str, layer: int, before_BNC: Tensor, after_BNC: Tensor) -> None:
        """Called with the image tokens before and after every encoder layer."""

    def decoder(self, branch: str, layer: int, weight_BHSN: Tensor) -> None:
        """Called with the attention of every scene's query to the image, of every decoder layer."""


def query_key_gap(query_BHQD: Tensor, key_BHKD: Tensor) -> Tensor:
    """Compute the distance between the mean query and the mean key of every head, which QKA makes
    small (Lee, Kim and Heo, NeurIPS 2024).

    Computed in at least float32. Gradients reach queries and keys; at a gap of zero they are zero.

    Returns:
        gap_BH: L2 norm, not squared, in the units of q and k.
    """
    dtype = torch.promote_types(query_BHQD.dtype, torch.float32)
    difference_BHD = query_BHQD.mean(dim=2, dtype=dtype) - key_BHKD.mean(dim=2, dtype=dtype)
    return torch.linalg.vector_norm(difference_BHD, dim=-1)


def attention_entropy(attention: AttentionMap, *, chunk: int = 256) -> Tensor:
    """Compute the mean over queries of -sum_j A_ij log A_ij (Zhai et al., ICML 2023).

    Between 0 (every query attends to one key) and log K (to all keys equally).

    Returns:
        entropy_BH: in nats.
    """

    def of_queries(log_weight_BHRK: Tensor) -> Tensor:
        weight_BHRK = log_weight_BHRK.exp()
        # a hidden key has the weight 0, and adds nothing
        return -(weight_BHRK * log_weight_BHRK.masked_fill(weight_BHRK == 0, 0)).sum(dim=(-1, -2))

    return _summed(of_queries, attention, chunk) / attention.query_BHQD.shape[2]


def attention_similarity(attention: AttentionMap, *, chunk: int = 256) -> Tensor:
    """Compute the mean cosine similarity of the attention of two different queries.

    The patch-wise cosine of Gong et al. (Vision Transformers with Patch Diversification, arXiv
    2104.12753), of the rows of the attention map.

    With rows a_i of unit length, sum_{i != j} a_i . a_j = |sum_i a_i|^2 - Q: the pairs are never
    formed.

    Returns:
        similarity_BH: between 0 (no two queries share a key) and 1 (all have the same attention).
            A single query gives 1.
    """
    queries = attention.query_BHQD.shape[2]
    if queries == 1:
        return attention.query_BHQD.new_ones(attention.query_BHQD.shape[:2])

    def of_queries(log_weight_BHRK: Tensor) -> Tensor:
        # norms of rows from their logarithms, so that no weight underflows
        log_norm_BHR1 = torch.logsumexp(2 * log_weight_BHRK, dim=-1, keepdim=True) / 2
        return (log_weight_BHRK - log_norm_BHR1).exp().sum(dim=2)

    total_BHK = _summed(of_queries, attention, chunk)
    return (total_BHK.square().sum(dim=-1) - queries) / (queries * (queries - 1))


def _summed(of_queries: Callable[[Tensor], Tensor], attention: AttentionMap, chunk: int) -> Tensor:
    """Sum over chunks what `of_queries` makes of their log_weight_BHRK.

    Where gradients are asked for, the weights are forgotten and computed again in the backward pass
    (Chen et al., arXiv 1604.06174), so that no more than one chunk of them is held at any time.
    """

    def of_chunk(*part: Any) -> Tensor:
        return of_queries(AttentionMap(*part).log_weight())

    learns = torch.is_grad_enabled() and any(
        isinstance(item, Tensor) and item.requires_grad for item in attention
    )
    if learns:
        of_chunk = partial(checkpoint, of_chunk, use_reentrant=False, preserve_rng_state=False)
    return torch.stack([of_chunk(*part) for part in attention.chunks(chunk)]).sum(dim=0)


def token_similarity(token_BNC: Tensor) -> Tensor:
    """Compute the mean cosine similarity of two different tokens of an image (Gong et al., Vision
    Transformers with Patch Diversification, arXiv 2104.12753), in at least float32.

    It nears 1 where layers smooth the tokens of an image until they are the same (over-smoothing).

    Returns:
        similarity_B: -1 to 1; at least two tokens are needed.
    """
    tokens = token_BNC.shape[1]
    dtype = torch.promote_types(token_BNC.dtype, torch.float32)
    unit_BNC = F.normalize(token_BNC.to(dtype), dim=-1)
    # as in `attention_similarity`, but a token of zeros has the length 0
    own_B = unit_BNC.square().sum(dim=(1, 2))
    return (unit_BNC.sum(dim=1).square().sum(dim=-1) - own_B) / (tokens * (tokens - 1))
