"""The fast kernels against plain PyTorch: the same outputs and gradients, the same distribution of
dropout.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from mspose.models import kernels
from mspose.models.kernels import Dropout, Linear, Masks, attend, dropout, linear


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(
        shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


def relative_error(found, expected):
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def assert_same(found, expected, tensors, limit):
    """Outputs and gradients agree within `limit` of their largest entry."""
    assert relative_error(found, expected) < limit
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(9)).to(found.dtype)
    for one, other in zip(
        torch.autograd.grad(found, tensors, pull),
        torch.autograd.grad(expected, tensors, pull),
        strict=True,
    ):
        assert one.shape == other.shape
        assert relative_error(one, other) < limit


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(3, 40, 24), (5, 24), (1, 1, 24), (300, 24)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_is_that_of_pytorch(dtype, limit, shape, has_bias):
    input, weight = random(*shape, dtype=dtype), random(17, 24, dtype=dtype, seed=1)
    tensors = [input, weight] + ([random(17, dtype=dtype, seed=2)] if has_bias else [])
    assert_same(linear(*tensors), F.linear(*tensors), tensors, limit)


def test_linear_takes_tensors_that_are_not_contiguous():
    input, weight = (
        random(24, 3, 40, dtype=torch.float32),
        random(24, 17, dtype=torch.float32, seed=1),
    )
    tensors = [input, weight]
    assert_same(
        linear(input.permute(1, 2, 0), weight.T),
        F.linear(input.permute(1, 2, 0), weight.T),
        tensors,
        1e-5,
    )


def test_linear_leaves_out_gradients_that_nobody_asks_for():
    layer = Linear(4, 3).requires_grad_(False)
    input = random(2, 4, dtype=torch.float32)
    layer(input).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    torch.testing.assert_close(input.grad, layer.weight.sum(0).expand(2, 4))


def test_linear_follows_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(4, 3)(torch.ones(2, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("probability", [0.1, 0.37, 0.8])
def test_dropout_has_the_distribution_of_pytorchs(probability):
    torch.manual_seed(0)
    count = 200_000
    dropped = dropout(torch.ones(count), probability, training=True)
    stays = dropped > 0
    kept = 1 - round(probability * 65536) / 65536
    torch.testing.assert_close(dropped[stays], torch.full((int(stays.sum()),), 1 / kept))
    sigma = math.sqrt(kept * (1 - kept) / count)
    assert abs(float(stays.float().mean()) - (1 - probability)) < 5 * sigma
    # elements are independent of their neighbours, also of those that share a 64-bit draw, and of
    # the next mask
    centred = stays.double() - kept
    for step in (1, 2, 3, 4, 64):
        assert abs(float((centred[step:] * centred[:-step]).mean())) < 5 * kept * (
            1 - kept
        ) / math.sqrt(count)
    other = (dropout(torch.ones(count), probability, training=True) > 0).double() - kept
    assert abs(float((centred * other).mean())) < 5 * kept * (1 - kept) / math.sqrt(count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_sends_gradients_through_the_same_mask(dtype):
    input = torch.ones(7, 33, dtype=dtype, requires_grad=True)
    output = dropout(input, 0.3, training=True)
    output.sum().backward()
    assert output.dtype == dtype
    assert torch.equal(input.grad, output.detach())


def test_dropout_follows_the_seed_and_the_mode():
    layer, ones = Dropout(0.5), torch.ones(50)
    torch.manual_seed(3)
    first, second = layer(ones), layer(ones)
    torch.manual_seed(3)
    assert torch.equal(layer(ones), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(ones), ones)
    assert torch.equal(dropout(ones, 0.0, training=True), ones)


def test_dropout_of_nearly_everything_stays_finite():
    assert dropout(torch.ones(1000), 1 - 1e-9, training=True).isfinite().all()


def explicit(query, key, value, weight_factor=1.0, scale=None, bias=0.0):
    score = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale) + bias
    return (torch.softmax(score, dim=-1) * weight_factor) @ value


def inputs(images=2, heads=3, queries=10, keys=14, channels=8, dtype=torch.float64):
    shapes = ((queries, 0), (keys, 1), (keys, 2))
    return [
        random(images, heads, count, channels, dtype=dtype, seed=seed) for count, seed in shapes
    ]


@pytest.fixture(params=["joined heads", "a head each", "parts of heads"])
def chunks(request, monkeypatch):
    """All ways in which the attention map is cut."""
    joined, chunk = {
        "joined heads": (2 * 140, 2**20),
        "a head each": (1, 2**20),
        "parts of heads": (1, 4 * 14),
    }[request.param]
    monkeypatch.setattr(kernels, "JOINED", joined)
    monkeypatch.setattr(kernels, "CHUNK", chunk)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_attention_is_exact(chunks, dtype, limit):
    tensors = inputs(dtype=dtype)
    assert_same(attend(*tensors), explicit(*tensors), tensors, limit)


@pytest.mark.parametrize("scale", [0.05, 1.7])
def test_attention_takes_any_scale(chunks, scale, monkeypatch):
    tensors = inputs()
    assert_same(attend(*tensors, scale=scale), explicit(*tensors, scale=scale), tensors, 1e-12)
    monkeypatch.setattr(kernels, "_plain", lambda tensor: True)  # PyTorch's own takes it alike
    assert_same(attend(*tensors, scale=scale), explicit(*tensors, scale=scale), tensors, 1e-12)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_attention_adds_a_bias_to_the_scores_of_every_image(chunks, dtype, limit, monkeypatch):
    tensors, bias = inputs(images=3, heads=4, dtype=dtype), random(4, 10, 14, dtype=dtype, seed=4)

    def assert_exact():
        expected = explicit(*tensors, scale=0.3, bias=bias)
        assert_same(attend(*tensors, scale=0.3, bias_HQK=bias), expected, [*tensors, bias], limit)

    assert_exact()
    found = attend(*tensors, scale=0.3, bias_HQK=bias.detach())  # one that does not learn
    assert_same(found, explicit(*tensors, scale=0.3, bias=bias.detach()), tensors, limit)
    monkeypatch.setattr(kernels, "_plain", lambda tensor: True)  # PyTorch's own takes it alike
    assert_exact()


def test_a_bias_learns_the_same_each_time_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(kernels, "JOINED", 1)  # enough parts for two threads
    tensors, bias = (
        inputs(images=8, heads=16, dtype=torch.float32),
        random(16, 10, 14, dtype=torch.float32, seed=4),
    )
    gradients = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        gradients += torch.autograd.grad(
            attend(*tensors, bias_HQK=bias, dropout=0.2).square().sum(), bias
        )
    torch.set_num_threads(1)
    assert torch.equal(gradients[1], gradients[2])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_attention_in_bfloat16_takes_a_bias_in_float32():
    tensors = [
        tensor.detach().bfloat16().requires_grad_() for tensor in inputs(dtype=torch.float32)
    ]
    bias = random(3, 10, 14, dtype=torch.float32, seed=4)
    exact = explicit(*[tensor.double() for tensor in tensors], bias=bias)
    found = attend(*tensors, bias_HQK=bias)
    assert found.dtype == torch.bfloat16
    assert relative_error(found.double(), exact) < 1e-2
    pull = torch.ones_like(exact)
    (gradient,), (expected,) = (
        torch.autograd.grad(found, bias, pull.bfloat16()),
        torch.autograd.grad(exact, bias, pull),
    )
    assert gradient.dtype == torch.float32
    assert relative_error(gradient, expected) < 5e-2


def test_attention_takes_heads_that_lie_side_by_side():
    tokens = random(2, 10, 3 * 24, dtype=torch.float32)
    query, key, value = (
        part.unflatten(-1, (3, 8)).transpose(1, 2) for part in tokens.chunk(3, dim=-1)
    )
    assert_same(attend(query, key, value), explicit(query, key, value), [tokens], 1e-5)


def test_attention_stays_finite_for_large_scores():
    query, key, value = (tensor * 1e4 for tensor in inputs(dtype=torch.float32))
    assert attend(query, key, value).isfinite().all()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_attention_dropout_is_exact_for_the_weights_that_it_dropped(chunks, dtype, limit, has_bias):
    query, key, value = inputs(dtype=dtype)
    bias = random(3, 10, 14, dtype=dtype, seed=4) if has_bias else None
    kept = 1 - round(0.4 * 65536) / 65536
    torch.manual_seed(5)
    weights = torch.eye(14, dtype=dtype).expand(
        2, 3, 14, 14
    )  # what attends to it are the weights themselves
    shown = attend(query, key, weights, bias_HQK=bias, dropout=0.4)
    mask = (shown > 0).to(dtype)
    assert 0.3 < float(1 - mask.mean()) < 0.5
    torch.manual_seed(5)
    found = attend(query, key, value, bias_HQK=bias, dropout=0.4)
    learning = [query, key, value] + ([bias] if has_bias else [])
    expected = explicit(query, key, value, mask / kept, bias=bias if has_bias else 0.0)
    assert_same(found, expected, learning, limit)


def test_masks_of_one_seed_are_independent_of_each_other():
    """All pairs and triples of masks, at one place and at places a stretch apart, agree as often as
    chance says.
    """
    masks, kept = Masks(0.25, seed=3, elements=40_000, count=12), 0.75
    drawn = [masks.draw(number, torch.empty(40_000)).double() - kept for number in range(12)]
    deviation = kept * (1 - kept)
    for shift in (0, 1, 2, 128):
        pairs = torch.stack(
            [(a[shift:] * b[: len(b) - shift]).mean() for a, b in itertools.combinations(drawn, 2)]
        )
        assert (pairs.abs() < 5 * deviation / math.sqrt(40_000)).all()
    triples = torch.stack([(a * b * c).mean() for a, b, c in itertools.combinations(drawn, 3)])
    assert (triples.abs() < 5 * deviation**1.5 / math.sqrt(40_000)).all()
    shares = torch.stack([mask.mean() for mask in drawn])
    assert (shares.abs() < 5 * math.sqrt(deviation / 40_000)).all()


def test_masks_of_many_stretches_and_of_a_smaller_last_size_are_drawn_again_alike(monkeypatch):
    monkeypatch.setattr(kernels, "STRETCH", 100)
    first, again = (
        Masks(0.5, seed=1, elements=1001, count=3),
        Masks(0.5, seed=1, elements=1001, count=3),
    )
    drawn = {}
    for number, size in ((0, 1001), (1, 1001), (2, 40)):
        drawn[number] = first.draw(number, torch.empty(size, dtype=torch.float64))
        assert set(drawn[number].unique().tolist()) == {0.0, 1.0}
    for number in (2, 0, 1):  # in any order
        assert torch.equal(drawn[number], again.draw(number, drawn[number]))
    halves = Masks(0.5, seed=1, elements=10_000).draw(0, torch.empty(10_000)).view(2, -1)
    assert 0.4 < float((halves[0] == halves[1]).float().mean()) < 0.6


def test_attention_dropout_has_the_distribution_of_pytorchs():
    """Mean and variance of every output over many draws, ours against
    scaled_dot_product_attention's.
    """
    tensors = [
        tensor.detach() for tensor in inputs(images=1, heads=1, queries=3, keys=6, channels=4)
    ]
    draws = 4000
    repeated = [tensor.expand(draws, -1, -1, -1) for tensor in tensors]
    torch.manual_seed(0)
    ours = attend(*repeated, dropout=0.3)
    theirs = F.scaled_dot_product_attention(*repeated, dropout_p=0.3)
    spread = theirs.std(dim=0)
    assert (((ours.mean(0) - theirs.mean(0)) / spread).abs() < 6 / math.sqrt(draws)).all()
    assert ((ours.std(dim=0) / spread - 1).abs() < 0.1).all()
    assert (((ours.mean(0) - explicit(*tensors)[0]) / spread).abs() < 5 / math.sqrt(draws)).all()


def test_attention_keeps_no_map_for_the_backward_pass():
    """What autograd holds grows with the tokens, not with their square."""
    tensors = inputs(images=1, heads=2, queries=300, keys=300, dtype=torch.float32)
    held = {}

    def hold(tensor):
        held[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        output = attend(*tensors, dropout=0.1)
    assert sum(held.values()) <= 4 * 2 * 300 * 8
    output.sum().backward()


def test_attention_in_bfloat16_is_as_good_as_pytorchs():
    tensors = inputs(queries=40, keys=40, dtype=torch.float32)
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors]
    exact = explicit(*[tensor.double() for tensor in halves])
    ours, theirs = attend(*halves), F.scaled_dot_product_attention(*halves)
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours.double(), exact) < max(
        2 * relative_error(theirs.double(), exact), 1e-2
    )
    pull = torch.ones_like(exact)
    for found, expected in zip(
        torch.autograd.grad(ours, halves, pull.bfloat16()),
        torch.autograd.grad(exact, halves, pull),
        strict=True,
    ):
        assert relative_error(found.double(), expected.double()) < 5e-2
