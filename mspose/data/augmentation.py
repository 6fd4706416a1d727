"""Crops, cut-out, and the colour jitter of a batch with parameters and an order of its own for
every image.

The four operations of the jitter, their ranges and their mathematics are torchvision's ColorJitter
(METHOD of MS-Transformer: brightness, contrast, saturation 0.5, hue 0.2), computed for the whole
batch at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = np.array(list(permutations(range(4))))
IDENTITY = (1.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation factor; hue shift in turns
GREY = (0.2989, 0.587, 0.114)  # as torchvision rounds them


@dataclass(frozen=True)
class Jitter:
    """Ranges of the four operations; 0 leaves an operation out."""

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.2

    def parameters(
        self, uniform_B5: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(value_B4 of each operation, order_B4 of the operations) from random numbers in [0, 1)."""
        reach = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        return (
            np.array(IDENTITY) + reach * (2 * uniform_B5[:, :4] - 1),
            ORDERS[_choice(uniform_B5[:, 4], len(ORDERS))],
        )


def jitter_batch(
    image_B3HW: Tensor, value_B4: NDArray[np.float64], order_B4: NDArray[np.int64]
) -> Tensor:
    """Images in [0, 1] after brightness, contrast, saturation and hue, each image by its values in
    its order.

    Hue is the one operation that is not a blend. Images that have many blends before it come first,
    so that every step is done on a slice of the batch.
    """
    before_B = np.argmax(order_B4 == HUE, axis=1)
    sort_B = np.argsort(-before_B, kind="stable")
    before_B, value_B4, order_B4 = before_B[sort_B], value_B4[sort_B], order_B4[sort_B]
    blend_B3 = order_B4[order_B4 != HUE].reshape(-1, 3)
    factor_B3 = np.take_along_axis(value_B4, blend_B3, axis=1)
    grey_B3, mean_B3 = ((1 - factor_B3) * (blend_B3 == blend) for blend in (SATURATION, CONTRAST))
    numbers = np.concatenate([factor_B3, grey_B3, mean_B3, value_B4[:, HUE:]], axis=1)
    # copied without waiting for what the device still has to do
    number_BK = torch.from_numpy(numbers.astype(np.float32)).to(
        image_B3HW.device, non_blocking=True
    )
    place_2B = torch.from_numpy(np.stack([sort_B, np.argsort(sort_B)])).to(
        image_B3HW.device, non_blocking=True
    )
    number_BK111 = number_BK[:, :, None, None, None].to(image_B3HW.dtype)

    image_B3HW = image_B3HW.index_select(0, place_2B[0])
    changed = (factor_B3 != 1).any(axis=0)
    for step in np.flatnonzero(changed):
        rows = slice(0, int((before_B > step).sum()))
        _blend(image_B3HW[rows], *number_BK111[rows, step:9:3].unbind(1))
    if value_B4[:, HUE].any():
        _turn_hue(image_B3HW, number_BK111[:, 9])
    for step in np.flatnonzero(changed):
        rows = slice(int((before_B > step).sum()), None)
        _blend(image_B3HW[rows], *number_BK111[rows, step:9:3].unbind(1))
    return image_B3HW.index_select(0, place_2B[1])


def _blend(image_B3HW: Tensor, factor_B111: Tensor, grey_B111: Tensor, mean_B111: Tensor) -> None:
    """In place: the image times a factor, plus parts of the grey image and of its mean, within [0,
    1].
    """
    grey_B1HW = image_B3HW[:, :1] * GREY[0]
    grey_B1HW.add_(image_B3HW[:, 1:2], alpha=GREY[1]).add_(image_B3HW[:, 2:], alpha=GREY[2])
    part_B111 = grey_B1HW.mean(dim=(2, 3), keepdim=True).mul_(mean_B111)
    grey_B1HW.mul_(grey_B111).add_(part_B111)
    torch.addcmul(grey_B1HW, image_B3HW, factor_B111, out=image_B3HW).clamp_(0, 1)


def _turn_hue(image_B3HW: Tensor, turns_B111: Tensor) -> None:
    """In place: HSV's hue turned by a share of the circle, its saturation and value kept.

    HSV's hue lies |1 + (g + b - r - least) / chroma| sixths of the circle away from red, on green's
    side where g > b. A channel is at the value within a sixth of its own hue, and at the least of
    the three beyond a third.
    """
    red, green, blue = (image_B3HW[:, channel : channel + 1] for channel in range(3))
    least_B1HW = torch.minimum(torch.minimum(red, green), blue)
    chroma_B1HW = torch.maximum(torch.maximum(red, green), blue).sub_(least_B1HW)
    from_red_B1HW = (
        (green + blue).sub_(red).sub_(least_B1HW).div_(chroma_B1HW.clamp_min(1e-12)).add_(1)
    )
    hue_B1HW = from_red_B1HW.copysign_(green - blue).div_(6).add_(turns_B111)
    away_B3HW = torch.cat([hue_B1HW, hue_B1HW - 1 / 3, hue_B1HW - 2 / 3], dim=1)
    away_B3HW.sub_(away_B3HW.round()).abs_()
    torch.addcmul(least_B1HW, away_B3HW.mul_(-6).add_(2).clamp_(0, 1), chroma_B1HW, out=image_B3HW)


def centre_crop(
    height: ArrayLike, width: ArrayLike, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(top, left) of the centre crop of one image or of many, rounded as torchvision rounds it."""
    top, left = (
        np.rint((np.asarray(side) - size) / 2.0).astype(np.int64) for side in (height, width)
    )
    return top, left


def random_crop(
    height: ArrayLike,
    width: ArrayLike,
    size: int,
    uniform_B2: NDArray[np.float64],
    reach: float = 1.0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(top_B, left_B) of crops from the middle share `reach` of all places, from random numbers in
    [0, 1).
    """
    places = []
    for side, uniform_B in zip((height, width), uniform_B2.T, strict=True):
        room = np.asarray(side) - size
        span = np.rint(reach * room).astype(np.int64)
        places.append((room - span) // 2 + _choice(uniform_B, span + 1))
    return places[0], places[1]


def random_hole(
    size: int, side: int, uniform_B2: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(top_B, left_B) of squares of `side` pixels about a random pixel of an image of `size` x
    `size`, from random numbers in [0, 1): such a square may reach over the border (DeVries and
    Taylor, arXiv 1708.04552).
    """
    top_B, left_B = (_choice(uniform_B, size) - side // 2 for uniform_B in uniform_B2.T)
    return top_B, left_B


def cut_out(
    image_B3HW: Tensor, top_B: NDArray[np.int64], left_B: NDArray[np.int64], side: int
) -> Tensor:
    """In place: zero, the mean colour of normalised images, in a square of `side` pixels of each
    image (cut-out).
    """
    place_2B = torch.from_numpy(np.stack([top_B, left_B])).to(image_B3HW.device, non_blocking=True)
    inside = []
    for start_B, size in zip(place_2B, image_B3HW.shape[2:], strict=True):
        away_BS = torch.arange(size, device=image_B3HW.device) - start_B[:, None]
        inside.append((away_BS >= 0) & (away_BS < side))
    row_BH, column_BW = inside
    return image_B3HW.masked_fill_((row_BH[:, :, None] & column_BW[:, None])[:, None], 0)


def _choice(uniform_B: NDArray[np.float64], count: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """One of 0 .. count-1 for each random number in [0, 1)."""
    return np.floor(uniform_B * count).astype(np.int64)


def normalize(
    image_B3HW: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
) -> Tensor:
    """(image - mean) / std per channel."""
    shift, scale = (
        torch.as_tensor(values, dtype=image_B3HW.dtype, device=image_B3HW.device).view(3, 1, 1)
        for values in (mean, std)
    )
    return (image_B3HW - shift).div_(scale)
