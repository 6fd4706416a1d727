"""The observer that measures attention: entropy, similarity and query-key gap per layer and head.

TensorBoard, `mspose attention` and the probe all read it; the measures themselves are functions in
`mspose.models.attention_map`.

B images, H heads, Q queries, K keys, M measures.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mspose.models.attention_map import (
    AttentionMap,
    Observer,
    attention_entropy,
    attention_similarity,
    query_key_gap,
    verdict,
)

MEASURES = ("entropy", "entropy_limit", "similarity", "query_key_gap")
"""Entropy and its limit in nats; mean cosine of different queries' attention, 0..1; distance of
mean query and mean key.
"""


@dataclass
class LayerMeasures:
    """Sums over images of the measures of one layer's attention, per head."""

    images: int = 0
    sum_MH: Tensor = field(default_factory=lambda: torch.zeros(len(MEASURES), 1).double())

    def add(self, attention: AttentionMap) -> None:
        """Add the images of one call."""
        self.sum_MH = self.sum_MH + measure(attention).sum(dim=1).cpu()
        self.images += len(attention.query_BHQD)

    def heads(self) -> list[dict[str, float]]:
        """Return the means over images of every head, by the names in `MEASURES`."""
        mean_HM = (self.sum_MH / (self.images or math.nan)).T
        return [dict(zip(MEASURES, mean_M, strict=True)) for mean_M in mean_HM.tolist()]

    def mean(self) -> dict[str, float]:
        """Return the means over images and heads; NaN before the first image."""
        heads = self.heads()
        return {name: sum(head[name] for head in heads) / len(heads) for name in MEASURES}

    @property
    def verdict(self) -> str:
        """`healthy`, `uniform` or `collapsed`, see `mspose.models.attention_map.verdict`."""
        mean = self.mean()
        return verdict(mean["entropy"], mean["similarity"], math.exp(mean["entropy_limit"]))


class AttentionMeasures(Observer):
    """Measures the encoders' self-attention of a network, one forward pass after the other.

    Attributes:
        layers: the measures, by (branch, layer counted from 1).
    """

    def __init__(self) -> None:
        self.layers: dict[tuple[str, int], LayerMeasures] = {}

    @torch.no_grad()
    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        """Add the images of one layer in one forward pass."""
        self.layers.setdefault((branch, layer + 1), LayerMeasures()).add(attention)


def measure(attention: AttentionMap) -> Tensor:
    """Measure the attention of every image and head.

    Where a bias hides keys, the limit counts the keys that each query sees, and the similarity is
    relative to that of attention spread evenly over these, at most 1.

    Returns:
        value_MBH: the `MEASURES`, in float64.
    """
    similarity_BH = attention_similarity(attention)
    limit = math.log(attention.key_BHKD.shape[2])
    if attention.bias is not None and (hidden := attention.bias.isneginf()).any():
        limit = float((~hidden).sum(dim=-1).cpu().double().log().mean())
        similarity_BH = (similarity_BH / _even_similarity(hidden)).clamp(max=1)
    values = (
        attention_entropy(attention),
        torch.full_like(similarity_BH, limit, dtype=torch.float64),
        similarity_BH,
        query_key_gap(attention.query_BHQD, attention.key_BHKD),
    )
    return torch.stack([value_BH.double() for value_BH in values])


def _even_similarity(hidden: Tensor) -> Tensor:
    """Compute similarity_BH of attention that is spread evenly over the keys that each query sees.

    Infinite where no two queries see the same key. `hidden` broadcasts to (B, H, Q, K).
    """
    blank = torch.zeros((), device=hidden.device)
    query, key = (blank.expand(*hidden.shape[:2], hidden.shape[axis], 1) for axis in (2, 3))
    bias = torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, -torch.inf)
    even_BH = attention_similarity(AttentionMap(query, key, 1.0, bias))
    return even_BH.masked_fill(even_BH < 1e-6, torch.inf)
