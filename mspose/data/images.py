"""Images: reading them as RGB bytes, and the preprocessing that training and prediction share."""

import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

from mspose.errors import MsposeError
from mspose.files import read_bytes, read_limit

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
"""Image formats that are read. Pillow knows others, some of which start other programs."""
PNG_END = b"IEND\xaeB`\x82"
JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
PADDING = b"\xa5\x13\x7e\x42" * 16
LIMIT_VARIABLE = "MSPOSE_MOST_PIXELS"
MOST_PIXELS = read_limit(LIMIT_VARIABLE, 2 * (Image.MAX_IMAGE_PIXELS or 2**27))
"""Pixels of an image; one that claims more is refused before its pixels take memory."""
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow warns above this and refuses twice as many
IMAGE_SUFFIXES = (*SUFFIXES, ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


def find_image(root: Path, image: str) -> Path:
    """Path of `image` under `root`, or of the same image under another name (`same_image`): some
    copies of a data set hold JPEGs for its PNGs.

    Raises MsposeError naming the file where there is none, and for a name that leads outside of
    `root`.
    """
    if fault := name_fault(image):
        raise MsposeError(f"image {image!r}: {fault}")
    path = Path(root) / image
    if path.is_file():
        return path
    if (other := same_image(path)) is not None:
        return other
    raise MsposeError(f"image not found: {path.absolute()} (nor with {', '.join(SUFFIXES)})")


def name_fault(image: str) -> str:
    """Describe why an image's name leads outside of the folder that it is relative to, or ""."""
    if image.startswith("/") or ".." in image.split("/"):
        return f"{image!r} leads outside of the folder of the images"
    return f"{image!r} holds a NUL character" if "\0" in image else ""


@contextmanager
def opened_image(path: Path, data: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image of one of `FORMATS`, which its first bytes tell, whatever its name.

    Its header alone is read before its pixels are asked for, from `data` where they were read
    already. Raises MsposeError, naming the file, where it is no regular file, broken, of another
    format or of more than `MOST_PIXELS`; also for errors of Pillow inside the block.
    """
    if data is None and not path.is_file():
        raise MsposeError(
            f"cannot read image {path}: there is no such file, or it is no regular one"
        )
    try:
        with Image.open(path if data is None else BytesIO(data), formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise MsposeError(
            f"{path} is not an image ({', '.join(FORMATS)}), or is cut off near its beginning"
        ) from error
    except Image.DecompressionBombError as error:
        raise MsposeError(
            f"image {path} has more than {MOST_PIXELS:,} pixels, a limit that {LIMIT_VARIABLE}"
            " in the environment changes"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, zlib.error) as error:
        raise MsposeError(f"image {path} cannot be read: {error}") from error


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
    channel the upper 8 are kept. Raises MsposeError, naming the file, where `opened_image` does,
    and where it is missing, empty, truncated, or has 32 bits a channel.
    """
    data = read_bytes(Path(path))
    if not data:
        raise MsposeError(f"image {path} is an empty file")
    with opened_image(path, data) as image:
        kind, image_HW3 = image.format, _to_rgb(image)
    whole = kind != "PNG" or PNG_END in data
    if kind in ("JPEG", "MPO"):
        end = _end_of_jpeg(data)
        whole = end is not None
        if end is not None:
            # Decoders fill what is missing before the end marker without a word. Bytes that are put
            # before it change nothing but what is missing.
            more = PADDING if data[end - 1] != 0xFF else b"\0" + PADDING
            with opened_image(path, data[:end] + more + data[end:]) as again:
                whole = np.array_equal(_to_rgb(again), image_HW3)
    if not whole:
        raise MsposeError(f"image {path} is cut off: a part of its data is missing")
    return image_HW3


def _end_of_jpeg(data: bytes) -> int | None:
    """Find the end marker of a JPEG (ITU T.81, annex B); None where it is missing, or where the
    scans of a progressive one do not hold every coefficient to its last bit.
    """
    missing: dict[int, set[int]] = {}
    place = 2
    while found := JPEG_MARKER.search(data, place):
        code, place = data[found.end() - 1], found.end()
        if code == 0xD9:
            return None if any(missing.values()) else found.start()
        segment = data[place : place + int.from_bytes(data[place : place + 2])]
        if code == 0xC2:  # begins a progressive frame
            components = segment[8 : 8 + 3 * segment[7] : 3]
            missing = {component: set(range(64)) for component in components}
        elif code == 0xDA and missing:  # begins a scan
            count = segment[2]
            first, last, bits = segment[3 + 2 * count : 6 + 2 * count]
            for component in segment[3 : 3 + 2 * count : 2] if not bits & 15 else b"":
                missing[component] -= set(range(first, last + 1))
        place += len(segment)
    return None


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
    image_B3HW: "Tensor", mean: "Sequence[float] | Tensor", std: "Sequence[float] | Tensor"
) -> "Tensor":
    """(image - mean) / std per channel."""
    import torch  # here: it takes seconds to load, and frame tables need none

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
