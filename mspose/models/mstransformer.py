"""MS-Transformer: one network for all scenes of a data set (Shavit, Ferens and Keller, ICCV 2021,
arXiv 2103.11468).

ActMST (Lee, Kim and Heo, NeurIPS 2024, arXiv 2411.01443) is the same network with
`position_encoding="sine"` and the QKA term of `mspose.losses`. B images, S scenes, N tokens, C
channels, L encoder layers, H heads.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.errors import MsposeError
from mspose.models.attention import ATTENTION_SCALES, SelfAttention
from mspose.models.backbone import make_backbone
from mspose.models.kernels import Linear
from mspose.models.network import (
    Observer,
    PoseNetwork,
    PoseOutput,
    check_probabilities,
    check_scenes,
    check_sizes,
    without_autocast,
)
from mspose.models.position_encoding import (
    POSITION_ENCODINGS,
    RememberedEncoding,
    make_position_encoding,
)
from mspose.models.query_key_weights import QUERY_KEY_WEIGHTS
from mspose.models.relative_position import TokenPositions, make_relative_position
from mspose.models.transformer import Decoder, Encoder, initialize_matrices

CHOICES = {
    "position_encoding": POSITION_ENCODINGS,
    "query_key_weights": QUERY_KEY_WEIGHTS,
    "attention_scale": ATTENTION_SCALES,
    "query_initialisation": ("normal", "orthogonal"),
}


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
        position_encoding: str,
        query_key_weights: str,
        attention_scale: str,
        query_initialisation: str,
    ) -> None:
        super().__init__()
        self.name = name
        dropouts = {"dropout": dropout, "attention_dropout": attention_dropout}
        self.project = Linear(channels, dim)  # a 1x1 convolution, on tokens
        self.encoder = Encoder(
            encoder_layers, dim, heads, feedforward, attention_scale=attention_scale, **dropouts
        )
        self.decoder = Decoder(decoder_layers, dim, heads, feedforward, **dropouts)
        self.scene_query = nn.Parameter(make_scene_queries(query_initialisation, scenes, dim))
        initialize_matrices(self.encoder)
        initialize_matrices(self.decoder)
        self.encoder.normalize_query_key_weights(query_key_weights)
        self.relative_position = (
            make_relative_position(position_encoding, dim, heads) if encoder_layers else None
        )

    def forward(
        self, map_BCHW: Tensor, position_encoding: nn.Module, *, observer: Observer | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns scene_BSC and query_key_gap_BLH."""
        height, width = map_BCHW.shape[2:]
        # In the parameters' dtype, so that the residual stream keeps its precision under autocast.
        tokens_BNC = self.project(map_BCHW.flatten(2).transpose(1, 2)).to(self.scene_query.dtype)
        place = (height, width, tokens_BNC.dtype, tokens_BNC.device)
        position_NC = position_encoding(*place)
        positions = (
            TokenPositions(position_NC)
            if self.relative_position is None
            else self.relative_position(*place)
        )
        see_encoder = partial(observer.encoder, self.name) if observer is not None else None
        see_decoder = partial(observer.decoder, self.name) if observer is not None else None
        memory_BNC, gap_BLH = self.encoder(tokens_BNC, positions, observer=see_encoder)
        return (
            self.decoder(self.scene_query, memory_BNC, position_NC, observer=see_decoder),
            gap_BLH,
        )

    def fuse(self) -> None:
        """For a network whose weights no longer change: what they make is made once."""
        if self.relative_position is not None:
            self.relative_position = RememberedEncoding(self.relative_position)
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.fuse()


def make_scene_queries(initialisation: str, scenes: int, dim: int) -> Tensor:
    """query_SC, the start of a branch's scene queries: `normal`, every number of deviation 1, or
    `orthogonal`, all at right angles and of the length that normal ones have on average.
    """
    if initialisation == "normal":
        return torch.randn(scenes, dim)
    mean_length = math.sqrt(2) * math.exp(
        math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2)
    )  # of the chi distribution
    return nn.init.orthogonal_(torch.empty(scenes, dim), gain=mean_length)


class Head(nn.Sequential):
    """The regressor of one pose component: linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__(
            OrderedDict(hidden=Linear(dim, hidden), activation=nn.GELU(), out=Linear(hidden, out))
        )
        initialize_matrices(self)


class MSTransformer(PoseNetwork):
    """A transformer per pose component, whose decoder has a query per scene, on a feature map each."""

    kind = "ms-transformer"
    has_attention = True

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
            dropout: in the transformers, on what is added to the tokens and inside the feed-forward
                layers.
            attention_dropout: on the attention weights.
            position_encoder_layers, orientation_encoder_layers: 0 removes a branch's encoder
                self-attention.
            position_decoder_layers, orientation_decoder_layers: at least 1.
            position_encoding: `learned`, `sine` or `sine-normalized`; or, in the encoders alone,
                `rotary`, `relative-bias` or `none`: see `make_position_encoding`.
            query_key_weights: of the encoders, `plain`, `spectral-norm` or `sigma-reparam`: see
                `mspose.models.query_key_weights`.
            attention_scale: the encoders' scores are divided by the root of a head's channels
                (`head-dim`) or of the number of `tokens`.
            query_initialisation: `normal` or `orthogonal`: see `make_scene_queries`.
            head_hidden: hidden width of the two pose heads.

        Raises:
            MsposeError: no scene, a scene named twice, sizes that do not fit together, an unknown
                backbone, or weights that cannot be had.
        """
        super().__init__()
        self.scenes = tuple(scenes)
        self.architecture = {
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
            "position_encoding": position_encoding,
            "query_key_weights": query_key_weights,
            "attention_scale": attention_scale,
            "query_initialisation": query_initialisation,
        }
        self.position_encoding = make_position_encoding(position_encoding, dim)
        self.backbone = make_backbone(backbone, pretrained=pretrained)
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
        """As `PoseNetwork.forward`."""
        self._check_input(image_B3HW, scene_B)
        position_map_BCHW, orientation_map_BCHW = self._feature_maps(image_B3HW)
        position_BSC, position_gap_BLH = self.position(
            position_map_BCHW, self.position_encoding, observer=observer
        )
        orientation_BSC, orientation_gap_BLH = self.orientation(
            orientation_map_BCHW, self.position_encoding, observer=observer
        )
        # Positions in half precision would be rounded to centimetres, so the heads never compute in
        # it under autocast.
        with without_autocast(image_B3HW.device):
            dtype = self.scene.weight.dtype
            position_BSC, orientation_BSC = position_BSC.to(dtype), orientation_BSC.to(dtype)
            logit_BS = self.scene(torch.cat((position_BSC, orientation_BSC), dim=-1)).squeeze(-1)
            log_probability_BS = F.log_softmax(logit_BS, dim=-1)
            if scene_B is None:
                scene_B = log_probability_BS.argmax(dim=-1)
            image_B = torch.arange(scene_B.shape[0], device=scene_B.device)
            return PoseOutput(
                position_B3=self.position_head(position_BSC[image_B, scene_B]),
                orientation_B4=self.orientation_head(orientation_BSC[image_B, scene_B]),
                scene_log_probability_BS=log_probability_BS,
                scene_B=scene_B,
                query_key_gap={"position": position_gap_BLH, "orientation": orientation_gap_BLH},
            )

    def fuse(self) -> Self:
        """As `PoseNetwork.fuse`; positions and their projections, and normalised weights, are
        computed once, too.
        """
        super().fuse()
        if not isinstance(self.position_encoding, RememberedEncoding):
            self.position_encoding = RememberedEncoding(self.position_encoding)
        self.position.fuse()
        self.orientation.fuse()
        return self


def _check_architecture(architecture: dict[str, Any]) -> None:
    """Refuse in words, before anything is built, settings that make no network."""
    dim, heads = architecture["dim"], architecture["heads"]
    check_scenes(architecture["scenes"])
    for name, choices in CHOICES.items():
        if architecture[name] not in choices:
            raise MsposeError(
                f"{name}: expected one of {', '.join(choices)}, found {architecture[name]!r}"
            )
    least = dict.fromkeys(
        ("feedforward", "head_hidden", "position_decoder_layers", "orientation_decoder_layers"), 1
    )
    least |= {"dim": 4, "heads": 1, "position_encoder_layers": 0, "orientation_encoder_layers": 0}
    check_sizes(architecture, least)
    if dim % heads or dim % 4:
        raise MsposeError(f"dim: expected a multiple of heads ({heads}) and of 4, found {dim}")
    if architecture["position_encoding"] == "rotary" and dim // heads % 4:
        raise MsposeError(
            "position_encoding rotary: expected a multiple of 4 channels per head, found"
            f" {dim // heads} (dim {dim}, heads {heads})"
        )
    scenes = len(architecture["scenes"])
    if architecture["query_initialisation"] == "orthogonal" and scenes > dim:
        raise MsposeError(
            f"query_initialisation orthogonal: expected no more scenes than channels (dim {dim}),"
            f" found {scenes} scenes"
        )
    check_probabilities(architecture, ("dropout", "attention_dropout"))
