"""The observer that measures attention: entropy, similarity and query-key gap per layer and head,
the similarity of tokens, and the decoders' attention per scene.

Training, TensorBoard, `mspose attention` and the probe all read it; the measures themselves are
functions in `mspose.models.attention_map`.

B images, H heads, Q queries, K keys, N tokens, S scenes, C channels, P parts of a layer.
"""

import math
from collections.abc import Mapping
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

Layer = tuple[str, int]
"""Branch, and number of the layer from 1."""


@dataclass
class Measures:
    """Sums over images of named measures of a layer, each of P parts: heads, scenes, or one."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """sum_P by name."""
    counts: dict[str, Tensor] = field(default_factory=dict)
    """Number of images in each sum."""
    tokens: int = 0
    """Number of keys of the attention."""

    def add(self, values: Mapping[str, Tensor | None], part_P: Tensor | None = None) -> None:
        """Add value_BP of B images by name, None where there is none.

        part_P: true for the parts that the values are of, by default all.
        """
        for name, value_BP in values.items():
            if value_BP is None:
                sum_P = count_P = torch.zeros(1).double()
            else:
                sum_P = value_BP.double().sum(dim=0).cpu()
                count_P = torch.full_like(sum_P, len(value_BP))
                if part_P is not None:
                    some_P, blank_P = part_P.cpu(), sum_P.new_zeros(len(part_P))
                    sum_P = blank_P.masked_scatter(some_P, sum_P)
                    count_P = blank_P.masked_scatter(some_P, count_P)
            self.sums[name] = self.sums.get(name, 0) + sum_P
            self.counts[name] = self.counts.get(name, 0) + count_P

    def parts(self) -> list[dict[str, float]]:
        """Return the means over images of every part; NaN where there is none."""
        means = torch.broadcast_tensors(
            *(self.sums[name] / self.counts[name] for name in self.sums)
        )
        rows = torch.stack(means, dim=1).tolist()
        return [dict(zip(self.sums, row, strict=True)) for row in rows]

    def mean(self) -> dict[str, float]:
        """Return the means over images and the parts that have any; NaN where there is none."""
        means = {name: self.sums[name] / self.counts[name] for name in self.sums}
        return {name: float(mean_P[self.counts[name] > 0].mean()) for name, mean_P in means.items()}

    def verdict(self, thresholds: Thresholds = DEFAULT) -> str | None:
        """The word for the attention, see `mspose.verdict`; None for a single query or scene."""
        mean = self.mean()
        return verdict(mean["entropy"], mean["similarity"], mean["entropy_limit"], thresholds)


class AttentionMeasures(Observer):
    """Measures the attention of a network, one forward pass after the other.

    Attributes:
        layers: self-attention of the encoders, by head, see `measure`.
        tokens_of: similarity of tokens `before` and `after` the encoders' layers.
        decoders: the scenes' attention to the image in the decoders, by scene, see
            `measure_scenes`.
    """

    def __init__(self) -> None:
        self.layers: dict[Layer, Measures] = {}
        self.tokens_of: dict[Layer, Measures] = {}
        self.decoders: dict[Layer, Measures] = {}

    @torch.no_grad()
    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        """Add the images of one layer in one forward pass."""
        found = self.layers.setdefault((branch, layer + 1), Measures())
        found.tokens = attention.key_BHKD.shape[2]
        found.add(measure(attention))

    @torch.no_grad()
    def tokens(self, branch: str, layer: int, before_BNC: Tensor, after_BNC: Tensor) -> None:
        """Add the images of one layer in one forward pass."""
        similarity = {"before": token_similarity(before_BNC), "after": token_similarity(after_BNC)}
        found = self.tokens_of.setdefault((branch, layer + 1), Measures())
        found.add({name: value_B[:, None] for name, value_B in similarity.items()})

    @torch.no_grad()
    def decoder(self, branch: str, layer: int, weight_BHSN: Tensor) -> None:
        """Add the images of one layer in one forward pass."""
        found = self.decoders.setdefault((branch, layer + 1), Measures())
        found.tokens = weight_BHSN.shape[-1]
        found.add(measure_scenes(weight_BHSN))


def measure_scenes(weight_BHSN: Tensor) -> dict[str, Tensor | None]:
    """Measure the attention of every scene's query, means over heads.

    Returns:
        value_BS by name, in float64: `entropy` and its limit `entropy_limit` in nats, `similarity`
        (mean cosine with the attention of the other scenes' queries, 0..1; None for a single one).
    """
    weight_BHSN = weight_BHSN.double()
    scenes, tokens = weight_BHSN.shape[2:]
    entropy_BS = torch.special.entr(weight_BHSN).sum(dim=-1).mean(dim=1)
    unit_BHSN = F.normalize(weight_BHSN, dim=-1)
    cosine_BHS = (unit_BHSN * unit_BHSN.sum(dim=2, keepdim=True)).sum(dim=-1)
    return {
        "entropy": entropy_BS,
        "entropy_limit": torch.full_like(entropy_BS, math.log(tokens)),
        # without the cosine of a query with itself
        "similarity": ((cosine_BHS - 1) / (scenes - 1)).mean(dim=1) if scenes > 1 else None,
    }


def measure(attention: AttentionMap) -> dict[str, Tensor | None]:
    """Measure the attention of every image and head.

    Where a bias hides keys, the limit counts the keys that each query sees, and the similarity is
    relative to that of attention spread evenly over these, at most 1.

    Returns:
        value_BH by name, in float64: `entropy` and its limit `entropy_limit` in nats, `similarity`
        (mean cosine of different queries' attention, 0..1; None for a single query, which is like
        no other), `query_key_gap` (distance of mean query and mean key).
    """
    similarity_BH = attention_similarity(attention)
    limit_BH = torch.full_like(
        similarity_BH, math.log(attention.key_BHKD.shape[2]), dtype=torch.float64
    )
    if attention.bias is not None and (hidden := attention.bias.isneginf()).any():
        seen_BHQ = (~hidden).sum(dim=-1).double().log()
        limit_BH = seen_BHQ.mean(dim=-1).expand_as(similarity_BH)
        similarity_BH = (similarity_BH / _even_similarity(hidden)).clamp(max=1)
    return {
        "entropy": attention_entropy(attention).double(),
        "entropy_limit": limit_BH,
        "similarity": similarity_BH.double() if attention.query_BHQD.shape[2] > 1 else None,
        "query_key_gap": query_key_gap(attention.query_BHQD, attention.key_BHKD).double(),
    }


def _even_similarity(hidden: Tensor) -> Tensor:
    """Compute similarity_BH of attention that is spread evenly over the keys that each query sees.

    Infinite where no two queries see the same key. `hidden` broadcasts to (B, H, Q, K).
    """
    blank = torch.zeros((), device=hidden.device)
    query, key = (blank.expand(*hidden.shape[:2], hidden.shape[axis], 1) for axis in (2, 3))
    bias = torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, -torch.inf)
    even_BH = attention_similarity(AttentionMap(query, key, 1.0, bias))
    return even_BH.masked_fill(even_BH < 1e-6, torch.inf)
