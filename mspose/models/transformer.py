"""Pre-norm transformer encoder and decoder, batch first.

Encodings of token positions reach queries and keys after the pre-norm, never values.
B images, N image tokens, S scenes, C channels, L layers, H heads.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.models.attention import Attention, xavier_linear
from mspose.models.attention_map import AttentionMap, Observer, query_key_gap
from mspose.models.token_positions import TokenPositions


class FeedForward(nn.Module):
    """Linear, GELU, dropout, linear."""

    def __init__(self, dim: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.linear1 = xavier_linear(dim, hidden)
        self.linear2 = xavier_linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

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
        query_key_weights: str = "plain",
    ) -> None:
        super().__init__()
        self.self_attention = Attention(
            dim,
            heads,
            dropout=attention_dropout,
            scale=attention_scale,
            query_key_weights=query_key_weights,
        )
        self.feedforward = FeedForward(dim, feedforward, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BNC: Tensor, positions: TokenPositions) -> tuple[Tensor, AttentionMap]:
        """Returns tokens_BNC and the map of the self-attention."""
        value_BNC = query_BNC = self.norm1(tokens_BNC)
        if positions.added_NC is not None:
            query_BNC = value_BNC + positions.added_NC
        attended_BNC, attention = self.self_attention(query_BNC, query_BNC, value_BNC, positions)
        tokens_BNC = tokens_BNC + self.dropout(attended_BNC)
        return tokens_BNC + self.dropout(self.feedforward(self.norm2(tokens_BNC))), attention


class Encoder(nn.Module):
    """A stack of encoder layers and a final LayerNorm; with no layers, the LayerNorm alone."""

    def __init__(self, layers: Iterable[EncoderLayer], dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        tokens_BNC: Tensor,
        positions: TokenPositions,
        *,
        branch: str = "",
        observer: Observer | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns tokens_BNC and query_key_gap_BLH, empty where there are no layers.

        `branch` is the encoder's, for the observer.
        """
        gaps_BH = []
        for index, layer in enumerate(self.layers):
            before_BNC = tokens_BNC
            tokens_BNC, attention = layer(before_BNC, positions)
            gaps_BH.append(query_key_gap(attention.query_BHQD, attention.key_BHKD))
            if observer is not None:
                observer.encoder(branch, index, attention)
                observer.tokens(branch, index, before_BNC, tokens_BNC)
        none_B00 = tokens_BNC.new_zeros(tokens_BNC.shape[0], 0, 0)
        return self.norm(tokens_BNC), torch.stack(gaps_BH, dim=1) if gaps_BH else none_B00


class DecoderLayer(nn.Module):
    """Self-attention among the scenes, cross-attention to the image tokens, feed-forward."""

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
        self.self_attention = Attention(dim, heads, dropout=attention_dropout)
        self.cross_attention = Attention(dim, heads, dropout=attention_dropout)
        self.feedforward = FeedForward(dim, feedforward, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, scene_BSC: Tensor, query_SC: Tensor, memory_BNC: Tensor, memory_key_BNC: Tensor
    ) -> tuple[Tensor, AttentionMap]:
        """Returns scene_BSC and the map of the cross-attention.

        `memory_key_BNC` is the memory with the encoding of its positions added.
        """
        value_BSC = self.norm1(scene_BSC)
        query_BSC = value_BSC + query_SC
        attended_BSC, _ = self.self_attention(query_BSC, query_BSC, value_BSC)
        scene_BSC = scene_BSC + self.dropout(attended_BSC)
        query_BSC = self.norm2(scene_BSC) + query_SC
        attended_BSC, attention = self.cross_attention(query_BSC, memory_key_BNC, memory_BNC)
        scene_BSC = scene_BSC + self.dropout(attended_BSC)
        return scene_BSC + self.dropout(self.feedforward(self.norm3(scene_BSC))), attention


class Decoder(nn.Module):
    """A stack of decoder layers on zeros, with a query per scene, and a final LayerNorm."""

    def __init__(self, layers: Iterable[DecoderLayer], dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        query_SC: Tensor,
        memory_BNC: Tensor,
        added_NC: Tensor,
        *,
        branch: str = "",
        observer: Observer | None = None,
    ) -> Tensor:
        """Returns scene_BSC, one vector per image and scene; `added_NC` is added to the keys.

        `branch` is the decoder's, for the observer.
        """
        memory_key_BNC = memory_BNC + added_NC
        scene_BSC = torch.zeros_like(query_SC).expand(memory_BNC.shape[0], -1, -1)
        for index, layer in enumerate(self.layers):
            scene_BSC, attention = layer(scene_BSC, query_SC, memory_BNC, memory_key_BNC)
            if observer is not None:
                observer.decoder(branch, index, attention.log_weight().exp())
        return self.norm(scene_BSC)
