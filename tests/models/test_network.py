"""What all kinds of networks share: what they refuse, and the backbone that is recomputed."""

import pytest
import torch

from mspose.models.kinds import KINDS, make_network

SIZES = {"dim": 16, "heads": 4, "feedforward": 24, "head_hidden": 20}
LAYERS = {
    f"{branch}_{stack}_layers": 1
    for branch in ("position", "orientation")
    for stack in ("encoder", "decoder")
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def build(kind, backbone="test_efficientnet"):
    torch.manual_seed(0)
    scenes = ("attic", "barn", "cellar")
    return make_network(kind, scenes=scenes, backbone=backbone, pretrained=False, **SIZES, **LAYERS)


def image(batch=2, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@EVERY_KIND
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            (torch.zeros(2, 4, 64, 64),),
            r"image_B3HW: expected shape \(batch, 3, height, width\), found \(2, 4, 64, 64\)",
        ),
        ((torch.zeros(3, 64, 64),), r"image_B3HW: .*found \(3, 64, 64\)"),
        ((torch.zeros(0, 3, 64, 64),), r"image_B3HW: .*found \(0, 3, 64, 64\)"),
        (
            (torch.zeros(2, 3, 64, 64, dtype=torch.uint8),),
            "image_B3HW: expected normalised .* found torch.uint8",
        ),
        ((torch.zeros(2, 3, 31, 64),), "image_B3HW: expected at least 32x32 pixels, found 31x64"),
        (
            (torch.zeros(2, 3, 64, 64), torch.zeros(3, dtype=torch.int64)),
            r"scene_B: expected shape \(2\), found \(3,\)",
        ),
        (
            (torch.zeros(2, 3, 64, 64), torch.zeros(2)),
            "scene_B: expected int64 indices, found torch.float32",
        ),
        (
            (torch.zeros(2, 3, 64, 64), torch.tensor([0, 3])),
            r"scene_B: expected indices in 0\.\.2 of 3 scenes, found 3",
        ),
        (
            (torch.zeros(2, 3, 64, 64), torch.tensor([-1, 0])),
            r"scene_B: expected indices in 0\.\.2 .*found -1",
        ),
    ],
)
def test_refuses_wrong_input_at_the_door(kind, arguments, words):
    with pytest.raises(ValueError, match=words):
        build(kind).eval()(*arguments)


@EVERY_KIND
def test_training_needs_the_scenes(kind):
    network = build(kind)
    with pytest.raises(
        ValueError, match="scene_B: expected the index of each image's scene in training mode"
    ):
        network(image())
    network.eval()(image())


def held_by_autograd(network, pixels, scene):
    """Outputs, gradients by name, running statistics, and how many numbers autograd held for the
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
    """Dropout of whole blocks (torchvision's B0 has it) falls alike, and running statistics move
    once.
    """
    network = build(kind, backbone).train()
    pixels, scene = image(), torch.tensor([0, 1])
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    position, gradients, statistics, plain = held_by_autograd(network, pixels, scene)
    network.load_state_dict(start)
    network.recompute_backbone = True
    again_position, again_gradients, again_statistics, less = held_by_autograd(
        network, pixels, scene
    )
    torch.testing.assert_close(again_position, position)
    for found, expected in ((again_gradients, gradients), (again_statistics, statistics)):
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], msg=name)
    assert less < 0.5 * plain
