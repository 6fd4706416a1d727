"""Knock-out: an encoder's self-attention replaced by something that attends to nothing.

A component of a trained network is ablated to see what the network's answers owe to it (for
attention heads: Michel, Levy and Neubig, Are Sixteen Heads Really Better than One?, NeurIPS 2019).
It needs no training, unlike a network that is trained without the component, which learns to do
without it. What stands in for attention is computed in `mspose.models.attention`.

B images, S scenes, N tokens, C channels.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, cast

from torch import Tensor

from mspose.config import BRANCHES
from mspose.models.attention import REPLACEMENTS, Replacement
from mspose.models.mstransformer import Branch, MSTransformer
from mspose.models.network import PoseOutput
from mspose.models.token_positions import TokenPositions
from mspose.models.transformer import EncoderLayer

BOTH = "both"
SAID: dict[Replacement, str] = {
    "mean": "mean of all values",
    "own": "own value",
    "nothing": "sublayer removed",
}
"""Replacements in tables and figures."""


class KnockOut(NamedTuple):
    """One way to knock self-attention out."""

    by: Replacement
    """Its replacement: the mean of all values, each token's own value, or nothing, so that the
    residual of the sublayer alone remains."""
    branch: str
    """`position`, `orientation` or `both`."""
    layer: int | None = None
    """From 1; None: all encoder layers of the branch."""


def knock_outs(network: MSTransformer) -> list[KnockOut]:
    """List all that a network can undergo: of both branches, of each, and of each layer."""
    layers_of = {name: len(_branch(network, name).encoder.layers) for name in BRANCHES}
    there = {name: count for name, count in layers_of.items() if count}
    wholes = [(name, None) for name in ([BOTH, *there] if len(there) > 1 else there)]
    layers = [(name, number + 1) for name, count in there.items() for number in range(count)]
    return [KnockOut(by, *which) for which in (*wholes, *layers) for by in REPLACEMENTS]


def answers(network: MSTransformer, image_B3HW: Tensor) -> dict[KnockOut | None, PoseOutput]:
    """Estimate poses with the network as it is (None) and under each of its `knock_outs`.

    The same as a forward pass each, but what a knock-out leaves as it was is computed once: the
    backbone, the other branch, and the layers before the one that is knocked out.
    """
    scenes: dict[tuple[str, Replacement | None, int | None], Tensor] = {}
    for name, map_BCHW in zip(BRANCHES, network.feature_maps(image_B3HW), strict=True):
        branch = _branch(network, name)
        layers = _layers(branch)
        tokens_BNC, positions, added_NC = branch.tokens(map_BCHW, network.position_encoding)
        finish = partial(_finish, branch, positions, added_NC)
        before = [tokens_BNC]
        for layer in layers:
            before.append(layer(before[-1], positions)[0])
        scenes[name, None, None] = finish(before[-1], len(layers))
        for by in REPLACEMENTS if layers else ():
            with _replaced(layers, by):
                scenes[name, by, None] = finish(before[0], 0)
            for index, layer in enumerate(layers):
                with _replaced([layer], by):
                    scenes[name, by, index + 1] = finish(before[index], index)

    found: dict[KnockOut | None, PoseOutput] = {}
    for what in (None, *knock_outs(network)):
        position_BSC, orientation_BSC = (
            scenes[name, what.by, what.layer]
            if what is not None and what.branch in (name, BOTH)
            else scenes[name, None, None]
            for name in BRANCHES
        )
        found[what] = network.poses(position_BSC, orientation_BSC)
    return found


def _finish(
    branch: Branch, positions: TokenPositions, added_NC: Tensor, tokens_BNC: Tensor, done: int
) -> Tensor:
    """Go on with tokens that `done` encoder layers have seen; returns scene_BSC."""
    for layer in _layers(branch)[done:]:
        tokens_BNC, _ = layer(tokens_BNC, positions)
    return branch.decoder(branch.scene_query, branch.encoder.norm(tokens_BNC), added_NC)


@contextmanager
def _replaced(layers: Iterable[EncoderLayer], by: Replacement) -> Iterator[None]:
    """Let layers compute without their self-attention while the `with` block runs."""
    before = [(layer.self_attention, layer.self_attention.replacement) for layer in layers]
    try:
        for attention, _ in before:
            attention.replacement = by
        yield
    finally:
        for attention, replacement in before:
            attention.replacement = replacement


def _branch(network: MSTransformer, name: str) -> Branch:
    return cast(Branch, network.get_submodule(name))


def _layers(branch: Branch) -> list[EncoderLayer]:
    return cast(list[EncoderLayer], list(branch.encoder.layers))
