"""Encodings of token positions against their published definitions, written out in numpy."""

import math

import numpy as np
import pytest
import torch

from mspose.errors import MsposeError
from mspose.models.token_positions import (
    TOKEN_POSITIONS,
    LearnedEncoding,
    RelativeBias,
    Rotary,
    SineEncoding,
    TokenPositions,
    rotate,
)

CPU = torch.device("cpu")
FLOAT, DOUBLE = torch.float32, torch.float64
MAPS = [(14, 14), (3, 7), (28, 5), (1, 1)]


def random(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def sine_oracle(height, width, dim, normalized):
    half = dim // 2
    encoding = np.empty((height, width, dim))
    for y in range(height):
        for x in range(width):
            for axis, (index, length) in enumerate(((y + 1, height), (x + 1, width))):
                angle = index * 2 * np.pi / length if normalized else index
                for channel in range(half):
                    phase = angle / 10000 ** (2 * (channel // 2) / half)
                    encoding[y, x, axis * half + channel] = (
                        np.cos(phase) if channel % 2 else np.sin(phase)
                    )
    return encoding.reshape(height * width, dim)


@pytest.mark.parametrize(("name", "normalized"), [("sine", False), ("sine-normalized", True)])
@pytest.mark.parametrize(("height", "width", "dim"), [(28, 28, 64), (14, 9, 256), (1, 3, 4)])
def test_sine_agrees_with_the_formula(name, normalized, height, width, dim):
    encoding = TOKEN_POSITIONS[name].added(dim)(height, width, FLOAT, CPU).added_NC
    assert encoding.dtype == FLOAT
    # float32 holds an angle of up to 28 to 2e-6
    np.testing.assert_allclose(encoding, sine_oracle(height, width, dim, normalized), atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sine_has_the_same_values_in_every_precision_and_after_a_cast(dtype):
    # The released code rounds to float32 on a float64 network too.
    single = SineEncoding(32)(14, 14, FLOAT, CPU).added_NC
    assert torch.equal(SineEncoding(32)(14, 14, dtype, CPU).added_NC, single.to(dtype))
    module = SineEncoding(32).to(dtype).float()
    assert torch.equal(module(14, 14, FLOAT, CPU).added_NC, single)
    assert not list(module.state_dict())


def test_learned_agrees_with_its_tables_column_first():
    torch.manual_seed(0)
    module = LearnedEncoding(6).double()
    encoding = module(4, 5, DOUBLE, CPU).added_NC
    encoding.sum().backward()
    row, column = module.row.detach().numpy(), module.column.detach().numpy()
    for y in range(4):
        for x in range(5):
            expected = np.concatenate((column[x], row[y]))
            np.testing.assert_array_equal(encoding[y * 5 + x].detach(), expected)
    assert module.row.grad[:, 0].tolist() == [5.0] * 4 + [0.0] * 46
    assert module.column.grad[:, 0].tolist() == [4.0] * 5 + [0.0] * 45


def test_learned_tables_start_uniform_between_0_and_1():
    torch.manual_seed(0)
    for table in LearnedEncoding(256).parameters():
        assert table.shape == (50, 128)
        assert 0 <= table.min() < 0.01
        assert 0.99 < table.max() <= 1
        assert table.mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(51, 4), (4, 51)])
def test_learned_refuses_maps_beyond_its_tables(height, width):
    with pytest.raises(MsposeError, match=f"50 rows and columns.*{height} and {width}"):
        LearnedEncoding(4)(height, width, FLOAT, CPU)
    assert LearnedEncoding(4)(50, 50, FLOAT, CPU).added_NC.shape == (2500, 4)


def rotary_oracle(token_BHND, height, width):
    """Multiply pairs of channels, as complex numbers, by e^(i theta_t p) (Heo et al.)."""
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
    rotation = Rotary(3 * channels, 3)(height, width, DOUBLE, CPU).rotation_2NP
    expected = rotary_oracle(token.numpy(), height, width)
    np.testing.assert_allclose(rotate(token, rotation), expected, rtol=1e-12, atol=1e-12)


def test_rotary_scores_depend_on_the_offset_from_query_to_key():
    query, key = (random(8, seed=seed).expand(1, 1, 30, 8) for seed in (1, 2))
    rotation = Rotary(8, 1)(5, 6, DOUBLE, CPU).rotation_2NP
    score = (rotate(query, rotation) @ rotate(key, rotation).mT).view(5, 6, 5, 6)
    torch.testing.assert_close(score[:4, :5, :4, :5], score[1:, 1:, 1:, 1:])
    assert not torch.allclose(score[0, 0, 0, 1:], score[0, 0, 0, :1])
    assert not torch.allclose(score[0, 0, 1:, 0], score[0, 0, :1, 0])


def test_rotary_keeps_the_dtype_of_the_tokens_and_the_precision_of_the_angles():
    rotation = Rotary(16, 2)(28, 28, FLOAT, CPU).rotation_2NP
    exact = Rotary(16, 2)(28, 28, DOUBLE, CPU).rotation_2NP
    torch.testing.assert_close(rotation.double(), exact, rtol=0, atol=1e-7)
    token = random(1, 2, 784, 8).bfloat16()
    assert rotate(token, rotation).dtype == torch.bfloat16


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


@pytest.mark.parametrize(("height", "width"), [*MAPS, (150, 2)])
def test_bias_is_the_sum_of_the_entries_for_rows_and_for_columns(height, width):
    torch.manual_seed(0)
    module = RelativeBias(8, 3).double()
    bias = module(height, width, DOUBLE, CPU).bias_HNN
    row, column = module.row.detach().numpy(), module.column.detach().numpy()
    y, x = np.divmod(np.arange(height * width), width)
    expected = row[t5_bucket(y[None] - y[:, None])] + column[t5_bucket(x[None] - x[:, None])]
    np.testing.assert_array_equal(bias.detach(), expected.transpose(2, 0, 1))


def test_tables_of_the_bias_start_as_t5s():
    torch.manual_seed(0)
    module = RelativeBias(256, 64)
    for table in module.parameters():
        assert table.shape == (32, 64)
        assert table.std().item() == pytest.approx(1 / 16, rel=0.05)
        assert abs(table.mean().item()) < 0.006
    assert list(module.state_dict()) == ["row", "column"]


@pytest.mark.parametrize("name", TOKEN_POSITIONS)
def test_every_name_gives_the_decoders_something_to_add_and_the_encoders_one_form(name):
    encoding = TOKEN_POSITIONS[name]
    added = encoding.added(8)(2, 3, FLOAT, CPU)
    assert added.added_NC.shape == (6, 8)
    if encoding.encoder is None:
        return
    # encoders with an encoding of their own: the decoders' keys have the fixed sine encoding
    assert torch.equal(added.added_NC, SineEncoding(8)(2, 3, FLOAT, CPU).added_NC)
    forms = encoding.encoder(8, 2)(2, 3, FLOAT, CPU)
    assert isinstance(forms, TokenPositions)
    assert forms.added_NC is None
    assert sum(form is not None for form in forms) == (name != "none")
