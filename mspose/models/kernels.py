"""The three operations in which a transformer's step spends its time, as fast as a CPU allows;
elsewhere PyTorch's own.

On a CPU, PyTorch draws a dropout mask number by number on one thread (a quarter of a training step
of the full model), attends with dropout only through whole attention maps, and multiplies float32
matrices through MKL, which some processors run at half of oneDNN's rate. Here masks come from
tables of random numbers and are made again in the backward pass rather than kept, attention goes
over the map in chunks that fit a cache (exact, as Dao et al., FlashAttention, NeurIPS 2022, and
Rabe and Staats, arXiv 2112.05682), and matrices go to oneDNN.

B images, H heads, Q queries, K keys, D channels per head, C channels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mspose.models.threads import in_threads

CHUNK = 2**20  # attention weights worked on at a time, at most: 4 MiB of float32
JOINED = 2**18  # attention weights up to which the heads of small maps are joined
STRETCH = 2**17  # random 32-bit numbers made at a time, at most
SHIFT = 64  # between stretches of a table; whole cache lines
RESOLUTION = 2**16  # dropout probabilities are rounded to multiples of 1 / RESOLUTION


def _plain(tensor: Tensor) -> bool:
    """Whether PyTorch's own operation is the right one: off the CPU, or where a compiler makes the
    code.
    """
    return tensor.device.type != "cpu" or torch.compiler.is_compiling()


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`; float32 on a CPU through oneDNN."""
    through_onednn = (
        not _plain(input)
        and input.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
    return (
        _OneDnnLinear.apply(input, weight, bias)
        if through_onednn
        else F.linear(input, weight, bias)
    )


def _multiply(left_MK: Tensor, right_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """left right^T + bias. In float32 by the operation that PyTorch's compiler calls for a linear
    layer on a CPU; it is fast where `right_NK` or its transpose is contiguous.
    """
    if left_MK.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(left_MK, right_NK, bias_N, "none", [], "")
    return F.linear(left_MK, right_NK, bias_N)


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _multiply(input.contiguous(), weight.contiguous(), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        input, weight, bias = inputs
        ctx.save_for_backward(input, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        gradient_MN, input_MC = gradient.flatten(0, -2), input.flatten(0, -2)
        return (
            _multiply(gradient, weight.contiguous().t()) if needs_input else None,
            _multiply(gradient_MN.t(), input_MC.contiguous().t()) if needs_weight else None,
            gradient_MN.sum(dim=0) if ctx.has_bias and needs_bias else None,
        )


class Masks:
    """Dropout masks of a seed: 0 where an element is dropped, 1 where it stays; the same seed draws
    the same again.

    Random bits are stretches of one table of fresh random numbers combined with stretches of
    another, by exclusive or: a memory access each, on all threads, in place of a draw. Any three
    elements are dropped independently of each other (simple tabulation; Patrascu and Thorup, The
    Power of Simple Tabulation Hashing, J. ACM 2012).

    Attributes:
        kept: the share of elements that stay, by which what stays is divided.
    """

    def __init__(self, probability: float, seed: int, elements: int, count: int = 1) -> None:
        """For `count` masks of at most `elements` each."""
        self.dropped = min(round(probability * RESOLUTION), RESOLUTION - 1)
        self.kept = 1 - self.dropped / RESOLUTION
        words = -(-elements // 2)
        self.stretch = min(words, STRETCH)
        self.each = -(-words // self.stretch)
        self.stretches = self.each * count
        if self.dropped:
            table = np.random.SFC64(seed).random_raw(self.stretch + SHIFT * self.stretches)
            self.table_2W = torch.from_numpy(table.view(np.int32)).view(2, -1)

    def draw(self, number: int, like: Tensor) -> Tensor:
        """Mask `number`, of the shape and dtype of `like`."""
        words_PW = torch.empty(self.each, self.stretch, dtype=torch.int32)
        for part, words_W in enumerate(words_PW, start=number * self.each):
            # no two stretches take their numbers at the same distance, so that no pair of numbers
            # meets twice
            first, second = SHIFT * part, SHIFT * (self.stretches - part)
            torch.bitwise_xor(
                self.table_2W[0, first : first + self.stretch],
                self.table_2W[1, second : second + self.stretch],
                out=words_W,
            )
        # compared as float32, which holds 16 bits exactly and is many times faster than comparing
        # to booleans
        drawn = (
            words_PW.view(-1).view(torch.int16)[: like.numel()].view(like.shape).to(torch.float32)
        )
        return torch.ge(drawn, self.dropped - RESOLUTION // 2, out=drawn).to(like.dtype)


def _new_seed() -> int:
    """From PyTorch's generator, so that `torch.manual_seed` decides about every mask."""
    return int(torch.randint(2**62, ()))


class Dropout(nn.Dropout):
    """`nn.Dropout` through `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, training=self.training)


def dropout(input: Tensor, probability: float, *, training: bool) -> Tensor:
    """`F.dropout`, with `Masks` on a CPU."""
    if _plain(input) or not training or probability == 0:
        return F.dropout(input, probability, training)
    return _MaskedDropout.apply(input, probability, _new_seed())


class _MaskedDropout(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, probability: float, seed: int) -> Tensor:
        masks = Masks(probability, seed, input.numel())
        return masks.draw(0, input).mul_(input).div_(masks.kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, ctx.probability, ctx.seed = inputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        masks = Masks(ctx.probability, ctx.seed, gradient.numel())
        return masks.draw(0, gradient).mul_(gradient).div_(masks.kept), None, None


def attend(
    query_BHQD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    *,
    scale: float | None = None,
    bias_HQK: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax(scale q k^T + bias) v, each attention weight dropped with probability `dropout`.

    Args:
        query_BHQD, key_BHKD, value_BHKD: any float dtype, the same for all.
        scale: 1/sqrt(D) unless given.
        bias_HQK: added to the scores of every image; gradients reach it, for which a backward pass
            holds a tensor of its size.
        dropout: a probability.

    Returns:
        attended_BHQD.
    """
    scale = query_BHQD.shape[-1] ** -0.5 if scale is None else scale
    if _plain(query_BHQD):
        bias_1HQK = None if bias_HQK is None else bias_HQK[None].to(query_BHQD.dtype)
        return F.scaled_dot_product_attention(
            query_BHQD, key_BHKD, value_BHKD, attn_mask=bias_1HQK, dropout_p=dropout, scale=scale
        )
    seed = _new_seed() if dropout else 0
    return _ChunkedAttention.apply(query_BHQD, key_BHKD, value_BHKD, bias_HQK, scale, dropout, seed)


class _ChunkedAttention(torch.autograd.Function):
    """Forward and backward over chunks of the attention map; the backward computes each chunk's
    weights anew.
    """

    @staticmethod
    def forward(
        query_BHQD: Tensor,
        key_BHKD: Tensor,
        value_BHKD: Tensor,
        bias_HQK: Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        chunks = _Chunks(query_BHQD, key_BHKD, bias_HQK, scale, dropout, seed)
        value_GKD = _heads(value_BHKD) / chunks.masks.kept
        attended_GQD = value_GKD.new_empty(len(value_GKD), query_BHQD.shape[2], value_GKD.shape[2])

        def attend_chunk(number: int, heads: slice, rows: slice) -> None:
            weight_GRK = chunks.weights(heads, rows)
            kept_GRK = (
                weight_GRK.mul_(chunks.masks.draw(number, weight_GRK)) if dropout else weight_GRK
            )
            attended_GQD[heads, rows] = _multiply_each(
                kept_GRK.to(value_GKD.dtype), value_GKD[heads].mT
            )

        chunks.run(attend_chunk)
        # heads side by side in memory, so that joining them is a view
        return (
            attended_GQD.unflatten(0, query_BHQD.shape[:2])
            .transpose(1, 2)
            .contiguous()
            .transpose(1, 2)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        query_BHQD, key_BHKD, value_BHKD, bias_HQK, ctx.scale, ctx.dropout, ctx.seed = inputs
        ctx.save_for_backward(query_BHQD, key_BHKD, value_BHKD, bias_HQK, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BHQD: Tensor) -> tuple[Tensor | None, ...]:
        query_BHQD, key_BHKD, value_BHKD, bias_HQK, attended_BHQD = ctx.saved_tensors
        dtype = query_BHQD.dtype
        chunks = _Chunks(query_BHQD, key_BHKD, bias_HQK, ctx.scale, ctx.dropout, ctx.seed)
        value_GKD, gradient_GQD = _heads(value_BHKD), _heads(gradient_BHQD) / chunks.masks.kept
        query_gradient = torch.empty_like(chunks.scaled_GQD)
        key_gradient_GDK, value_gradient_GDK = (
            torch.zeros(tensor.mT.shape, dtype=dtype) for tensor in (chunks.key_GKD, value_GKD)
        )
        bias_gradient_HQK = torch.zeros_like(bias_HQK) if ctx.needs_input_grad[3] else None
        # The softmax's gradient takes from each row its mean under the attention: a product with
        # the output.
        mean_BHQ1 = (gradient_BHQD * attended_BHQD).sum(
            dim=-1, keepdim=True, dtype=_at_least_float32(dtype)
        )
        minus_mean_GQ1 = _heads(mean_BHQ1).neg()

        def differentiate_chunk(number: int, heads: slice, rows: slice) -> None:
            gradient_GRD, weight_GRK = gradient_GQD[heads, rows], chunks.weights(heads, rows)
            kept_GRK = (
                chunks.masks.draw(number, weight_GRK).mul_(weight_GRK)
                if ctx.dropout
                else weight_GRK
            )
            value_gradient_GDK[heads] += _multiply_each(
                gradient_GRD.mT.contiguous(), kept_GRK.to(dtype).mT
            )
            score_GRK = (
                _multiply_each(gradient_GRD, value_GKD[heads]).to(weight_GRK.dtype).mul_(kept_GRK)
            )
            score_GRK = score_GRK.addcmul_(weight_GRK, minus_mean_GQ1[heads, rows])
            if bias_gradient_HQK is not None:
                bias_gradient_HQK[chunks.within_image(heads), rows] += score_GRK
            score_GRK = score_GRK.to(dtype)
            query_gradient[heads, rows] = _multiply_each(score_GRK, chunks.key_GKD[heads].mT)
            key_gradient_GDK[heads] += _multiply_each(
                chunks.scaled_GQD[heads, rows].mT.contiguous(), score_GRK.mT
            )

        chunks.run(differentiate_chunk)
        return (
            query_gradient.mul_(chunks.scale).view_as(query_BHQD),
            key_gradient_GDK.mT.unflatten(0, key_BHKD.shape[:2]),
            value_gradient_GDK.mT.unflatten(0, value_BHKD.shape[:2]),
            bias_gradient_HQK,
            None,
            None,
            None,
        )


class _Chunks:
    """The attention map cut into chunks of G heads (of all images) and R queries: of small maps
    several heads make a chunk, of large ones part of a head does. A head's chunks are worked on in
    order, one after the other; with a bias, whose chunks are of one image each, so are those of the
    same heads in all images, which share its gradient.
    """

    def __init__(
        self,
        query_BHQD: Tensor,
        key_BHKD: Tensor,
        bias_HQK: Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
    ) -> None:
        images, self.heads_per_image, queries, _ = query_BHQD.shape
        keys = key_BHKD.shape[2]
        self.scale, self.bias_HQK = scale, bias_HQK
        self.scaled_GQD, self.key_GKD = _heads(query_BHQD) * self.scale, _heads(key_BHKD)
        count, row_count = max(1, JOINED // (queries * keys)), max(1, CHUNK // keys)
        if bias_HQK is not None:
            most = min(count, self.heads_per_image)
            count = max(
                divisor for divisor in range(1, most + 1) if self.heads_per_image % divisor == 0
            )
        self.heads = [
            slice(head, head + count) for head in range(0, images * self.heads_per_image, count)
        ]
        self.rows = [slice(row, row + row_count) for row in range(0, queries, row_count)]
        self.apart = len(self.heads) if bias_HQK is None else self.heads_per_image // count
        largest = count * min(row_count, queries) * keys
        self.masks = Masks(dropout, seed, largest, count=len(self.heads) * len(self.rows))

    def weights(self, heads: slice, rows: slice) -> Tensor:
        """weight_GRK of a chunk, in at least float32."""
        score_GRK = _multiply_each(self.scaled_GQD[heads, rows], self.key_GKD[heads])
        score_GRK = score_GRK.to(_at_least_float32(score_GRK.dtype))
        if self.bias_HQK is not None:
            score_GRK += self.bias_HQK[self.within_image(heads), rows]
        return torch.softmax(score_GRK, dim=-1, out=score_GRK)

    def within_image(self, heads: slice) -> slice:
        """The place of a chunk's heads among those of their image, where there is a bias."""
        first = heads.start % self.heads_per_image
        return slice(first, first + heads.stop - heads.start)

    def run(self, work: Callable[[int, slice, slice], None]) -> None:
        """Call `work` with the number, heads and rows of every chunk."""

        def work_in_order(first: int) -> None:
            for number in range(first, len(self.heads), self.apart):
                for part, rows in enumerate(self.rows):
                    work(number * len(self.rows) + part, self.heads[number], rows)

        in_threads(work_in_order, [(first,) for first in range(self.apart)])


def _multiply_each(left_GMK: Tensor, right_GNK: Tensor) -> Tensor:
    """left right^T of each of G pairs of matrices."""
    if len(left_GMK) == 1:
        return _multiply(left_GMK[0], right_GNK[0])[None]
    return torch.bmm(left_GMK, right_GNK.mT)


def _heads(tensor_BHND: Tensor) -> Tensor:
    return tensor_BHND.flatten(0, 1).contiguous()


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
