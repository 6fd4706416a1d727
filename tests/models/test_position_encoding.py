"""The encodings against formulas written out in numpy."""

import numpy as np
import pytest
import torch

from mspose.errors import MsposeError
from mspose.models.position_encoding import (
    POSITION_ENCODINGS,
    LearnedEncoding,
    make_position_encoding,
    sine_encoding,
)

CPU = torch.device("cpu")


def sine_oracle(height, width, dim, normalized):
    half = dim // 2
    encoding = np.empty((height, width, dim))
    for y in range(height):
        for x in range(width):
            for axis, (place, length) in enumerate(((y + 1, height), (x + 1, width))):
                angle = place * 2 * np.pi / length if normalized else place
                for channel in range(half):
                    phase = angle / 10000 ** (2 * (channel // 2) / half)
                    encoding[y, x, axis * half + channel] = (
                        np.cos(phase) if channel % 2 else np.sin(phase)
                    )
    return encoding.reshape(height * width, dim)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("height", "width", "dim"), [(28, 28, 64), (14, 9, 256), (1, 3, 4)])
def test_sine_agrees_with_the_formula(height, width, dim, normalized):
    encoding = sine_encoding(height, width, dim, normalized=normalized)
    assert encoding.dtype == torch.float32
    np.testing.assert_allclose(encoding, sine_oracle(height, width, dim, normalized), atol=3e-6)


def test_sine_puts_the_row_first():
    encoding = sine_encoding(3, 5, 8, normalized=False).view(3, 5, 8)
    assert torch.equal(encoding[:, 0, :4], encoding[:, 4, :4])
    assert torch.equal(encoding[0, :, 4:], encoding[2, :, 4:])
    assert not torch.equal(encoding[0, :, :4], encoding[1, :, :4])


def test_the_two_sine_encodings_differ():
    assert not torch.allclose(
        sine_encoding(14, 14, 32, normalized=False),
        sine_encoding(14, 14, 32, normalized=True),
        atol=0.1,
    )


def test_sine_has_the_same_values_in_every_precision():
    # The released code rounds to float32 on a float64 network too, and its answers are met to 1e-9
    # only so.
    single = sine_encoding(14, 14, 32, normalized=False)
    assert torch.equal(
        sine_encoding(14, 14, 32, normalized=False, dtype=torch.float64), single.double()
    )
    assert torch.equal(
        sine_encoding(14, 14, 32, normalized=False, dtype=torch.bfloat16), single.bfloat16()
    )


def test_sine_is_remembered_and_serves_training_after_inference():
    module = make_position_encoding("sine", 8)
    with torch.inference_mode():
        first = module(3, 4, torch.float32, CPU)
    assert module(3, 4, torch.float32, CPU) is first
    assert not first.is_inference()
    assert module(4, 3, torch.float32, CPU).shape == first.shape
    assert not torch.equal(module(4, 3, torch.float32, CPU), first)
    assert module(3, 4, torch.float64, CPU).dtype == torch.float64
    for size in range(1, 40):  # remembers a bounded number of sizes
        torch.testing.assert_close(
            module(size, 1, torch.float32, CPU), sine_encoding(size, 1, 8, normalized=False)
        )
    assert len(module._remembered) <= 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_sine_does_not_keep_the_rounding_of_a_cast_network(dtype):
    module = make_position_encoding("sine", 8)
    expected = module(3, 4, torch.float32, CPU).clone()
    torch.testing.assert_close(
        module.to(dtype).float()(3, 4, torch.float32, CPU), expected, rtol=0, atol=0
    )
    assert not list(module.state_dict())


def test_learned_agrees_with_its_tables_column_first():
    torch.manual_seed(0)
    module = LearnedEncoding(6).double()
    encoding = module(4, 5, torch.float64, CPU).detach().numpy()
    row, column = module.row.detach().numpy(), module.column.detach().numpy()
    for y in range(4):
        for x in range(5):
            np.testing.assert_array_equal(encoding[y * 5 + x], np.concatenate((column[x], row[y])))


def test_learned_tables_start_uniform_between_0_and_1():
    torch.manual_seed(0)
    module = LearnedEncoding(256)
    for table in (module.row, module.column):
        assert table.shape == (50, 128)
        assert 0 <= table.min() < 0.01
        assert 0.99 < table.max() <= 1
        assert table.mean().item() == pytest.approx(0.5, abs=0.02)


def test_learned_gradients_reach_the_rows_and_columns_in_use():
    module = LearnedEncoding(4)
    module(3, 2, torch.float32, CPU).sum().backward()
    assert (module.row.grad[:3] == 2).all()
    assert (module.column.grad[:2] == 3).all()
    assert (module.row.grad[3:] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(51, 4), (4, 51)])
def test_learned_refuses_maps_beyond_its_tables(height, width):
    with pytest.raises(MsposeError, match=f"50 rows and 50 columns.*{height} and {width}"):
        LearnedEncoding(4)(height, width, torch.float32, CPU)
    assert LearnedEncoding(4)(50, 50, torch.float32, CPU).shape == (2500, 4)


def test_factory_knows_its_names():
    for name in POSITION_ENCODINGS:
        assert make_position_encoding(name, 8)(2, 3, torch.float32, CPU).shape == (6, 8)
    torch.testing.assert_close(
        make_position_encoding("sine-normalized", 8)(2, 3, torch.float32, CPU),
        sine_encoding(2, 3, 8, normalized=True),
    )
    for name in ("rotary", "relative-bias", "none"):  # what the decoders' keys have under them
        assert torch.equal(
            make_position_encoding(name, 8)(2, 3, torch.float32, CPU),
            sine_encoding(2, 3, 8, normalized=False),
        )
    with pytest.raises(ValueError, match="learned, sine, .*relative-bias, none, found 'cosine'"):
        make_position_encoding("cosine", 8)


@pytest.mark.parametrize(("name", "dim"), [("sine", 6), ("sine-normalized", 2), ("learned", 5)])
def test_refuses_channels_that_do_not_divide(name, dim):
    with pytest.raises(ValueError, match=f"found {dim}"):
        make_position_encoding(name, dim)
