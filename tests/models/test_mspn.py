"""MSPN against its definition written out in numpy, and as a network among others."""

import numpy as np
import pytest
import torch
from torch import nn

from mspose.errors import MsposeError
from mspose.models.mspn import MSPN
from mspose.models.network import Observer, PoseOutput

SCENES = ("attic", "barn", "cellar")


def build(**changes):
    torch.manual_seed(0)
    settings = {
        "scenes": SCENES,
        "backbone": "test_efficientnet",
        "pretrained": False,
        "head_hidden": 20,
        **changes,
    }
    return MSPN(**settings)


def image(batch=4, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


def oracle(model, pixels):
    """Log-probabilities, and every scene's position and orientation, (B, S, ...) in float64."""
    with torch.no_grad():
        feature = model.backbone(pixels)[0].numpy().mean(axis=(2, 3))
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def linear(name, value, rows=slice(None)):
        return value @ weights[f"{name}.weight"][rows].T + weights[f"{name}.bias"][rows]

    hidden = np.maximum(linear("hidden", feature), 0)
    logit = linear("scene", hidden)
    log_probability = logit - np.log(np.exp(logit).sum(axis=1, keepdims=True))
    poses = []
    for name, count in (("position_head", 3), ("orientation_head", 4)):
        own = [
            linear(name, hidden, slice(count * scene, count * scene + count))
            for scene in range(len(SCENES))
        ]
        poses.append(np.stack(own, axis=1))
    return log_probability, *poses


def test_it_is_a_classifier_and_a_linear_head_per_scene_on_shared_features():
    model = build().double().eval()
    pixels = image().double()
    with torch.no_grad():
        model.scene.bias -= model(pixels).scene_log_probability_BS.mean(
            dim=0
        )  # so that images go to several scenes
    log_probability, position, orientation = oracle(model, pixels)
    assert len(set(log_probability.argmax(axis=1))) > 1
    with torch.no_grad():
        free = model(pixels)
        given = model(pixels, torch.tensor([2, 0, 1, 2]))
    assert isinstance(free, PoseOutput)
    assert free.query_key_gap == {}
    for output, scene in ((free, log_probability.argmax(axis=1)), (given, np.array([2, 0, 1, 2]))):
        assert output.scene_B.tolist() == scene.tolist()
        np.testing.assert_allclose(output.scene_log_probability_BS, log_probability, atol=1e-12)
        np.testing.assert_allclose(output.position_B3, position[np.arange(4), scene], atol=1e-12)
        np.testing.assert_allclose(
            output.orientation_B4, orientation[np.arange(4), scene], atol=1e-12
        )


def test_a_scenes_head_learns_from_its_own_images_alone():
    model = build().train()
    model(image(2), torch.tensor([1, 1])).position_B3.sum().backward()
    rows = model.position_head.weight.grad.abs().sum(dim=1) > 0
    assert rows.tolist() == [False] * 3 + [True] * 3 + [False] * 3


@pytest.mark.parametrize("backbone", ["test_efficientnet", "efficientnet_lite0"])
def test_every_parameter_is_trained(backbone):
    model = build(backbone=backbone).train()
    output = model(image(2), torch.tensor([0, 2]))
    (
        output.position_B3.sum()
        + output.orientation_B4.sum()
        + output.scene_log_probability_BS[:, 0].sum()
    ).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_dropout_is_that_of_the_hidden_layer():
    model = build(dropout=0.5)
    model.backbone.eval()
    seen = []
    model.scene.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for mode in (False, True):
        model.train(mode)
        model.backbone.eval()
        model(image(), torch.tensor([0, 1, 2, 0]))
    plain, dropped = seen
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])
    assert 0.2 < float((plain[~kept] > 0).sum() / (plain > 0).sum()) < 0.8


def test_the_observer_has_nothing_to_see():
    class Alert(Observer):
        def encoder(self, *_):
            raise AssertionError

        decoder = encoder

    model = build().eval()
    torch.testing.assert_close(
        model(image(), observer=Alert()).position_B3, model(image()).position_B3
    )


def test_architecture_rebuilds_the_network():
    model = build(dropout=0.2).eval()
    again = MSPN(**model.architecture, pretrained=False).eval()
    assert again.architecture == model.architecture
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(image()).position_B3, model(image()).position_B3)
    assert (model.mean, model.std) == (model.backbone.mean, model.backbone.std)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_poses_and_probabilities_in_float32(dtype):
    model = build(dropout=0).train()
    exact = model(image(), torch.tensor([0, 2, 1, 1]))
    with torch.autocast("cpu", dtype=dtype):
        output = model(image(), torch.tensor([0, 2, 1, 1]))
    for name in ("position_B3", "orientation_B4", "scene_log_probability_BS"):
        assert output[name].dtype == torch.float32
        torch.testing.assert_close(output[name], exact[name], rtol=0.1, atol=0.1)


def test_a_fused_network_says_the_same_and_is_not_trained():
    model = build().eval()
    before = model(image())
    after = model.fuse()(image())
    torch.testing.assert_close(after.position_B3, before.position_B3, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    with pytest.raises(ValueError, match="a fused network cannot be trained"):
        model.train()


def test_compiles_without_graph_breaks():
    torch._dynamo.reset()
    model = build(dropout=0).train()
    scene = torch.tensor([0, 2, 1, 1])
    output = torch.compile(model, fullgraph=True, backend="eager")(image(), scene)
    torch.testing.assert_close(output.position_B3, model(image(), scene).position_B3)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenes": []}, "scenes: expected at least one"),
        ({"scenes": ["a", "b", "a"]}, "scenes: expected each name once, found a"),
        ({"head_hidden": 0}, "head_hidden: expected at least 1, found 0"),
        ({"dropout": 1.0}, "dropout: expected a probability"),
        ({"backbone": "efficientnet_lite"}, "there is no backbone called"),
    ],
)
def test_refuses_settings_that_make_no_network(changes, words):
    with pytest.raises(MsposeError, match=words):
        build(**changes)
