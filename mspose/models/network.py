"""What every network here shares: its input and output, who may watch, a backbone that is fused or
recomputed.

B images, S scenes, N tokens, L encoder layers, H heads.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mspose.errors import MsposeError
from mspose.models.attention import expect_shape
from mspose.models.attention_map import Observer as Observer
from mspose.models.backbone import Backbone, Triple
from mspose.models.fusion import fold_batch_norms
from mspose.run import load_model

SMALLEST_IMAGE = 32
BRANCHES = ("position", "orientation")
"""Of a network with attention, as observers are told them."""


@dataclass(eq=False)
class PoseOutput:
    """What a network says of B images. `output["position_B3"]` reads like `output.position_B3`.

    Attributes:
        position_B3: camera centre in metres, in the frame of scene `scene_B`.
        orientation_B4: quaternion w x y z, not normalised.
        scene_log_probability_BS: log-probability of every scene.
        scene_B: the scene whose pose this is: as given, else the most probable one.
        query_key_gap: per branch with encoders ("position", "orientation"), gap_BLH: the norms that
            QKA averages.
    """

    position_B3: Tensor
    orientation_B4: Tensor
    scene_log_probability_BS: Tensor
    scene_B: Tensor
    query_key_gap: dict[str, Tensor]

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(f"{name!r}: the output has {', '.join(self.__dataclass_fields__)}")
        return getattr(self, name)


class PoseNetwork(nn.Module):
    """RGB image to camera pose and scene.

    Attributes:
        kind: the network's name in settings and in `model.json`.
        has_attention: whether there is attention in it, which observers see.
        scenes: the scenes' names; a scene's index in the output is its place here.
        architecture: what rebuilds this network: `type(network)(**architecture, pretrained=False)`.
        backbone: see `mspose.models.backbone`.
        position_head: regresses positions.
        description: what `model.json` said of it, where it was loaded: preprocessing, what it was
            trained on; else {}.
        fused: whether the network is for prediction alone, see `fuse`.
        recompute_backbone: forget the backbone's activations and compute them again in the backward
            pass (Chen et al., arXiv 1604.06174): a third of the memory of a training step for one
            more forward pass of the backbone.
    """

    kind: ClassVar[str]
    has_attention: ClassVar[bool]
    scenes: tuple[str, ...]
    architecture: dict[str, Any]
    backbone: Backbone
    position_head: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.description: dict[str, Any] = {}
        self.fused = False
        self.recompute_backbone = False

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """The arguments that build such a network, with their defaults."""
        return {
            name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()
        }

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        revision: str | None = None,
        cache_dir: Path | str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Self:
        """A trained network, on the CPU and in eval mode: of a run folder, of a folder with
        `model.safetensors` and `model.json`, or of the Hugging Face hub (`user/name`).

        Args:
            source: the folder, or the name on the hub; see `mspose.models.stored.model_folder`.
            revision: branch, tag or commit of the hub's repository.
            cache_dir: where downloads are kept.
            token: of the hub, for private models.
            local_files_only: take what was downloaded before, ask nobody.
            force_download: download anew.

        Raises:
            MsposeError: no such model, a broken one, one of another class, or one of another
                version's architecture.
        """
        from mspose.models.kinds import KINDS
        from mspose.models.stored import build_network, model_folder

        options = {"revision": revision, "cache_dir": cache_dir, "token": token}
        flags = {"local_files_only": local_files_only, "force_download": force_download}
        weights, description = load_model(folder := model_folder(source, **options, **flags))
        kind = KINDS.get(str(description.get("kind")), cls)
        if not issubclass(kind, cls):
            raise MsposeError(
                f"{source} holds a network of kind {kind.kind}: load it with {kind.__name__}"
            )
        network = build_network(description, weights, folder)
        assert isinstance(network, cls)
        return network

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `model.safetensors` and `model.json`, which `from_pretrained` and `mspose.load`
        read.

        A model that was there is replaced. Raises MsposeError where `description` has no
        preprocessing, for a fused network, and where `folder` cannot be written or holds a model of
        another program.
        """
        from mspose.models.stored import save_network

        save_network(self, Path(folder))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes, with a model card, to the Hugging Face hub; returns
        the commit's URL.

        `repo_id` is `user/name`; `options` (`private`, `token`, `branch`, `commit_message`,
        `create_pr`, or `ignore_patterns="README.md"` to keep a card that is there) are those of
        huggingface_hub's `ModelHubMixin.push_to_hub`. Raises MsposeError as `save_pretrained` does,
        and where the hub cannot be reached or does not let us.
        """
        from mspose.models.stored import hub

        return str(hub("push_to_hub uploads the model").push(self, repo_id, **options))

    @property
    def mean(self) -> Triple:
        """What is taken from the input image, RGB in 0..1, before it is divided by `std`."""
        return self.backbone.mean

    @property
    def std(self) -> Triple:
        """What the input image, RGB in 0..1 less `mean`, is divided by."""
        return self.backbone.std

    def forward(
        self, image_B3HW: Tensor, scene_B: Tensor | None = None, *, observer: Observer | None = None
    ) -> PoseOutput:
        """Estimate poses.

        Args:
            image_B3HW: RGB, normalised by `mean` and `std`, at least 32 pixels on each side.
            scene_B: index of each image's scene, int64; needed in training. Without it the most
                probable scene's pose is returned.
            observer: called with the attention of each layer.

        Raises:
            ValueError: a tensor of a wrong shape, kind or range, or no scenes in training.
        """
        raise NotImplementedError

    def fuse(self) -> Self:
        """Make this network ready for prediction alone, in place: the backbone's batch norms are
        folded into its convolutions. Its answers stay the same up to rounding.

        Raises:
            ValueError: the network is in training mode.
        """
        noise = torch.randn(
            1, 3, *self.backbone.probe_size, generator=torch.Generator().manual_seed(0)
        )
        fold_batch_norms(self.backbone, partial(self.backbone, noise.to(next(self.parameters()))))
        self.requires_grad_(False)
        self.fused = True
        return self

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`. Raises ValueError for a fused network."""
        if mode and self.fused:
            raise ValueError("a fused network cannot be trained: train the one that it was made of")
        return super().train(mode)

    def _feature_maps(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's maps of stride 16 and 8."""
        if (
            image_B3HW.device.type == "cpu"
        ):  # half the time of a CPU's convolutions, and tokens without a copy
            image_B3HW = image_B3HW.contiguous(memory_format=torch.channels_last)
        if not (self.recompute_backbone and self.training and torch.is_grad_enabled()):
            return self.backbone(image_B3HW)
        again = partial(_statistics_kept, self.backbone)
        return checkpoint(
            self.backbone,
            image_B3HW,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), again()),
        )

    def _check_input(self, image_B3HW: Tensor, scene_B: Tensor | None) -> None:
        expect_shape("image_B3HW", image_B3HW, ("batch", 3, "height", "width"))
        if not image_B3HW.is_floating_point():
            raise ValueError(
                f"image_B3HW: expected normalised floating-point values, found {image_B3HW.dtype}"
            )
        height, width = image_B3HW.shape[2:]
        if min(height, width) < SMALLEST_IMAGE:
            raise ValueError(
                f"image_B3HW: expected at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels, found"
                f" {height}x{width}"
            )
        if scene_B is None:
            if self.training:
                raise ValueError(
                    "scene_B: expected the index of each image's scene in training mode, found none"
                )
            return
        expect_shape("scene_B", scene_B, (image_B3HW.shape[0],))
        if scene_B.dtype != torch.int64:
            raise ValueError(f"scene_B: expected int64 indices, found {scene_B.dtype}")
        # Reading values would make an accelerator wait; there, indexing itself refuses them.
        if scene_B.device.type == "cpu" and not torch.compiler.is_compiling():
            lowest, highest = int(scene_B.min()), int(scene_B.max())
            if lowest < 0 or highest >= len(self.scenes):
                raise ValueError(
                    f"scene_B: expected indices in 0..{len(self.scenes) - 1} of {len(self.scenes)}"
                    f" scenes, found {lowest if lowest < 0 else highest}"
                )


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off where it is on; elsewhere it does nothing, as exporters cannot all
    write a switch down.
    """
    return (
        torch.autocast(device.type, enabled=False)
        if torch.is_autocast_enabled(device.type)
        else nullcontext()
    )


def check_scenes(scenes: Sequence[str]) -> None:
    """Raise MsposeError where there is no scene, or one is named twice."""
    if not scenes:
        raise MsposeError("scenes: expected at least one name, found none")
    twice = sorted({name for name in scenes if scenes.count(name) > 1})
    if twice:
        raise MsposeError(
            f"scenes: expected each name once, found {', '.join(twice)} more than once"
        )


def check_sizes(architecture: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """Raise MsposeError where a size of the architecture is below its least."""
    for name, value in least.items():
        if architecture[name] < value:
            raise MsposeError(f"{name}: expected at least {value}, found {architecture[name]}")


def check_probabilities(architecture: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise MsposeError where a dropout of the architecture is no probability, or 1."""
    for name in names:
        if not 0 <= architecture[name] < 1:
            raise MsposeError(
                f"{name}: expected a probability of at least 0 and below 1, found"
                f" {architecture[name]}"
            )


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norms as they are when a forward pass is computed a
    second time.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    # the second pass ends with an exception, as soon as it has all that the backward pass asks for
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
