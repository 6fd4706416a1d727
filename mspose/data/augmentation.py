"""Colour jitter of a batch, with parameters and an order of its own for every image.

The four operations and their ranges are torchvision's ColorJitter (METHOD of MS-Transformer: brightness, contrast,
saturation 0.5, hue 0.2), computed by kornia on the whole batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import kornia.enhance as enhance
import numpy as np
import torch
from kornia.color import rgb_to_grayscale
from numpy.typing import NDArray
from torch import Tensor

ORDERS = np.array(list(permutations(range(4))))
IDENTITY = (1.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation factor; hue shift in turns


def _contrast(image_B3HW: Tensor, factor_B: Tensor) -> Tensor:
    # as torchvision: away from the mean of the grey image (kornia's own takes the mean of the colours)
    mean_B111 = rgb_to_grayscale(image_B3HW).mean(dim=(-3, -2, -1), keepdim=True)
    return torch.lerp(mean_B111, image_B3HW, factor_B.view(-1, 1, 1, 1)).clamp(0, 1)


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    enhance.adjust_brightness_accumulative,
    _contrast,
    enhance.adjust_saturation_with_gray_subtraction,
    lambda image_B3HW, turns_B: enhance.adjust_hue(image_B3HW, turns_B * 2 * math.pi),
)


@dataclass(frozen=True)
class Jitter:
    """Ranges of the four operations; 0 leaves an operation out."""

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.2

    def draw(self, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(value of each operation (4,), order of the operations (4,)) for one image."""
        reach = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        return np.array(IDENTITY) + reach * generator.uniform(-1, 1, 4), ORDERS[generator.integers(len(ORDERS))]


def jitter_batch(image_B3HW: Tensor, value_B4: NDArray[np.float64], order_B4: NDArray[np.int64]) -> Tensor:
    """Images in [0, 1] after brightness, contrast, saturation and hue, each image by its values in its order."""
    values = torch.as_tensor(value_B4, dtype=image_B3HW.dtype, device=image_B3HW.device)
    for step in range(4):
        parts = [np.flatnonzero(order_B4[:, step] == operation) for operation in range(4)]
        result = torch.empty_like(image_B3HW)
        for operation, rows in enumerate(parts):
            if len(rows):
                chosen = torch.as_tensor(rows, device=image_B3HW.device)
                changed = values[chosen, operation]
                part = image_B3HW[chosen]
                if bool((value_B4[rows, operation] != IDENTITY[operation]).any()):
                    part = OPERATIONS[operation](part, changed)
                result[chosen] = part
        image_B3HW = result
    return image_B3HW


def centre_crop(height: int, width: int, size: int) -> tuple[int, int]:
    """(top, left) of the centre crop, rounded as torchvision rounds it."""
    return round((height - size) / 2.0), round((width - size) / 2.0)


def random_crop(
    height: int, width: int, size: int, generator: np.random.Generator, reach: float = 1.0
) -> tuple[int, int]:
    """(top, left) of a crop drawn uniformly from the middle share `reach` of all places; 1: from all of them."""
    places = []
    for room in (height - size, width - size):
        span = round(reach * room)
        places.append((room - span) // 2 + int(generator.integers(span + 1)))
    return places[0], places[1]


def normalize(image_B3HW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image - mean) / std per channel."""
    shift = torch.tensor(mean, dtype=image_B3HW.dtype, device=image_B3HW.device).view(3, 1, 1)
    scale = torch.tensor(std, dtype=image_B3HW.dtype, device=image_B3HW.device).view(3, 1, 1)
    return (image_B3HW - shift) / scale
