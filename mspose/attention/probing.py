"""A probe for any PyTorch model: is an `nn.MultiheadAttention` in it healthy, uniform or collapsed?

    with mspose.attention.probe(module) as p:
        module(batch)
    p.verdicts, p.table()

B images, H heads, Q queries, K keys, C channels, D channels per head.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.attention.measures import LayerMeasures
from mspose.errors import MsposeError
from mspose.models.attention_map import AttentionMap

if TYPE_CHECKING:
    import pandas as pd

NOT_CALLED, NO_QUERIES, NOT_FINITE = "not called", "no queries", "not finite"
"""In place of a verdict: never called, called with hidden queries or keys alone, NaN or infinity in
queries or keys.
"""
CHUNK = 256  # queries whose weights exist at one time, as in `AttentionMap.chunks`
WEIGHTS_AT_ONCE = 2**23
"""Attention weights that exist at one time, where those of one image are not more."""
HIDDEN = -1e4
"""A value of a floating-point mask from which on downwards it hides a key: exp of it is 0 in any
precision.
"""
_ARGUMENTS = inspect.signature(nn.MultiheadAttention.forward)


def probe(module: nn.Module) -> "Probe":
    """Measure every `nn.MultiheadAttention` in `module`, itself included, while the `with` block
    runs.

    Its outputs stay the same, but for what PyTorch's fused inference path (switched off in the
    block, for the whole process) does to rounding and to padded tokens, which that path blanks.

    Raises:
        MsposeError: there is no `nn.MultiheadAttention` in `module`.
    """
    return Probe(module)


class Probe:
    """Measures of every attention of a module, over all its calls in the `with` block."""

    def __init__(self, module: nn.Module) -> None:
        self._attentions = {
            name: part
            for name, part in module.named_modules()
            if isinstance(part, nn.MultiheadAttention)
        }
        if not self._attentions:
            raise MsposeError(
                f"{type(module).__name__} holds no torch.nn.MultiheadAttention to measure"
            )
        self._measured = {name: _Calls() for name in self._attentions}
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        self._undo.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(
            False
        )  # it does not call the modules, whose hooks we are
        for name, part in self._attentions.items():
            hook = part.register_forward_hook(self._measured[name].add_call, with_kwargs=True)
            self._undo.callback(hook.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    @property
    def verdicts(self) -> dict[str, str]:
        """Name of every attention in `module`, as of `named_modules`, and its verdict: `healthy`,
        `uniform` or `collapsed`, see `mspose.models.attention_map.verdict`; or why there is none,
        such as `not called`.

        Raises:
            MsposeError: none of them was called in the `with` block.
        """
        self._check_called()
        return {name: calls.verdict_or_reason() for name, calls in self._measured.items()}

    def table(self) -> "pd.DataFrame":
        """Return a row per attention: `entropy` and `entropy_limit` (nats), `similarity`,
        `query_key_gap`, `calls` and `verdict`.

        Means over images, heads and queries. The limit is the entropy of attention that is spread
        over all keys that a query sees. Under a mask, similarity is relative to that of such
        attention under the same mask, at most 1.

        Queries that see no key are left out; so are, in self-attention (query and key are one
        tensor), queries that `key_padding_mask` names, and from the gap the keys that it hides.
        Measures of what was not called are NaN.

        Raises:
            MsposeError: none of them was called in the `with` block.
        """
        import pandas as pd

        self._check_called()
        rows = [
            {**calls.mean(), "calls": calls.calls, "verdict": calls.verdict_or_reason()}
            for calls in self._measured.values()
        ]
        return pd.DataFrame(rows, index=pd.Index(list(self._measured), name="module"))

    def _check_called(self) -> None:
        if not any(calls.calls for calls in self._measured.values()):
            raise MsposeError(
                f"none of the {len(self._measured)} attentions was called: run the module, not a"
                " compiled one, inside the with block"
            )


class _Calls(LayerMeasures):
    """The measures of one attention over its calls."""

    calls = 0

    @torch.no_grad()
    def add_call(
        self, part: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any], _: object
    ) -> None:
        """Add the images of one call; a forward hook."""
        self.calls += 1
        for attention in _attention_of(part, args, kwargs):
            self.add(attention)

    def verdict_or_reason(self) -> str:
        """Return the verdict, or why there is none."""
        if not self.images:
            return NO_QUERIES if self.calls else NOT_CALLED
        return self.verdict if all(map(math.isfinite, self.mean().values())) else NOT_FINITE


def _attention_of(
    part: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[AttentionMap]:
    """Yield the attention maps of one call, some images at a time, without queries and keys that
    do not count.
    """
    try:
        given = _ARGUMENTS.bind(part, *args, **kwargs).arguments
    except TypeError as error:
        raise MsposeError(
            f"{type(part).__name__} has other arguments than a torch.nn.MultiheadAttention"
        ) from error
    query_BHQD, key_BHKD = _queries_and_keys(part, given["query"], given["key"])
    images, heads, queries, channels = query_BHQD.shape
    keys = key_BHKD.shape[2]
    padding, mask = given.get("key_padding_mask"), given.get("attn_mask")
    if padding is not None:
        padding = _scores(padding.reshape(images, 1, 1, -1), keys)
    if mask is not None:
        mask = _scores(
            mask.reshape(1, 1, queries, -1) if mask.dim() == 2 else mask.unflatten(0, (-1, heads)),
            keys,
        )

    at_once = max(1, WEIGHTS_AT_ONCE // (heads * min(queries, CHUNK) * keys))
    if padding is not None or (mask is not None and len(mask) > 1):
        at_once = 1  # each has its own queries and keys
    for start in range(0, images, at_once):
        some = slice(start, start + at_once)
        attention = AttentionMap(query_BHQD[some], key_BHKD[some], scale=channels**-0.5)
        biases = [
            scores if len(scores) == 1 else scores[some]
            for scores in (padding, mask)
            if scores is not None
        ]
        if biases:
            bias = torch.stack(torch.broadcast_tensors(*biases)).sum(dim=0)
            key_K = (
                biases[0].isfinite().flatten()
                if padding is not None
                else key_BHKD.new_ones(keys, dtype=torch.bool)
            )
            query_Q = bias.isfinite().any(dim=-1).all(dim=1).flatten().expand(queries)
            if padding is not None and given["query"] is given["key"]:
                query_Q = query_Q & key_K[:queries]
            bias = bias.expand(-1, -1, queries, -1)[:, :, query_Q][..., key_K]
            attention = AttentionMap(
                attention.query_BHQD[:, :, query_Q],
                attention.key_BHKD[:, :, key_K],
                attention.scale,
                bias,
            )
        if attention.query_BHQD.shape[2]:
            yield attention


def _queries_and_keys(
    part: nn.MultiheadAttention, query: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute query_BHQD and key_BHKD of a call, with the keys that the module itself adds
    (`bias_k`, `add_zero_attn`).
    """
    if query.dim() == 2:  # one image, whatever batch_first says
        query, key = query[None], key[None]
    elif not part.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    weights: Sequence[Tensor] = (part.q_proj_weight, part.k_proj_weight)
    if part.in_proj_weight is not None:
        weights = part.in_proj_weight.chunk(3)[:2]
    biases = (None, None) if part.in_proj_bias is None else part.in_proj_bias.chunk(3)[:2]
    query_BQC, key_BKC = (
        F.linear(x, *of) for x, *of in zip((query, key), weights, biases, strict=True)
    )
    if part.bias_k is not None:
        key_BKC = torch.cat(
            (key_BKC, part.bias_k.to(key_BKC.dtype).expand(len(key_BKC), -1, -1)), dim=1
        )
    if part.add_zero_attn:
        key_BKC = F.pad(key_BKC, (0, 0, 0, 1))
    split = (part.num_heads, part.head_dim)
    return query_BQC.unflatten(-1, split).transpose(1, 2), key_BKC.unflatten(-1, split).transpose(
        1, 2
    )


def _scores(mask: Tensor, keys: int) -> Tensor:
    """Turn a mask, boolean (true: hidden) or of numbers, into what it adds to the scores: -inf
    hides a key; keys that the module itself added get 0.
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask, -torch.inf)
    mask = mask.to(torch.promote_types(mask.dtype, torch.float32))
    return F.pad(mask.masked_fill(mask <= HIDDEN, -torch.inf), (0, keys - mask.shape[-1]))
