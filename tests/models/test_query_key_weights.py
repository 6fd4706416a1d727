"""Both parametrisations against singular values from numpy."""

import copy

import numpy as np
import pytest
import torch

from mspose.models.query_key_weights import make_query_key_weights

NAMES = ("spectral-norm", "sigma-reparam")


def matrices(seed=0, size=12):
    return torch.randn(
        2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def largest(weight_MCC):
    return np.linalg.norm(weight_MCC.detach().numpy(), 2, axis=(1, 2))[:, None, None]


def by_definition(name, weight_MCC, start_MCC):
    norm = largest(start_MCC) if name == "spectral-norm" else 1.0
    return norm / largest(weight_MCC) * weight_MCC.detach().numpy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_is_exact_from_the_first_step_on(name, training):
    start = matrices()
    found = make_query_key_weights(name, start).train(training)(start)
    np.testing.assert_allclose(found.detach(), by_definition(name, start, start), rtol=1e-12)
    np.testing.assert_allclose(
        largest(found), largest(start) if name == "spectral-norm" else 1.0, rtol=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_follows_weights_that_change_by_one_power_iteration_a_step(name):
    start, other = matrices(), matrices(seed=1)
    module = make_query_key_weights(name, start)
    u = torch.linalg.svd(start)[0][:, :, 0].numpy()
    for _ in range(3):
        v = np.einsum("mcd,mc->md", other.numpy(), u)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        u = np.einsum("mcd,md->mc", other.numpy(), v)
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        sigma = np.einsum("mc,mcd,md->m", u, other.numpy(), v)[:, None, None]
        norm = largest(start) if name == "spectral-norm" else 1.0
        np.testing.assert_allclose(module(other).detach(), norm / sigma * other.numpy(), rtol=1e-11)
    for _ in range(2000):
        found = module(other)
    np.testing.assert_allclose(found.detach(), by_definition(name, other, start), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_stays_on_the_largest_singular_value_through_the_small_steps_of_an_optimiser(name):
    start = matrices()
    module, weight = make_query_key_weights(name, start), start.clone()
    for step in range(30):
        weight += 1e-3 * matrices(seed=2 + step)
        found = module(weight)
    np.testing.assert_allclose(found.detach(), by_definition(name, weight, start), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_take_the_singular_vectors_as_constant(name):
    start = matrices(size=4)
    module = make_query_key_weights(name, start).eval()
    weight = (2 * start + 0.3 * matrices(1, size=4)).requires_grad_()
    assert torch.autograd.gradcheck(module, (weight,))
    # d sigma / d W = u v^T, the gradient of the singular value itself where u and v are its vectors
    module = make_query_key_weights(name, weight).eval()
    pull = matrices(3, size=4)
    (found,) = torch.autograd.grad((module(weight) * pull).sum(), weight)
    sigma = torch.linalg.matrix_norm(weight, 2)[:, None, None]
    (expected,) = torch.autograd.grad(
        (module.norm_M.detach()[:, None, None] * weight / sigma * pull).sum(), weight
    )
    torch.testing.assert_close(found, expected)


def test_gamma_is_learned_and_the_first_norm_is_kept():
    start = matrices()
    reparam, normal = (
        make_query_key_weights(name, start) for name in ("sigma-reparam", "spectral-norm")
    )
    assert [name for name, _ in reparam.named_parameters()] == ["norm_M"]
    assert torch.equal(reparam.norm_M, torch.ones(2, dtype=torch.float64))
    assert not list(normal.parameters())
    assert set(reparam.state_dict()) == set(normal.state_dict()) == {"norm_M", "u_MC", "v_MC"}
    pull = matrices(3)
    (reparam(start) * pull).sum().backward()
    expected = (start / torch.from_numpy(largest(start)) * pull).sum(dim=(1, 2))
    torch.testing.assert_close(reparam.norm_M.grad, expected)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_move_in_training_alone_and_travel_with_the_state(name):
    start, other = matrices(), matrices(seed=1)
    module = make_query_key_weights(name, start)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.eval()(other)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    first = module.train()(other)
    assert not torch.equal(module.u_MC, before["u_MC"])
    copied = copy.deepcopy(module)
    loaded = make_query_key_weights(name, matrices(seed=4))
    loaded.load_state_dict(module.state_dict())
    second = module(other)
    assert not torch.equal(first, second)
    assert torch.equal(copied(other), second)
    assert torch.equal(loaded(other), second)


@pytest.mark.parametrize("name", NAMES)
def test_two_passes_before_a_backward_pass(name):
    weight = matrices().requires_grad_()
    module = make_query_key_weights(name, weight)
    (module(weight).sum() + module(weight).sum()).backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_computes_in_the_precision_of_the_weights_under_autocast(name):
    start = matrices().float()
    module = make_query_key_weights(name, start)
    expected = copy.deepcopy(module)(start)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(start)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
