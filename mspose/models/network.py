"""Base class of all networks: input and output, settings, observers, loading and saving.

B images, S scenes, N tokens, L encoder layers, H heads.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mspose.config import ModelSettings
from mspose.errors import MsposeError
from mspose.models.attention import expect_shape
from mspose.models.attention_map import Observer as Observer
from mspose.models.backbone import Backbone, Triple
from mspose.models.stored import (
    load_weights,
    model_folder,
    read_construction,
    unfit_description,
)
from mspose.run import WEIGHTS, load_model, read_description, save_model

SMALLEST_IMAGE = 32


@dataclass(eq=False)
class PoseOutput:
    """Poses of B images. `output["position_B3"]` reads like `output.position_B3`.

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
        has_attention: observers are called.
        shaping: names of the settings that decide which weights fit the network, and what it
            computes with them.
        scenes: the scenes' names, in the order of their indices in the output.
        settings: the settings that built the network.
        backbone: see `mspose.models.backbone`.
        position_head: regresses positions.
        description: content of `model.json` beside scenes and settings, where the network was
            loaded: preprocessing, training data; else {}.
        recompute_backbone: forget the backbone's activations and compute them again in the backward
            pass (Chen et al., arXiv 1604.06174): about 30 % less memory in a training step for one
            more forward pass of the backbone.
    """

    kind: ClassVar[str]
    has_attention: ClassVar[bool]
    shaping: ClassVar[tuple[str, ...]]
    backbone: Backbone
    position_head: nn.Module

    def __init__(
        self, scenes: Sequence[str], settings: ModelSettings | None = None, **changes: Any
    ) -> None:
        """Build the network, with fresh weights but for a pretrained backbone.

        `MSTransformer(["attic", "barn"], dim=128)` sets some of `mspose.config.ModelSettings`,
        which has all names, defaults and explanations; `MSTransformer(scenes, settings)` takes all
        of them.

        Args:
            scenes: names of the scenes, in the order of their indices.
            settings: by default `ModelSettings()`.
            changes: settings by name, in place of those in `settings`.

        Raises:
            MsposeError: no scene, a scene named twice, settings that make no network, an unknown
                backbone, or weights that cannot be had.
            TypeError: there is no such setting.
        """
        super().__init__()
        self.scenes = tuple(scenes)
        self.settings = dataclasses.replace(
            settings or ModelSettings(), **{"kind": self.kind, **changes}
        )
        self.description: dict[str, Any] = {}
        self.recompute_backbone = False
        _check_scenes(self.scenes)
        self.check_settings(self.settings)

    @classmethod
    def check_settings(cls, settings: ModelSettings) -> None:
        """Raise MsposeError for settings that make no network, before anything is built.

        A command line was checked for most already, a `model.json` or a call from Python was not.
        """
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            allowed: Any = field.type
            if get_origin(allowed) is Literal and value not in get_args(allowed):
                expected = ", ".join(get_args(allowed))
                raise MsposeError(f"{field.name}: expected one of {expected}, found {value!r}")
            if hasattr(allowed, "_restrictions"):  # one of jsonargparse's restricted number types
                try:
                    allowed(value)
                except (TypeError, ValueError) as error:
                    raise MsposeError(f"{field.name}: {error}") from error
        if 4 * cls.least_weights(settings) > (
            memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        ):
            raise MsposeError(
                f"dim {settings.dim}, feedforward {settings.feedforward} and the numbers of layers"
                f" make a network that does not fit into this machine's {memory / 1e9:.0f} GB"
            )
        for name in ("dropout", "attention_dropout"):
            if getattr(settings, name) == 1:
                raise MsposeError(f"{name}: expected a probability below 1, found 1")

    @classmethod
    def least_weights(cls, settings: ModelSettings) -> int:  # noqa: ARG003
        """Number of weights that the network has at least, without building it."""
        return 0

    @classmethod
    def from_pretrained(cls, source: Path | str, **hub_options: Any) -> Self:
        """Load a trained network, on the CPU and in eval mode: from a run folder, a folder with
        `model.safetensors` and `model.json`, or the Hugging Face hub (`user/name`).

        `hub_options` (`revision`, `cache_dir`, `token`, `local_files_only`, `force_download`) are
        those of `huggingface_hub.snapshot_download`. Raises MsposeError where there is no such
        model, a broken one, one of another kind or of another version.
        """
        folder = model_folder(source, **hub_options)
        weights, description = load_model(folder)
        return cls.from_description(description, weights, folder)

    @classmethod
    def from_description(
        cls, description: dict[str, Any], weights: dict[str, Tensor], source: Path
    ) -> Self:
        """Build a trained network of what `load_model(source)` returned; as `from_pretrained`."""
        settings, scenes = read_construction(description, source)
        if settings.kind != cls.kind:
            raise MsposeError(f"{source} holds a network of kind {settings.kind}, not {cls.kind}")
        there = sum(tensor.numel() for tensor in weights.values())
        if cls.least_weights(settings) > there:
            raise unfit_description(source, f"its sizes need more than the {there:,} weights there")
        try:
            network = cls(scenes, settings, pretrained=False)
        except (TypeError, ValueError, RuntimeError, OverflowError, MsposeError) as error:
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            raise unfit_description(source, first_line) from error
        if any(tensor.dtype == torch.float64 for tensor in weights.values()):
            network.double()  # a converted checkpoint keeps its precision
        load_weights(network, weights, source)
        network.settings = settings
        built = ("format", "kind", "architecture", "scenes", "settings")
        network.description = {key: description[key] for key in description if key not in built}
        return network.eval()

    def describe(self) -> dict[str, Any]:
        """Return what `model.json` says of this network: scenes and settings, and `description`.

        Raises MsposeError where `description` does not say how images are prepared.
        """
        preprocessing = self.description.get("preprocessing") or {}
        if missing := [name for name in ("resize", "crop") if name not in preprocessing]:
            raise MsposeError(
                f"the network does not know how images are prepared for it ({' and '.join(missing)}"
                ' missing): set network.description = {"preprocessing": {"resize": 256,'
                ' "crop": 224}}, in pixels, as in its training'
            )
        return {
            "scenes": list(self.scenes),
            "settings": dataclasses.asdict(self.settings),
            **self.description,
            "preprocessing": {
                **preprocessing,
                "mean": preprocessing.get("mean", list(self.mean)),
                "std": preprocessing.get("std", list(self.std)),
            },
        }

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `model.safetensors` and `model.json`, which `from_pretrained` and `mspose.load`
        read; a model that was there is replaced.

        Raises MsposeError as `describe` does, and where `folder` cannot be written or holds a model
        of another program.
        """
        folder, description = Path(folder), self.describe()
        if (folder / WEIGHTS).exists():
            try:
                read_description(folder)
            except MsposeError as error:
                raise MsposeError(
                    f"{folder} holds a model that is not mspose's ({error}): give another folder"
                ) from error
        save_model(folder, self.state_dict(), description)

    @property
    def mean(self) -> Triple:
        """Subtracted from the input image, RGB in 0..1, before it is divided by `std`."""
        return self.backbone.mean

    @property
    def std(self) -> Triple:
        """Divides the input image, RGB in 0..1 less `mean`."""
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

    def feature_maps(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's maps of stride 16 and 8."""
        if (
            image_B3HW.device.type == "cpu"
        ):  # CPU convolutions are faster so, and tokens need no copy
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
    """Switch autocast off where it is on; elsewhere do nothing, as exporters cannot all write a
    switch down.
    """
    return (
        torch.autocast(device.type, enabled=False)
        if torch.is_autocast_enabled(device.type)
        else nullcontext()
    )


def _check_scenes(scenes: Sequence[str]) -> None:
    if not scenes:
        raise MsposeError("scenes: expected at least one name, found none")
    if odd := [name for name in scenes if not isinstance(name, str)]:
        raise MsposeError(f"scenes: expected names, found {odd[0]!r:.40}")
    twice = sorted({name for name in scenes if scenes.count(name) > 1})
    if twice:
        raise MsposeError(
            f"scenes: expected each name once, found {', '.join(twice)} more than once"
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
