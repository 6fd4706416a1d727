from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F

from mspose.config import AugmentationSettings
from mspose.data.augmentation import BLUR, COLOUR, CROP, ERASING, JPEG, Augmentation
from mspose.data.images import centre_crop

DEFAULT = AugmentationSettings()
NONE = AugmentationSettings(brightness=0, contrast=0, saturation=0, hue=0)
TORCHVISION = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def noise(count: int, height: int = 20, width: int = 26) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def numbers(count: int) -> np.ndarray:
    return Augmentation(DEFAULT).draw(0, 0, count)


def test_colours_change_as_with_torchvision():
    image_B3HW, uniform_BK = noise(8), numbers(8)
    augmentation = Augmentation(DEFAULT)
    order = augmentation.colour_order(0, 0, 0)
    range_4 = np.array([0.5, 0.5, 0.5, 0.2])
    value_B4 = [1, 1, 1, 0] + range_4 * (2 * uniform_BK[:, COLOUR] - 1)
    expected = []
    for image, value in zip(image_B3HW, value_B4, strict=True):
        for operation in order:
            image = TORCHVISION[operation](image, float(value[operation]))
        expected.append(image)
    result = augmentation.change(image_B3HW.clone(), uniform_BK, order)
    torch.testing.assert_close(result, torch.stack(expected), atol=2e-3, rtol=0)  # grey's weights


def test_orders_differ_from_batch_to_batch_and_leave_out_what_is_off():
    orders = {tuple(Augmentation(DEFAULT).colour_order(0, 0, batch)) for batch in range(200)}
    assert len(orders) == 24
    assert set(map(frozenset, orders)) == {frozenset(range(4))}
    no_contrast = Augmentation(replace(DEFAULT, contrast=0))
    assert sorted(no_contrast.colour_order(0, 0, 0)) == [0, 2, 3]
    assert Augmentation(NONE).colour_order(0, 0, 0) == []


@pytest.mark.parametrize("settings", [DEFAULT, replace(DEFAULT, cutout=0.4, blur=0.6, jpeg=0.6)])
def test_an_image_does_not_depend_on_its_neighbours(settings):
    augmentation = Augmentation(settings)
    image_B3HW, uniform_BK = noise(6, 32, 32), numbers(6)
    order = augmentation.colour_order(0, 0, 0)
    whole = augmentation.change(image_B3HW.clone(), uniform_BK, order)
    whole = augmentation.erase(whole, uniform_BK)
    for row in range(6):
        part = slice(row, row + 1)
        alone = augmentation.change(image_B3HW[part].clone(), uniform_BK[part], order)
        alone = augmentation.erase(alone, uniform_BK[part])
        torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=0)


def test_draws_depend_on_seed_and_epoch_and_not_on_the_settings():
    augmentation = Augmentation(replace(DEFAULT, cutout=0.4, blur=0.6, jpeg=0.6))
    assert np.array_equal(augmentation.draw(3, 4, 10), Augmentation(NONE).draw(3, 4, 10))
    assert not np.array_equal(augmentation.draw(3, 4, 10), augmentation.draw(3, 5, 10))
    assert not np.array_equal(augmentation.draw(3, 4, 10), augmentation.draw(4, 4, 10))


def test_with_everything_off_nothing_changes():
    augmentation = Augmentation(NONE)
    image_B3HW, uniform_BK = noise(6, 32, 32), numbers(6)
    result = augmentation.change(image_B3HW.clone(), uniform_BK, [])
    assert torch.equal(augmentation.erase(result, uniform_BK), image_B3HW)


@pytest.mark.parametrize(("name", "column"), [("blur", BLUR[0]), ("jpeg", JPEG[0])])
def test_blur_and_jpeg_change_their_share_of_the_images_and_no_others(name, column):
    image_B3HW, uniform_BK = noise(40, 32, 32), numbers(40)
    result = Augmentation(replace(NONE, **{name: 0.3})).change(image_B3HW.clone(), uniform_BK, [])
    changed = (result != image_B3HW).flatten(1).any(dim=1).numpy()
    assert np.array_equal(changed, uniform_BK[:, column] < 0.3)
    assert 5 <= changed.sum() <= 20
    assert 0 <= result.min() <= result.max() <= 1 + 1e-5
    rough = (image_B3HW[..., 1:] - image_B3HW[..., :-1]).abs().mean(dim=(1, 2, 3))
    smooth = (result[..., 1:] - result[..., :-1]).abs().mean(dim=(1, 2, 3))
    assert (smooth[changed] < rough[changed]).all()  # both lose detail


def test_random_crops_reach_every_offset_of_every_image():
    height, width = np.array([12, 11] * 300), np.array([11, 13] * 300)
    top, left = Augmentation(DEFAULT).crop(height, width, 10, numbers(600))
    first, second = (
        set(zip(top[start::2].tolist(), left[start::2].tolist(), strict=True)) for start in (0, 1)
    )
    assert first == {(top, left) for top in range(3) for left in range(2)}
    assert second == {(top, left) for top in range(2) for left in range(4)}


def test_random_crops_stay_within_their_reach():
    uniform_BK = numbers(300)
    height, width = np.full(300, 30), np.full(300, 50)
    starts = np.array(
        Augmentation(replace(DEFAULT, crop_reach=0.2)).crop(height, width, 10, uniform_BK)
    )
    assert (starts.min(axis=1).tolist(), starts.max(axis=1).tolist()) == ([8, 16], [12, 24])
    centred = Augmentation(replace(DEFAULT, crop_reach=0.0)).crop(height + 1, width, 10, uniform_BK)
    assert set(zip(*centred, strict=True)) == {centre_crop(31, 50, 10)}


@pytest.mark.parametrize("cutout", [0.2, 0.4, 0.45, 1.0])
def test_a_square_about_a_random_pixel_is_erased_and_may_reach_over_the_border(cutout):
    image_B3HW, uniform_BK = noise(200, 20, 20) + 1, numbers(200)
    result = Augmentation(replace(DEFAULT, cutout=cutout)).erase(image_B3HW, uniform_BK)
    side = round(20 * cutout)
    start_B2 = np.floor(20 * uniform_BK[:, ERASING]).astype(int) - side // 2
    pixel = np.arange(20)
    row_BH, column_BW = (
        (pixel >= start_B[:, None]) & (pixel < start_B[:, None] + side) for start_B in start_B2.T
    )
    inside_BHW = torch.from_numpy(row_BH[:, :, None] & column_BW[:, None])
    assert torch.equal(result, image_B3HW * ~inside_BHW[:, None])


def test_numbers_of_different_changes_are_independent():
    columns = np.concatenate([CROP, COLOUR, ERASING, BLUR, JPEG])
    assert columns.tolist() == list(range(14))
    correlation = np.corrcoef(numbers(3000).T) - np.eye(14)
    assert np.abs(correlation).max() < 0.1
