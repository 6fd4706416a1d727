"""What is measured on attention maps, against the whole maps in float64 numpy."""

import math

import numpy as np
import pytest
import torch

from mspose.models.attention_map import (
    AttentionMap,
    attention_entropy,
    attention_similarity,
    query_key_gap,
    token_similarity,
)
from mspose.verdict import COLLAPSED, SELECTIVE, UNIFORM, Thresholds, verdict

QUERIES, KEYS = 7, 5
MEASURES = (attention_entropy, attention_similarity)


def random(*shape, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hidden_keys():
    """A bias under which the third key cannot be seen, by the last query none but the first two."""
    bias = random(3, QUERIES, KEYS, seed=5)
    bias[:, :, 2] = -math.inf
    bias[:, -1, 2:] = -math.inf
    return bias


BIASES = {
    "none": None,
    "of every pair": random(3, QUERIES, KEYS, seed=3),
    "of every image": random(2, 1, QUERIES, KEYS, seed=4),
    "of keys": random(2, 1, 1, KEYS, seed=4),
    "hidden keys": hidden_keys(),
}


def make_map(bias=None, dtype=torch.float64):
    query, key = 2 * random(2, 3, QUERIES, 4), random(2, 3, KEYS, 4, seed=2)
    return AttentionMap(query.to(dtype), key.to(dtype), scale=0.7, bias=bias)


def weights(attention):
    """The whole map by its definition."""
    score = (
        attention.scale
        * attention.query_BHQD.double().numpy()
        @ attention.key_BHKD.double().mT.numpy()
    )
    if attention.bias is not None:
        score = score + attention.bias.numpy()
    exponential = np.exp(score - score.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def entropy_oracle(weight):
    logarithm = np.log(weight, out=np.zeros_like(weight), where=weight > 0)
    return -(weight * logarithm).sum(-1).mean(-1)


def similarity_oracle(weight):
    unit = weight / np.linalg.norm(weight, axis=-1, keepdims=True)
    cosine = unit @ unit.swapaxes(-1, -2)
    return cosine[..., ~np.eye(cosine.shape[-1], dtype=bool)].mean(-1)


@pytest.mark.parametrize("chunk", [1, 3, QUERIES, 100])
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_agrees_with_the_whole_map_in_chunks_of_any_length(chunk, bias):
    attention = make_map(bias)
    weight = weights(attention)
    parts = list(attention.log_weights(chunk))
    assert [part.shape[2] for part in parts[:-1]] == [chunk] * (len(parts) - 1)
    np.testing.assert_allclose(torch.cat(parts, dim=2).exp(), weight, rtol=1e-12)
    np.testing.assert_allclose(
        attention_entropy(attention, chunk=chunk), entropy_oracle(weight), rtol=1e-12
    )
    np.testing.assert_allclose(
        attention_similarity(attention, chunk=chunk), similarity_oracle(weight), rtol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_computes_in_float32_at_least(dtype):
    rounded = make_map(BIASES["of every pair"].float(), dtype)
    gap_of = (rounded.query_BHQD + 10, rounded.key_BHKD + 10.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        entropy, similarity = attention_entropy(rounded), attention_similarity(rounded)
        gap = query_key_gap(*gap_of)
    assert entropy.dtype == similarity.dtype == gap.dtype == torch.float32
    weight = weights(rounded)
    np.testing.assert_allclose(entropy, entropy_oracle(weight), rtol=1e-5)
    np.testing.assert_allclose(similarity, similarity_oracle(weight), rtol=1e-5)
    torch.testing.assert_close(
        gap.double(), query_key_gap(*(tensor.double() for tensor in gap_of)), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_gradients_are_those_of_the_definition_and_finite_at_the_ends(measure, bias):
    query, key, _, _ = make_map()
    inputs = (query.clone().requires_grad_(), key.clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda query, key: measure(AttentionMap(query, key, 0.7, bias), chunk=3),
        inputs,
        fast_mode=True,
    )
    for factor in (0, 1e6):  # all keys alike; weights that underflow to zero
        gradients = torch.autograd.grad(
            measure(AttentionMap(factor * inputs[0], inputs[1], 1.0, bias)).sum(), inputs
        )
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_reach_the_bias(measure):
    bias = BIASES["of every pair"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda bias: measure(make_map(bias), chunk=3), (bias,))


def test_at_the_ends():
    key = torch.eye(6, dtype=torch.float64)[None, None]
    cases = {
        UNIFORM: (torch.zeros(1, 1, 6, 6, dtype=torch.float64), math.log(6), 1.0),
        COLLAPSED: (1e6 * key[:, :, :1].expand(-1, -1, 6, -1), 0.0, 1.0),
        SELECTIVE: (1e6 * key, 0.0, 0.0),
    }
    for expected, (query, entropy, similarity) in cases.items():
        attention = AttentionMap(query, key, 1.0)
        assert attention_entropy(attention).item() == pytest.approx(entropy, abs=1e-9)
        assert attention_similarity(attention).item() == pytest.approx(similarity, abs=1e-9)
        measured = attention_entropy(attention).item(), attention_similarity(attention).item()
        assert verdict(*measured, math.log(6)) == expected


def test_a_single_query_is_like_itself_and_a_single_key_is_all_there_is():
    attention = AttentionMap(random(2, 3, 1, 4), random(2, 3, 5, 4), 0.5)
    assert torch.equal(attention_similarity(attention), torch.ones(2, 3, dtype=torch.float64))
    attention = AttentionMap(random(2, 3, 5, 4), random(2, 3, 1, 4), 0.5)
    assert torch.equal(attention_entropy(attention), torch.zeros(2, 3, dtype=torch.float64))
    assert verdict(0.0, 1.0, 0.0) == UNIFORM


@pytest.mark.parametrize(
    ("share", "similarity", "expected"),
    [
        (0.95, 0.1, UNIFORM),
        (0.89, 0.89, SELECTIVE),
        (0.2, 0.5, SELECTIVE),
        (0.9, 0.9, UNIFORM),
        (1.0, 1.0, UNIFORM),
        (0.89, 0.9, COLLAPSED),
        (0.1, 0.99, COLLAPSED),
    ],
)
def test_the_verdict_comes_from_entropy_first_then_from_similarity(share, similarity, expected):
    assert verdict(share * math.log(784), similarity, math.log(784)) == expected


def test_the_verdicts_thresholds_can_be_set_and_a_single_query_has_none():
    assert verdict(0.85, 0.2, 1.0, Thresholds(uniform=0.8)) == UNIFORM
    assert verdict(0.5, 0.7, 1.0, Thresholds(similar=0.6)) == COLLAPSED
    assert verdict(1.0, math.nan, 1.0) is None


def test_token_similarity_is_the_mean_cosine_of_different_tokens():
    tokens = random(2, 6, 5)
    unit = tokens.numpy() / np.linalg.norm(tokens.numpy(), axis=-1, keepdims=True)
    pairs = ~np.eye(6, dtype=bool)
    expected = [(one @ one.T)[pairs].mean() for one in unit]
    np.testing.assert_allclose(token_similarity(tokens), expected, rtol=1e-12)
    same = tokens[:, :1].expand(-1, 6, -1)
    np.testing.assert_allclose(token_similarity(same), [1, 1])
    half = token_similarity(tokens.bfloat16())
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half, expected, atol=0.02)


def test_gap_agrees_with_numpy():
    query, key, _, _ = make_map()
    expected = np.linalg.norm(query.numpy().mean(2) - key.numpy().mean(2), axis=-1)
    np.testing.assert_allclose(query_key_gap(query, key), expected, rtol=1e-12)


def test_gap_sends_gradients_to_queries_and_keys():
    query, key = random(1, 2, 4, 3).requires_grad_(), random(1, 2, 6, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(query_key_gap, (query, key))
    query_key_gap(query, key).sum().backward()
    assert query.grad.abs().min() > 0
    assert key.grad.abs().min() > 0


def test_gap_of_zero_has_finite_gradients():
    query = random(1, 2, 4, 3).requires_grad_()
    query_key_gap(query, query.detach()).sum().backward()
    assert torch.equal(query.grad, torch.zeros_like(query))
