"""The observer that measures attention: entropy, similarity and query-key gap per layer and head,
the similarity of tokens, and the decoders' attention per scene.

Training, TensorBoard, `mspose attention` and the probe all read it; the measures themselves are
functions in `mspose.models.attention_map`.

B images, H heads, Q queries, K keys, N tokens, S scenes, C channels, M measures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mspose.models.attention_map import (
    AttentionMap,
    Observer,
    attention_entropy,
    attention_similarity,
    query_key_gap,
    token_similarity,
)
from mspose.verdict import DEFAULT, Thresholds, verdict

MEASURES = ("entropy", "entropy_limit", "similarity", "query_key_gap")
"""Entropy and its limit in nats; mean cosine of different queries' attention, 0..1; distance of
mean query and mean key.
"""
Layer = tuple[str, int]
"""Branch, and number of the layer from 1."""


def _nothing() -> Tensor:
    return torch.zeros(len(MEASURES), 1).double()


@dataclass
class LayerMeasures:
    """Sums over images of the measures of one layer's attention, per head."""

    images: int = 0
    sum_MH: Tensor = field(default_factory=_nothing)
    count_MH: Tensor = field(default_factory=_nothing)
    """Number of images in each sum."""

    def add(self, attention: AttentionMap, head_H: Tensor | None = None) -> None:
        """Add the images of one call, whose map is of all heads, or of those that `head_H` (true or
        false) chooses.

        A single query has no similarity, as it is like no other.
        """
        images, _, queries, _ = attention.query_BHQD.shape
        value_MH = measure(attention).sum(dim=1).cpu()
        count_MH = torch.full_like(value_MH, images)
        if queries == 1:
            count_MH[MEASURES.index("similarity")] = 0
        if head_H is not None:
            value_MH, count_MH = (
                _of_all(some_MH, head_H.cpu()) for some_MH in (value_MH, count_MH)
            )
        self.sum_MH = self.sum_MH + torch.where(count_MH > 0, value_MH, 0)
        self.count_MH = self.count_MH + count_MH
        self.images += images

    def heads(self) -> list[dict[str, float]]:
        """Return the means over images of every head, by the names in `MEASURES`; NaN where there
        is none.
        """
        mean_HM = (self.sum_MH / self.count_MH).T
        return [dict(zip(MEASURES, mean_M, strict=True)) for mean_M in mean_HM.tolist()]

    def mean(self) -> dict[str, float]:
        """Return the means over images and the heads that have any; NaN where there is none."""
        mean_MH, there_MH = self.sum_MH / self.count_MH, self.count_MH > 0
        mean_M = torch.where(there_MH, mean_MH, 0).sum(dim=1) / there_MH.sum(dim=1)
        return dict(zip(MEASURES, mean_M.tolist(), strict=True))

    def verdict(self, thresholds: Thresholds = DEFAULT) -> str | None:
        """The word for the attention, see `mspose.verdict`; None for a single query."""
        mean = self.mean()
        return verdict(mean["entropy"], mean["similarity"], mean["entropy_limit"], thresholds)


def _of_all(some_MH: Tensor, head_H: Tensor) -> Tensor:
    """Put the values of some heads among those of all, the others 0."""
    value_MH = some_MH.new_zeros(len(some_MH), len(head_H))
    value_MH[:, head_H] = some_MH
    return value_MH


@dataclass
class TokenMeasures:
    """Sums over images of the similarity of tokens before and after one encoder layer."""

    images: int = 0
    before: float = 0.0
    after: float = 0.0

    def add(self, before_BNC: Tensor, after_BNC: Tensor) -> None:
        """Add the images of one call."""
        self.before += float(token_similarity(before_BNC).double().sum())
        self.after += float(token_similarity(after_BNC).double().sum())
        self.images += len(before_BNC)

    def mean(self) -> tuple[float, float]:
        """Return the means over images, before and after the layer."""
        return self.before / self.images, self.after / self.images


@dataclass
class SceneMeasures:
    """Sums over images of the attention of every scene's query in one decoder layer, means over
    heads.

    Attributes:
        entropy_S: attention entropy in nats.
        similarity_S: mean cosine with the attention of the other scenes' queries, 0..1.
    """

    images: int = 0
    tokens: int = 0
    entropy_S: Tensor = field(default_factory=lambda: torch.zeros(1).double())
    similarity_S: Tensor = field(default_factory=lambda: torch.zeros(1).double())

    def add(self, weight_BHSN: Tensor) -> None:
        """Add the images of one call."""
        weight_BHSN = weight_BHSN.double()
        scenes = weight_BHSN.shape[2]
        entropy_BHS = torch.special.entr(weight_BHSN).sum(dim=-1)
        unit_BHSN = F.normalize(weight_BHSN, dim=-1)
        cosine_BHS = (unit_BHSN * unit_BHSN.sum(dim=2, keepdim=True)).sum(dim=-1)
        # without that of a query with itself; one alone has no others
        similarity_BHS = (cosine_BHS - 1) / (scenes - 1) if scenes > 1 else cosine_BHS * math.nan
        self.entropy_S = self.entropy_S + entropy_BHS.mean(dim=1).sum(dim=0).cpu()
        self.similarity_S = self.similarity_S + similarity_BHS.mean(dim=1).sum(dim=0).cpu()
        self.images, self.tokens = self.images + len(weight_BHSN), weight_BHSN.shape[-1]

    def scenes(self) -> list[dict[str, float]]:
        """Return the means over images of every scene: `entropy`, `entropy_limit`, `similarity`."""
        limit = math.log(self.tokens)
        return [
            {"entropy": entropy, "entropy_limit": limit, "similarity": similarity}
            for entropy, similarity in zip(
                (self.entropy_S / self.images).tolist(),
                (self.similarity_S / self.images).tolist(),
                strict=True,
            )
        ]

    def mean(self) -> dict[str, float]:
        """Return the means over images and scenes."""
        return _mean(self.scenes())

    def verdict(self, thresholds: Thresholds = DEFAULT) -> str | None:
        """The word for the attention, see `mspose.verdict`; None for a single scene."""
        mean = self.mean()
        return verdict(mean["entropy"], mean["similarity"], mean["entropy_limit"], thresholds)


def _mean(values: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(of[name] for of in values) / len(values) for name in values[0]}


class AttentionMeasures(Observer):
    """Measures the attention of a network, one forward pass after the other.

    Attributes:
        layers: self-attention of the encoders.
        tokens_of: similarity of tokens before and after the encoders' layers.
        decoders: the scenes' attention to the image in the decoders.
    """

    def __init__(self) -> None:
        self.layers: dict[Layer, LayerMeasures] = {}
        self.tokens_of: dict[Layer, TokenMeasures] = {}
        self.decoders: dict[Layer, SceneMeasures] = {}

    @torch.no_grad()
    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        """Add the images of one layer in one forward pass."""
        self.layers.setdefault((branch, layer + 1), LayerMeasures()).add(attention)

    @torch.no_grad()
    def tokens(self, branch: str, layer: int, before_BNC: Tensor, after_BNC: Tensor) -> None:
        """Add the images of one layer in one forward pass."""
        found = self.tokens_of.setdefault((branch, layer + 1), TokenMeasures())
        found.add(before_BNC, after_BNC)

    @torch.no_grad()
    def decoder(self, branch: str, layer: int, weight_BHSN: Tensor) -> None:
        """Add the images of one layer in one forward pass."""
        self.decoders.setdefault((branch, layer + 1), SceneMeasures()).add(weight_BHSN)


def measure(attention: AttentionMap) -> Tensor:
    """Measure the attention of every image and head.

    Where a bias hides keys, the limit counts the keys that each query sees, and the similarity is
    relative to that of attention spread evenly over these, at most 1.

    Returns:
        value_MBH: the `MEASURES`, in float64.
    """
    similarity_BH = attention_similarity(attention)
    limit_BH = torch.full_like(
        similarity_BH, math.log(attention.key_BHKD.shape[2]), dtype=torch.float64
    )
    if attention.bias is not None and (hidden := attention.bias.isneginf()).any():
        seen_BHQ = (~hidden).sum(dim=-1).double().log()
        limit_BH = seen_BHQ.mean(dim=-1).expand_as(similarity_BH)
        similarity_BH = (similarity_BH / _even_similarity(hidden)).clamp(max=1)
    values = (
        attention_entropy(attention),
        limit_BH,
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
