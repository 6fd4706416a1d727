"""Images: reading them as RGB bytes, and the preprocessing that training and prediction share."""

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mspose.errors import MsposeError

SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_SUFFIXES = (*SUFFIXES, ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


def find_image(root: Path, image: str) -> Path:
    """Path of `image` under `root`, or of the same image under another name (`same_image`): some
    copies of a data set hold JPEGs for its PNGs.

    Raises MsposeError naming the file where there is none.
    """
    path = Path(root) / image
    if path.is_file():
        return path
    if (other := same_image(path)) is not None:
        return other
    raise MsposeError(f"image not found: {path.absolute()} (nor with {', '.join(SUFFIXES)})")


def same_image(path: Path) -> Path | None:
    """The file that `path` means where its name differs in upper and lower case, or has another
    ending of `IMAGE_SUFFIXES` or none; None where there is none.
    """
    folder = path.parent
    if not folder.is_dir():
        above = _names_in(folder.parent) if folder.parent.is_dir() else {}
        folders = [folder.parent / name for name in above.get(folder.name.lower(), ())]
        folder = next((other for other in folders if other.is_dir()), folder)
    if not folder.is_dir():
        return None
    name, names = path.name.lower(), _names_in(folder)
    stem = re.sub(r"\.[a-z][a-z0-9]{1,4}$", "", name)
    wanted = [name, *(start + ending for start in (name, stem) for ending in IMAGE_SUFFIXES)]
    found = [folder / other for like in wanted for other in names.get(like, ())]
    files = [file for file in found if file.is_file()]
    return next((file for file in files if file.stem == path.stem), next(iter(files), None))


def _names_in(folder: Path) -> Mapping[str, list[str]]:
    """Names in a folder by their lower-case spelling."""
    return _names_as_of(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _names_as_of(folder: Path, changed_ns: int) -> Mapping[str, list[str]]:  # noqa: ARG001
    names: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names alone are wanted
        names.setdefault(name.lower(), []).append(name)
    return names


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB uint8 (H, W, 3).

    Grey, palette, CMYK and RGBA images are converted (transparency is dropped); of 16 bits per
    channel the upper 8 are kept. Raises MsposeError, naming the file, where it is missing, empty,
    truncated, broken, or has 32 bits a channel.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MsposeError(f"cannot read image {path}: {error.strerror}") from error
    if not data:
        raise MsposeError(f"image {path} is an empty file")
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
            return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise MsposeError(f"{path} is not an image, or is cut off near its beginning") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise MsposeError(f"image {path} cannot be read: {error}") from error


def to_rgb8(image_HW3: Any) -> NDArray[np.uint8]:
    """Return the image contiguous in memory.

    Raises ValueError if it is not an RGB uint8 array (H, W, 3).
    """
    if not isinstance(image_HW3, np.ndarray):
        raise ValueError(
            f"image: expected a NumPy array uint8 (H, W, 3), found {type(image_HW3).__name__}"
        )
    if image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or 0 in image_HW3.shape:
        raise ValueError(f"image: expected shape (H, W, 3), RGB, found {image_HW3.shape}")
    if image_HW3.dtype != np.uint8:
        raise ValueError(f"image: expected uint8 values from 0 to 255, found {image_HW3.dtype}")
    return np.ascontiguousarray(image_HW3)


def resize_short_side(image_HW3: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image to `size` pixels along its shorter side, bilinear and antialiased.

    Bit for bit as torchvision's `Resize(size)` on a PIL image; tall images as with Pillow before
    13, whichever version is installed.
    """
    height, width = image_HW3.shape[:2]
    short, long = min(height, width), max(height, width)
    if short == size:
        return image_HW3
    new_long = int(size * long / short)
    new_size = (size, new_long) if width <= height else (new_long, size)
    resized = Image.fromarray(image_HW3)
    if width < height:  # along rows first: from 13 on Pillow does not, and rounds differently
        resized = resized.resize((size, height), Image.Resampling.BILINEAR)
    return np.array(resized.resize(new_size, Image.Resampling.BILINEAR))


def centre_crop(
    height: ArrayLike, width: ArrayLike, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(top, left) of the centre crop of one image or of many, rounded as torchvision rounds it."""
    top, left = (
        np.rint((np.asarray(side) - size) / 2.0).astype(np.int64) for side in (height, width)
    )
    return top, left


def normalize(
    image_B3HW: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
) -> Tensor:
    """(image - mean) / std per channel."""
    shift, scale = (
        torch.as_tensor(values, dtype=image_B3HW.dtype, device=image_B3HW.device).view(3, 1, 1)
        for values in (mean, std)
    )
    return (image_B3HW - shift).div_(scale)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey_HW = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey_HW[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per channel; save it with 8 or 16")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
