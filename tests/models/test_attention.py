"""Attention against a numpy oracle and against nn.MultiheadAttention; what is measured on queries and keys."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from mspose.models.attention import CrossAttention, SelfAttention, attention_entropy, expect_shape, query_key_gap

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
    """Tokens, queries and keys by the definition, every projection written out."""
    weights = attention.in_proj_weight.detach().numpy().reshape(3, DIM, DIM)
    biases = attention.in_proj_bias.detach().numpy().reshape(3, DIM)
    q, k, v = (split_heads(x.numpy() @ w.T + b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    attended = softmax(q @ k.transpose(0, 1, 3, 2) / math.sqrt(DIM // HEADS)) @ v
    joined = attended.transpose(0, 2, 1, 3).reshape(*query.shape)
    return joined @ attention.out_proj.weight.detach().numpy().T + attention.out_proj.bias.detach().numpy(), q, k


def test_self_attention_agrees_with_numpy(self_attention):
    tokens, position = random_tokens(2, 5, DIM), random_tokens(5, DIM, seed=3)
    found = self_attention(tokens, position)
    for ours, expected in zip(found, by_numpy(self_attention, *[tokens + position] * 2, tokens), strict=True):
        np.testing.assert_allclose(ours.detach(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("queries", [1, 4, 30])
def test_cross_attention_agrees_with_numpy(cross_attention, queries):
    query, key, value = random_tokens(2, queries, DIM), random_tokens(2, 7, DIM, seed=2), random_tokens(2, 7, DIM)
    expected = by_numpy(cross_attention, query, key, value)[0]
    np.testing.assert_allclose(cross_attention(query, key, value).detach(), expected, rtol=1e-12, atol=1e-13)


def gradients(module, loss, *tensors):
    return torch.autograd.grad(loss, [*tensors, *module.parameters()])


def test_takes_the_weights_of_multihead_attention_and_has_its_gradients(self_attention, cross_attention):
    for ours in (self_attention, cross_attention):
        judge = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
        judge.load_state_dict(ours.state_dict())
        query, key, value, position = (random_tokens(2, n, DIM, seed=n).requires_grad_() for n in (4, 6, 6, 4))
        if ours is self_attention:
            tensors = (query, position)
            found, expected = ours(query, position[0])[0], judge(query + position[0], query + position[0], query)[0]
        else:
            tensors = (query, key, value)
            found, expected = ours(*tensors), judge(*tensors)[0]
        torch.testing.assert_close(found, expected)
        pull = random_tokens(*found.shape, seed=9)
        ours_then_theirs = (
            gradients(ours, (found * pull).sum(), *tensors),
            gradients(judge, (expected * pull).sum(), *tensors),
        )
        for one, other in zip(*ours_then_theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_cross_attention_drops_weights_and_what_their_values_bias_adds(cross_attention):
    # one key: each head's output is its value, dropped or doubled, the bias of the value projection included
    attention = CrossAttention(DIM, HEADS, dropout=0.5).double()
    attention.load_state_dict(cross_attention.state_dict())
    nn.init.eye_(attention.out_proj.weight)
    nn.init.zeros_(attention.out_proj.bias)
    key = random_tokens(1, 1, DIM)
    value = key[0, 0] @ attention.in_proj_weight[2 * DIM :].T + attention.in_proj_bias[2 * DIM :]
    torch.manual_seed(0)
    factors = (attention(random_tokens(1, 40, DIM), key, key) / value).view(40, HEADS, -1).detach()
    assert torch.allclose(factors.amax(-1), factors.amin(-1))
    assert {round(float(factor), 6) for factor in factors.flatten()} == {0.0, 2.0}


def test_a_network_at_rest_remembers_its_projected_positions(self_attention):
    tokens, position = random_tokens(2, 5, DIM), random_tokens(5, DIM, seed=3)
    expected = self_attention(tokens, position)[0]
    self_attention.remembers_positions = True
    torch.testing.assert_close(self_attention(tokens, position)[0], expected, rtol=0, atol=0)
    with torch.no_grad():
        self_attention.in_proj_weight.mul_(2)
    stale = self_attention(tokens, position)[0]
    fresh = self_attention(tokens, position.clone())[0]
    assert not torch.allclose(stale, fresh)
    assert not torch.allclose(fresh, expected)


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
    training = [attention(tokens, position)[0] for _ in range(2)]
    assert not torch.equal(*training)
    attention.eval()
    evaluation = [attention(tokens, position)[0] for _ in range(2)]
    assert torch.equal(*evaluation)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((5, DIM), (5, DIM)), r"tokens_BNC: expected shape \(batch, tokens, 12\), found \(5, 12\)"),
        (((2, 5, 11), (5, DIM)), r"tokens_BNC: .*found \(2, 5, 11\)"),
        (((2, 0, DIM), (5, DIM)), r"tokens_BNC: .*found \(2, 0, 12\)"),
        (((2, 5, DIM), (4, DIM)), r"position_NC: expected shape \(5, 12\), found \(4, 12\)"),
    ],
)
def test_self_attention_refuses_wrong_shapes(self_attention, shapes, words):
    with pytest.raises(ValueError, match=words):
        self_attention(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((5, DIM), (5, DIM), (5, DIM)), r"query_BQC: expected shape \(batch, queries, 12\), found \(5, 12\)"),
        (((2, 5, DIM), (3, 5, DIM), (3, 5, DIM)), r"key_BKC: expected shape \(2, keys, 12\), found \(3, 5, 12\)"),
        (((2, 5, DIM), (2, 4, DIM), (2, 5, DIM)), r"value_BKC: expected shape \(2, 4, 12\), found \(2, 5, 12\)"),
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


def test_gap_agrees_with_numpy_and_commutes_with_the_projection(self_attention):
    attention = self_attention
    tokens, position = random_tokens(2, 9, DIM), random_tokens(9, DIM, seed=5)
    _, query, key = attention(tokens, position)
    gap = query_key_gap(query, key).detach()
    expected = np.linalg.norm(query.detach().numpy().mean(2) - key.detach().numpy().mean(2), axis=-1)
    np.testing.assert_allclose(gap, expected, rtol=1e-12)

    mean = (tokens + position).mean(1)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    difference = mean @ (weight[:DIM] - weight[DIM : 2 * DIM]).T + bias[:DIM] - bias[DIM : 2 * DIM]
    torch.testing.assert_close(gap, difference.reshape(2, HEADS, -1).norm(dim=-1).detach())


def test_gap_sends_gradients_to_queries_and_keys():
    query = random_tokens(1, 2, 4, 3).requires_grad_()
    key = random_tokens(1, 2, 6, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(query_key_gap, (query, key))
    query_key_gap(query, key).sum().backward()
    assert query.grad.abs().min() > 0
    assert key.grad.abs().min() > 0


def test_gap_of_zero_has_finite_gradients():
    query = random_tokens(1, 2, 4, 3).requires_grad_()
    query_key_gap(query, query.detach()).sum().backward()
    assert torch.equal(query.grad, torch.zeros_like(query))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gap_and_entropy_compute_in_float32_at_least(dtype):
    query = 10 + random_tokens(1, 2, 50, 8)
    key = query + 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gap = query_key_gap(query.to(dtype), key.to(dtype))
        entropy = attention_entropy(query.to(dtype), key.to(dtype))
    assert gap.dtype == entropy.dtype == torch.float32
    exact = query_key_gap(query.to(dtype).double(), key.to(dtype).double())
    torch.testing.assert_close(gap.double(), exact, rtol=1e-5, atol=1e-5)
    exact = attention_entropy(query.to(dtype).double(), key.to(dtype).double())
    torch.testing.assert_close(entropy.double(), exact, rtol=1e-4, atol=1e-4)
    assert query_key_gap(query, key).dtype == attention_entropy(query, key).dtype == torch.float64


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_entropy_agrees_with_an_explicit_softmax(chunk):
    query, key = 3 * random_tokens(2, 3, 7, 4), random_tokens(2, 3, 5, 4, seed=2)
    attention_map = softmax(query.numpy() @ key.numpy().transpose(0, 1, 3, 2) / 2.0)
    expected = -(attention_map * np.log(attention_map)).sum(-1).mean(-1)
    np.testing.assert_allclose(attention_entropy(query, key, chunk=chunk), expected, rtol=1e-12)


def test_entropy_at_its_ends():
    query, key = random_tokens(1, 1, 6, 4), random_tokens(1, 1, 6, 4, seed=2)
    uniform = attention_entropy(torch.zeros_like(query), key)
    torch.testing.assert_close(uniform, torch.full((1, 1), math.log(6), dtype=torch.float64))
    one_key = attention_entropy(1e6 * query, key)  # weights that underflow to zero
    assert one_key.item() == pytest.approx(0, abs=1e-9)


def test_entropy_refuses_an_empty_chunk():
    with pytest.raises(ValueError, match="chunk"):
        attention_entropy(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), chunk=0)
