"""All kinds of networks: settings, input, autocast, the recomputed backbone."""

import dataclasses

import pytest
import torch
from conftest import SMALL_NETWORK

from mspose.config import ModelSettings
from mspose.errors import MsposeError
from mspose.models.kinds import KINDS, build_network, make_network
from mspose.models.stored import read_construction

SCENES = ("attic", "barn", "cellar")
SETTINGS = ModelSettings(**SMALL_NETWORK, dropout=0.0, attention_dropout=0.0)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
POSES = ("position_B3", "orientation_B4", "scene_log_probability_BS")


def build(kind, **changes):
    torch.manual_seed(0)
    return make_network(SCENES, SETTINGS, kind=kind, **changes)


def image(batch=2, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@EVERY_KIND
def test_settings_and_scenes_rebuild_the_network(kind):
    network = build(kind, dropout=0.2).eval()
    assert type(network) is KINDS[kind]
    assert network.scenes == SCENES
    assert network.settings == dataclasses.replace(SETTINGS, kind=kind, dropout=0.2)
    again = KINDS[kind](network.scenes, network.settings).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(image()).position_B3, network(image()).position_B3)
    assert (network.mean, network.std) == (network.backbone.mean, network.backbone.std)
    assert set(KINDS[kind].shaping) <= set(ModelSettings.__dataclass_fields__)


@EVERY_KIND
def test_older_descriptions_are_read_and_saved_as_new_ones(kind, tmp_path):
    network = build(kind)
    own = dataclasses.asdict(network.settings)
    for name in ("kind", "pretrained", "query_initialisation"):  # the last was added later
        own.pop(name)
    if kind == "mspn":
        own = {name: own[name] for name in ("backbone", "head_hidden", "dropout")}
    preprocessing = {"resize": 48, "crop": 40, "mean": list(network.mean), "std": list(network.std)}
    older = {
        "format": 1,
        "kind": kind,
        "architecture": {"scenes": list(SCENES), **own},
        "preprocessing": preprocessing,
        "trained_on": {"dataset": "small"},
    }
    again = build_network(older, network.state_dict(), tmp_path)
    assert again.scenes == SCENES
    for name in network.shaping:
        assert getattr(again.settings, name) == getattr(network.settings, name)
    assert torch.equal(again(image()).position_B3, network.eval()(image()).position_B3)
    described = again.describe()
    assert described.keys() == {"scenes", "settings", "preprocessing", "trained_on"}
    assert described["preprocessing"] == preprocessing
    assert read_construction(described, tmp_path) == (again.settings, list(SCENES))


@EVERY_KIND
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scenes": []}, "scenes: expected at least one"),
        ({"scenes": ["a", "b", "a"]}, "scenes: expected each name once, found a"),
        ({"head_hidden": 0}, "head_hidden: .*0"),
        ({"dropout": 1.0}, "dropout: expected a probability below 1"),
        ({"backbone": "efficientnet_lite"}, "there is no backbone called"),
        ({"kind": "posenet"}, "kind: expected one of ms-transformer, mspn, found 'posenet'"),
    ],
)
def test_refuses_settings_that_make_no_network(kind, arguments, words):
    with pytest.raises(MsposeError, match=words):
        make_network(**{"scenes": SCENES, "settings": SETTINGS, "kind": kind, **arguments})
    with pytest.raises(TypeError, match="wings"):
        build(kind, wings=2)


@EVERY_KIND
@pytest.mark.parametrize(
    ("image_B3HW", "scene_B", "words"),
    [
        (torch.zeros(2, 4, 64, 64), None, r"image_B3HW: expected shape \(batch, 3, height, width"),
        (torch.zeros(0, 3, 64, 64), None, r"image_B3HW: .*found \(0, 3, 64, 64\)"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), None, "normalised .* found torch.uint8"),
        (torch.zeros(2, 3, 31, 64), None, "expected at least 32x32 pixels, found 31x64"),
        (image(), torch.zeros(3).long(), r"scene_B: expected shape \(2\), found \(3,\)"),
        (image(), torch.zeros(2), "scene_B: expected int64 indices, found torch.float32"),
        (image(), torch.tensor([0, 3]), r"expected indices in 0\.\.2 of 3 scenes, found 3"),
        (image(), torch.tensor([-1, 0]), r"expected indices in 0\.\.2 .*found -1"),
    ],
)
def test_refuses_wrong_input(kind, image_B3HW, scene_B, words):
    with pytest.raises(ValueError, match=words):
        build(kind).eval()(image_B3HW, scene_B)


@EVERY_KIND
def test_training_needs_the_scenes(kind):
    with pytest.raises(ValueError, match="expected the index of each image's scene in training"):
        build(kind)(image())


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_poses_and_probabilities_in_float32(kind, dtype):
    network, scene = build(kind), torch.tensor([0, 2])
    exact = network(image(), scene)
    with torch.autocast("cpu", dtype=dtype):
        output = network(image(), scene)
    for name in POSES:
        assert output[name].dtype == torch.float32
        torch.testing.assert_close(output[name], exact[name], rtol=0.1, atol=0.1)
    assert all(gap.dtype == torch.float32 for gap in output.query_key_gap.values())


def held_by_autograd(network, pixels, scene):
    """Outputs, gradients by name, running statistics, and how many bytes autograd held for the
    backward pass.
    """
    held = {}

    def hold(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network.zero_grad()
    torch.manual_seed(4)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        output = network(pixels, scene)
    (output.position_B3.sum() + output.orientation_B4.sum()).backward()
    gradients = {
        name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None
    }
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return output.position_B3.detach(), gradients, statistics, sum(held.values())


@EVERY_KIND
@pytest.mark.parametrize("backbone", ["efficientnet_b0", "efficientnet_lite0"])
def test_a_recomputed_backbone_changes_memory_alone(kind, backbone):
    """Dropout of whole blocks, which torchvision's B0 has, drops the same ones, and running
    statistics move once.
    """
    network = build(kind, backbone=backbone).train()
    pixels, scene = image(), torch.tensor([0, 1])
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    *expected, plain = held_by_autograd(network, pixels, scene)
    network.load_state_dict(start)
    network.recompute_backbone = True
    *found, less = held_by_autograd(network, pixels, scene)
    torch.testing.assert_close(found, expected)
    assert less < 0.5 * plain
