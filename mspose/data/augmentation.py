"""Augmentation of training images: random crop, colour jitter, erasing, motion blur and JPEG.

kornia changes the images. Its parameters are drawn here from (seed, epoch, frame), the order of the
colour operations from (seed, epoch, batch), so that a batch is the same after a resume and on any
number of processes. Draws are integers and uniform numbers that are only scaled: no rounding of a
mathematics library can change them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from kornia.augmentation import RandomErasing
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
    jpeg_codec_differentiable,
)
from kornia.filters import motion_blur
from numpy.typing import NDArray
from torch import Tensor

from mspose.config import AugmentationSettings

# kornia's versions of what torchvision's ColorJitter does, in the order of `_ranges`
COLOUR_OPERATIONS = (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
    adjust_hue,
)
BLUR_LENGTHS = np.array([3, 5, 7, 9, 11])
"""Lengths of a motion blur in pixels."""
JPEG_QUALITY = (30.0, 95.0)

# columns of the random numbers of an image; new ones go to the end, so that the others stay
CROP, COLOUR, ERASING, BLUR, JPEG = np.split(np.arange(14), [2, 6, 8, 12])


class Augmentation:
    """Random changes of training images, as the settings say.

    Numbers of one image, uniform in [0, 1), come from `draw`; rows of them go to the other methods.
    """

    def __init__(self, settings: AugmentationSettings):
        self.settings = settings
        # brightness, contrast, saturation: a factor about 1; hue: a shift in radians about 0
        self._centre_4 = np.array([1.0, 1.0, 1.0, 0.0])
        self._range_4 = np.array(
            [
                settings.brightness,
                settings.contrast,
                settings.saturation,
                2 * math.pi * settings.hue,
            ]
        )
        self._erasing = RandomErasing(p=1.0)

    def draw(self, seed: int, epoch: int, images: int) -> NDArray[np.float64]:
        """Draw the random numbers (images, 14) of an epoch, the same whatever is switched on."""
        return np.random.default_rng((seed, epoch, 0xC105)).random((14, images)).T

    def colour_order(self, seed: int, epoch: int, batch: int) -> list[int]:
        """Draw the order of the colour operations in a batch, without those whose range is 0."""
        order = np.random.default_rng((seed, epoch, batch, 0x0DE2)).permutation(4)
        return [int(operation) for operation in order if self._range_4[operation] > 0]

    def crop(
        self,
        height_B: NDArray[np.int64],
        width_B: NDArray[np.int64],
        size: int,
        uniform_BK: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Top and left (B,) of crops from the middle share `crop_reach` of all possible ones."""
        starts = []
        for side_B, uniform_B in zip((height_B, width_B), uniform_BK[:, CROP].T, strict=True):
            room_B = side_B - size
            span_B = np.rint(self.settings.crop_reach * room_B).astype(np.int64)
            starts.append((room_B - span_B) // 2 + _choose(uniform_B, span_B + 1))
        return starts[0], starts[1]

    def change(
        self, image_B3HW: Tensor, uniform_BK: NDArray[np.float64], colour_order: Sequence[int]
    ) -> Tensor:
        """Apply colour jitter, motion blur and JPEG to images in [0, 1]; may work in place."""
        value_B4 = torch.from_numpy(
            self._centre_4 + self._range_4 * (2 * uniform_BK[:, COLOUR] - 1)
        ).float()
        for operation in colour_order:
            image_B3HW = COLOUR_OPERATIONS[operation](image_B3HW, value_B4[:, operation])

        chosen_B, length_B, angle_B, direction_B = uniform_BK[:, BLUR].T
        length_B = BLUR_LENGTHS[_choose(length_B, len(BLUR_LENGTHS))]
        for row in np.flatnonzero(chosen_B < self.settings.blur):  # kornia takes one length a call
            image_B3HW[row : row + 1] = motion_blur(
                image_B3HW[row : row + 1],
                int(length_B[row]),
                angle=360 * float(angle_B[row]),
                direction=2 * float(direction_B[row]) - 1,
            )

        chosen_B, quality_B = uniform_BK[:, JPEG].T
        rows = np.flatnonzero(chosen_B < self.settings.jpeg)
        if len(rows):
            lowest, highest = JPEG_QUALITY
            quality_B = lowest + (highest - lowest) * quality_B
            image_B3HW[rows] = jpeg_codec_differentiable(
                image_B3HW[rows], torch.from_numpy(quality_B[rows]).float()
            )
        return image_B3HW

    def erase(self, image_B3HW: Tensor, uniform_BK: NDArray[np.float64]) -> Tensor:
        """Set a square of each normalised image to 0, the mean colour (cut-out).

        The square lies about a random pixel and may reach over the border (DeVries and Taylor,
        arXiv 1708.04552).
        """
        size = image_B3HW.shape[-1]
        side = round(self.settings.cutout * size)
        if side == 0:
            return image_B3HW
        top_B, left_B = (
            torch.from_numpy(_choose(uniform_B, size) - side // 2).float()
            for uniform_B in uniform_BK[:, ERASING].T
        )
        side_B = torch.full_like(top_B, side)
        box = {"xs": left_B, "ys": top_B, "widths": side_B, "heights": side_B}
        return self._erasing(image_B3HW, params={**box, "values": torch.zeros_like(top_B)})


def _choose(uniform_B: NDArray[np.float64], count: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn random numbers in [0, 1) into integers from 0 to count - 1."""
    return np.floor(uniform_B * count).astype(np.int64)
