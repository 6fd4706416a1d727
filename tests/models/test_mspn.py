"""MSPN against its definition written out in numpy, and as a network among others."""

import numpy as np
import pytest
import torch

from mspose.models.mspn import MSPN
from mspose.models.network import PoseOutput

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
