"""The two sides that are compared, ours and the reference: how large they are, their training step
and prediction.
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mspose.data.batches import Batch
from mspose.errors import MsposeError
from mspose.inference import SMALL_BATCH
from mspose.losses import PRECISION, Objective, PoseLoss
from mspose.models.compilation import Compiled
from mspose.models.mstransformer import MSTransformer
from mspose.models.network import PoseOutput

QKA_WEIGHT = 0.1
SCENES = ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs")


@dataclass(frozen=True)
class Workload:
    """How large everything is."""

    architecture: dict[str, Any]
    """Arguments of `MSTransformer`."""
    image: int
    """Side in pixels of what the network sees."""
    resize: int
    """Short side of a frame in the cache."""
    matrices: dict[str, tuple[int, ...]]
    """Per kind of device, sizes of the matrices that the matrix rate is measured on: powers of two."""
    copied: int
    """Numbers copied to measure the copy rate."""
    memory_per_image: int
    """Bytes that a training step of the reference needs at most per image."""
    frames: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Per image size: pictures drawn, frames in the cache (pictures repeat), frames that the
    reference loads.
    """


PAPER = Workload(
    architecture={"scenes": SCENES, "backbone": "efficientnet_b0", "pretrained": False},
    image=224,
    resize=256,
    matrices={"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)},
    copied=2**26,
    memory_per_image=10**9,
    frames={"640x480": (16, 256, 32), "1920x1080": (8, 128, 8)},
)
TOY = Workload(
    architecture={
        "scenes": SCENES[:3],
        "backbone": "test_efficientnet",
        "pretrained": False,
        "dim": 16,
        "heads": 2,
        "feedforward": 16,
        "head_hidden": 16,
        **{
            f"{branch}_{stack}_layers": 1
            for branch in ("position", "orientation")
            for stack in ("encoder", "decoder")
        },
    },
    image=64,
    resize=72,
    matrices={"cpu": (256,), "cuda": (256,)},
    copied=2**20,
    memory_per_image=3 * 10**7,
    frames={"640x480": (1, 8, 1), "1920x1080": (1, 4, 1)},
)
WORKLOADS = {False: PAPER, True: TOY}


@cache
def reference_module() -> ModuleType:
    """`tests/eager_reference.py` of the checkout that this package is run from.

    Raises MsposeError where the package is installed without its tests.
    """
    path = Path(__file__).resolve().parents[3] / "tests" / "eager_reference.py"
    if not path.is_file():
        raise MsposeError(
            f"{path} is missing: the benchmark compares with it, so run it from a checkout of the"
            " source (pip install -e .)"
        )
    spec = importlib.util.spec_from_file_location("eager_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_sides(workload: Workload, device: torch.device) -> tuple[MSTransformer, nn.Module]:
    """Our network and the reference, with equal weights."""
    torch.manual_seed(0)
    network = MSTransformer(**workload.architecture)
    reference = reference_module().EagerReference(network)
    return network.to(device), reference.to(device)


def random_batch(workload: Workload, count: int, device: torch.device) -> Batch:
    """`count` images with labels, the same each time."""
    generator = torch.Generator().manual_seed(count)
    return Batch(
        image_B3HW=torch.randn(count, 3, workload.image, workload.image, generator=generator).to(
            device
        ),
        position_B3=torch.randn(count, 3, generator=generator).to(device),
        orientation_B4=torch.randn(count, 4, generator=generator).to(device),
        scene_B=(torch.arange(count) % len(workload.architecture["scenes"])).to(device),
        row=np.arange(count),
        whole=count,
    )


@dataclass(frozen=True)
class Call:
    """What is timed."""

    run: Callable[[], object]
    forward: Callable[..., Any]
    """The network's forward pass, as it is or compiled."""

    @property
    def fell_back(self) -> bool:
        """Whether the forward pass was to be compiled and could not be."""
        return isinstance(self.forward, Compiled) and self.forward.chosen is self.forward.function


def our_training_step(
    network: MSTransformer, batch: Batch, precision: str = "float32", compile: bool = False
) -> Call:
    """One step as the training loop does it: forward, loss, backward, Adam."""
    loss_of = PoseLoss(qka_weight=QKA_WEIGHT).to(batch.image_B3HW.device)
    objective = Objective(network.train(), loss_of, precision, compile=compile)
    weights = list(objective.parameters())
    optimizer = torch.optim.Adam(weights, lr=1e-4, eps=1e-10, weight_decay=1e-4, fused=True)

    def step() -> None:
        loss, _ = objective(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, math.inf)
        optimizer.step()

    return Call(step, objective.estimate)


def reference_training_step(reference: nn.Module, batch: Batch) -> Call:
    """The same step as the released code does it, in float32."""
    reference.train()
    loss_of = PoseLoss(qka_weight=QKA_WEIGHT).to(batch.image_B3HW.device)
    weights = [*reference.parameters(), *loss_of.parameters()]
    optimizer = torch.optim.Adam(weights, lr=1e-4, eps=1e-10, weight_decay=1e-4)

    def step() -> None:
        output = reference(batch.image_B3HW, batch.scene_B)
        loss = loss_of(output, batch.position_B3, batch.orientation_B4, batch.scene_B)
        optimizer.zero_grad()
        sum(loss.values()).backward()
        optimizer.step()

    return Call(step, reference)


def prediction(
    network: nn.Module, batch: Batch, precision: str = "float32", compile: bool = False
) -> Call:
    """A forward pass as evaluation does it; the network is in evaluation mode, ours fused."""
    device = batch.image_B3HW.device
    small = device.type == "cuda" and len(batch.row) <= SMALL_BATCH
    forward = Compiled(network.forward, small=small) if compile else network.forward

    def predict() -> PoseOutput:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, PRECISION[precision], enabled=precision != "float32"),
        ):
            return forward(batch.image_B3HW)

    return Call(predict, forward)


def operations_per_image(workload: Workload) -> dict[str, float]:
    """Floating-point operations per image of `predict` and `train`: matrix products and
    convolutions of the reference's forward pass, and three times that with the backward pass. Both
    sides are judged by these.

    The backward pass is not counted by itself: PyTorch's counter takes a depthwise convolution's
        for a full one's.
    """
    device = torch.device("meta")
    reference = make_sides(workload, device)[1].eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reference(random_batch(workload, 1, device).image_B3HW)
    forward = float(counter.get_total_flops())
    return {"predict": forward, "train": 3 * forward}
