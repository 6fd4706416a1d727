"""Folding a backbone's batch norms into its convolutions, for prediction."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

Pair = tuple[str, str]  # names of a convolution and of the batch norm that alone reads it


def fold_batch_norms(module: nn.Module, probe: Callable[[], tuple[Tensor, ...]]) -> int:
    """Give every convolution that a batch norm follows the norm's scale and shift, and take the
    norm out.

    In place; `module` is in evaluation mode and cannot be trained afterwards. A pair whose removal
    would change what `probe` (a forward pass) returns is left as it is.

    Returns:
        the number of norms taken out.
    """
    if module.training:
        raise ValueError("batch norms can be folded in evaluation mode alone: call .eval() first")
    with torch.no_grad():
        before = probe()
        pairs = _pairs(module, probe)
        if _fold(module, pairs, probe, before):
            return len(pairs)
        return sum(_fold(module, [pair], probe, before) for pair in pairs)


def _pairs(module: nn.Module, probe: Callable[[], tuple[Tensor, ...]]) -> list[Pair]:
    """Convolutions whose output is the very tensor that a batch norm takes in, each used once in a
    forward pass.
    """
    made: list[
        tuple[Tensor, str]
    ] = []  # holds the tensors, so that none takes another's place in memory
    pairs: list[Pair] = []
    uses: Counter[str] = Counter()

    def after(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            uses[name] += 1
            if isinstance(layer, nn.Conv2d):
                made.append((output, name))
            else:
                pairs.extend((maker, name) for tensor, maker in made if tensor is inputs[0])

        return hook

    handles = [
        layer.register_forward_hook(after(name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d)
        or (isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None)
    ]
    try:
        probe()
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if uses[pair[0]] == uses[pair[1]] == 1]


def _fold(
    module: nn.Module,
    pairs: list[Pair],
    probe: Callable[[], tuple[Tensor, ...]],
    before: tuple[Tensor, ...],
) -> bool:
    """Fold the pairs, and undo it where that changes what the probe returns."""
    originals = {name: module.get_submodule(name) for pair in pairs for name in pair}
    for convolution_name, norm_name in pairs:
        convolution, norm = originals[convolution_name], originals[norm_name]
        _set(module, convolution_name, _folded(convolution, norm))
        _set(module, norm_name, _without_norm(norm))
    same = all(
        torch.allclose(old, new, rtol=1e-3, atol=1e-3 * float(old.abs().max()))
        for old, new in zip(before, probe(), strict=True)
    )
    if not same:
        for name, layer in originals.items():
            _set(module, name, layer)
    return same


def _folded(convolution: Any, norm: Any) -> nn.Module:
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    folded = copy.deepcopy(convolution)
    folded.weight, folded.bias = weight, bias
    return folded


def _without_norm(norm: nn.Module) -> nn.Module:
    """What is left of the layer: nothing, or the activation that some of timm's norms carry."""
    rest = [layer for name in ("drop", "act") if (layer := getattr(norm, name, None)) is not None]
    return nn.Sequential(*rest) if rest else nn.Identity()


def _set(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, layer)
