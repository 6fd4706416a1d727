"""A training step's loss and gradients, with terms of the attention and without."""

import logging
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mspose.data.batches import Batch
from mspose.errors import MsposeError
from mspose.losses import PoseLoss
from mspose.models.kinds import make_network
from mspose.objective import Objective, check_attention_terms

TERMS = {"entropy_weight": -0.1, "diversity_weight": 0.2}


def build(kind="ms-transformer", *, precision="float32", dropout=0.0, encoders=(1, 2), **weights):
    torch.manual_seed(0)
    sizes = {"dim": 16, "heads": 2, "feedforward": 16, "head_hidden": 16}
    layers = {"position_encoder_layers": encoders[0], "orientation_encoder_layers": encoders[1]}
    layers |= {"position_decoder_layers": 1, "orientation_decoder_layers": 1}
    network = make_network(
        kind,
        scenes=["attic", "cellar"],
        backbone="test_resnet",
        pretrained=False,
        dropout=dropout,
        attention_dropout=dropout,
        **sizes,
        **layers,
    )
    return Objective(network, PoseLoss(**weights), precision, compile=False)


def step(objective: nn.Module, size: int = 4):
    """The readings of a batch, and the gradient of every weight."""
    generator = torch.Generator().manual_seed(size)
    image, position, orientation = (
        torch.randn(shape, generator=generator)
        for shape in ((size, 3, 64, 64), (size, 3), (size, 4))
    )
    batch = Batch(image, position, orientation, torch.arange(size) % 2, np.arange(size), size)
    objective.zero_grad()
    torch.manual_seed(5)
    loss, readings = objective.train()(batch)
    loss.backward()
    return readings, {
        name: weight.grad
        for name, weight in objective.named_parameters()
        if weight.grad is not None
    }


def assert_same_gradients(found, expected, rtol=1e-4):
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=1e-5 * largest, msg=name)


def test_terms_of_the_attention_join_the_loss_and_are_logged():
    plain, plain_gradients = step(build())
    found, gradients = step(build(**TERMS))
    branches = ("position", "orientation")
    extra = {f"error/{name}_{branch}" for name in ("entropy", "diversity") for branch in branches}
    assert found.keys() - plain.keys() == extra | {"loss/entropy", "loss/diversity"}
    for name, weight in (("entropy", -0.1), ("diversity", 0.2)):
        raw = [float(found[f"error/{name}_{branch}"]) for branch in branches]
        assert all(0 < value <= 1 for value in raw)
        assert float(found[f"loss/{name}"]) == pytest.approx(weight * np.mean(raw), rel=1e-5)
    added = float(found["loss/entropy"] + found["loss/diversity"])
    assert float(found["loss/total"]) == pytest.approx(float(plain["loss/total"]) + added, rel=1e-5)
    for branch in branches:
        name = f"network.{branch}.encoder.layers.0.self_attention.in_proj_weight"
        assert not torch.allclose(gradients[name], plain_gradients[name], rtol=1e-3)


def test_without_such_terms_nothing_is_watched_and_random_numbers_fall_alike(monkeypatch):
    objective = build(dropout=0.3)
    seen = []
    objective.estimate = lambda *arguments, observer: (
        seen.append(observer) or objective.network(*arguments, observer=observer)
    )
    readings, _ = step(objective)
    assert seen == [None]
    watched, _ = step(build(dropout=0.3, **TERMS))
    for name in ("error/position", "error/orientation", "error/scene", "query_key_gap/position"):
        assert float(watched[name]) == pytest.approx(float(readings[name]), rel=1e-5)


@pytest.mark.parametrize("kind", ["ms-transformer", "mspn"])
def test_a_network_without_encoders_has_no_such_terms(kind):
    readings, _ = step(build(kind, encoders=(0, 0), **TERMS))
    assert {name for name in readings if name.startswith("loss/")} == {
        "loss/position", "loss/orientation", "loss/scene", "loss/total",
    }  # fmt: skip


def test_a_step_in_bfloat16_measures_attention_in_float32():
    exact, _ = step(build(**TERMS))
    readings, gradients = step(build(precision="bfloat16", **TERMS))
    assert readings["loss/entropy"].dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for name in ("loss/entropy", "loss/diversity"):
        assert float(readings[name]) == pytest.approx(float(exact[name]), rel=0.02)


@pytest.mark.parametrize(("kind", "weights"), [("ms-transformer", TERMS), ("mspn", {})])
def test_a_compiled_step_is_the_step_and_is_compiled_once(kind, weights, monkeypatch, caplog):
    """Everything but the making of machine code, which takes minutes."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain = build(kind, **weights)
    compiled = Objective(plain.network, plain.loss_of, "float32", compile=True)
    for size in (4, 3, 4):
        (readings, gradients), (found, our_gradients) = step(plain, size), step(compiled, size)
        for name, value in readings.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
        assert_same_gradients(our_gradients, gradients)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not [record.message for record in caplog.records if record.name == "mspose"]
    torch._dynamo.reset()


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch has no distributed package"
)
@pytest.mark.parametrize(
    ("kind", "weights"), [("ms-transformer", TERMS), ("mspn", {"scene_weight": 0.0})]
)
def test_it_trains_under_distributed_data_parallel_with_a_static_graph(kind, weights, tmp_path):
    plain, expected = step(build(kind, **weights))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # that a later name of broadcast_buffers is to be preferred
            objective = DistributedDataParallel(
                build(kind, **weights), broadcast_buffers=False, static_graph=True
            )
        for _ in range(2):  # the second step uses what the first one found out
            readings, gradients = step(objective)
    finally:
        torch.distributed.destroy_process_group()
    assert float(readings["loss/position"]) == pytest.approx(
        float(plain["loss/position"]), rel=1e-4
    )
    assert_same_gradients(
        {name.removeprefix("module."): value for name, value in gradients.items()}, expected
    )


def test_terms_of_attention_need_attention(caplog):
    caplog.set_level(logging.INFO, logger="mspose")
    none = {"qka_weight": 0.0, "entropy_weight": 0.0, "diversity_weight": 0.0}
    check_attention_terms(
        "ms-transformer", qka_weight=0.1, entropy_weight=-1.0, diversity_weight=1.0
    )
    check_attention_terms("mspn", **none)
    assert not caplog.records
    for name in ("entropy_weight", "diversity_weight"):
        with pytest.raises(
            MsposeError, match=f"loss.{name} 0.5: a model of kind mspn has no attention"
        ):
            check_attention_terms("mspn", **{**none, name: 0.5})
    check_attention_terms("mspn", **{**none, "qka_weight": 0.1})
    (record,) = caplog.records
    assert (
        record.message
        == "a model of kind mspn has no queries and keys: loss.qka_weight 0.1 is no term of its"
        " loss"
    )
