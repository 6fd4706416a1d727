"""Network and loss as one module: what a training step computes gradients of."""

import logging

import torch
from torch import Tensor, nn

from mspose.data.batches import Batch
from mspose.errors import MsposeError
from mspose.losses import EncoderAttention, PoseLoss
from mspose.models.compilation import Compiled
from mspose.models.kinds import network_class
from mspose.models.network import PoseNetwork

log = logging.getLogger("mspose")
PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Objective(nn.Module):
    """Network and loss as one module, which has every weight that can learn."""

    def __init__(
        self, network: PoseNetwork, loss_of: PoseLoss, precision: str, *, compile: bool
    ) -> None:
        """`precision` is one of `PRECISION`; `compile` compiles the network's forward pass."""
        super().__init__()
        self.network, self.loss_of, self.precision = network, loss_of, PRECISION[precision]
        self.estimate = Compiled(network.forward) if compile else network.forward

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and without gradients what the log says of the batch: means over its
        images, by name.
        """
        device = batch.image_B3HW.device.type
        seen = EncoderAttention() if self.loss_of.needs_attention else None
        with torch.autocast(device, self.precision, enabled=self.precision != torch.float32):
            output = self.estimate(batch.image_B3HW, batch.scene_B, observer=seen)
        maps = None if seen is None else seen.maps
        loss = self.loss_of(output, batch.position_B3, batch.orientation_B4, batch.scene_B, maps)
        total = loss.total
        gaps = {
            name: gap_BLH.float()
            for name, gap_BLH in output.query_key_gap.items()
            if gap_BLH.numel()
        }
        readings = {
            "loss/total": total,
            **{f"loss/{name}": value for name, value in loss.terms.items()},
            **{f"error/{name}": value for name, value in loss.raw.items()},
            **{f"query_key_gap/{branch}": gap_BLH.mean() for branch, gap_BLH in gaps.items()},
        }
        return total, {name: value.detach() for name, value in readings.items()}


def check_attention_terms(
    kind: str, *, qka_weight: float, entropy_weight: float, diversity_weight: float
) -> None:
    """Hold the loss's terms of attention against a kind of network that may have no attention.

    QKA has a weight by default, so that a line in the log says that it is left out. Raises
    MsposeError for a weight that somebody chose.
    """
    if network_class(kind).has_attention:
        return
    for name, weight in (
        ("entropy_weight", entropy_weight),
        ("diversity_weight", diversity_weight),
    ):
        if weight:
            raise MsposeError(
                f"loss.{name} {weight:g}: a model of kind {kind} has no attention to weigh: set it"
                " to 0"
            )
    if qka_weight:
        log.info(
            "a model of kind %s has no queries and keys: loss.qka_weight %g is no term of its loss",
            kind,
            qka_weight,
        )
