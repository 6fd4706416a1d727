import logging
import shutil

import pytest
import torch
import torch._dynamo

from mspose.models.compilation import Compiled


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
