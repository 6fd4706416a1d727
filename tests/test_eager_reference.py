"""The network gives the eager reference's outputs and gradients; the reference loader gives the
cache's pixels.
"""

import numpy as np
import pytest
import torch
from conftest import SMALL_NETWORK
from PIL import Image

from mspose.data.images import centre_crop, normalize, read_image, resize_short_side
from mspose.losses import PoseLoss
from mspose.models.mstransformer import MSTransformer
from mspose.tools.eager_reference import EagerReference, reference_batches, reference_transform

SMALL = {
    "scenes": ("attic", "barn", "cellar"),
    **SMALL_NETWORK,
    "position_encoder_layers": 2,
    "orientation_decoder_layers": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def build(**changes):
    """A network with nothing at zero or one, in float64."""
    torch.manual_seed(0)
    network = MSTransformer(**{**SMALL, **changes}).double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def batch(count=3, size=64):
    generator = torch.Generator().manual_seed(1)
    image_B3HW = torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
    position_B3 = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    orientation_B4 = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return image_B3HW, position_B3, orientation_B4, torch.arange(count) % len(SMALL["scenes"])


def assert_same_output(found, expected):
    for name in ("position_B3", "orientation_B4", "scene_log_probability_BS", "scene_B"):
        torch.testing.assert_close(
            found[name], expected[name], **EXACT, msg=lambda text, name=name: f"{name}: {text}"
        )
    for branch, gap_BLH in expected.query_key_gap.items():
        torch.testing.assert_close(found.query_key_gap[branch], gap_BLH, **EXACT)


VARIANTS = pytest.mark.parametrize("changes", [
    {},
    {"position_encoding": "learned"},
    {"position_encoder_layers": 0, "orientation_encoder_layers": 0},
    {"backbone": "efficientnet_b0"},
], ids=["sine", "learned", "no encoder", "efficientnet_b0"])  # fmt: skip


@VARIANTS
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_outputs_and_gradients_are_those_of_the_network(changes, training):
    network = build(**changes).train(training)
    reference = EagerReference(network)
    image_B3HW, *truth = batch()
    sides = []
    for side in (network, reference):
        torch.manual_seed(2)  # the backbone's stochastic depth
        output = side(image_B3HW, truth[-1])
        sum(PoseLoss(qka_weight=0.1)(output, *truth).values()).backward()
        sides.append(
            (output, {name: parameter.grad for name, parameter in side.named_parameters()})
        )
    (found, gradients), (expected, judges) = sides
    assert_same_output(found, expected)
    assert set(gradients) == set(judges)
    for name, judge in judges.items():
        torch.testing.assert_close(
            gradients[name], judge, **EXACT, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_in_float32_outputs_and_gradients_are_within_rounding_of_the_reference():
    """To 1e-5 of the largest number of each output and gradient, plus three times the rounding
    error of the reference.

    The backbone has smooth activations. With ReLU6 (`efficientnet_lite0`) this says nothing: an
    activation that lies within rounding of a kink falls on either side of it, and moves the first
    convolution's gradient by 7e-4 of its largest number, in float64 too when the image changes by
    1e-7. With SiLU rounding stays below 3e-6.
    """
    network = build().float()
    reference, exact = EagerReference(network), EagerReference(network).double()
    image_B3HW, *truth = batch()
    sides = []
    for side, dtype in (
        (network, torch.float32),
        (reference, torch.float32),
        (exact, torch.float64),
    ):
        output = side(image_B3HW.to(dtype), truth[-1])
        sum(PoseLoss(qka_weight=0.1).to(dtype)(output, *truth).values()).backward()
        gradients = {name: parameter.grad.double() for name, parameter in side.named_parameters()}
        sides.append(
            {"position": output.position_B3.double(), "orientation": output.orientation_B4.double()}
            | gradients
        )
    for name, judge in sides[2].items():
        ours, theirs = (float((side[name] - judge).detach().abs().max()) for side in sides[:2])
        assert ours <= 3 * theirs + 1e-5 * float(judge.detach().abs().max()) + 1e-7, name


@VARIANTS
def test_the_predicted_scene_is_the_same(changes):
    network = build(**changes).eval()
    reference = EagerReference(network)
    with torch.no_grad():
        assert_same_output(network(batch()[0]), reference(batch()[0]))


def test_is_independent_of_the_network_it_was_made_from():
    network = build().eval()
    reference = EagerReference(network)
    before = reference(batch()[0]).position_B3
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    torch.testing.assert_close(reference(batch()[0]).position_B3, before, rtol=0, atol=0)


def test_lays_its_weights_out_in_the_default_way():
    network = build().to(memory_format=torch.channels_last)
    assert all(parameter.is_contiguous() for parameter in EagerReference(network).parameters())


def test_drops_attention_weights_in_training():
    network = build(attention_dropout=0.5).train()
    reference = EagerReference(network)
    image_B3HW, *truth = batch()
    torch.manual_seed(0)
    one = reference(image_B3HW, truth[-1]).position_B3
    torch.manual_seed(1)
    assert not torch.allclose(one, reference(image_B3HW, truth[-1]).position_B3)


@pytest.mark.parametrize("size", [(80, 60), (50, 90)])
def test_loads_what_prediction_sees(tmp_path, size):
    path = tmp_path / "image.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)).save(path)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    transform = reference_transform(
        resize=48, crop=40, mean=mean, std=std, random_crop=False, jitter=False
    )
    (found,) = reference_batches([path, path], transform, batch_size=2)

    resized = resize_short_side(read_image(path), 48)
    top, left = centre_crop(*resized.shape[:2], 40)
    crop = torch.from_numpy(
        np.ascontiguousarray(resized[top : top + 40, left : left + 40])
    ).permute(2, 0, 1)
    expected = normalize(crop[None].float().div_(255), mean, std)[0]
    torch.testing.assert_close(found, torch.stack([expected, expected]))


def test_jitter_and_random_crop_change_an_image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)).save(
        path
    )
    torch.manual_seed(0)
    for random in ({"random_crop": True, "jitter": False}, {"random_crop": False, "jitter": True}):
        transform = reference_transform(resize=48, crop=40, mean=(0, 0, 0), std=(1, 1, 1), **random)
        (found,) = reference_batches([path, path], transform, batch_size=8)
        assert found.shape == (2, 3, 40, 40)
        assert not torch.equal(found[0], found[1]), random
