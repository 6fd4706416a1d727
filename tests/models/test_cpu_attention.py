"""Attention with dropout on CPUs against PyTorch's own, given the same mask."""

import pytest
import torch
import torch.nn.functional as F

from mspose.models import cpu_attention
from mspose.models.cpu_attention import RESOLUTION, attend, keep_mask

SHAPE = {"images": 2, "heads": 3, "queries": 5, "keys": 7, "channels": 4}


def heads(count, seed, dtype=torch.float64):
    shape = (SHAPE["images"], SHAPE["heads"], count, SHAPE["channels"])
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def inputs(dtype=torch.float64):
    queries, keys = SHAPE["queries"], SHAPE["keys"]
    return heads(queries, 1, dtype), heads(keys, 2, dtype), heads(keys, 3, dtype)


def result_and_gradients(attended, tensors):
    pull = torch.randn(attended.shape, generator=torch.Generator().manual_seed(4)).to(attended)
    return attended, *torch.autograd.grad((attended * pull).sum(), tensors)


@pytest.mark.parametrize("chunk", [1, 100, 2**19])
def test_outputs_and_gradients_are_those_of_pytorchs_softmax_under_the_same_mask(
    monkeypatch, chunk
):
    monkeypatch.setattr(cpu_attention, "CHUNK", chunk)
    tensors = query, key, value = inputs()
    torch.manual_seed(0)
    found = attend(query, key, value, scale=0.3, dropout=0.25)
    torch.manual_seed(0)
    seed = int(torch.randint(2**62, ()))
    weight = torch.softmax(0.3 * query @ key.mT, dim=-1).flatten(0, 1)
    per_chunk = max(1, chunk // weight[0].numel())
    mask = torch.cat([
        keep_mask(RESOLUTION // 4, seed, number, part)
        for number, part in enumerate(weight.detach().split(per_chunk))
    ])  # fmt: skip
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    expected = (weight * mask / 0.75).view(*query.shape[:3], -1) @ value
    torch.testing.assert_close(
        result_and_gradients(found, tensors), result_and_gradients(expected, tensors)
    )


@pytest.mark.parametrize("bias", [False, True])
def test_without_dropout_or_with_a_bias_it_is_pytorchs_own(bias):
    query, key, value = inputs()
    bias_HQK = torch.randn(3, 5, 7, dtype=torch.float64) if bias else None
    for dropout in (0.0, 0.5) if bias else (0.0,):
        torch.manual_seed(0)
        found = attend(query, key, value, scale=0.3, bias_HQK=bias_HQK, dropout=dropout)
        torch.manual_seed(0)
        expected = F.scaled_dot_product_attention(
            query, key, value, None if bias_HQK is None else bias_HQK[None], dropout, scale=0.3
        )
        assert torch.equal(found, expected)


def test_a_mask_drops_each_weight_with_its_probability_and_independently():
    # Under a fair draw each of these shares of n weights has a deviation of sqrt(p (1 - p) / n),
    # below 2.2e-4; five deviations are exceeded once in a million seeds.
    weight = torch.empty(4, 1000, 1000)
    dropped = round(0.1 * RESOLUTION)
    mask = keep_mask(dropped, 7, 0, weight)
    share = dropped / RESOLUTION
    assert float(1 - mask.mean()) == pytest.approx(share, abs=5 * (0.09 / mask.numel()) ** 0.5)
    other = keep_mask(dropped, 7, 1, weight)
    for shifted in (mask.roll(1, dims=2), mask.roll(1, dims=1), mask.roll(1, dims=0), other):
        both = float(((mask == 0) & (shifted == 0)).float().mean())
        assert both == pytest.approx(share**2, abs=5 * (share**2 / mask.numel()) ** 0.5)
    assert torch.equal(mask, keep_mask(dropped, 7, 0, weight))


def test_torchs_seed_decides_about_the_mask():
    tensors = inputs()
    attended = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        attended.append(attend(*tensors, scale=0.5, dropout=0.3))
    assert torch.equal(attended[0], attended[1])
    assert not torch.equal(attended[0], attended[2])


def test_bfloat16_is_computed_in_float32():
    tensors = inputs(torch.bfloat16)
    results = []
    for chosen in (tensors, [tensor.detach().float().requires_grad_() for tensor in tensors]):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            attended = attend(*chosen, scale=0.5, dropout=0.3)
        results.append(result_and_gradients(attended, chosen))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
