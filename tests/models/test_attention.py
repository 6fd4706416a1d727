"""Attention against numpy and against nn.MultiheadAttention."""

import numpy as np
import pytest
import torch
from torch import nn

from mspose.models.attention import Attention
from mspose.models.token_positions import TokenPositions

DIM, HEADS = 12, 3


def random(*shape, seed=1):
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def jumbled(**options):
    """Attention in float64, with nothing at zero."""
    torch.manual_seed(0)
    module = Attention(DIM, HEADS, **options)
    nn.init.normal_(module.in_proj_bias)
    nn.init.normal_(module.out_proj.bias)
    return module.double()


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 7), (30, 7)])
def test_takes_the_weights_of_multihead_attention_and_has_its_outputs_and_gradients(queries, keys):
    ours, judge = jumbled(), nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    judge.load_state_dict(ours.state_dict())
    tensors = random(2, queries, DIM), random(2, keys, DIM, seed=2), random(2, keys, DIM, seed=3)
    found, shown = ours(*tensors)
    expected, weight = judge(*tensors, average_attn_weights=False)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(shown.log_weight().exp(), weight)
    pull = random(*found.shape, seed=9)
    torch.testing.assert_close(
        torch.autograd.grad((found * pull).sum(), [*tensors, *ours.parameters()]),
        torch.autograd.grad((expected * pull).sum(), [*tensors, *judge.parameters()]),
    )


def by_numpy(attention, tokens, *, scale, turn=lambda heads: heads, bias=0.0, factors=(1, 1)):
    """Attended tokens and attention weights by the definition, with queries and keys `turn`ed, and
    the weights of their projections times `factors`.
    """
    weights = attention.in_proj_weight.detach().numpy().reshape(3, DIM, DIM)
    weights = weights * np.array([*factors, 1])[:, None, None]
    biases = attention.in_proj_bias.detach().numpy().reshape(3, DIM)
    q, k, v = (
        (tokens.numpy() @ w.T + b).reshape(*tokens.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)
        for w, b in zip(weights, biases, strict=True)
    )
    score = np.exp(scale * turn(q) @ turn(k).swapaxes(-1, -2) + bias)
    weight = score / score.sum(-1, keepdims=True)
    joined = (weight @ v).transpose(0, 2, 1, 3).reshape(*tokens.shape)
    out, shift = (parameter.detach().numpy() for parameter in attention.out_proj.parameters())
    return joined @ out.T + shift, weight


def assert_attends(attention, tokens, positions, **expected):
    """Tokens are those expected, and the attention map that is returned is the one used."""
    found, shown = attention(tokens, tokens, tokens, positions)
    for ours, theirs in zip(
        (found, shown.log_weight().exp()), by_numpy(attention, tokens, **expected), strict=True
    ):
        np.testing.assert_allclose(ours.detach(), theirs, rtol=1e-11, atol=1e-12)
    return shown


@pytest.mark.parametrize(
    ("name", "scale"), [("head-dim", (DIM / HEADS) ** -0.5), ("tokens", 5**-0.5)]
)
def test_scores_are_divided_by_the_root_of_channels_or_of_tokens(name, scale):
    shown = assert_attends(jumbled(scale=name), random(2, 5, DIM).detach(), None, scale=scale)
    assert shown.scale == scale


def test_positions_turn_queries_and_keys_and_add_to_the_scores():
    bias, angle = random(HEADS, 5, 5, seed=4).detach(), random(5, 2, seed=5).detach()
    rotation = torch.stack((angle.cos(), angle.sin()))

    def turn(heads):
        turned = (heads[..., 0::2] + 1j * heads[..., 1::2]) * np.exp(1j * angle.numpy())
        return np.stack((turned.real, turned.imag), axis=-1).reshape(heads.shape)

    positions = TokenPositions(None, rotation, bias)
    tokens = random(2, 5, DIM).detach()
    assert_attends(jumbled(), tokens, positions, scale=0.5, turn=turn, bias=bias.numpy())


@pytest.mark.parametrize("name", ["spectral-norm", "sigma-reparam"])
def test_normalised_weights_of_queries_and_keys_are_used(name):
    attention = jumbled(query_key_weights=name).eval()
    with torch.no_grad():
        attention.in_proj_weight[:DIM] *= 3
        attention.in_proj_weight[DIM : 2 * DIM] *= 0.25
    matrices = attention.in_proj_weight.detach().numpy().reshape(3, DIM, DIM)
    sigmas = [np.linalg.norm(matrix, 2) for matrix in matrices[:2]]
    factors = (1 / 3, 4) if name == "spectral-norm" else (1 / sigmas[0], 1 / sigmas[1])
    # the singular vectors were computed in float32, before the module became float64
    tokens = random(2, 5, DIM).detach()
    found = attention(tokens, tokens, tokens)[0].detach()
    expected = by_numpy(attention, tokens, scale=0.5, factors=factors)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_parameters_are_those_of_multihead_attention_and_start_xavier_uniform():
    torch.manual_seed(3)
    ours, judge = Attention(64, 4).state_dict(), nn.MultiheadAttention(64, 4).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in judge.items()
    }
    for name, tensor in ours.items():
        bound = (6 / sum(tensor.shape)) ** 0.5 if tensor.dim() > 1 else 0
        assert 0.98 * bound <= tensor.abs().max() <= bound, name


def test_dropout_acts_in_training_alone():
    attention, tokens = jumbled(dropout=0.5), random(1, 6, DIM)
    torch.manual_seed(0)
    assert not torch.equal(*(attention(tokens, tokens, tokens)[0] for _ in range(2)))
    attention.eval()
    assert torch.equal(*(attention(tokens, tokens, tokens)[0] for _ in range(2)))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((5, DIM),) * 3, r"query_BQC: expected shape \(batch, queries, 12\), found \(5, 12\)"),
        (((2, 0, DIM),) * 3, r"query_BQC: .*found \(2, 0, 12\)"),
        (
            ((2, 5, DIM), (3, 5, DIM), (3, 5, DIM)),
            r"key_BKC: .*\(2, keys, 12\), found \(3, 5, 12\)",
        ),
        (((2, 5, DIM), (2, 4, DIM), (2, 5, DIM)), r"value_BKC: .*\(2, 4, 12\), found \(2, 5, 12\)"),
    ],
)
def test_refuses_wrong_shapes(shapes, words):
    with pytest.raises(ValueError, match=words):
        Attention(DIM, HEADS)(*map(torch.zeros, shapes))
