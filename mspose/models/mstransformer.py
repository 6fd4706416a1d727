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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.config import BRANCHES, ModelSettings
from mspose.errors import MsposeError
from mspose.models.attention import xavier_linear
from mspose.models.attention_map import Observer
from mspose.models.backbone import make_backbone
from mspose.models.network import PoseNetwork, PoseOutput, without_autocast
from mspose.models.token_positions import TOKEN_POSITIONS, TokenPositions
from mspose.models.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer


class Branch(nn.Module):
    """From one feature map to one vector per scene: tokens, encoder, decoder."""

    def __init__(
        self,
        channels: int,
        encoder: Encoder,
        decoder: Decoder,
        scene_query_SC: Tensor,
        encoder_positions: nn.Module | None = None,
    ) -> None:
        """`channels` are the feature map's; `encoder_positions` is the encoder's own encoding of
        token positions, None where it adds the same as the decoder.
        """
        super().__init__()
        self.project = nn.Linear(channels, scene_query_SC.shape[1])  # a 1x1 convolution, on tokens
        self.encoder = encoder
        self.decoder = decoder
        self.scene_query = nn.Parameter(scene_query_SC)
        self.relative_position = encoder_positions  # the name that stored models have

    def forward(
        self, name: str, map_BCHW: Tensor, added: nn.Module, observer: Observer | None
    ) -> tuple[Tensor, Tensor]:
        """Return scene_BSC and query_key_gap_BLH.

        `name` is the branch's, for the observer; `added` is the encoding of token positions that is
        added to tokens.
        """
        tokens_BNC, encoder_positions, added_NC = self.tokens(map_BCHW, added)
        seen = {"branch": name, "observer": observer}
        memory_BNC, gap_BLH = self.encoder(tokens_BNC, encoder_positions, **seen)
        return self.decoder(self.scene_query, memory_BNC, added_NC, **seen), gap_BLH

    def tokens(self, map_BCHW: Tensor, added: nn.Module) -> tuple[Tensor, TokenPositions, Tensor]:
        """Return tokens_BNC, their positions for the encoder, and added_NC, which the decoder adds
        to its keys.
        """
        # In the parameters' dtype, so that the residual stream keeps its precision under autocast.
        tokens_BNC = self.project(map_BCHW.flatten(2).transpose(1, 2)).to(self.scene_query.dtype)
        grid = (*map_BCHW.shape[2:], tokens_BNC.dtype, tokens_BNC.device)
        decoder_positions = added(*grid)
        encoder_positions = (
            decoder_positions if self.relative_position is None else self.relative_position(*grid)
        )
        return tokens_BNC, encoder_positions, decoder_positions.added_NC


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
            OrderedDict(
                hidden=xavier_linear(dim, hidden),
                activation=nn.GELU(),
                out=xavier_linear(hidden, out),
            )
        )


class MSTransformer(PoseNetwork):
    """Two transformers, for position and orientation, each on a feature map of its own, whose
    decoders have a query per scene.
    """

    kind = "ms-transformer"
    has_attention = True
    shaping = (
        "backbone",
        "dim",
        "heads",
        "feedforward",
        "position_encoder_layers",
        "position_decoder_layers",
        "orientation_encoder_layers",
        "orientation_decoder_layers",
        "position_encoding",
        "query_key_weights",
        "attention_scale",
        "head_hidden",
    )

    def __init__(
        self, scenes: Sequence[str], settings: ModelSettings | None = None, **changes: Any
    ) -> None:
        """As `PoseNetwork`."""
        super().__init__(scenes, settings, **changes)
        settings = self.settings
        if settings.query_initialisation == "orthogonal" and len(self.scenes) > settings.dim:
            raise MsposeError(
                "query_initialisation orthogonal: expected no more scenes than channels (dim"
                f" {settings.dim}), found {len(self.scenes)} scenes"
            )
        dim, heads = settings.dim, settings.heads
        encoding = TOKEN_POSITIONS[settings.position_encoding]
        sizes = {
            "dim": dim,
            "heads": heads,
            "feedforward": settings.feedforward,
            "dropout": settings.dropout,
            "attention_dropout": settings.attention_dropout,
        }
        encoder_layer = partial(
            EncoderLayer,
            **sizes,
            attention_scale=settings.attention_scale,
            query_key_weights=settings.query_key_weights,
        )
        decoder_layer = partial(DecoderLayer, **sizes)

        def branch(channels: int, encoder_layers: int, decoder_layers: int) -> Branch:
            return Branch(
                channels,
                Encoder((encoder_layer() for _ in range(encoder_layers)), dim),
                Decoder((decoder_layer() for _ in range(decoder_layers)), dim),
                make_scene_queries(settings.query_initialisation, len(self.scenes), dim),
                encoding.encoder(dim, heads) if encoding.encoder and encoder_layers else None,
            )

        self.position_encoding = encoding.added(dim)  # of both branches
        self.backbone = make_backbone(settings.backbone, pretrained=settings.pretrained)
        self.position = branch(
            self.backbone.position_channels,
            settings.position_encoder_layers,
            settings.position_decoder_layers,
        )
        self.orientation = branch(
            self.backbone.orientation_channels,
            settings.orientation_encoder_layers,
            settings.orientation_decoder_layers,
        )
        self.scene = nn.Linear(2 * dim, 1)
        self.position_head = Head(dim, settings.head_hidden, 3)
        self.orientation_head = Head(dim, settings.head_hidden, 4)

    @classmethod
    def check_settings(cls, settings: ModelSettings) -> None:
        """As `PoseNetwork.check_settings`."""
        super().check_settings(settings)
        if settings.position_encoding not in TOKEN_POSITIONS:
            raise MsposeError(
                f"position_encoding: expected one of {', '.join(TOKEN_POSITIONS)}, found"
                f" {settings.position_encoding!r}"
            )
        if settings.dim % settings.heads or settings.dim % 4:
            raise MsposeError(
                f"dim: expected a multiple of heads ({settings.heads}) and of 4, found"
                f" {settings.dim}"
            )

    @classmethod
    def least_weights(cls, settings: ModelSettings) -> int:
        """As `PoseNetwork.least_weights`: those of the layers' matrices."""
        layers = sum(
            getattr(settings, f"{branch}_{part}_layers")
            for branch in BRANCHES
            for part in ("encoder", "decoder")
        )
        return layers * (4 * settings.dim**2 + 2 * settings.dim * settings.feedforward)

    def forward(
        self, image_B3HW: Tensor, scene_B: Tensor | None = None, *, observer: Observer | None = None
    ) -> PoseOutput:
        """As `PoseNetwork.forward`."""
        self._check_input(image_B3HW, scene_B)
        position_map_BCHW, orientation_map_BCHW = self.feature_maps(image_B3HW)
        position_BSC, position_gap_BLH = self.position(
            "position", position_map_BCHW, self.position_encoding, observer
        )
        orientation_BSC, orientation_gap_BLH = self.orientation(
            "orientation", orientation_map_BCHW, self.position_encoding, observer
        )
        gaps = {"position": position_gap_BLH, "orientation": orientation_gap_BLH}
        return self.poses(position_BSC, orientation_BSC, scene_B, gaps)

    def poses(
        self,
        position_BSC: Tensor,
        orientation_BSC: Tensor,
        scene_B: Tensor | None = None,
        query_key_gap: dict[str, Tensor] | None = None,
    ) -> PoseOutput:
        """Choose the scene, unless it is given, and regress its poses from what the two branches
        made of every scene. `query_key_gap` is part of the output.
        """
        # Positions in half precision would be rounded to centimetres, so the heads never compute in
        # it under autocast.
        with without_autocast(position_BSC.device):
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
                query_key_gap=query_key_gap or {},
            )
