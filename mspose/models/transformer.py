"""Pre-norm transformer encoder and decoder, batch first.

Positions reach queries and keys after the pre-norm, never values.
B images, N image tokens, S scenes, C channels, L layers, H heads, D channels per head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.models.attention import CrossAttention, SelfAttention
from mspose.models.attention_map import AttentionMap, query_key_gap
from mspose.models.kernels import Dropout, Linear
from mspose.models.relative_position import TokenPositions

EncoderObserver = Callable[[int, AttentionMap], None]
"""Called with the layer and the self-attention of every encoder layer."""
DecoderObserver = Callable[[int, Tensor], None]
"""Called with the layer and weight_BHSN, what every scene's query attends to in the image, of every
decoder layer.
"""


class FeedForward(nn.Module):
    """Linear, GELU, dropout, linear."""

    def __init__(self, dim: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.linear1 = Linear(dim, hidden)
        self.linear2 = Linear(hidden, dim)
        self.dropout = Dropout(dropout)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.gelu(self.linear1(tokens_BNC))))


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each on the normalised tokens and added to them."""

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        attention_scale: str = "head-dim",
    ) -> None:
        super().__init__()
        self.self_attention = SelfAttention(
            dim, heads, dropout=attention_dropout, attention_scale=attention_scale
        )
        self.feedforward = FeedForward(dim, feedforward, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, tokens_BNC: Tensor, positions: TokenPositions) -> tuple[Tensor, AttentionMap]:
        """Returns tokens_BNC, and what the self-attention was."""
        attended_BNC, attention = self.self_attention(self.norm1(tokens_BNC), positions)
        tokens_BNC = tokens_BNC + self.dropout(attended_BNC)
        tokens_BNC = tokens_BNC + self.dropout(self.feedforward(self.norm2(tokens_BNC)))
        return tokens_BNC, attention


class Encoder(nn.Module):
    """A stack of encoder layers and a final LayerNorm; with no layers, the LayerNorm alone."""

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        feedforward: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        attention_scale: str = "head-dim",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                heads,
                feedforward,
                dropout=dropout,
                attention_dropout=attention_dropout,
                attention_scale=attention_scale,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def normalize_query_key_weights(self, name: str) -> None:
        """As `SelfAttention.normalize_query_key_weights`, in every layer."""
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.normalize_query_key_weights(name)

    def forward(
        self,
        tokens_BNC: Tensor,
        positions: TokenPositions,
        *,
        observer: EncoderObserver | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns tokens_BNC and query_key_gap_BLH: per layer and head, the distance from mean
        query to mean key.
        """
        gaps_BH = []
        for index, layer in enumerate(self.layers):
            tokens_BNC, attention = layer(tokens_BNC, positions)
            gaps_BH.append(query_key_gap(attention.query_BHQD, attention.key_BHKD))
            if observer is not None:
                observer(index, attention)
        gap_BLH = (
            torch.stack(gaps_BH, dim=1)
            if gaps_BH
            else tokens_BNC.new_zeros(tokens_BNC.shape[0], 0, self.heads)
        )
        return self.norm(tokens_BNC), gap_BLH


class DecoderLayer(nn.Module):
    """Self-attention among the scene tokens, cross-attention to the image tokens, feed-forward."""

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attention = SelfAttention(dim, heads, dropout=attention_dropout)
        self.cross_attention = CrossAttention(dim, heads, dropout=attention_dropout)
        self.feedforward = FeedForward(dim, feedforward, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self, scene_BSC: Tensor, query_SC: Tensor, memory_BNC: Tensor, memory_key_BNC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns scene_BSC, and weight_BHSN of the cross-attention.

        `memory_key_BNC` is the memory with its positions added.
        """
        scene_BSC = scene_BSC + self.dropout(
            self.self_attention(self.norm1(scene_BSC), TokenPositions(query_SC))[0]
        )
        query_BSC = self.norm2(scene_BSC) + query_SC
        attended_BSC, weight_BHSN = self.cross_attention(query_BSC, memory_key_BNC, memory_BNC)
        scene_BSC = scene_BSC + self.dropout(attended_BSC)
        return scene_BSC + self.dropout(self.feedforward(self.norm3(scene_BSC))), weight_BHSN


class Decoder(nn.Module):
    """A stack of decoder layers on zeros, with one learned query per scene, and a final LayerNorm."""

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        feedforward: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                dim, heads, feedforward, dropout=dropout, attention_dropout=attention_dropout
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        query_SC: Tensor,
        memory_BNC: Tensor,
        position_NC: Tensor,
        *,
        observer: DecoderObserver | None = None,
    ) -> Tensor:
        """Returns scene_BSC: one vector per image and scene."""
        memory_key_BNC = memory_BNC + position_NC
        scene_BSC = torch.zeros_like(query_SC).expand(memory_BNC.shape[0], -1, -1)
        for index, layer in enumerate(self.layers):
            scene_BSC, weight_BHSN = layer(scene_BSC, query_SC, memory_BNC, memory_key_BNC)
            if observer is not None:
                observer(index, weight_BHSN)
        return self.norm(scene_BSC)


def initialize_matrices(module: nn.Module) -> None:
    """Xavier-uniform for every matrix of `module`, biases and norms left as they are
    (MS-Transformer).
    """
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
