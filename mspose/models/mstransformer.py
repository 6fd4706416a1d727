"""MS-Transformer: one network for all scenes of a data set (Shavit, Ferens and Keller, ICCV 2021, arXiv 2103.11468).

ActMST (Lee, Kim and Heo, NeurIPS 2024, arXiv 2411.01443) is the same network with `position_encoding="sine"` and the
QKA term of `mspose.losses`. B images, S scenes, N tokens, C channels, L encoder layers, H heads.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mspose.errors import MsposeError
from mspose.models.attention import SelfAttention, expect_shape
from mspose.models.attention_map import AttentionMap
from mspose.models.backbone import make_backbone
from mspose.models.fusion import fold_batch_norms
from mspose.models.kernels import Linear
from mspose.models.position_encoding import POSITION_ENCODINGS, RememberedEncoding, make_position_encoding
from mspose.models.transformer import Decoder, Encoder, initialize_matrices


class Observer:
    """Sees the attention of a forward pass, layer by layer; this one does nothing with it.

    `branch` is "position" or "orientation"; `layer` counts from 0.
    """

    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        """Called with the self-attention of every encoder layer."""

    def decoder(self, branch: str, layer: int, weight_BHSN: Tensor) -> None:
        """Called with what every scene's query attends to in the image, of every decoder layer."""


SMALLEST_IMAGE = 32


@dataclass(eq=False)
class PoseOutput:
    """What the network says of B images. `output["position_B3"]` reads like `output.position_B3`.

    Attributes:
        position_B3: camera centre in metres, in the frame of scene `scene_B`.
        orientation_B4: quaternion w x y z, not normalised.
        scene_log_probability_BS: log-probability of every scene.
        scene_B: the scene whose pose this is: as given, else the most probable one.
        query_key_gap: per branch ("position", "orientation"), gap_BLH: the norms that QKA averages.
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


class Branch(nn.Module):
    """From one feature map to one vector per scene: tokens, encoder, decoder."""

    def __init__(
        self,
        name: str,
        channels: int,
        scenes: int,
        *,
        dim: int,
        heads: int,
        feedforward: int,
        dropout: float,
        attention_dropout: float,
        encoder_layers: int,
        decoder_layers: int,
    ) -> None:
        super().__init__()
        self.name = name
        dropouts = {"dropout": dropout, "attention_dropout": attention_dropout}
        self.project = Linear(channels, dim)  # a 1x1 convolution, on tokens
        self.encoder = Encoder(encoder_layers, dim, heads, feedforward, **dropouts)
        self.decoder = Decoder(decoder_layers, dim, heads, feedforward, **dropouts)
        self.scene_query = nn.Parameter(torch.randn(scenes, dim))
        initialize_matrices(self.encoder)
        initialize_matrices(self.decoder)

    def forward(
        self, map_BCHW: Tensor, position_encoding: nn.Module, *, observer: Observer | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns scene_BSC and query_key_gap_BLH."""
        height, width = map_BCHW.shape[2:]
        # In the parameters' dtype, so that the residual stream keeps its precision under autocast.
        tokens_BNC = self.project(map_BCHW.flatten(2).transpose(1, 2)).to(self.scene_query.dtype)
        position_NC = position_encoding(height, width, tokens_BNC.dtype, tokens_BNC.device)
        see_encoder = partial(observer.encoder, self.name) if observer else None
        see_decoder = partial(observer.decoder, self.name) if observer else None
        memory_BNC, gap_BLH = self.encoder(tokens_BNC, position_NC, observer=see_encoder)
        return self.decoder(self.scene_query, memory_BNC, position_NC, observer=see_decoder), gap_BLH


class Head(nn.Sequential):
    """The regressor of one pose component: linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__(OrderedDict(hidden=Linear(dim, hidden), activation=nn.GELU(), out=Linear(hidden, out)))
        initialize_matrices(self)


class MSTransformer(nn.Module):
    """RGB image to camera pose and scene.

    Attributes:
        scenes: the scenes' names; a scene's index in the output is its place here.
        architecture: what rebuilds this network: `MSTransformer(**architecture, pretrained=False)`.
        fused: whether the network is for prediction alone, see `fuse`.
        recompute_backbone: forget the backbone's activations and compute them again in the backward pass (Chen et al.,
            arXiv 1604.06174): a third of the memory of a training step for one more forward pass of the backbone.
        mean, std: how the input image, RGB in 0..1, is to be normalised.
    """

    def __init__(
        self,
        *,
        scenes: Sequence[str],
        backbone: str = "efficientnet_b0",
        pretrained: bool = True,
        dim: int = 256,
        heads: int = 8,
        feedforward: int = 256,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        position_encoder_layers: int = 6,
        position_decoder_layers: int = 6,
        orientation_encoder_layers: int = 6,
        orientation_decoder_layers: int = 6,
        position_encoding: str = "sine",
        query_key_weights: str = "plain",
        attention_scale: str = "head-dim",
        query_initialisation: str = "normal",
        head_hidden: int = 1024,
    ) -> None:
        """Build the network; its transformers and heads start at random.

        Args:
            scenes: names of the scenes, in the order of their indices.
            backbone: see `mspose.models.backbone.make_backbone`.
            pretrained: start the backbone from ImageNet weights.
            dim: channels of a token.
            heads: attention heads; divides `dim`.
            feedforward: hidden width of the transformers' feed-forward layers.
            dropout: in the transformers, on what is added to the tokens and inside the feed-forward layers.
            attention_dropout: on the attention weights.
            position_encoder_layers, orientation_encoder_layers: 0 removes a branch's encoder self-attention.
            position_decoder_layers, orientation_decoder_layers: at least 1.
            position_encoding: `learned`, `sine` or `sine-normalized`.
            head_hidden: hidden width of the two pose heads.

        Raises:
            MsposeError: no scene, a scene named twice, sizes that do not fit together, an unknown backbone, or
                weights that cannot be had.
        """
        super().__init__()
        self.fused = False
        self.recompute_backbone = False
        self.scenes = tuple(scenes)
        self.architecture: dict[str, Any] = {
            "scenes": list(self.scenes),
            "backbone": backbone,
            "dim": dim,
            "heads": heads,
            "feedforward": feedforward,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "position_encoder_layers": position_encoder_layers,
            "position_decoder_layers": position_decoder_layers,
            "orientation_encoder_layers": orientation_encoder_layers,
            "orientation_decoder_layers": orientation_decoder_layers,
            "position_encoding": position_encoding,
            "query_key_weights": query_key_weights,
            "attention_scale": attention_scale,
            "query_initialisation": query_initialisation,
            "head_hidden": head_hidden,
        }
        _check_architecture(self.architecture)
        sizes: dict[str, Any] = {
            "dim": dim,
            "heads": heads,
            "feedforward": feedforward,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
        }
        self.position_encoding = make_position_encoding(position_encoding, dim)
        self.backbone = make_backbone(backbone, pretrained=pretrained)
        self.mean, self.std = self.backbone.mean, self.backbone.std
        self.position = Branch(
            "position",
            self.backbone.position_channels,
            len(self.scenes),
            encoder_layers=position_encoder_layers,
            decoder_layers=position_decoder_layers,
            **sizes,
        )
        self.orientation = Branch(
            "orientation",
            self.backbone.orientation_channels,
            len(self.scenes),
            encoder_layers=orientation_encoder_layers,
            decoder_layers=orientation_decoder_layers,
            **sizes,
        )
        self.scene = Linear(2 * dim, 1)
        self.position_head = Head(dim, head_hidden, 3)
        self.orientation_head = Head(dim, head_hidden, 4)

    def forward(
        self, image_B3HW: Tensor, scene_B: Tensor | None = None, *, observer: Observer | None = None
    ) -> PoseOutput:
        """Estimate poses.

        Args:
            image_B3HW: RGB, normalised by `mean` and `std`, at least 32 pixels on each side.
            scene_B: index of each image's scene, int64; needed in training. Without it the most probable scene's
                pose is returned.
            observer: called with the attention of each layer.

        Raises:
            ValueError: a tensor of a wrong shape, kind or range, or no scenes in training.
        """
        self._check_input(image_B3HW, scene_B)
        if image_B3HW.device.type == "cpu":  # half the time of a CPU's convolutions, and tokens without a copy
            image_B3HW = image_B3HW.contiguous(memory_format=torch.channels_last)
        position_map_BCHW, orientation_map_BCHW = self._feature_maps(image_B3HW)
        position_BSC, position_gap_BLH = self.position(position_map_BCHW, self.position_encoding, observer=observer)
        orientation_BSC, orientation_gap_BLH = self.orientation(
            orientation_map_BCHW, self.position_encoding, observer=observer
        )
        # Positions in half precision would be rounded to centimetres, so the heads never compute in it under autocast.
        with torch.autocast(image_B3HW.device.type, enabled=False):
            dtype = self.scene.weight.dtype
            position_BSC, orientation_BSC = position_BSC.to(dtype), orientation_BSC.to(dtype)
            logit_BS = self.scene(torch.cat((position_BSC, orientation_BSC), dim=-1)).squeeze(-1)
            log_probability_BS = F.log_softmax(logit_BS, dim=-1)
            if scene_B is None:
                scene_B = log_probability_BS.argmax(dim=-1)
            image_B = torch.arange(len(scene_B), device=scene_B.device)
            return PoseOutput(
                position_B3=self.position_head(position_BSC[image_B, scene_B]),
                orientation_B4=self.orientation_head(orientation_BSC[image_B, scene_B]),
                scene_log_probability_BS=log_probability_BS,
                scene_B=scene_B,
                query_key_gap={"position": position_gap_BLH, "orientation": orientation_gap_BLH},
            )

    def fuse(self) -> Self:
        """Make this network ready for prediction alone, in place: the backbone's batch norms are folded into its
        convolutions, and the projections of positions are computed once. Its answers stay the same up to rounding.

        Raises:
            ValueError: the network is in training mode.
        """
        noise = torch.randn(1, 3, *self.backbone.probe_size, generator=torch.Generator().manual_seed(0))
        fold_batch_norms(self.backbone, partial(self.backbone, noise.to(self.scene.weight)))
        self.requires_grad_(False)
        if not isinstance(self.position_encoding, RememberedEncoding):
            self.position_encoding = RememberedEncoding(self.position_encoding)
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.remembers_positions = True
        self.fused = True
        return self

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`. Raises ValueError for a fused network."""
        if mode and self.fused:
            raise ValueError("a fused network cannot be trained: train the one that it was made of")
        return super().train(mode)

    def _feature_maps(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        if not (self.recompute_backbone and self.training and torch.is_grad_enabled()):
            return self.backbone(image_B3HW)
        again = partial(_statistics_kept, self.backbone)
        return checkpoint(self.backbone, image_B3HW, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))

    def _check_input(self, image_B3HW: Tensor, scene_B: Tensor | None) -> None:
        expect_shape("image_B3HW", image_B3HW, ("batch", 3, "height", "width"))
        if not image_B3HW.is_floating_point():
            raise ValueError(f"image_B3HW: expected normalised floating-point values, found {image_B3HW.dtype}")
        height, width = image_B3HW.shape[2:]
        if min(height, width) < SMALLEST_IMAGE:
            raise ValueError(
                f"image_B3HW: expected at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels, found {height}x{width}"
            )
        if scene_B is None:
            if self.training:
                raise ValueError("scene_B: expected the index of each image's scene in training mode, found none")
            return
        expect_shape("scene_B", scene_B, (image_B3HW.shape[0],))
        if scene_B.dtype != torch.int64:
            raise ValueError(f"scene_B: expected int64 indices, found {scene_B.dtype}")
        # Reading values would make an accelerator wait; there, indexing itself refuses them.
        if scene_B.device.type == "cpu" and not torch.compiler.is_compiling():
            lowest, highest = int(scene_B.min()), int(scene_B.max())
            if lowest < 0 or highest >= len(self.scenes):
                raise ValueError(
                    f"scene_B: expected indices in 0..{len(self.scenes) - 1} of {len(self.scenes)} scenes, found "
                    f"{lowest if lowest < 0 else highest}"
                )


def _check_architecture(architecture: dict[str, Any]) -> None:
    """Refuse in words, before anything is built, settings that make no network."""
    scenes, dim, heads = architecture["scenes"], architecture["dim"], architecture["heads"]
    if not scenes:
        raise MsposeError("scenes: expected at least one name, found none")
    twice = sorted({name for name in scenes if scenes.count(name) > 1})
    if twice:
        raise MsposeError(f"scenes: expected each name once, found {', '.join(twice)} more than once")
    if architecture["position_encoding"] not in POSITION_ENCODINGS:
        raise MsposeError(
            f"position_encoding: expected one of {', '.join(POSITION_ENCODINGS)}, "
            f"found {architecture['position_encoding']!r}"
        )
    least = dict.fromkeys(("feedforward", "head_hidden", "position_decoder_layers", "orientation_decoder_layers"), 1)
    least |= {"dim": 4, "heads": 1, "position_encoder_layers": 0, "orientation_encoder_layers": 0}
    for name, value in least.items():
        if architecture[name] < value:
            raise MsposeError(f"{name}: expected at least {value}, found {architecture[name]}")
    if dim % heads or dim % 4:
        raise MsposeError(f"dim: expected a multiple of heads ({heads}) and of 4, found {dim}")
    for name in ("dropout", "attention_dropout"):
        if not 0 <= architecture[name] < 1:
            raise MsposeError(f"{name}: expected a probability of at least 0 and below 1, found {architecture[name]}")


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norms as they are when a forward pass is computed a second time."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:  # the second pass ends with an exception, as soon as it has all that the backward pass asks for
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
