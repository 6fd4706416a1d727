"""Images: from a name to RGB bytes, whatever the file holds, and the resize that training and
prediction share.
"""

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mspose.errors import MsposeError

SUFFIXES = (".png", ".jpg", ".jpeg")


def find_image(root: Path, image: str) -> Path:
    """The file of `image` under `root`, or the same name with another of `SUFFIXES` (some copies
    hold JPEGs for PNGs).

    Raises MsposeError naming the file where there is none.
    """
    path = Path(root) / image
    if path.is_file():
        return path
    for suffix in SUFFIXES:
        other = path.with_suffix(suffix)
        if other.is_file():
            return other
    raise MsposeError(f"image not found: {path.absolute()} (nor with {', '.join(SUFFIXES)})")


def read_image(path: Path) -> NDArray[np.uint8]:
    """The image as RGB uint8 (H, W, 3).

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
    """`image_HW3` itself (contiguous), checked to be an RGB uint8 array (H, W, 3). Raises
    ValueError if it is not.
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
    """The image with its shorter side `size` pixels long: bilinear, antialiased, bit for bit as
    torchvision's `Resize(size)` does on a PIL image; of tall images as with Pillow before 13,
    whatever Pillow is here.
    """
    height, width = image_HW3.shape[:2]
    short, long = min(height, width), max(height, width)
    if short == size:
        return image_HW3
    new_long = int(size * long / short)
    new_size = (size, new_long) if width <= height else (new_long, size)
    resized = Image.fromarray(image_HW3)
    if (
        width < height
    ):  # along rows first, as Pillow does but for tall images from version 13 on: rounding differs
        resized = resized.resize((size, height), Image.Resampling.BILINEAR)
    return np.array(resized.resize(new_size, Image.Resampling.BILINEAR))


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey_HW = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey_HW[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per channel; save it with 8 or 16")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
