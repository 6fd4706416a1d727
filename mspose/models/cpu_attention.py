"""Attention with dropout on a CPU, where PyTorch has no fused kernel for it.

PyTorch's own (`scaled_dot_product_attention` with `dropout_p`) then computes the whole attention
map and draws its mask number by number on one thread. Here the map is computed a few heads at a
time, in a chunk that fits a cache, and again in the backward pass instead of being kept (as
FlashAttention; Dao et al., NeurIPS 2022), and masks are made of 16-bit random numbers.

A training step of the full model (forward and backward, batch 4, 224 pixels, attention dropout 0.1,
float32, one thread of an AMD EPYC) takes 6.8 s of CPU time, with PyTorch's own 11.3 s.

B images, H heads, Q queries, K keys, D channels per head, G heads of all images.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**19  # attention weights computed at a time: 2 MiB of float32
RESOLUTION = 2**16  # dropout probabilities are rounded to multiples of 1 / RESOLUTION


def attend(
    query_BHQD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    *,
    scale: float,
    bias_HQK: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale q k^T + bias) v, each attention weight dropped with probability `dropout`.

    `bias_HQK` is the same for all images. Returns attended_BHQD.
    """
    on_cpu = query_BHQD.device.type == "cpu" and not torch.compiler.is_compiling()
    if dropout and on_cpu and bias_HQK is None:
        seed = int(torch.randint(2**62, ()))  # `torch.manual_seed` decides about every mask
        return _DropoutAttention.apply(query_BHQD, key_BHKD, value_BHKD, scale, dropout, seed)
    bias_1HQK = None if bias_HQK is None else bias_HQK[None].to(query_BHQD.dtype)
    return F.scaled_dot_product_attention(
        query_BHQD, key_BHKD, value_BHKD, attn_mask=bias_1HQK, dropout_p=dropout, scale=scale
    )


def keep_mask(dropped: int, seed: int, chunk: int, like: Tensor) -> Tensor:
    """1 where an attention weight stays, 0 where it is dropped, with a probability of `dropped` /
    RESOLUTION; in the shape and dtype of `like`. The same seed and chunk number give the same mask.
    """
    words = np.random.SFC64([seed, chunk]).random_raw(-(-like.numel() // 4))
    bits = torch.from_numpy(words.view(np.int16))[: like.numel()].view_as(like).to(like.dtype)
    # compared as floating-point numbers, which is several times faster than making booleans
    return torch.ge(bits, dropped - RESOLUTION // 2, out=bits)


class _DropoutAttention(torch.autograd.Function):
    """Chunks are of whole heads. Weights are in at least float32 also under autocast."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(
        ctx: Any,
        query_BHQD: Tensor,
        key_BHKD: Tensor,
        value_BHKD: Tensor,
        scale: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        ctx.scale, ctx.seed = scale, seed
        ctx.dropped = min(round(dropout * RESOLUTION), RESOLUTION - 1)
        query_GQD, key_GKD, value_GKD = map(_heads, (query_BHQD, key_BHKD, value_BHKD))
        attended_GQD = torch.empty_like(query_GQD)
        for chunk, heads in _chunks(query_GQD, key_GKD):
            weight_GQK = _weights(query_GQD[heads], key_GKD[heads], scale)
            weight_GQK *= keep_mask(ctx.dropped, seed, chunk, weight_GQK)
            torch.bmm(weight_GQK, value_GKD[heads], out=attended_GQD[heads])
        attended_GQD /= 1 - ctx.dropped / RESOLUTION
        attended_BHQD = attended_GQD.to(query_BHQD.dtype).view_as(query_BHQD)
        ctx.save_for_backward(query_BHQD, key_BHKD, value_BHKD, attended_BHQD)
        return attended_BHQD

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(  # type: ignore[override]
        ctx: Any, gradient_BHQD: Tensor
    ) -> tuple[Tensor | None, ...]:
        query_GQD, key_GKD, value_GKD, attended_GQD = map(_heads, ctx.saved_tensors)
        gradient_GQD = _heads(gradient_BHQD)
        # The gradient of a softmax takes from each row its mean under the attention.
        mean_GQ1 = (gradient_GQD * attended_GQD).sum(dim=-1, keepdim=True)
        gradient_GQD = gradient_GQD / (1 - ctx.dropped / RESOLUTION)
        to_query, to_key, to_value = map(torch.empty_like, (query_GQD, key_GKD, value_GKD))
        for chunk, heads in _chunks(query_GQD, key_GKD):
            weight_GQK = _weights(query_GQD[heads], key_GKD[heads], ctx.scale)
            mask_GQK = keep_mask(ctx.dropped, ctx.seed, chunk, weight_GQK)
            to_score_GQK = torch.bmm(gradient_GQD[heads], value_GKD[heads].mT)
            to_score_GQK.mul_(mask_GQK).sub_(mean_GQ1[heads]).mul_(weight_GQK)
            torch.bmm(mask_GQK.mul_(weight_GQK).mT, gradient_GQD[heads], out=to_value[heads])
            torch.bmm(to_score_GQK, key_GKD[heads], out=to_query[heads])
            torch.bmm(to_score_GQK.mT, query_GQD[heads], out=to_key[heads])
        to_inputs = (to_query.mul_(ctx.scale), to_key.mul_(ctx.scale), to_value)
        return *(
            gradient.to(saved.dtype).view_as(saved)
            for gradient, saved in zip(to_inputs, ctx.saved_tensors, strict=False)
        ), None, None, None  # fmt: skip


def _heads(tensor_BHND: Tensor) -> Tensor:
    """tensor_GND, the heads of all images in a row, in at least float32."""
    return tensor_BHND.flatten(0, 1).to(torch.promote_types(tensor_BHND.dtype, torch.float32))


def _weights(query_GQD: Tensor, key_GKD: Tensor, scale: float) -> Tensor:
    return torch.bmm(query_GQD * scale, key_GKD.mT).softmax(dim=-1)


def _chunks(query_GQD: Tensor, key_GKD: Tensor) -> Iterator[tuple[int, slice]]:
    """Number and heads of every chunk."""
    count = max(1, CHUNK // (query_GQD.shape[1] * key_GKD.shape[1]))
    for number, start in enumerate(range(0, len(query_GQD), count)):
        yield number, slice(start, start + count)
