"""Self-attention replaced in a network, against the replacement computed by hand."""

from contextlib import contextmanager

import pytest
import torch

from mspose.attention.knock_out import BOTH, KnockOut, answers, knock_outs
from mspose.models.mstransformer import MSTransformer

DEPTH = {"position": 1, "orientation": 2}


def network(**changes) -> MSTransformer:
    torch.manual_seed(4)
    sizes = {"dim": 16, "heads": 2, "feedforward": 16, "head_hidden": 16}
    layers = {f"{branch}_encoder_layers": count for branch, count in DEPTH.items()}
    layers |= {f"{branch}_decoder_layers": 1 for branch in DEPTH}
    options = {"backbone": "efficientnet_lite0", "pretrained": False, **sizes, **layers}
    made = MSTransformer(["attic", "cellar", "yard"], **(options | changes)).double().eval()
    for parameter in made.parameters():  # biases start at 0, where some faults cannot be seen
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    return made


def images(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 64, 48, dtype=torch.float64, generator=generator)


def by_hand(attention, by):
    """A hook that replaces what an attention returns."""

    def replace(_, inputs, output):
        value_BNC = inputs[2]
        weight_CC, bias_C = attention.in_proj_weight[32:], attention.in_proj_bias[32:]
        value_BNC = value_BNC @ weight_CC.T + bias_C
        if by == "mean":
            value_BNC = value_BNC.mean(dim=1, keepdim=True).expand_as(value_BNC)
        tokens_BNC = value_BNC @ attention.out_proj.weight.T + attention.out_proj.bias
        return (tokens_BNC if by != "nothing" else 0 * tokens_BNC), output[1]

    return attention.register_forward_hook(replace)


@contextmanager
def hooked(model, what):
    """Let the whole network compute under hooks."""
    branches = list(DEPTH) if what.branch == BOTH else [what.branch]
    hooks = [
        by_hand(layer.self_attention, what.by)
        for branch in branches
        for number, layer in enumerate(model.get_submodule(branch).encoder.layers, 1)
        if what.layer in (None, number)
    ]
    yield
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def expected(model, what):
    with hooked(model, what):
        return model(images())


def assert_same(output, wanted):
    for name in ("position_B3", "orientation_B4", "scene_log_probability_BS"):
        torch.testing.assert_close(output[name], wanted[name])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position_encoding": "relative-bias", "attention_scale": "tokens"},
        {"position_encoding": "rotary", "query_key_weights": "sigma-reparam"},
    ],
)
def test_every_knock_out_is_what_a_replaced_output_of_the_attention_gives(changes):
    model = network(**changes)
    with torch.inference_mode():
        found = answers(model, images())
        assert list(found) == [None, *knock_outs(model)]
        assert_same(found[None], model(images()))
    for what in knock_outs(model):
        wanted = expected(model, what)
        assert_same(found[what], wanted)
        assert not torch.allclose(wanted.position_B3, found[None].position_B3, atol=1e-9) or (
            not torch.allclose(wanted.orientation_B4, found[None].orientation_B4, atol=1e-9)
        )


def test_both_branches_each_branch_and_each_layer_are_knocked_out_in_three_ways():
    found = knock_outs(network())
    assert len(found) == 3 * (1 + 2 + 3)
    assert {(what.branch, what.layer) for what in found} == {
        ("both", None),
        ("position", None),
        ("orientation", None),
        ("position", 1),
        ("orientation", 1),
        ("orientation", 2),
    }


def test_a_branch_without_encoder_layers_has_nothing_to_knock_out():
    model = network(position_encoder_layers=0)
    assert {what.branch for what in knock_outs(model)} == {"orientation"}
    with torch.inference_mode():
        found = answers(model, images())
        assert_same(found[KnockOut("own", "orientation")], expected(model, knock_outs(model)[1]))


def test_the_network_is_as_it_was_afterwards_even_after_an_error(monkeypatch):
    model = network()
    with torch.inference_mode():
        before = model(images()).position_B3
        answers(model, images())
        assert torch.equal(model(images()).position_B3, before)
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="own"):
            patch.setattr("mspose.attention.knock_out._finish", fail_if_replaced)
            answers(model, images())
        assert torch.equal(model(images()).position_B3, before)


def fail_if_replaced(branch, *_):
    if any(layer.self_attention.replacement for layer in branch.encoder.layers):
        raise RuntimeError("own")
