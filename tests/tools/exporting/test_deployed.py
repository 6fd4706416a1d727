import numpy as np
import pytest
import torch
from conftest import SMALL_NETWORK

import mspose
from mspose.inference import Preprocessing
from mspose.models.kinds import make_network
from mspose.poses import normalize_quaternion
from mspose.tools.exporting.agreement import deviation
from mspose.tools.exporting.deployed import Deployed, GraphPreprocessing, unit_quaternion
from mspose.tools.exporting.formats import trace

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def both(height: int, width: int, resize: int, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, 0 to 255, of one noise image in the graph and through PIL."""
    rng = np.random.default_rng(height * width)
    image_HW3 = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    graph = GraphPreprocessing(resize, crop, *PLAIN)(torch.from_numpy(image_HW3)[None])
    return graph * 255, Preprocessing(resize, crop, *PLAIN)(image_HW3) * 255


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [
        (480, 640, 256, 224),
        (640, 480, 256, 224),
        (256, 455, 256, 224),  # its short side fits already
        (224, 224, 224, 224),
        (1080, 1920, 256, 224),
        (1501, 997, 256, 223),
        (100, 133, 256, 224),  # enlarged
        (47, 48, 48, 48),
        (1600, 1700, 40, 33),  # by more than 32 pixels to one
        (1, 1, 48, 40),
        (600, 200, 64, 56),
        (2000, 100, 64, 56),
        (3, 100, 32, 32),
        *(
            (height, width, 61, 44)
            for height in (60, 61, 62, 118)
            for width in (59, 61, 122, 245, 397)
        ),
    ],
)
def test_pixels_are_those_of_pil(height, width, resize, crop):
    graph_13CC, pil_13CC = both(height, width, resize, crop)
    assert graph_13CC.shape == (1, 3, crop, crop)
    assert torch.equal(graph_13CC, pil_13CC)


def test_quaternions_are_of_unit_length_and_of_one_sign():
    rng = np.random.default_rng(0)
    quaternion_B4 = rng.normal(size=(40, 4)) * 10.0 ** rng.integers(-3, 4, (40, 1))
    quaternion_B4[:3, 0] = 0
    quaternion_B4[:3, 1] = (0, 2, -2)
    quaternion_B4[3] = (0, 0, 0, -5)
    found_B4 = unit_quaternion(torch.from_numpy(quaternion_B4))
    np.testing.assert_allclose(found_B4.numpy(), normalize_quaternion(quaternion_B4), atol=1e-15)


def test_a_fixed_scene_is_the_scene_of_all_images(small_run):
    estimator = mspose.load(small_run, "cpu")
    preparation = estimator.preprocessing
    inside = GraphPreprocessing(
        preparation.resize, preparation.crop, preparation.mean, preparation.std
    )
    for index, scene in enumerate(estimator.scenes):
        module = Deployed(inside, estimator.network, scene=index)

        def answer(image_BHW3, module=module):
            with torch.no_grad():
                return {
                    name: value.numpy()
                    for name, value in module(torch.from_numpy(image_BHW3)).items()
                }

        other = estimator.scenes[1 - index]
        assert deviation(answer, estimator, scene).tolerable
        assert deviation(answer, estimator, other).position == np.inf


@pytest.mark.parametrize(
    "choice",
    [
        {
            "position_encoding": "learned",
            "query_key_weights": "sigma-reparam",
            "position_encoder_layers": 0,
        },
        {"position_encoding": "rotary", "attention_scale": "tokens"},
        {"position_encoding": "relative-bias", "query_key_weights": "spectral-norm"},
        {"kind": "mspn"},
    ],
    ids=lambda choice: next(iter(choice.values())),
)
def test_every_kind_of_network_is_traced(choice):
    torch.manual_seed(0)
    settings = SMALL_NETWORK | {"backbone": "test_resnet"} | choice
    network = make_network(["a", "b"], **settings)
    module = Deployed(GraphPreprocessing(36, 32, network.mean, network.std), network.eval()).eval()
    program = trace(module).module()
    rng = np.random.default_rng(0)
    for shape in ((1, 50, 70, 3), (5, 33, 20, 3)):
        image_BHW3 = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        with torch.no_grad():
            expected, found = module(image_BHW3), program(image_BHW3)
        assert list(found) == list(expected)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
