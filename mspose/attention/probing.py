"""A probe for any PyTorch model: is attention in it selective, uniform or collapsed?

    with mspose.attention.probe(module) as p:
        module(batch)
    p.verdicts, p.table()

It sees every call of `torch.nn.functional.multi_head_attention_forward`, which
`torch.nn.MultiheadAttention` makes, and of `scaled_dot_product_attention`, which timm's and Hugging
Face's models use.

B images, H heads, Q queries, K keys, C channels, D channels per head.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode

from mspose.attention.measures import Measures, measure
from mspose.errors import MsposeError
from mspose.models.attention_map import AttentionMap
from mspose.verdict import DEFAULT, Thresholds

if TYPE_CHECKING:
    import pandas as pd

NOT_CALLED, NO_QUERIES, ONE_QUERY = "not called", "no queries", "one query"
NOT_FINITE = "not finite"
"""In place of a verdict: never called; called with hidden queries or keys alone; called with one
query at a time, whose attention is like no other's; NaN or infinity in queries or keys.
"""
CHUNK = 256  # queries whose weights exist at one time, as in `AttentionMap.chunks`
WEIGHTS_AT_ONCE = 2**23
"""Attention weights that exist at one time, where those of one image are not more."""
HIDDEN = math.log(torch.finfo(torch.float32).tiny)
"""A mask hides a key where it puts its score so far below the others' that softmax gives it 0."""
_ARGUMENTS = inspect.signature(F.multi_head_attention_forward)
ScaledMaps = Iterator[tuple[AttentionMap, Tensor | None]]
"""Attention maps, each of all heads (None) or of those that head_H chooses."""


def probe(module: nn.Module, thresholds: Thresholds = DEFAULT) -> "Probe":
    """Measure every attention in `module`, itself included, while the `with` block runs.

    Outputs stay the same, but for what PyTorch's fused inference path of `nn.MultiheadAttention`
    (switched off in the block, for the whole process) does to rounding and to padded tokens, which
    that path blanks. Compiled modules, and attention that is computed in other ways, such as
    Hugging Face's `attn_implementation="eager"`, cannot be seen.
    """
    return Probe(module, thresholds)


@dataclass
class _Running:
    """A module whose forward pass runs."""

    part: nn.Module
    calls: int = 0
    """Calls of the two functions so far."""


class Probe:
    """Measures of every attention of a module, over all its calls in the `with` block."""

    def __init__(self, module: nn.Module, thresholds: Thresholds = DEFAULT) -> None:
        self._kind, self._thresholds = type(module).__name__, thresholds
        self._names = {part: name for name, part in module.named_modules()}
        self._measured = {
            name: _Calls()
            for part, name in self._names.items()
            if isinstance(part, nn.MultiheadAttention)
        }
        self._running: list[_Running] = []
        self._undo = ExitStack()
        self._blocks = 0

    def __enter__(self) -> Self:
        self._blocks += 1
        if self._blocks > 1:
            return self
        self._undo.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(
            False
        )  # it does not call the modules, whose hooks we are
        self._undo.callback(self._running.clear)
        for part in self._names:
            before = part.register_forward_pre_hook(self._begin, prepend=True)
            self._undo.callback(before.remove)
            after = part.register_forward_hook(self._end, always_call=True)
            self._undo.callback(after.remove)
        self._undo.enter_context(_Watch(self._add_call))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._blocks -= 1
        if not self._blocks:
            self._undo.close()

    def _begin(self, part: nn.Module, _: object) -> None:
        self._running.append(_Running(part))

    def _end(self, part: nn.Module, *_: object) -> None:
        while self._running and self._running.pop().part is not part:
            pass  # one that never ended

    @torch.no_grad()
    def _add_call(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        """Add a call of one of the two functions to the innermost module that runs."""
        if not self._running:
            return
        running = self._running[-1]
        running.calls += 1
        name = self._names[running.part]
        if running.calls > 1:
            name = f"{name} (call {running.calls})".strip()
        maps = _maps if func is F.scaled_dot_product_attention else _maps_of_multi_head
        self._measured.setdefault(name, _Calls()).add_maps(maps(*args, **kwargs))

    @property
    def verdicts(self) -> dict[str, str]:
        """Verdict of every attention, by the name of the module that computes it, as of
        `named_modules`: `selective`, `uniform` or `collapsed`, see `mspose.verdict`; or why there
        is none, such as `not called`.

        A module that calls `scaled_dot_product_attention` more than once in a forward pass has an
        entry for each: `name`, `name (call 2)`, ...

        Raises:
            MsposeError: no attention was called in the `with` block.
        """
        self._check_called()
        return {
            name: calls.verdict_or_reason(self._thresholds)
            for name, calls in self._measured.items()
        }

    def table(self) -> "pd.DataFrame":
        """Return a row per attention: `entropy` and `entropy_limit` (nats), `similarity`,
        `query_key_gap`, `calls` and `verdict`.

        Means over images, heads and queries. The limit is the entropy of attention that is spread
        over all keys that a query sees. Under a mask, similarity is relative to that of such
        attention under the same mask, at most 1. A mask hides a key where it makes its weight 0,
        whatever the number in it; where it does so to all keys alike, it hides none.

        Queries that see no key are left out, head by head; so are, in `nn.MultiheadAttention` on
        itself (query and key are one tensor), queries that `key_padding_mask` names, and from the
        gap the keys that it hides. Measures of what was not called are NaN, as is the similarity
        of one query alone.

        Raises:
            MsposeError: no attention was called in the `with` block.
        """
        import pandas as pd

        self._check_called()
        rows = [
            {
                **calls.mean(),
                "calls": calls.calls,
                "verdict": calls.verdict_or_reason(self._thresholds),
            }
            for calls in self._measured.values()
        ]
        return pd.DataFrame(rows, index=pd.Index(list(self._measured), name="module"))

    def _check_called(self) -> None:
        if not any(calls.calls for calls in self._measured.values()):
            raise MsposeError(
                f"{self._kind} called neither a torch.nn.MultiheadAttention nor"
                " scaled_dot_product_attention: run the module, not a compiled one, inside the with"
                " block"
            )


class _Watch(TorchFunctionMode):
    """Hands on every call of the two functions, by whatever name they were imported.

    What a function calls in turn is not seen.
    """

    def __init__(self, seen: Callable[..., None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (F.multi_head_attention_forward, F.scaled_dot_product_attention):
            self.seen(func, args, kwargs or {})
        return result


class _Calls(Measures):
    """The measures of one attention over its calls."""

    calls = 0

    def add_maps(self, maps: ScaledMaps) -> None:
        """Add the images of one call."""
        self.calls += 1
        for attention, head_H in maps:
            self.add(measure(attention), head_H)

    def verdict_or_reason(self, thresholds: Thresholds) -> str:
        """Return the verdict, or why there is none."""
        if not self.sums:
            return NO_QUERIES if self.calls else NOT_CALLED
        if not all(sum_H.isfinite().all() for sum_H in self.sums.values()):
            return NOT_FINITE
        return self.verdict(thresholds) or ONE_QUERY


def _maps_of_multi_head(*args: Any, **kwargs: Any) -> ScaledMaps:
    """Yield the attention maps of one call of `multi_head_attention_forward`."""
    given = _ARGUMENTS.bind(*args, **kwargs)
    given.apply_defaults()
    options = given.arguments
    query, key = options["query"], options["key"]
    on_itself = query.shape == key.shape and query.data_ptr() == key.data_ptr()
    query_BHQD, key_BHKD = _queries_and_keys(query, key, options)
    images, heads, queries, channels = query_BHQD.shape
    keys = key_BHKD.shape[2]
    padding, mask = options["key_padding_mask"], options["attn_mask"]
    if padding is not None:
        padding = _scores(padding.reshape(images, 1, 1, -1), keys)
    if mask is not None:
        mask = _scores(
            mask.reshape(1, 1, queries, -1) if mask.dim() == 2 else mask.unflatten(0, (-1, heads)),
            keys,
        )
    yield from _visible(query_BHQD, key_BHKD, channels**-0.5, mask, padding, on_itself=on_itself)


def _maps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> ScaledMaps:
    """Yield the attention maps of one call of `scaled_dot_product_attention`."""
    if query.is_nested:
        for parts in zip(query.unbind(), key.unbind(), value.unbind(), strict=True):
            one_query, one_key, one_value = (part[None] for part in parts)
            yield from _maps(
                one_query, one_key, one_value, attn_mask, dropout_p, is_causal, scale, enable_gqa
            )
        return
    queries, keys = query.shape[-2], key.shape[-2]
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    if isinstance(attn_mask, CausalBias):
        attn_mask = attn_mask._materialize(query.device)
    elif is_causal:
        attn_mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
    # without heads, (B, Q, D) or (Q, D), there is one; what stands before the heads are all images
    images, heads = (leading[:-1], leading[-1]) if len(leading) > 1 else (leading, 1)
    query_BHQD, key_BHKD = (
        tensor.expand(*leading, -1, -1).reshape(-1, heads, *tensor.shape[-2:])
        for tensor in (query, key)
    )
    mask = None
    if attn_mask is not None:
        mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask
        mask = _scores(mask.expand(*mask.shape[:-1], keys), keys)
        mask = mask.reshape(*(1 for _ in range(len(leading) + 2 - mask.dim())), *mask.shape)
        if len(leading) < 2:
            mask = mask.unsqueeze(-3)  # of the one head
        if any(size > 1 for size in mask.shape[:-3]):
            mask = mask.expand(*images, -1, -1, -1)
        mask = mask.reshape(-1, *mask.shape[-3:])
    yield from _visible(
        query_BHQD, key_BHKD, query.shape[-1] ** -0.5 if scale is None else scale, mask
    )


def _visible(
    query_BHQD: Tensor,
    key_BHKD: Tensor,
    scale: float,
    mask: Tensor | None,
    padding: Tensor | None = None,
    *,
    on_itself: bool = False,
) -> ScaledMaps:
    """Yield attention maps, some images at a time, without queries and keys that do not count.

    `mask` and `padding` are added to the scores and broadcast to (B, H, Q, K); -inf hides a key.
    `padding` is the same for all heads and queries; of an attention `on_itself` it hides the tokens
    as queries too.
    """
    images, heads, queries, _ = query_BHQD.shape
    keys = key_BHKD.shape[2]
    at_once = max(1, WEIGHTS_AT_ONCE // (heads * min(queries, CHUNK) * keys))
    if padding is not None or (mask is not None and len(mask) > 1):
        at_once = 1  # each has its own queries and keys
    for start in range(0, images, at_once):
        some = slice(start, start + at_once)
        attention = AttentionMap(query_BHQD[some], key_BHKD[some], scale)
        biases = [
            scores if len(scores) == 1 else scores[some]
            for scores in (padding, mask)
            if scores is not None
        ]
        if not biases:
            yield attention, None
            continue
        bias = _hiding(torch.stack(torch.broadcast_tensors(*biases)).sum(dim=0))
        count_Q = key_BHKD.new_ones(queries, dtype=torch.bool)
        key_K = key_BHKD.new_ones(keys, dtype=torch.bool)
        if padding is not None:
            key_K = biases[0].isfinite().flatten()
            if on_itself:
                count_Q = key_K[:queries]
        sees_HQ = bias[0].isfinite().any(dim=-1).expand(heads, queries) & count_Q
        for sees_Q in sees_HQ.unique(dim=0):
            if sees_Q.any():
                head_H = (sees_HQ == sees_Q).all(dim=1)
                yield _part(attention, bias, head_H, sees_Q, key_K), head_H


def _part(
    attention: AttentionMap, bias: Tensor, head_H: Tensor, query_Q: Tensor, key_K: Tensor
) -> AttentionMap:
    """Return the map of some heads, queries and keys."""
    bias = bias.expand(-1, -1, -1, len(key_K))[..., key_K]
    bias = bias if bias.shape[1] == 1 else bias[:, head_H]
    return AttentionMap(
        attention.query_BHQD[:, head_H][:, :, query_Q],
        attention.key_BHKD[:, head_H][:, :, key_K],
        attention.scale,
        bias if bias.shape[2] == 1 else bias[:, :, query_Q],
    )


def _queries_and_keys(
    query: Tensor, key: Tensor, options: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Compute query_BHQD and key_BHKD of inputs in the order (Q, B, C), or (Q, C) of one image.

    options: those of `multi_head_attention_forward`, some of which add keys.
    """
    if options["use_separate_proj_weight"]:
        weight_q, weight_k = options["q_proj_weight"], options["k_proj_weight"]
    else:
        weight_q, weight_k, _ = options["in_proj_weight"].chunk(3)
    bias = options["in_proj_bias"]
    bias_q, bias_k, _ = (None,) * 3 if bias is None else bias.chunk(3)
    query_QBC, key_KBC = F.linear(query, weight_q, bias_q), F.linear(key, weight_k, bias_k)
    if query.dim() == 2:
        query_QBC, key_KBC = query_QBC[:, None], key_KBC[:, None]
    if (added_11C := options["bias_k"]) is not None:
        key_KBC = torch.cat((key_KBC, added_11C.to(key_KBC.dtype).expand(1, key_KBC.shape[1], -1)))
    if options["add_zero_attn"]:
        key_KBC = F.pad(key_KBC, (0, 0, 0, 0, 0, 1))
    query_QBHD, key_KBHD = (
        x_NBC.unflatten(-1, (options["num_heads"], -1)) for x_NBC in (query_QBC, key_KBC)
    )
    return query_QBHD.permute(1, 2, 0, 3), key_KBHD.permute(1, 2, 0, 3)


def _scores(mask: Tensor, keys: int) -> Tensor:
    """Turn a mask, boolean (true: hidden) or of numbers, into what it adds to the scores: -inf
    hides a key; keys that the module itself added get 0.
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask, -torch.inf)
    mask = mask.to(torch.promote_types(mask.dtype, torch.float32))
    return _hiding(F.pad(mask, (0, keys - mask.shape[-1])))


def _hiding(bias: Tensor) -> Tensor:
    """Set to -inf what hides a key, whatever the number."""
    return bias.masked_fill(bias < bias.amax(dim=-1, keepdim=True) + HIDDEN, -torch.inf)
