"""Compare the images of a prediction with those that the model was trained on."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mspose.data.image_statistics import MOST_SIZES
from mspose.errors import MsposeError
from mspose.tools.prediction.inputs import Query

FOCAL_TOLERANCE = 0.05
SIZE_TOLERANCE = 0.01


@dataclass(frozen=True)
class TrainingImages:
    """Facts in `model.json` about the images that a model was trained on."""

    sizes: tuple[tuple[int, int], ...]
    """(width, height) in pixels, the most frequent first."""
    focal: tuple[float, float, float] | None
    """Lowest, median and highest focal length per short side."""

    @property
    def text(self) -> str:
        """The most frequent sizes."""
        more = ["..."] if len(self.sizes) > 3 else []
        return ", ".join([f"{width}x{height}" for width, height in self.sizes[:3]] + more)


def training_images(trained_on: Mapping[str, Any]) -> TrainingImages | None:
    """The facts of `trained_on` in a model's description; None where it has none, as older ones."""
    try:
        sizes = tuple((int(width), int(height)) for width, height, _ in trained_on["image_sizes"])
        focal = trained_on.get("focal_per_short_side")
        low, median, high = (math.nan,) * 3 if focal is None else map(float, focal)
    except (KeyError, TypeError, ValueError):
        return None
    if not sizes or min(map(min, sizes)) < 1:
        return None
    valid = 0 < low <= median <= high < math.inf
    return TrainingImages(sizes, (low, median, high) if valid else None)


class QueryCheck:
    """Compares queries with training images: a warning at the first difference of each kind.

    `focal_px` is that of all queries, in their pixels; without it, EXIF's is taken.
    """

    def __init__(self, training: TrainingImages | None, focal_px: float | None = None):
        self.training = training
        self.focal_px = focal_px
        self.images = 0
        self.counts: Counter[str] = Counter()
        self._warned_of_unknown = False

    def warnings(self, query: Query) -> list[str]:
        """Warnings about an image that is the first to differ in some way."""
        self.images += 1
        found = {}
        if query.turn_tag != 1:
            found["with an EXIF tag to turn it"] = (
                f"{query.name} has EXIF orientation {query.turn_tag}; its pixels are taken as they"
                " are stored, as those of training images are: if these were upright, turn its"
                " pixels first"
            )
        if self.training is not None:
            found |= self._size_warnings(query, self.training)
            found |= self._focal_warnings(query, self.training)
        warnings = [text for kind, text in found.items() if kind not in self.counts]
        self.counts.update(found.keys())
        if not self._warned_of_unknown and (unknown := self._unknown(query)):
            self._warned_of_unknown = True
            warnings.append(f"the model does not say {unknown}: queries cannot be compared")
        return warnings

    def summary(self) -> str | None:
        """Number of images that differed, if there were several."""
        if not self.counts or self.images < 2:
            return None
        counts = "; ".join(f"{count} {kind}" for kind, count in self.counts.items())
        return f"of {self.images} images: {counts}"

    def camera(self, query: Query) -> tuple[float, str]:
        """The focal length of an image's camera in pixels, and its origin.

        Raises MsposeError where it is neither given, nor in EXIF, nor known of training.
        """
        if self.focal_px is not None:
            return self.focal_px, "as given"
        if query.focal_px is not None:
            return query.focal_px, "from EXIF"
        if self.training is not None and self.training.focal is not None:
            short_side = min(query.width, query.height)
            return self.training.focal[1] * short_side, "not measured: as in training"
        raise MsposeError(
            f"{query.name}: its focal length is not known, nor that of training: give --focal-px"
        )

    def _size_warnings(self, query: Query, training: TrainingImages) -> dict[str, str]:
        aspect = query.width / query.height
        matching = [
            width
            for width, height in training.sizes
            if abs(aspect * height / width - 1) <= SIZE_TOLERANCE
        ]
        if not matching:
            text = (
                f"{query.name} is {query.width}x{query.height}, another shape than all training"
                f" images ({training.text}): the network sees another part of the view than in"
                " training, and poses may be far off"
            )
            return {"of another aspect ratio": text}
        known = any(abs(query.width / width - 1) <= SIZE_TOLERANCE for width in matching)
        if known or len(training.sizes) >= MOST_SIZES:  # then the list may lack some sizes
            return {}
        text = (
            f"{query.name} is {query.width}x{query.height}, training images are {training.text}: it"
            " is resized as they were"
        )
        if training.focal is None or (self.focal_px or query.focal_px) is None:
            text += "; unless it has their field of view too, positions are off"
        return {"of another size": text}

    def _focal_warnings(self, query: Query, training: TrainingImages) -> dict[str, str]:
        focal_px = self.focal_px or query.focal_px
        if focal_px is None or training.focal is None:
            return {}
        lowest, _, highest = training.focal
        short_side = min(query.width, query.height)
        nearest_px = min(max(focal_px, lowest * short_side), highest * short_side)
        ratio = focal_px / nearest_px
        if abs(ratio - 1) <= FOCAL_TOLERANCE:
            return {}
        text = (
            f"{query.name}: its focal length, {focal_px:.0f} px at {query.width}x{query.height}, is"
            f" {ratio:.2f} times that of training ({nearest_px:.0f} px at that size): things appear"
            f" {ratio:.2f} times as large as from there in training, and distances to them come"
            " out wrong by about that factor"
        )
        return {"of another focal length": text}

    def _unknown(self, query: Query) -> str:
        """Facts about training images that would be needed but are not recorded."""
        if self.training is None:
            return "what sizes and focal lengths its training images had"
        if self.training.focal is None and (self.focal_px or query.focal_px) is not None:
            return "what focal length its training images had"
        return ""
