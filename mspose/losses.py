"""The objective: named, weighted terms whose sum is the loss.

    L = L_x exp(-s_x) + s_x  +  L_q exp(-s_q) + s_q  +  NLL(scene)  +  lambda (QKA_position +
    QKA_orientation)

with s_x and s_q learned (Kendall and Cipolla, CVPR 2017) and the query-key alignment QKA of ActMST
(Lee, Kim and Heo, NeurIPS 2024, arXiv 2411.01443). Two regularisers of the encoders' self-attention
can join them, each with its weight:

    entropy      mean of H / log N, with H the entropy in nats of a query's attention to N tokens
                 (Zhai et al., ICML
                 2023). A negative weight rewards spread attention, as the entropy-based attention
                 regularisation of Attanasio et al. (Findings of ACL 2022) does; a positive one
                 holds it together.
    diversity    mean cosine similarity of the attention of two different queries: the patch-wise
                 cosine of Gong et al. (arXiv 2104.12753), of rows of the attention map in place of
                 tokens.

Both are means over images, heads and layers, and then over the two branches.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.errors import MsposeError
from mspose.models.attention import expect_shape
from mspose.models.attention_map import AttentionMap, attention_entropy, attention_similarity
from mspose.models.network import Observer, PoseOutput


@dataclass(eq=False)
class LossTerms:
    """The loss of one batch, in parts.

    Attributes:
        terms: weighted terms, by name; the loss is their sum.
        raw: the same quantities unweighted and without gradients, for the log: `position` in
            metres, `orientation` (norm of a quaternion difference, 0..2), `scene` (nats),
            `qka_position` and `qka_orientation`; where they are terms, `entropy_...` (share of its
            limit, 0..1) and `diversity_...` (cosine, 0..1) of both branches.
    """

    terms: dict[str, Tensor]
    raw: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The loss."""
        return torch.stack(list(self.terms.values())).sum()


def position_loss(estimate_B3: Tensor, truth_B3: Tensor) -> Tensor:
    """Batch mean of the L2 norm of the position error, in metres."""
    return torch.linalg.vector_norm(estimate_B3 - truth_B3, dim=-1).mean()


def orientation_loss(estimate_B4: Tensor, truth_B4: Tensor) -> Tensor:
    """Batch mean of the L2 norm of the difference of the two normalised quaternions; sensitive to
    their sign.
    """
    difference_B4 = F.normalize(estimate_B4, dim=-1) - F.normalize(truth_B4, dim=-1)
    return torch.linalg.vector_norm(difference_B4, dim=-1).mean()


def entropy_share(attention: AttentionMap) -> Tensor:
    """Mean over images, heads and queries of the attention entropy, as a share of its limit log K:
    0 to 1.
    """
    keys = attention.key_BHKD.shape[2]
    return attention_entropy(attention).mean() / math.log(max(keys, 2))  # of one key, it is 0


def diversity_loss(attention: AttentionMap) -> Tensor:
    """Mean over images and heads of `attention_similarity`: 0 (all queries differ) to 1 (all attend
    alike).
    """
    return attention_similarity(attention).mean()


class EncoderAttention(Observer):
    """Keeps the encoders' attention maps of one forward pass (before dropout; what makes them, not
    the weights).

    Attributes:
        maps: of every branch that has an encoder, by the number of the layer.
    """

    def __init__(self) -> None:
        self.maps: dict[str, dict[int, AttentionMap]] = defaultdict(dict)

    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        self.maps[branch][layer] = attention


class PoseLoss(nn.Module):
    """Loss of MS-Transformer and ActMST, with learned or fixed weights of position and orientation."""

    def __init__(
        self,
        *,
        weighting: str = "learned",
        s_position: float = 0.0,
        s_orientation: float = -3.0,
        position_weight: float = 1.0,
        orientation_weight: float = 1.0,
        scene_weight: float = 1.0,
        qka_weight: float = 0.1,
        entropy_weight: float = 0.0,
        diversity_weight: float = 0.0,
    ) -> None:
        """A term of weight 0 is not part of the loss.

        Args:
            weighting: `learned` balances position and orientation by s_x and s_q; `fixed` by the
                two weights.
            s_position, s_orientation: starting values of the learned s_x and s_q.
            position_weight, orientation_weight: of `fixed` weighting.
            scene_weight: of the scene's negative log-likelihood.
            qka_weight: lambda of the query-key alignment.
            entropy_weight: of the encoders' attention entropy; may be negative.
            diversity_weight: of the similarity of different queries' attention in the encoders.

        Raises:
            MsposeError: unknown weighting, a weight out of its range, or a loss without any term.
        """
        super().__init__()
        if weighting not in ("learned", "fixed"):
            raise MsposeError(f"weighting: expected learned or fixed, found {weighting!r}")
        weights = {
            "position_weight": position_weight,
            "orientation_weight": orientation_weight,
            "scene_weight": scene_weight,
            "qka_weight": qka_weight,
            "diversity_weight": diversity_weight,
        }
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise MsposeError(f"{name}: expected a weight of at least 0, found {weight}")
        if not math.isfinite(entropy_weight):
            raise MsposeError(f"entropy_weight: expected a finite weight, found {entropy_weight}")
        self.weighting = weighting
        self.position_weight = position_weight
        self.orientation_weight = orientation_weight
        self.scene_weight = scene_weight
        self.qka_weight = qka_weight
        self.entropy_weight = entropy_weight
        self.diversity_weight = diversity_weight
        if weighting == "learned":
            self.s_position = nn.Parameter(torch.tensor(float(s_position)))
            self.s_orientation = nn.Parameter(torch.tensor(float(s_orientation)))
        elif not (position_weight or orientation_weight or scene_weight):
            raise MsposeError(
                "position_weight, orientation_weight, scene_weight: expected one above 0, found"
                " none"
            )

    @property
    def needs_attention(self) -> bool:
        """Whether there is a term of the encoders' attention maps."""
        return bool(self.entropy_weight or self.diversity_weight)

    def forward(
        self,
        output: PoseOutput,
        position_B3: Tensor,
        orientation_B4: Tensor,
        scene_B: Tensor,
        attention: Mapping[str, Mapping[int, AttentionMap]] | None = None,
    ) -> LossTerms:
        """Compare the network's output with the labels.

        Args:
            output: of B images.
            position_B3: true camera centres in metres.
            orientation_B4: true quaternions w x y z; any norm.
            scene_B: true scene indices, int64.
            attention: the encoders' attention maps, as `EncoderAttention` has them; read if
                `needs_attention`.

        Raises:
            ValueError: a tensor of another shape than its name says, or no attention where it is
                needed.
        """
        _check_shapes(output, position_B3, orientation_B4, scene_B)
        position = position_loss(output.position_B3, position_B3.to(output.position_B3.dtype))
        orientation = orientation_loss(
            output.orientation_B4, orientation_B4.to(output.orientation_B4.dtype)
        )
        scene = F.nll_loss(output.scene_log_probability_BS, scene_B)
        qka = {
            f"qka_{branch}": gap_BLH.mean()
            for branch, gap_BLH in output.query_key_gap.items()
            if gap_BLH.shape[1] > 0
        }
        entropy = self._of_attention("entropy", self.entropy_weight, entropy_share, attention)
        diversity = self._of_attention(
            "diversity", self.diversity_weight, diversity_loss, attention
        )
        raw = {
            "position": position,
            "orientation": orientation,
            "scene": scene,
            **qka,
            **entropy,
            **diversity,
        }

        terms = {}
        if self.weighting == "learned":
            terms["position"] = position * torch.exp(-self.s_position) + self.s_position
            terms["orientation"] = orientation * torch.exp(-self.s_orientation) + self.s_orientation
        else:
            if self.position_weight:
                terms["position"] = self.position_weight * position
            if self.orientation_weight:
                terms["orientation"] = self.orientation_weight * orientation
        if self.scene_weight:
            terms["scene"] = self.scene_weight * scene
        if self.qka_weight and qka:
            terms["qka"] = self.qka_weight * torch.stack(list(qka.values())).sum()
        if entropy:
            terms["entropy"] = self.entropy_weight * torch.stack(list(entropy.values())).mean()
        if diversity:
            terms["diversity"] = (
                self.diversity_weight * torch.stack(list(diversity.values())).mean()
            )
        return LossTerms(terms, {name: value.detach() for name, value in raw.items()})

    @staticmethod
    def _of_attention(
        name: str,
        weight: float,
        measure: Callable[[AttentionMap], Tensor],
        attention: Mapping[str, Mapping[int, AttentionMap]] | None,
    ) -> dict[str, Tensor]:
        """`<name>_<branch>`, means over the branch's layers; nothing where the weight is 0."""
        if not weight:
            return {}
        if attention is None:
            raise ValueError(
                f"attention: expected the encoders' attention maps, of which {name} is a term,"
                " found none"
            )
        return {
            f"{name}_{branch}": torch.stack([measure(layer) for layer in layers.values()]).mean()
            for branch, layers in attention.items()
        }

    def weights(self) -> dict[str, float]:
        """The learned weights `s_x` and `s_q` as they stand, for the log; empty where weights are
        fixed.
        """
        if self.weighting == "fixed":
            return {}
        return {"s_x": self.s_position.item(), "s_q": self.s_orientation.item()}


def _check_shapes(
    output: PoseOutput, position_B3: Tensor, orientation_B4: Tensor, scene_B: Tensor
) -> None:
    expect_shape("output.position_B3", output.position_B3, ("batch", 3))
    batch = output.position_B3.shape[0]
    expect_shape("output.orientation_B4", output.orientation_B4, (batch, 4))
    expect_shape(
        "output.scene_log_probability_BS", output.scene_log_probability_BS, (batch, "scenes")
    )
    expect_shape("position_B3", position_B3, (batch, 3))
    expect_shape("orientation_B4", orientation_B4, (batch, 4))
    expect_shape("scene_B", scene_B, (batch,))
