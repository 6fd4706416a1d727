"""Attention against a numpy oracle and against nn.MultiheadAttention."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mspose.models.attention import CrossAttention, SelfAttention, expect_shape
from mspose.models.relative_position import TokenPositions

DIM, HEADS = 12, 3


def softmax(scores):
    exponential = np.exp(scores - scores.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def split_heads(tokens):
    batch, count, dim = tokens.shape
    return tokens.reshape(batch, count, HEADS, dim // HEADS).transpose(0, 2, 1, 3)


def jumbled(module):
    torch.manual_seed(0)
    nn.init.normal_(module.in_proj_bias)
    nn.init.normal_(module.out_proj.bias)
    return module.double()


@pytest.fixture
def self_attention():
    return jumbled(SelfAttention(DIM, HEADS))


@pytest.fixture
def cross_attention():
    return jumbled(CrossAttention(DIM, HEADS))


def random_tokens(*shape, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_numpy(attention, query, key, value):
    """Tokens, queries, keys and attention weights by the definition, every projection written out."""
    weights = attention.in_proj_weight.detach().numpy().reshape(3, DIM, DIM)
    biases = attention.in_proj_bias.detach().numpy().reshape(3, DIM)
    q, k, v = (
        split_heads(x.numpy() @ w.T + b)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    weight = softmax(q @ k.transpose(0, 1, 3, 2) / math.sqrt(DIM // HEADS))
    joined = (weight @ v).transpose(0, 2, 1, 3).reshape(*query.shape)
    tokens = (
        joined @ attention.out_proj.weight.detach().numpy().T
        + attention.out_proj.bias.detach().numpy()
    )
    return tokens, q, k, weight


def test_self_attention_agrees_with_numpy(self_attention):
    tokens, position = random_tokens(2, 5, DIM), random_tokens(5, DIM, seed=3)
    found, attention = self_attention(tokens, TokenPositions(position))
    expected, query, key, weight = by_numpy(self_attention, *[tokens + position] * 2, tokens)
    shown = next(attention.log_weights()).exp()
    for ours, theirs in (
        (found, expected), (attention.query_BHQD, query), (attention.key_BHKD, key), (shown, weight)
    ):  # fmt: skip
        np.testing.assert_allclose(ours.detach(), theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("queries", [1, 4, 30])
def test_cross_attention_agrees_with_numpy(cross_attention, queries):
    query, key, value = (
        random_tokens(2, queries, DIM),
        random_tokens(2, 7, DIM, seed=2),
        random_tokens(2, 7, DIM),
    )
    expected, _, _, expected_weight = by_numpy(cross_attention, query, key, value)
    found, weight = cross_attention(query, key, value)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(weight.detach(), expected_weight, rtol=1e-12, atol=1e-13)


def gradients(module, loss, *tensors):
    return torch.autograd.grad(loss, [*tensors, *module.parameters()])


def test_takes_the_weights_of_multihead_attention_and_has_its_gradients(
    self_attention, cross_attention
):
    for ours in (self_attention, cross_attention):
        judge = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
        judge.load_state_dict(ours.state_dict())
        query, key, value, position = (
            random_tokens(2, n, DIM, seed=n).requires_grad_() for n in (4, 6, 6, 4)
        )
        if ours is self_attention:
            tensors = (query, position)
            found, expected = (
                ours(query, TokenPositions(position[0]))[0],
                judge(query + position[0], query + position[0], query)[0],
            )
        else:
            tensors = (query, key, value)
            found, expected = ours(*tensors)[0], judge(*tensors)[0]
        torch.testing.assert_close(found, expected)
        pull = random_tokens(*found.shape, seed=9)
        ours_then_theirs = (
            gradients(ours, (found * pull).sum(), *tensors),
            gradients(judge, (expected * pull).sum(), *tensors),
        )
        for one, other in zip(*ours_then_theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_cross_attention_drops_weights_and_what_their_values_bias_adds(cross_attention):
    # one key: each head's output is its value, dropped or doubled, the bias of the value projection
    # included
    attention = CrossAttention(DIM, HEADS, dropout=0.5).double()
    attention.load_state_dict(cross_attention.state_dict())
    nn.init.eye_(attention.out_proj.weight)
    nn.init.zeros_(attention.out_proj.bias)
    key = random_tokens(1, 1, DIM)
    value = key[0, 0] @ attention.in_proj_weight[2 * DIM :].T + attention.in_proj_bias[2 * DIM :]
    torch.manual_seed(0)
    attended, weight = attention(random_tokens(1, 40, DIM), key, key)
    assert torch.equal(weight, torch.ones(1, HEADS, 40, 1))  # as it was before dropout
    factors = (attended / value).view(40, HEADS, -1).detach()
    assert torch.allclose(factors.amax(-1), factors.amin(-1))
    assert {round(float(factor), 6) for factor in factors.flatten()} == {0.0, 2.0}


def test_a_network_at_rest_remembers_its_projected_positions(self_attention):
    tokens, position = random_tokens(2, 5, DIM), random_tokens(5, DIM, seed=3)
    expected = self_attention(tokens, TokenPositions(position))[0]
    self_attention.fuse()
    torch.testing.assert_close(
        self_attention(tokens, TokenPositions(position))[0], expected, rtol=0, atol=0
    )
    with torch.no_grad():
        self_attention.in_proj_weight.mul_(2)
    stale = self_attention(tokens, TokenPositions(position))[0]
    fresh = self_attention(tokens, TokenPositions(position.clone()))[0]
    assert not torch.allclose(stale, fresh)
    assert not torch.allclose(fresh, expected)


def explicit_attention(
    attention, tokens, position, *, scale, turn=lambda heads: heads, bias=0.0, factors=(1, 1)
):
    """Attended tokens and attention weights with queries and keys `turn`ed, and their weights times
    `factors`.
    """
    weights = (
        attention.in_proj_weight.detach().numpy().reshape(3, DIM, DIM)
        * np.array([*factors, 1])[:, None, None]
    )
    biases = attention.in_proj_bias.detach().numpy().reshape(3, DIM)
    placed, tokens = (tokens + position).numpy(), tokens.numpy()
    q, k, v = (
        split_heads(x @ w.T + b)
        for x, w, b in zip((placed, placed, tokens), weights, biases, strict=True)
    )
    weight = softmax(scale * turn(q) @ turn(k).swapaxes(-1, -2) + bias)
    joined = (weight @ v).transpose(0, 2, 1, 3).reshape(*tokens.shape)
    return (
        joined @ attention.out_proj.weight.detach().numpy().T
        + attention.out_proj.bias.detach().numpy(),
        weight,
    )


def assert_attends(attention, positions, tokens, expected):
    """Tokens are those expected, and the attention map handed out is the one that made them."""
    found, shown = attention(tokens, positions)
    np.testing.assert_allclose(found.detach(), expected[0], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(
        next(shown.log_weights()).exp().detach(), expected[1], rtol=1e-11, atol=1e-12
    )
    return shown


@pytest.mark.parametrize(
    ("attention_scale", "scale"), [("head-dim", (DIM / HEADS) ** -0.5), ("tokens", 5**-0.5)]
)
def test_scores_are_divided_by_the_root_of_channels_or_of_tokens(attention_scale, scale):
    attention = jumbled(SelfAttention(DIM, HEADS, attention_scale=attention_scale))
    tokens, position = random_tokens(2, 5, DIM), random_tokens(5, DIM, seed=3)
    expected = explicit_attention(attention, tokens, position, scale=scale)
    assert assert_attends(attention, TokenPositions(position), tokens, expected).scale == scale


def test_positions_may_turn_queries_and_keys_or_add_to_the_scores_or_be_missing(self_attention):
    tokens, bias = random_tokens(2, 5, DIM), random_tokens(HEADS, 5, 5, seed=4)
    angle = random_tokens(5, 2, seed=5)
    rotation = torch.stack((angle.cos(), angle.sin()))

    def turn(heads):
        turned = (heads[..., 0::2] + 1j * heads[..., 1::2]) * np.exp(1j * angle.numpy())
        return np.stack((turned.real, turned.imag), axis=-1).reshape(heads.shape)

    whole = {"tokens": tokens, "position": 0, "scale": 0.5}
    assert_attends(
        self_attention, TokenPositions(), tokens, explicit_attention(self_attention, **whole)
    )
    expected = explicit_attention(self_attention, **whole, turn=turn, bias=bias.numpy())
    shown = assert_attends(self_attention, TokenPositions(None, rotation, bias), tokens, expected)
    plain = self_attention(tokens, TokenPositions())[1]
    np.testing.assert_allclose(
        shown.key_BHKD.detach(), turn(plain.key_BHKD.detach().numpy()), rtol=1e-12, atol=1e-13
    )
    assert shown.bias is bias


@pytest.mark.parametrize("name", ["spectral-norm", "sigma-reparam"])
def test_normalised_weights_of_queries_and_keys_are_used_and_fused(self_attention, name):
    tokens, position = random_tokens(2, 5, DIM), random_tokens(5, DIM, seed=3)
    before = self_attention(tokens, TokenPositions(position))[0].detach()
    self_attention.normalize_query_key_weights(name)
    self_attention.eval()
    with torch.no_grad():  # on the way of one matrix, the value projection is left alone
        self_attention.in_proj_weight[:DIM] *= 3
        self_attention.in_proj_weight[DIM : 2 * DIM] *= 0.25
    sigmas = [
        np.linalg.norm(matrix, 2)
        for matrix in self_attention.in_proj_weight.detach().numpy().reshape(3, DIM, DIM)
    ]
    factors = (1 / 3, 4) if name == "spectral-norm" else (1 / sigmas[0], 1 / sigmas[1])
    expected = explicit_attention(self_attention, tokens, position, scale=0.5, factors=factors)
    assert_attends(self_attention, TokenPositions(position), tokens, expected)
    if name == "spectral-norm":
        torch.testing.assert_close(
            self_attention(tokens, TokenPositions(position))[0].detach(), before
        )
    self_attention.fuse()
    assert_attends(self_attention, TokenPositions(position), tokens, expected)
    assert set(self_attention.state_dict()) == set(SelfAttention(DIM, HEADS).state_dict())


def test_is_initialised_like_multihead_attention():
    torch.manual_seed(3)
    ours = SelfAttention(64, 4).state_dict()
    torch.manual_seed(3)
    judge = nn.MultiheadAttention(64, 4).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {
        name: tuple(tensor.shape) for name, tensor in judge.items()
    }
    for name, tensor in ours.items():
        assert tensor.abs().max() == pytest.approx(judge[name].abs().max().item(), rel=0.02), name


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    attention = SelfAttention(DIM, HEADS, dropout=0.5).double()
    tokens, position = random_tokens(1, 6, DIM), random_tokens(6, DIM)
    training = [attention(tokens, TokenPositions(position))[0] for _ in range(2)]
    assert not torch.equal(*training)
    attention.eval()
    evaluation = [attention(tokens, TokenPositions(position))[0] for _ in range(2)]
    assert torch.equal(*evaluation)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (
            ((5, DIM), (5, DIM)),
            r"tokens_BNC: expected shape \(batch, tokens, 12\), found \(5, 12\)",
        ),
        (((2, 5, 11), (5, DIM)), r"tokens_BNC: .*found \(2, 5, 11\)"),
        (((2, 0, DIM), (5, DIM)), r"tokens_BNC: .*found \(2, 0, 12\)"),
        (((2, 5, DIM), (4, DIM)), r"position_NC: expected shape \(5, 12\), found \(4, 12\)"),
    ],
)
def test_self_attention_refuses_wrong_shapes(self_attention, shapes, words):
    with pytest.raises(ValueError, match=words):
        self_attention(
            torch.zeros(shapes[0]).double(), TokenPositions(torch.zeros(shapes[1]).double())
        )


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (
            ((5, DIM), (5, DIM), (5, DIM)),
            r"query_BQC: expected shape \(batch, queries, 12\), found \(5, 12\)",
        ),
        (
            ((2, 5, DIM), (3, 5, DIM), (3, 5, DIM)),
            r"key_BKC: expected shape \(2, keys, 12\), found \(3, 5, 12\)",
        ),
        (
            ((2, 5, DIM), (2, 4, DIM), (2, 5, DIM)),
            r"value_BKC: expected shape \(2, 4, 12\), found \(2, 5, 12\)",
        ),
    ],
)
def test_cross_attention_refuses_wrong_shapes(cross_attention, shapes, words):
    with pytest.raises(ValueError, match=words):
        cross_attention(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))


def test_refuses_heads_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match="64 channels do not divide into 7 heads"):
        SelfAttention(64, 7)


def test_expect_shape_accepts_what_fits():
    expect_shape("x", torch.zeros(2, 3), ("batch", 3))
