import math

import kornia.enhance as enhance
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F

from mspose.data.augmentation import (
    IDENTITY,
    Jitter,
    centre_crop,
    cut_out,
    jitter_batch,
    normalize,
    random_crop,
    random_hole,
)

TORCHVISION = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def draws(count: int, jitter: Jitter, seed: int = 0):
    return jitter.parameters(np.random.default_rng(seed).random((count, 5)))


def test_each_image_is_jittered_as_torchvision_does_in_its_own_order():
    image_B3HW = torch.rand(24, 3, 20, 26, generator=torch.Generator().manual_seed(1))
    values, orders = draws(24, Jitter())
    expected = []
    for image, value, order in zip(image_B3HW, values, orders, strict=True):
        for operation in order:
            image = TORCHVISION[operation](image, float(value[operation]))
        expected.append(image)
    result = jitter_batch(image_B3HW, values, orders)
    torch.testing.assert_close(result, torch.stack(expected), atol=1e-5, rtol=0)
    assert len({tuple(order) for order in orders}) > 8


def test_an_image_does_not_depend_on_its_neighbours():
    image_B3HW = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    values, orders = draws(6, Jitter())
    whole = jitter_batch(image_B3HW, values, orders)
    for row in range(6):
        alone = jitter_batch(
            image_B3HW[row : row + 1], values[row : row + 1], orders[row : row + 1]
        )
        torch.testing.assert_close(alone[0], whole[row], atol=1e-6, rtol=0)


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.03, 0.5])
def test_the_hue_of_every_colour_is_turned_as_torchvision_does(turns):
    levels = torch.linspace(0, 1, 6)
    image_13HW = torch.cartesian_prod(levels, levels, levels).T.reshape(
        1, 3, 12, 18
    )  # greys and pure colours too
    values, orders = np.array([[1, 1, 1, turns]]), np.array([[3, 0, 1, 2]])
    expected = F.adjust_hue(image_13HW, turns)
    torch.testing.assert_close(
        jitter_batch(image_13HW, values, orders), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("operation", "judge", "unit"),
    [
        (0, enhance.adjust_brightness_accumulative, 1.0),
        (2, enhance.adjust_saturation_with_gray_subtraction, 1.0),
        (3, enhance.adjust_hue, 2 * math.pi),
    ],
)
def test_kornia_agrees(operation, judge, unit):
    """But for contrast, which kornia takes from the mean of the colours, torchvision from that of
    the grey image.
    """
    image_B3HW = torch.rand(5, 3, 9, 9, generator=torch.Generator().manual_seed(4))
    values = np.tile(IDENTITY, (5, 1))
    values[:, operation] = np.array([0.8, 1.3, 0.5, 1.0, 1.5]) - (operation == 3)
    expected = judge(image_B3HW, torch.from_numpy(values[:, operation] * unit).float())
    found = jitter_batch(image_B3HW, values, np.tile(np.arange(4), (5, 1)))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_the_batch_that_is_given_stays_as_it_is():
    image_B3HW = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    before = image_B3HW.clone()
    jitter_batch(image_B3HW, *draws(4, Jitter()))
    assert torch.equal(image_B3HW, before)


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
    assert torch.equal(
        image[:, top : top + 224, left : left + 224], F.center_crop(image, [224, 224])
    )


def test_random_crops_reach_every_place_of_every_image():
    height, width = np.array([12, 11] * 300), np.array([11, 13] * 300)
    top, left = random_crop(height, width, 10, np.random.default_rng(0).random((600, 2)))
    first, second = (
        set(zip(top[start::2].tolist(), left[start::2].tolist(), strict=True)) for start in (0, 1)
    )
    assert first == {(top, left) for top in range(3) for left in range(2)}
    assert second == {(top, left) for top in range(2) for left in range(4)}


def test_random_crops_stay_within_their_reach():
    uniform = np.random.default_rng(0).random((300, 2))
    places = np.array(random_crop(30, 50, 10, uniform, 0.2))
    assert (places.min(axis=1).tolist(), places.max(axis=1).tolist()) == ([8, 16], [12, 24])
    top, left = random_crop(31, 50, 10, uniform, 0.0)
    assert {(top, left) for top, left in zip(top, left, strict=True)} == {centre_crop(31, 50, 10)}


def test_normalize_is_torchvisions():
    image_B3HW = torch.rand(2, 3, 4, 5)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    torch.testing.assert_close(
        normalize(image_B3HW, mean, std), F.normalize(image_B3HW, list(mean), list(std))
    )


@pytest.mark.parametrize("side", [1, 4, 5, 9, 20])
def test_a_square_is_cut_out_of_every_image_pixel_by_pixel(side):
    image_B3HW = torch.rand(6, 3, 9, 9, generator=torch.Generator().manual_seed(1)) + 1
    top_B, left_B = np.array([-2, 0, 3, 8, 2, -9]), np.array([4, 0, -1, 8, 2, 3])
    expected = image_B3HW.numpy().copy()
    for image, top, left in zip(expected, top_B, left_B, strict=True):
        for row in range(9):
            for column in range(9):
                if top <= row < top + side and left <= column < left + side:
                    image[:, row, column] = 0
    np.testing.assert_array_equal(cut_out(image_B3HW, top_B, left_B, side), expected)


@pytest.mark.parametrize("side", [4, 5])
def test_the_square_lies_about_a_pixel_of_the_image_and_may_reach_over_its_border(side):
    top, left = random_hole(10, side, np.random.default_rng(0).random((3000, 2)))
    for start in (top, left):
        assert set((start + side // 2).tolist()) == set(range(10))
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.1
