"""Folded batch norms: gone, and nobody can tell from the answers."""

import pytest
import torch
from torch import nn

from mspose.models.fusion import fold_batch_norms
from mspose.models.mstransformer import MSTransformer


def norms(module):
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


def worn_in(network, size=64):
    """A network whose batch norms have seen images, in evaluation mode."""
    torch.manual_seed(1)
    network.train()
    with torch.no_grad():
        network(torch.randn(4, 3, size, size, dtype=torch.float64), torch.tensor([0, 1, 0, 1]))
    return network.eval()


def make(backbone, **settings):
    torch.manual_seed(0)
    layers = {
        f"{branch}_{coder}_layers": 1
        for branch in ("position", "orientation")
        for coder in ("encoder", "decoder")
    }
    sizes = {"dim": 16, "heads": 2, "feedforward": 16, "head_hidden": 16}
    network = MSTransformer(
        scenes=["a", "b"], backbone=backbone, pretrained=False, **sizes, **layers, **settings
    )
    return worn_in(network.double())


@pytest.mark.parametrize("encoding", ["sine", "learned"])
@pytest.mark.parametrize(
    "backbone", ["efficientnet_b0", "efficientnet_lite0", "resnet18", "mobilenetv3_small_100"]
)
def test_a_fused_network_answers_as_before(backbone, encoding):
    network = make(backbone, position_encoding=encoding)
    image = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    with torch.inference_mode():
        before = network(image)
        assert norms(network) > 5
        fused = network.fuse()
        for _ in range(2):  # the second time from what was remembered
            after = fused(image)
            torch.testing.assert_close(after.position_B3, before.position_B3, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(
                after.orientation_B4, before.orientation_B4, rtol=1e-9, atol=1e-9
            )
            torch.testing.assert_close(
                after.scene_log_probability_BS,
                before.scene_log_probability_BS,
                rtol=1e-9,
                atol=1e-9,
            )
            for branch, gap in before.query_key_gap.items():
                torch.testing.assert_close(after.query_key_gap[branch], gap, rtol=1e-9, atol=1e-9)
    assert norms(fused) == 0
    assert not any(parameter.requires_grad for parameter in fused.parameters())


def test_a_fused_network_takes_images_of_several_sizes_and_autocast():
    network = make("efficientnet_lite0").float()
    images = [torch.randn(1, 3, *size) for size in ((64, 64), (96, 64), (64, 64))]
    with torch.inference_mode():
        before = [network(image).position_B3 for image in images]
        network.fuse()
        with torch.autocast("cpu", torch.bfloat16):
            half = network(images[0]).position_B3
        after = [network(image).position_B3 for image in images]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half, before[0], rtol=0.1, atol=0.1)


def test_a_network_in_training_mode_is_not_fused_and_a_fused_one_not_trained():
    network = make("resnet18")
    with pytest.raises(ValueError, match="call .eval"):
        network.train().fuse()
    assert norms(network) > 0
    with pytest.raises(ValueError, match="a fused network cannot be trained"):
        network.eval().fuse().train()


class Shared(nn.Module):
    """Convolutions whose output somebody else reads too, or that run twice: their norms must stay."""

    def __init__(self):
        super().__init__()
        self.alone, self.alone_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.read_twice, self.read_twice_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.twice_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.before_norm = nn.BatchNorm2d(3)

    def forward(self, image):
        image = self.alone_norm(self.alone(self.before_norm(image)))
        map = self.read_twice(image)
        image = map + self.read_twice_norm(map)
        return (self.twice_norm(self.twice(self.twice(image))),)


def test_only_norms_that_alone_read_a_convolution_are_folded():
    torch.manual_seed(0)
    module = Shared().double()
    for norm in (layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
    module.eval()
    image = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    before = module(image)[0]
    assert fold_batch_norms(module, lambda: module(image)) == 1
    torch.testing.assert_close(module(image)[0], before)
    assert isinstance(module.alone_norm, nn.Identity)
    assert norms(module) == 3
