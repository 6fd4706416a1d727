"""Sizes and focal lengths of the images that a model learned from, for `model.json`."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mspose.data.cache import FrameCache
from mspose.data.images import find_image, opened_image
from mspose.errors import MsposeError

MOST_SIZES = 10  # that model.json lists


def describe_images(frames: pd.DataFrame, cache: FrameCache, root: Path) -> dict[str, Any]:
    """Describe the images of a frame table (with `cache_row`) whose files lie below `root`.

    Returns

    - `image_sizes`: [width, height, frames] in pixels as stored, the most frequent first, at most
      `MOST_SIZES`. Of images that are equal after resizing, whose long sides differ by a few
      pixels, the first one's size stands for all.
    - `focal_px`: the median focal length in pixels, None where no frame has one.
    - `focal_per_short_side`: lowest, median and highest focal length divided by the image's short
      side, which gives the field of view whatever the size; None likewise.
    """
    rows = frames["cache_row"].to_numpy()
    size_N2 = cache.sizes[rows]
    short_N = np.rint(size_N2.min(axis=1) / cache.scales[rows]).astype(np.int64)
    kind_K3, first_K, count_K = np.unique(
        np.column_stack([size_N2, short_N]), axis=0, return_index=True, return_counts=True
    )
    sizes: Counter[tuple[int, int]] = Counter()
    for kind in np.argsort(-count_K, kind="stable")[:MOST_SIZES]:
        image = frames["image"].iloc[int(first_K[kind])]
        sizes[_source_size(root, image, *kind_K3[kind].tolist())] += int(count_K[kind])
    focal_N = frames["focal_px"].to_numpy(np.float64)
    known = np.isfinite(focal_N)
    relative = focal_N[known] / short_N[known]
    return {
        "image_sizes": [[width, height, count] for (width, height), count in sizes.most_common()],
        "focal_px": float(np.median(focal_N[known])) if known.any() else None,
        "focal_per_short_side": (
            [float(pick(relative)) for pick in (np.min, np.median, np.max)] if known.any() else None
        ),
    }


def _source_size(root: Path, image: str, height: int, width: int, short: int) -> tuple[int, int]:
    """(width, height) of a source file, or from its cached size where the file has changed."""
    try:
        with opened_image(find_image(root, image)) as opened:
            if min(opened.size) == short:
                return opened.size
    except MsposeError:
        pass
    scale = short / min(height, width)
    return round(width * scale), round(height * scale)
