"""The pictures of a report, small enough to lie in the page: frames that tell most, and studies of attention."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from mspose.data.images import find_image, read_image
from mspose.data.versions import predicted_data
from mspose.errors import MsposeError
from mspose.metrics import ERROR_COLUMNS
from mspose.pages import data_uri
from mspose.report.results import Result

THUMBNAILS = {4: (320, 240), 12: (240, 180), sys.maxsize: (160, 120)}
"""Largest width and height of a frame, in pixels, by the number of runs up to which it holds."""
PICTURE = (1100, 1400)
"""Of a picture of attention."""
SHRUNK = 2 / 3
"""Of pictures of attention, which have 300 dots per inch: all by as much, so that their letters are of one size."""
FEW_COLOURS = 2000
"""Below it a picture is a diagram, sharper and smaller as PNG; above, it has a photograph in it."""
PICTURE_BYTES = 4_000_000
"""What all pictures of a page may take; the rest is left out, and the page says so."""


@dataclass
class Budget:
    """What is left of the room for pictures."""

    left: int = PICTURE_BYTES
    left_out: int = 0

    def take(self, uri: str) -> str | None:
        """The picture, or None where there is no room for it."""
        if len(uri) > self.left:
            self.left_out += 1
            return None
        self.left -= len(uri)
        return uri


@dataclass(frozen=True)
class Frame:
    """A frame that stands for a scene's best, middle or worst."""

    rank: str
    image: str
    scene: str
    predicted: str | None
    probability: float | None
    position_m: float
    orientation_deg: float
    picture: str | None
    unreadable: bool
    """There is no such image, or it is broken."""


def telling_frames(
    result: Result, root: Path | None, budget: Budget, size: tuple[int, int] = (320, 240)
) -> dict[str, list[Frame]]:
    """Per scene its best, median and worst frames: of one scene three of each, of several one.

    They are ordered by the sum of both errors, each divided by the scene's median.
    root: the folder that images are under; None: no pictures. size: the largest width and height of a picture.
    """
    scenes = {str(scene): part for scene, part in result.frames.groupby("scene")}
    each = 3 if len(scenes) == 1 else 1
    return {
        scene: [_frame(rank, row, root, budget, size) for rank, row in _ranked(part, each)]
        for scene, part in scenes.items()
    }


def _ranked(part: pd.DataFrame, each: int) -> list[tuple[str, dict[Any, Any]]]:
    total = np.zeros(len(part))
    for column in ERROR_COLUMNS:
        errors_N = part[column].to_numpy(np.float64)
        total += errors_N / (np.median(errors_N) or 1.0)
    order = np.argsort(total, kind="stable")
    middle = max((len(order) - each) // 2, 0)
    chosen = {"best": order[:each], "median": order[middle : middle + each], "worst": order[::-1][:each]}
    return [(rank, part.iloc[int(row)].to_dict()) for rank, rows in chosen.items() for row in rows]


def _frame(rank: str, row: Mapping[Any, Any], root: Path | None, budget: Budget, size: tuple[int, int]) -> Frame:
    predicted, probability = row.get("predicted_scene"), row.get("scene_probability")
    picture, unreadable = None, False
    if root is not None:
        try:
            picture = budget.take(jpeg(read_image(find_image(root, row["image"])), size, 78))
        except (MsposeError, OSError, ValueError):  # a name that no file can have
            unreadable = True
    return Frame(
        rank,
        row["image"],
        row["scene"],
        predicted if isinstance(predicted, str) else None,
        float(probability) if probability is not None and np.isfinite(probability) else None,
        float(row[ERROR_COLUMNS[0]]),
        float(row[ERROR_COLUMNS[1]]),
        picture,
        unreadable,
    )


def image_root(result: Result) -> tuple[Path | None, str]:
    """(the folder that a run's test images are under, or None, and why there is none)."""
    dataset, root = result.settings.get("data.dataset"), result.settings.get("data.root")
    if not isinstance(dataset, str):
        return None, "no config.yaml says where the images are"
    try:
        _, folder = predicted_data(dataset, root if isinstance(root, str) else None, result.metrics)
    except MsposeError as reason:
        return None, str(reason)
    return (folder, "") if folder.is_dir() else (None, f"no folder {folder}")


def jpeg(image_HW3: NDArray[np.uint8], size: tuple[int, int], quality: int) -> str:
    """The image as a JPEG data URI, not larger than `size` (width, height)."""
    return data_uri(_encoded(Image.fromarray(image_HW3), size, "JPEG", quality=quality, optimize=True), "jpeg")


def _encoded(image: Image.Image, size: tuple[int, int], kind: str, **options: Any) -> bytes:
    image.thumbnail(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@dataclass(frozen=True)
class Picture:
    """A picture that a study of attention left."""

    title: str
    uri: str | None
    width: int
    """In the page, in CSS pixels: two dots each."""


def attention_pictures(folder: Path, budget: Budget) -> list[Picture]:
    """Those in `attention/` of a run, figures of numbers first, scaled down; a broken one is left out."""
    pictures = []
    for path in sorted((folder / "attention").glob("*.png"), key=_order):
        try:
            image = Image.fromarray(read_image(path))
        except MsposeError:
            continue
        scale = min(SHRUNK, PICTURE[0] / image.width, PICTURE[1] / image.height)
        size = (max(round(scale * image.width), 1), max(round(scale * image.height), 1))
        image.thumbnail(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        drawing = _encoded(image, PICTURE, "JPEG", quality=80, optimize=True)
        kind, small = "jpeg", drawing
        if _colours(image) < FEW_COLOURS:
            flat = _encoded(image.quantize(128, dither=Image.Dither.NONE), PICTURE, "PNG", optimize=True)
            kind, small = ("png", flat) if len(flat) <= len(drawing) else (kind, small)
        uri = budget.take(data_uri(small, kind))
        pictures.append(Picture(path.stem.replace("-", " "), uri, max(image.width // 2, 1)))
    return pictures


def _colours(image: Image.Image) -> int:
    """How many there are, with five bits a channel."""
    coarse_HW3 = np.asarray(image).astype(np.int32) >> 3
    return len(np.unique(coarse_HW3 @ np.array([1, 32, 1024])))


def _order(path: Path) -> tuple[int, str]:
    shown_first = ("entropy", "query-key-distance", "verdicts", "purity", "encoding.")
    return next((i for i, name in enumerate(shown_first) if path.name.startswith(name)), len(shown_first)), path.name
