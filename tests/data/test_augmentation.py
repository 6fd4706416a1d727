import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F

from mspose.data.augmentation import IDENTITY, Jitter, centre_crop, jitter_batch, normalize, random_crop

TORCHVISION = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def draws(count: int, jitter: Jitter, seed: int = 0):
    pairs = [jitter.draw(np.random.default_rng((seed, row))) for row in range(count)]
    return np.stack([value for value, _ in pairs]), np.stack([order for _, order in pairs])


def test_each_image_is_jittered_as_torchvision_does_in_its_own_order():
    image_B3HW = torch.rand(24, 3, 20, 26, generator=torch.Generator().manual_seed(1))
    values, orders = draws(24, Jitter())
    expected = []
    for image, value, order in zip(image_B3HW, values, orders, strict=True):
        for operation in order:
            image = TORCHVISION[operation](image, float(value[operation]))
        expected.append(image)
    result = jitter_batch(image_B3HW, values, orders)
    # the two libraries round the weights of grey differently (0.299 and 0.2989)
    torch.testing.assert_close(result, torch.stack(expected), atol=1e-3, rtol=0)
    assert len({tuple(order) for order in orders}) > 8


def test_an_image_does_not_depend_on_its_neighbours():
    image_B3HW = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    values, orders = draws(6, Jitter())
    whole = jitter_batch(image_B3HW, values, orders)
    for row in range(6):
        alone = jitter_batch(image_B3HW[row : row + 1], values[row : row + 1], orders[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], atol=1e-6, rtol=0)


def test_no_range_changes_nothing():
    image_B3HW = torch.rand(3, 3, 8, 8)
    values, orders = draws(3, Jitter(0, 0, 0, 0))
    assert (values == IDENTITY).all()
    assert torch.equal(jitter_batch(image_B3HW, values, orders), image_B3HW)


def test_parameters_fill_their_ranges():
    values, _ = draws(2000, Jitter(0.5, 0.4, 0.3, 0.2))
    reach = np.array([0.5, 0.4, 0.3, 0.2])
    np.testing.assert_allclose(values.min(axis=0), IDENTITY - reach, atol=0.01)
    np.testing.assert_allclose(values.max(axis=0), IDENTITY + reach, atol=0.01)


@pytest.mark.parametrize("size", [(256, 341), (341, 256), (224, 224), (257, 300)])
def test_the_centre_crop_is_torchvisions(size):
    image = torch.arange(size[0] * size[1]).reshape(1, *size)
    top, left = centre_crop(*size, 224)
    assert torch.equal(image[:, top : top + 224, left : left + 224], F.center_crop(image, [224, 224]))


def test_random_crops_reach_every_place():
    generator = np.random.default_rng(0)
    places = {random_crop(12, 11, 10, generator) for _ in range(200)}
    assert places == {(top, left) for top in range(3) for left in range(2)}


def test_random_crops_stay_within_their_reach():
    generator = np.random.default_rng(0)
    places = np.array([random_crop(30, 50, 10, generator, 0.2) for _ in range(300)])
    assert (places.min(axis=0).tolist(), places.max(axis=0).tolist()) == ([8, 16], [12, 24])
    assert {random_crop(31, 50, 10, generator, 0.0) for _ in range(9)} == {centre_crop(31, 50, 10)}


def test_normalize_is_torchvisions():
    image_B3HW = torch.rand(2, 3, 4, 5)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    torch.testing.assert_close(normalize(image_B3HW, mean, std), F.normalize(image_B3HW, list(mean), list(std)))
