import logging
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn

from mspose.data.batches import Batch
from mspose.losses import Objective, PoseLoss
from mspose.models.compilation import Compiled
from mspose.models.mstransformer import MSTransformer
from mspose.models.network import Observer


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    """Nothing that was compiled before."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def said(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == "mspose"]


def waves(input_BC: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    return (input_BC * factor).sin().sum(dim=1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_function_gives_the_same_values_and_gradients(caplog):
    compiled = Compiled(waves)
    input_BC = torch.linspace(-1, 1, 12).view(4, 3).requires_grad_()
    plain, quick = waves(input_BC), compiled(input_BC)
    torch.testing.assert_close(quick, plain)
    (expected,) = torch.autograd.grad(plain.sum(), input_BC)
    torch.testing.assert_close(torch.autograd.grad(quick.sum(), input_BC), (expected,))
    assert compiled.chosen is not waves
    assert not said(caplog)


def test_without_a_compiler_a_message_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/g++"))
    compiled = Compiled(waves)
    input_BC = torch.ones(4, 3)
    caplog.set_level(logging.WARNING, logger="mspose")
    for _ in range(2):
        assert torch.equal(compiled(input_BC, factor=3.0), waves(input_BC, factor=3.0))
    (message,) = said(caplog)
    assert message.startswith("torch.compile cannot be used here, going on without it (")
    assert "/nowhere/g++" in message
    assert "\n" not in message


def test_what_the_function_raises_is_raised(caplog):
    def refuses(input_BC: torch.Tensor) -> torch.Tensor:
        raise ValueError("three, please")

    with pytest.raises(ValueError, match="three, please"):
        Compiled(refuses)(torch.ones(2))
    assert not said(caplog)


@pytest.fixture
def objective_of():
    torch.manual_seed(0)
    sizes = {
        "dim": 16,
        "heads": 2,
        "feedforward": 16,
        "head_hidden": 16,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    names = ("position_encoder", "position_decoder", "orientation_encoder", "orientation_decoder")
    layers = {f"{name}_layers": 1 for name in names}
    network = MSTransformer(
        scenes=["attic", "cellar"], backbone="test_resnet", pretrained=False, **sizes, **layers
    )
    return partial(Objective, network, PoseLoss(), "float32")


def step(objective: nn.Module, size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch, and the gradient of every weight."""
    generator = torch.Generator().manual_seed(size)
    image, position, orientation = (
        torch.randn(shape, generator=generator)
        for shape in ((size, 3, 64, 64), (size, 3), (size, 4))
    )
    batch = Batch(image, position, orientation, torch.arange(size) % 2, np.arange(size), size)
    objective.zero_grad()
    loss, _ = objective.train()(batch)
    loss.backward()
    return loss, {
        name: weight.grad
        for name, weight in objective.named_parameters()
        if weight.grad is not None
    }


def test_a_compiled_step_is_the_step_and_is_compiled_once(objective_of, monkeypatch, caplog):
    """Everything but the making of machine code, which takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = objective_of(compile=False), objective_of(compile=True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for size in (4, 3, 4):
        our_loss, our_gradients = step(compiled, size)
        loss, gradients = step(
            plain, size
        )  # what it remembers must not make the compiler start again
        assert our_loss.item() == pytest.approx(loss.item(), rel=1e-5)
        assert our_gradients.keys() == gradients.keys()
        largest = max(gradient.abs().max() for gradient in gradients.values())
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                our_gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(largest), msg=name
            )
    with torch.no_grad():
        compiled.network.eval()(torch.zeros(2, 3, 64, 64), observer=Observer())  # as a look does
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not said(caplog)
