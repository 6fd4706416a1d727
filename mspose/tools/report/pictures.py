"""Images in a report, small enough for the page: best and worst frames, plots of attention."""

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
from mspose.run import Run
from mspose.studies.pages import data_uri
from mspose.tools.report.evaluations import settings_of

THUMBNAILS = {4: (320, 240), 12: (240, 180), sys.maxsize: (160, 120)}
"""Largest width and height of a frame, in pixels, by the number of runs up to which it holds."""
PICTURE = (1100, 1400)
"""Largest width and height of a plot of attention."""
SHRUNK = 2 / 3
"""Scale of plots of attention, which have 300 dots per inch: one for all, so that their letters
have one size.
"""
PICTURE_BYTES = 4_000_000
"""Limit of all pictures of a page; the rest is left out, and the page says so."""


@dataclass
class Budget:
    """Bytes that are left for pictures."""

    left: int = PICTURE_BYTES
    left_out: int = 0

    def take(self, uri: str) -> str | None:
        """Return the picture, or None where it is too large."""
        if len(uri) > self.left:
            self.left_out += 1
            return None
        self.left -= len(uri)
        return uri


@dataclass(frozen=True)
class Frame:
    """One of a scene's best, median or worst frames."""

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
    run: Run, root: Path | None, budget: Budget, size: tuple[int, int] = (320, 240)
) -> dict[str, list[Frame]]:
    """Select the best, median and worst frames per scene: three of each of one scene, else one.

    They are ordered by the sum of both errors, each divided by the scene's median.

    Args:
        root: the folder that images are under; None: no images.
        size: the largest width and height of an image.
    """
    scenes = {str(scene): part for scene, part in run.frames.groupby("scene")}
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
    chosen = {
        "best": order[:each],
        "median": order[middle : middle + each],
        "worst": order[::-1][:each],
    }
    return [(rank, part.iloc[int(row)].to_dict()) for rank, rows in chosen.items() for row in rows]


def _frame(
    rank: str, row: Mapping[Any, Any], root: Path | None, budget: Budget, size: tuple[int, int]
) -> Frame:
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


def image_root(run: Run) -> tuple[Path | None, str]:
    """Find the folder that a run's test images are under; None, with the reason, without one."""
    settings = settings_of(run)
    if not settings:
        return None, f"no {run.config_file.name} says where the images are"
    try:
        _, folder = predicted_data(settings["data.dataset"], settings["data.root"], run.metrics)
    except MsposeError as reason:
        return None, str(reason)
    return (folder, "") if folder.is_dir() else (None, f"no folder {folder}")


def jpeg(image_HW3: NDArray[np.uint8], size: tuple[int, int], quality: int) -> str:
    """Encode an image as a JPEG data URI, not larger than `size` (width, height)."""
    return data_uri(
        _encoded(Image.fromarray(image_HW3), size, "JPEG", quality=quality, optimize=True), "jpeg"
    )


def _encoded(image: Image.Image, size: tuple[int, int], kind: str, **options: Any) -> bytes:
    image.thumbnail(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@dataclass(frozen=True)
class Picture:
    """A plot of attention."""

    title: str
    uri: str | None
    width: int
    """Width in the page, in CSS pixels of two dots."""


def attention_pictures(run: Run, budget: Budget) -> list[Picture]:
    """Load the plots in a run's folder of attention, scaled down; a broken one is left out."""
    pictures = []
    for path in sorted(run.attention_file.parent.glob("*.png"), key=_order):
        try:
            image = Image.fromarray(read_image(path))
        except MsposeError:
            continue
        scale = min(SHRUNK, PICTURE[0] / image.width, PICTURE[1] / image.height)
        size = (max(round(scale * image.width), 1), max(round(scale * image.height), 1))
        image.thumbnail(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        # a plot is sharper and smaller as PNG, a photograph smaller as JPEG
        few_colours = image.quantize(128, dither=Image.Dither.NONE)
        kind, small = min(
            ("png", _encoded(few_colours, PICTURE, "PNG", optimize=True)),
            ("jpeg", _encoded(image, PICTURE, "JPEG", quality=80, optimize=True)),
            key=lambda encoded: len(encoded[1]),
        )
        uri = budget.take(data_uri(small, kind))
        pictures.append(Picture(path.stem.replace("-", " "), uri, max(image.width // 2, 1)))
    return pictures


def _order(path: Path) -> tuple[int, str]:
    shown_first = ("knock-out", "entropy", "query-key-gap", "verdicts", "purity", "encoding.")
    return (
        next(
            (i for i, name in enumerate(shown_first) if path.name.startswith(name)),
            len(shown_first),
        ),
        path.name,
    )
