"""Rotary encoding and T5's relative bias against their published definitions in float64 numpy."""

import math

import numpy as np
import pytest
import torch

from mspose.models.position_encoding import ADDED_ENCODINGS
from mspose.models.relative_position import (
    RelativeBias,
    Rotary,
    TokenPositions,
    make_relative_position,
    rotate,
)

CPU = torch.device("cpu")
MAPS = [(14, 14), (3, 7), (28, 5), (1, 1)]


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotary_oracle(token_BHND, height, width):
    """Heo et al.'s axial frequencies: complex numbers times e^(i theta_t p), one pair of channels
    at a time.
    """
    pairs = token_BHND[..., 0::2] + 1j * token_BHND[..., 1::2]
    quarter = token_BHND.shape[-1] // 4
    for y in range(height):
        for x in range(width):
            for t in range(quarter):
                theta = 100 ** (-t / quarter)
                pairs[:, :, y * width + x, t] *= np.exp(1j * theta * y)
                pairs[:, :, y * width + x, quarter + t] *= np.exp(1j * theta * x)
    return np.stack((pairs.real, pairs.imag), axis=-1).reshape(token_BHND.shape)


@pytest.mark.parametrize(("height", "width"), MAPS)
@pytest.mark.parametrize("channels", [4, 12, 32])
def test_rotary_agrees_with_its_definition(height, width, channels):
    token = random(2, 3, height * width, channels)
    rotation = Rotary(channels)(height, width, torch.float64, CPU).rotation_2NP
    np.testing.assert_allclose(
        rotate(token, rotation), rotary_oracle(token.numpy(), height, width), rtol=1e-12, atol=1e-12
    )


def test_rotary_scores_depend_on_how_far_apart_query_and_key_are():
    query, key = (random(8, seed=seed).expand(1, 1, 30, 8) for seed in (1, 2))
    rotation = Rotary(8)(5, 6, torch.float64, CPU).rotation_2NP
    score = (rotate(query, rotation) @ rotate(key, rotation).mT).view(5, 6, 5, 6)
    torch.testing.assert_close(score[:4, :5, :4, :5], score[1:, 1:, 1:, 1:])
    assert not torch.allclose(score[0, 0, 0, 1:], score[0, 0, 0, :1])
    assert not torch.allclose(score[0, 0, 1:, 0], score[0, 0, :1, 0])
    torch.testing.assert_close(rotate(query, rotation).norm(dim=-1), query.norm(dim=-1))


def test_rotary_keeps_the_dtype_of_the_tokens_and_the_precision_of_the_angles():
    encoding = make_relative_position("rotary", 16, 2)
    rotation = encoding(28, 28, torch.float32, CPU).rotation_2NP
    exact = Rotary(8)(28, 28, torch.float64, CPU).rotation_2NP
    torch.testing.assert_close(rotation.double(), exact, rtol=0, atol=1e-7)
    token = random(1, 2, 784, 8).bfloat16()
    assert rotate(token, rotation).dtype == torch.bfloat16
    torch.testing.assert_close(
        rotate(token, rotation), rotate(token.double(), exact).bfloat16(), rtol=0.01, atol=1e-3
    )
    assert encoding(28, 28, torch.float32, CPU).rotation_2NP is rotation
    assert not list(encoding.state_dict())


def t5_bucket(relative_position):
    """`_relative_position_bucket` of the released T5, with its defaults, bidirectional; key less
    query.
    """
    buckets, max_distance = 16, 128
    bucket = buckets * (relative_position > 0)
    distance = np.abs(relative_position)
    exact = buckets // 2
    with np.errstate(divide="ignore"):
        logarithm = np.log(distance / exact) / math.log(max_distance / exact)
    large = np.minimum(np.floor(exact + logarithm * (buckets - exact) + 1e-9), buckets - 1)
    return (bucket + np.where(distance < exact, distance, large)).astype(int)


def test_buckets_are_those_of_t5():
    offset = np.arange(-300, 301)
    found = RelativeBias(8, 2).bucket(torch.from_numpy(offset)).numpy()
    np.testing.assert_array_equal(found, t5_bucket(offset))
    assert set(found) == set(range(32)) - {16}  # 16 would be a key to the right at distance 0


@pytest.mark.parametrize(("height", "width"), [*MAPS, (150, 2)])
def test_bias_is_the_sum_of_the_entries_for_rows_and_for_columns(height, width):
    torch.manual_seed(0)
    module = RelativeBias(8, 3).double()
    bias = module(height, width, torch.float64, CPU).bias_HNN
    assert bias.shape == (3, height * width, height * width)
    row, column = module.row.detach().numpy(), module.column.detach().numpy()
    y, x = np.divmod(np.arange(height * width), width)
    expected = row[t5_bucket(y[None] - y[:, None])] + column[t5_bucket(x[None] - x[:, None])]
    np.testing.assert_array_equal(bias.detach(), expected.transpose(2, 0, 1))


def test_gradients_reach_the_entries_in_use():
    module = RelativeBias(8, 2)
    module(3, 2, torch.float32, CPU).bias_HNN.sum().backward()
    counts = torch.zeros(32)
    counts[[0, 1, 2, 17, 18]] = (
        torch.tensor([3.0, 2, 1, 2, 1]) * 4
    )  # of 3 rows; each pair of them has 2 x 2 columns
    assert torch.equal(module.row.grad, counts[:, None].expand(-1, 2))
    assert (module.column.grad[[0, 1, 17]] == torch.tensor([18.0, 9, 9])[:, None]).all()


def test_tables_start_as_t5s_and_leave_the_random_stream_as_it_was():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    module = RelativeBias(256, 64)
    assert torch.equal(torch.rand(3), expected)
    for table in (module.row, module.column):
        assert table.shape == (32, 64)
        assert table.std().item() == pytest.approx(1 / 16, rel=0.05)
        assert abs(table.mean().item()) < 0.006
    assert not torch.equal(module.row, module.column)
    assert list(module.state_dict()) == ["row", "column"]


def test_what_is_added_to_tokens_has_no_relative_position():
    for name in ADDED_ENCODINGS:
        assert make_relative_position(name, 16, 2) is None
    assert make_relative_position("none", 16, 2)(3, 4, torch.float32, CPU) == TokenPositions()


@pytest.mark.parametrize(("dim", "heads"), [(12, 2), (6, 3)])
def test_rotary_refuses_channels_that_do_not_divide(dim, heads):
    with pytest.raises(ValueError, match=f"multiple of 4 channels per head, found {dim // heads}"):
        make_relative_position("rotary", dim, heads)
