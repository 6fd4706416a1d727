"""The training loss: one function per term, and `PoseLoss`, which weighs and names them.

    L = L_x exp(-s_x) + s_x  +  L_q exp(-s_q) + s_q  +  NLL(scene)
        + lambda (QKA_position + QKA_orientation)

with learned log-variances s_x and s_q (Kendall and Cipolla, CVPR 2017), as MS-Transformer (Shavit,
Ferens and Keller, ICCV 2021) trains, and the query-key alignment QKA of ActMST (Lee, Kim and Heo,
NeurIPS 2024, arXiv 2411.01443). Two regularisers of the encoders' self-attention can join, each
with its weight: `entropy_regulariser` and `diversity_regulariser`, means over layers and then
branches.

B images, S scenes, L encoder layers, H heads.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.config import LossSettings
from mspose.data.batches import Batch
from mspose.errors import MsposeError
from mspose.models.attention import expect_shape
from mspose.models.attention_map import AttentionMap, attention_entropy, attention_similarity
from mspose.models.compilation import Compiled
from mspose.models.network import Observer, PoseNetwork, PoseOutput

PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EncoderMaps = Mapping[str, Mapping[int, AttentionMap]]
"""The attention of every encoder layer, by branch and number of the layer."""


def position_loss(estimate_B3: Tensor, truth_B3: Tensor) -> Tensor:
    """Compute the batch mean of the L2 norm of the position error, in metres."""
    return torch.linalg.vector_norm(estimate_B3 - truth_B3, dim=-1).mean()


def orientation_loss(estimate_B4: Tensor, truth_B4: Tensor) -> Tensor:
    """Compute the batch mean of the L2 norm of the difference of the normalised quaternions, 0..2.

    It is sensitive to their sign: labels have to lie in one hemisphere.
    """
    difference_B4 = F.normalize(estimate_B4, dim=-1) - F.normalize(truth_B4, dim=-1)
    return torch.linalg.vector_norm(difference_B4, dim=-1).mean()


def scene_loss(log_probability_BS: Tensor, scene_B: Tensor) -> Tensor:
    """Compute the batch mean of the true scene's negative log-likelihood, in nats."""
    return F.nll_loss(log_probability_BS, scene_B)


def query_key_alignment(query_key_gap_BLH: Tensor) -> Tensor:
    """Compute the query-key alignment (QKA) of one branch.

        QKA = mean over images, encoder layers and heads of || mean_i q_i - mean_j k_j ||_2

    with q and k after the in-projection and the position encoding, before they are scaled (Lee,
    Kim and Heo, NeurIPS 2024, arXiv 2411.01443). The gaps are those of
    `mspose.models.attention_map.query_key_gap`; gradients reach queries and keys.
    """
    return query_key_gap_BLH.mean()


def entropy_regulariser(attention: AttentionMap) -> Tensor:
    """Compute the attention entropy of a layer as a share of its limit, the log of the keys: 0..1.

    Mean over images, heads and queries (entropy of attention: Zhai et al., ICML 2023). A negative
    weight rewards spread attention, as the entropy-based attention regularisation of Attanasio et
    al. (Findings of ACL 2022) does; a positive one keeps it on few keys.
    """
    keys = attention.key_BHKD.shape[2]
    return attention_entropy(attention).mean() / math.log(max(keys, 2))  # of one key, it is 0


def diversity_regulariser(attention: AttentionMap) -> Tensor:
    """Compute the mean cosine similarity of two different queries' attention in a layer: 0..1.

    The patch-wise cosine loss of Gong et al. (arXiv 2104.12753), of the rows of the attention map
    in place of tokens.
    """
    return attention_similarity(attention).mean()


REGULARISERS: dict[str, Callable[[AttentionMap], Tensor]] = {
    "entropy": entropy_regulariser,
    "diversity": diversity_regulariser,
}
"""Terms of an encoder layer's attention: their mean over layers and branches is weighted by
`loss.entropy_weight`, `loss.diversity_weight`, or by name in `loss.regularisers`."""


class EncoderAttention(Observer):
    """Keeps the encoders' attention of one forward pass (queries and keys, never the weights).

    Attributes:
        maps: of every branch that has an encoder, by the number of the layer.
    """

    def __init__(self) -> None:
        self.maps: dict[str, dict[int, AttentionMap]] = defaultdict(dict)

    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        """Keep the attention of a layer."""
        self.maps[branch][layer] = attention


class PoseLoss(nn.Module):
    """Loss of MS-Transformer and ActMST; a term of weight 0 is not part of it.

    `forward` is `weighted(unweighted(...))`: a dict of the terms, whose sum is the loss.
    """

    def __init__(self, settings: LossSettings | None = None, **changes: Any) -> None:
        """Take the weights: `PoseLoss(settings.loss)`, or `PoseLoss(qka_weight=0.2)`, which sets
        some of `mspose.config.LossSettings`.

        Raises:
            MsposeError: a loss without a term of pose or scene, or an unknown regulariser.
        """
        super().__init__()
        self.settings = settings = replace(settings or LossSettings(), **changes)
        self.learned = settings.weighting == "learned"
        given = {"entropy": settings.entropy_weight, "diversity": settings.diversity_weight}
        given |= settings.regularisers
        self.regularisers = {name: weight for name, weight in given.items() if weight}
        if unknown := [name for name in self.regularisers if name not in REGULARISERS]:
            raise MsposeError(
                f"regularisers: expected names of {', '.join(REGULARISERS)}, found {unknown[0]!r}"
            )
        if self.learned:
            self.s_position = nn.Parameter(torch.tensor(float(settings.s_position)))
            self.s_orientation = nn.Parameter(torch.tensor(float(settings.s_orientation)))
        elif not (settings.position_weight or settings.orientation_weight or settings.scene_weight):
            raise MsposeError(
                "position_weight, orientation_weight, scene_weight: expected one above 0, found"
                " none"
            )

    def forward(self, *compared: Any) -> dict[str, Tensor]:
        """Compute the weighted terms by name; arguments and errors are those of `unweighted`."""
        return self.weighted(self.unweighted(*compared))

    def unweighted(
        self,
        output: PoseOutput,
        position_B3: Tensor,
        orientation_B4: Tensor,
        scene_B: Tensor,
        attention: EncoderMaps | None = None,
    ) -> dict[str, Tensor]:
        """Compare the network's output with the labels.

        Args:
            output: of B images.
            position_B3: true camera centres in metres.
            orientation_B4: true quaternions w x y z; any norm.
            scene_B: true scene indices, int64.
            attention: the encoders' attention, as `EncoderAttention` keeps it; read if there are
                regularisers.

        Returns:
            What the terms are made of, under the names that TensorBoard shows: `error/position`
            (metres), `error/orientation` (0..2), `error/scene` (nats), `query_key_gap/<branch>`
            of every branch with an encoder and `regulariser/<name>_<branch>` of every regulariser.

        Raises:
            ValueError: a tensor of another shape than its name says, or no attention where the loss
                needs it.
        """
        batch = output.position_B3.shape[0]
        # other shapes could be broadcast
        expect_shape("output.position_B3", output.position_B3, (batch, 3))
        expect_shape("output.orientation_B4", output.orientation_B4, (batch, 4))
        log_probability_BS = output.scene_log_probability_BS
        expect_shape("output.scene_log_probability_BS", log_probability_BS, (batch, "scenes"))
        expect_shape("position_B3", position_B3, (batch, 3))
        expect_shape("orientation_B4", orientation_B4, (batch, 4))
        expect_shape("scene_B", scene_B, (batch,))
        if self.regularisers and attention is None:
            raise ValueError("attention: the loss has terms of the encoders' attention, found none")
        dtype = output.position_B3.dtype
        found = {
            "error/position": position_loss(output.position_B3, position_B3.to(dtype)),
            "error/orientation": orientation_loss(output.orientation_B4, orientation_B4.to(dtype)),
            "error/scene": scene_loss(log_probability_BS, scene_B),
        }
        for branch, gap_BLH in output.query_key_gap.items():
            if gap_BLH.shape[1]:
                expect_shape("query_key_gap_BLH", gap_BLH, (batch, "layers", "heads"))
                found[f"query_key_gap/{branch}"] = query_key_alignment(gap_BLH)
        for name in self.regularisers:
            for branch, layers in (attention or {}).items():
                found[f"regulariser/{name}_{branch}"] = torch.stack(
                    [REGULARISERS[name](layer) for layer in layers.values()]
                ).mean()
        return found

    def weighted(self, unweighted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weigh what `unweighted` returned: `position`, `orientation`, `scene`, `qka` and the
        regularisers by name, as far as they are terms of the loss.
        """
        terms, settings = {}, self.settings
        if self.learned:
            for name, s in (("position", self.s_position), ("orientation", self.s_orientation)):
                terms[name] = unweighted[f"error/{name}"] * torch.exp(-s) + s
        else:
            if settings.position_weight:
                terms["position"] = settings.position_weight * unweighted["error/position"]
            if settings.orientation_weight:
                terms["orientation"] = settings.orientation_weight * unweighted["error/orientation"]
        if settings.scene_weight:
            terms["scene"] = settings.scene_weight * unweighted["error/scene"]
        if settings.qka_weight and (gaps := _family(unweighted, "query_key_gap/")):
            terms["qka"] = settings.qka_weight * torch.stack(gaps).sum()
        for name, weight in self.regularisers.items():
            if branches := _family(unweighted, f"regulariser/{name}_"):
                terms[name] = weight * torch.stack(branches).mean()
        return terms

    def log_variances(self) -> dict[str, Tensor]:
        """Return the learned s_x and s_q by pose term, for the log; none under fixed weights."""
        if not self.learned:
            return {}
        return {"position": self.s_position.detach(), "orientation": self.s_orientation.detach()}


class Objective(nn.Module):
    """Network and loss as one module, which has every weight that can learn."""

    def __init__(
        self, network: PoseNetwork, loss: PoseLoss, precision: str, *, compile: bool
    ) -> None:
        """Take a network and its loss; `precision` is one of `PRECISION`, `compile` compiles the
        network's forward pass.
        """
        super().__init__()
        self.network, self.loss, self.precision = network, loss, PRECISION[precision]
        self.estimate = Compiled(network.forward) if compile else network.forward

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and, without gradients, what the log shows of the batch by name: means
        over its images.
        """
        device = batch.image_B3HW.device.type
        seen = EncoderAttention() if self.loss.regularisers else None
        with torch.autocast(device, self.precision, enabled=self.precision != torch.float32):
            output = self.estimate(batch.image_B3HW, batch.scene_B, observer=seen)
        unweighted = self.loss.unweighted(
            output,
            batch.position_B3,
            batch.orientation_B4,
            batch.scene_B,
            None if seen is None else seen.maps,
        )
        terms = self.loss.weighted(unweighted)
        total = torch.stack(list(terms.values())).sum()
        logs = {
            "loss/total": total,
            **{f"loss/{name}": term for name, term in terms.items()},
            **unweighted,
        }
        return total, {name: value.detach() for name, value in logs.items()}


def _family(values: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    return [value for name, value in values.items() if name.startswith(prefix)]
