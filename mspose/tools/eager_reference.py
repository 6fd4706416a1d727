"""The reference that `mspose bench` compares with: the network and loader of the released code.

Plain eager PyTorch: memory laid out N C H W, transformers sequence first as DETR's, attention
weights written out and kept for the backward pass, dropout by `nn.Dropout`, keys and values of the
decoder's cross-attention projected for every token, images opened one at a time with PIL. No line
of `mspose`'s attention, transformer or loader runs here; outputs and gradients are tested to be
equal. B images, N tokens, S scenes, C channels, H heads, D channels per head, L layers.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms  # type: ignore[import-untyped]
from torchvision.models import efficientnet_b0  # type: ignore[import-untyped]

from mspose.models.mstransformer import MSTransformer
from mspose.models.network import PoseOutput


class EagerReference(nn.Module):
    """The network of `network`, with independent copies of its weights under the same names."""

    position: "ReferenceBranch"
    orientation: "ReferenceBranch"

    def __init__(self, network: MSTransformer):
        super().__init__()
        settings, dim, scenes = network.settings, network.settings.dim, len(network.scenes)
        self.backbone = reference_backbone(network)
        self.position_encoding = copy.deepcopy(network.position_encoding)
        sizes = (
            dim,
            settings.heads,
            settings.feedforward,
            settings.dropout,
            settings.attention_dropout,
        )
        for branch in ("position", "orientation"):
            layers = [
                getattr(settings, f"{branch}_{part}_layers") for part in ("encoder", "decoder")
            ]
            channels = getattr(self.backbone, f"{branch}_channels")
            setattr(self, branch, ReferenceBranch(channels, scenes, layers, sizes))
        self.scene = nn.Linear(2 * dim, 1)
        self.position_head = ReferenceHead(dim, settings.head_hidden, 3)
        self.orientation_head = ReferenceHead(dim, settings.head_hidden, 4)
        self.to(next(network.parameters()))  # before the copy, so that it keeps every digit
        self.load_state_dict(network.state_dict())
        self.train(network.training)

    def forward(self, image_B3HW: Tensor, scene_B: Tensor | None = None) -> PoseOutput:
        """Compute what `MSTransformer.forward` computes, of the same shapes."""
        position_map, orientation_map = self.backbone(image_B3HW)
        position_SBC, position_gap = self.position(position_map, self.position_encoding)
        orientation_SBC, orientation_gap = self.orientation(orientation_map, self.position_encoding)
        position_BSC, orientation_BSC = (
            position_SBC.transpose(0, 1),
            orientation_SBC.transpose(0, 1),
        )
        logit_BS = self.scene(torch.cat((position_BSC, orientation_BSC), dim=2)).squeeze(2)
        log_probability_BS = F.log_softmax(logit_BS, dim=1)
        if scene_B is None:
            scene_B = log_probability_BS.argmax(dim=1)
        image_B = torch.arange(len(scene_B), device=scene_B.device)
        return PoseOutput(
            position_B3=self.position_head(position_BSC[image_B, scene_B]),
            orientation_B4=self.orientation_head(orientation_BSC[image_B, scene_B]),
            scene_log_probability_BS=log_probability_BS,
            scene_B=scene_B,
            query_key_gap={"position": position_gap, "orientation": orientation_gap},
        )


def reference_backbone(network: MSTransformer) -> nn.Module:
    """Make torchvision's EfficientNet-B0, which is what is measured, or copy another backbone."""
    if network.settings.backbone == "efficientnet_b0":
        return ReferenceB0()
    return copy.deepcopy(network.backbone).to(memory_format=torch.contiguous_format)


class ReferenceB0(nn.Module):
    position_channels, orientation_channels = 112, 40

    def __init__(self) -> None:
        super().__init__()
        features = efficientnet_b0(weights=None).features
        self.to_stride8, self.to_stride16 = features[:4], features[4:6]

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        orientation_map_BCHW = self.to_stride8(image_B3HW)
        return self.to_stride16(orientation_map_BCHW), orientation_map_BCHW


class ReferenceProjection(nn.Linear):
    """A 1x1 convolution of a map, its weight stored as a matrix."""

    def forward(self, map_BCHW: Tensor) -> Tensor:
        return F.conv2d(map_BCHW, self.weight[:, :, None, None], self.bias)


class ReferenceHead(nn.Module):
    def __init__(self, dim: int, hidden: int, out: int):
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, out)

    def forward(self, scene_BC: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(scene_BC)))


class ReferenceBranch(nn.Module):
    def __init__(self, channels: int, scenes: int, layers: Sequence[int], sizes: tuple):
        super().__init__()
        dim, heads = sizes[:2]
        self.heads = heads
        self.project = ReferenceProjection(channels, dim)
        self.encoder = ReferenceStack(
            [ReferenceEncoderLayer(*sizes) for _ in range(layers[0])], dim
        )
        self.decoder = ReferenceStack(
            [ReferenceDecoderLayer(*sizes) for _ in range(layers[1])], dim
        )
        self.scene_query = nn.Parameter(torch.empty(scenes, dim))

    def forward(self, map_BCHW: Tensor, position_encoding: nn.Module) -> tuple[Tensor, Tensor]:
        batch, _, height, width = map_BCHW.shape
        memory_NBC = self.project(map_BCHW).flatten(2).permute(2, 0, 1)
        grid = (height, width, memory_NBC.dtype, memory_NBC.device)
        encoding_NC = position_encoding(*grid).added_NC
        encoding_NBC = encoding_NC[:, None].repeat(1, batch, 1)
        gaps_BH = []
        for layer in self.encoder.layers:
            memory_NBC, gap_BH = layer(memory_NBC, encoding_NBC)
            gaps_BH.append(gap_BH)
        memory_NBC = self.encoder.norm(memory_NBC)
        query_SBC = self.scene_query[:, None].repeat(1, batch, 1)
        scene_SBC = torch.zeros_like(query_SBC)
        for layer in self.decoder.layers:
            scene_SBC = layer(scene_SBC, query_SBC, memory_NBC, encoding_NBC)
        gap_BLH = torch.stack(gaps_BH, dim=1) if gaps_BH else memory_NBC.new_zeros(batch, 0, 0)
        return self.decoder.norm(scene_SBC), gap_BLH


class ReferenceStack(nn.Module):
    """The layers of an encoder or a decoder and their final norm."""

    def __init__(self, layers: list[nn.Module], dim: int):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)


class ReferenceAttention(nn.Module):
    """Multi-head attention, sequence first, its weights written out."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, query_QBC: Tensor, key_KBC: Tensor, value_KBC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute tokens_QBC, and gap_BH: the norm of each head's mean query minus its mean key."""
        count, batch, dim = query_QBC.shape
        heads, size = self.heads, dim // self.heads
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(tokens, weight, bias).view(len(tokens), batch * heads, size).transpose(0, 1)
            for tokens, weight, bias in zip(
                (query_QBC, key_KBC, value_KBC), weights, biases, strict=True
            )
        )
        weight = torch.softmax(torch.bmm(query, key.transpose(1, 2)) / math.sqrt(size), dim=-1)
        attended = torch.bmm(self.dropout(weight), value)
        tokens_QBC = self.out_proj(attended.transpose(0, 1).contiguous().view(count, batch, dim))
        gap_BH = (query.mean(1) - key.mean(1)).norm(dim=-1).view(batch, heads)
        return tokens_QBC, gap_BH


class ReferenceFeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.gelu(self.linear1(tokens))))


class ReferenceEncoderLayer(nn.Module):
    def __init__(
        self, dim: int, heads: int, feedforward: int, dropout: float, attention_dropout: float
    ):
        super().__init__()
        self.self_attention = ReferenceAttention(dim, heads, attention_dropout)
        self.feedforward = ReferenceFeedForward(dim, feedforward, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout1, self.dropout2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, tokens_NBC: Tensor, encoding_NBC: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm1(tokens_NBC)
        query = key = normed + encoding_NBC
        attended, gap_BH = self.self_attention(query, key, normed)
        tokens_NBC = tokens_NBC + self.dropout1(attended)
        return tokens_NBC + self.dropout2(self.feedforward(self.norm2(tokens_NBC))), gap_BH


class ReferenceDecoderLayer(nn.Module):
    def __init__(
        self, dim: int, heads: int, feedforward: int, dropout: float, attention_dropout: float
    ):
        super().__init__()
        self.self_attention = ReferenceAttention(dim, heads, attention_dropout)
        self.cross_attention = ReferenceAttention(dim, heads, attention_dropout)
        self.feedforward = ReferenceFeedForward(dim, feedforward, dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout1, self.dropout2, self.dropout3 = (
            nn.Dropout(dropout),
            nn.Dropout(dropout),
            nn.Dropout(dropout),
        )

    def forward(
        self, scene_SBC: Tensor, query_SBC: Tensor, memory_NBC: Tensor, encoding_NBC: Tensor
    ) -> Tensor:
        normed = self.norm1(scene_SBC)
        query = key = normed + query_SBC
        scene_SBC = scene_SBC + self.dropout1(self.self_attention(query, key, normed)[0])
        query, key = self.norm2(scene_SBC) + query_SBC, memory_NBC + encoding_NBC
        scene_SBC = scene_SBC + self.dropout2(self.cross_attention(query, key, memory_NBC)[0])
        return scene_SBC + self.dropout3(self.feedforward(self.norm3(scene_SBC)))


def reference_transform(
    *,
    resize: int,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
    random_crop: bool,
    jitter: bool,
) -> transforms.Compose:
    """Make the released code's preprocessing of one PIL image; training has a random crop and
    colour jitter.
    """
    steps = [
        transforms.Resize(resize),
        transforms.RandomCrop(crop) if random_crop else transforms.CenterCrop(crop),
    ]
    if jitter:
        steps.append(transforms.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def reference_batches(
    paths: Sequence[Path], transform: transforms.Compose, batch_size: int
) -> Iterator[Tensor]:
    """Yield image_B3HW of the files in their order, each decoded and transformed by itself."""
    for start in range(0, len(paths), batch_size):
        images = []
        for path in paths[start : start + batch_size]:
            with Image.open(path) as image:
                images.append(transform(image.convert("RGB")))
        yield torch.stack(images)
