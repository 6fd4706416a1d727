"""Packs a scene's textures, and smaller copies of them for surfaces far away, into one image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mspose.data.virtual.textures import Image

WIDTH = 4096
BORDER = 2  # texels repeated around each texture, so that interpolation never reads its neighbour
MIP_LEVELS = 6


def pack_atlas(textures: Sequence[Image]) -> tuple[Image, NDArray[np.int64], NDArray[np.int64]]:
    """Textures and their halved copies -> (atlas, origin (T, M, 2), size (T, M, 2)), both as (x, y)
    in texels.

    A level that would be smaller than two texels repeats the level before it.
    """
    images: list[Image] = []
    index_TM = np.zeros((len(textures), MIP_LEVELS), np.int64)
    for number, texture in enumerate(textures):
        for level in range(MIP_LEVELS):
            if level == 0:
                images.append(texture)
            elif min(images[-1].shape[:2]) >= 4:
                images.append(halved(images[-1]))
            index_TM[number, level] = len(images) - 1

    width = max(WIDTH, max(image.shape[1] for image in images) + 2 * BORDER)
    origins = np.zeros((len(images), 2), np.int64)
    x = y = shelf = 0
    for i in sorted(range(len(images)), key=lambda i: (-images[i].shape[0], i)):
        high, wide = (side + 2 * BORDER for side in images[i].shape[:2])
        if x + wide > width:
            x, y, shelf = 0, y + shelf, 0
        origins[i] = x + BORDER, y + BORDER
        x, shelf = x + wide, max(shelf, high)
    atlas = np.zeros((y + shelf, width, 3), np.uint8)
    for (left, top), image in zip(origins - BORDER, images, strict=True):
        bordered = np.pad(image, ((BORDER,) * 2, (BORDER,) * 2, (0, 0)), mode="edge")
        atlas[top : top + bordered.shape[0], left : left + bordered.shape[1]] = bordered
    sizes = np.array([(image.shape[1], image.shape[0]) for image in images])
    return atlas, origins[index_TM], sizes[index_TM]


def halved(image: Image) -> Image:
    """The image at half its size, rounded down: means over equal areas, in whole numbers."""
    total, divisor = image.astype(np.int32), 1
    for _ in range(2):  # rows, then (as rows of the transposed image) columns
        size = len(total)
        half = size // 2
        if size % 2 == 0:
            total, divisor = total[0::2] + total[1::2], 2 * divisor
        else:  # each covers 2 + 1 / half of the image's rows
            i = np.arange(half, dtype=np.int32)[:, None, None]
            total = (half - i) * total[0:-1:2] + half * total[1::2] + (i + 1) * total[2::2]
            divisor *= size
        total = total.swapaxes(0, 1)
    return ((total + divisor // 2) // divisor).astype(np.uint8)
