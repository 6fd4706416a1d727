"""What the images were like that a model learned from, and how the images differ that it is asked
about.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mspose.data.image_statistics import MOST_SIZES
from mspose.errors import MsposeError
from mspose.tools.prediction.image_sources import View

FOCAL_TOLERANCE = 0.05
SIZE_TOLERANCE = 0.01


@dataclass(frozen=True)
class TrainingImages:
    """What `model.json` says of the images that a model learned from."""

    sizes: tuple[tuple[int, int], ...]
    """(width, height) in pixels, the most frequent first."""
    focal: tuple[float, float, float] | None
    """Lowest, median and highest focal length per short side."""

    @property
    def text(self) -> str:
        """The most frequent sizes."""
        return ", ".join(f"{width}x{height}" for width, height in self.sizes[:3]) + (
            ", ..." * (len(self.sizes) > 3)
        )


def training_images(trained_on: Mapping[str, Any]) -> TrainingImages | None:
    """Of the entry `trained_on` of a model's description; None where it does not say, as older ones
    do not.
    """
    try:
        sizes = tuple((int(width), int(height)) for width, height, _ in trained_on["image_sizes"])
        focal = trained_on.get("focal_per_short_side")
        low, median, high = (math.nan,) * 3 if focal is None else map(float, focal)
    except (KeyError, TypeError, ValueError):
        return None
    if not sizes or min(map(min, sizes)) < 1:
        return None
    return TrainingImages(
        sizes, (low, median, high) if 0 < low <= median <= high < math.inf else None
    )


class QueryCheck:
    """Compares queries with training images: words at the first that differs in a way, and counts
    for the end.

    `focal_px` is that of all queries, in their pixels; without it, EXIF counts where it says
    something.
    """

    def __init__(self, training: TrainingImages | None, focal_px: float | None = None):
        self.training = training
        self.focal_px = focal_px
        self.images = 0
        self.counts: Counter[str] = Counter()
        self._unrecorded_said = False

    def findings(self, view: View) -> list[str]:
        """What is to be said of an image, if it is the first of its kind."""
        self.images += 1
        found = {}
        if view.turn_tag != 1:
            found["with a tag that it is to be turned"] = (
                f"{view.name} is to be shown turned (EXIF orientation {view.turn_tag}); its pixels"
                " are taken as they are stored, as those of training images are: if these were"
                " upright, turn its pixels first"
            )
        if self.training is not None:
            found |= self._size_findings(view, self.training) | self._focal_findings(
                view, self.training
            )
        words = [text for kind, text in found.items() if kind not in self.counts]
        self.counts.update(found.keys())
        return words + self._unrecorded(view)

    def summary(self) -> str | None:
        """How many images differed, where there were several."""
        if not self.counts or self.images < 2:
            return None
        return f"of {self.images} images: " + "; ".join(
            f"{count} {kind}" for kind, count in self.counts.items()
        )

    def camera(self, view: View) -> tuple[float, str]:
        """The focal length of an image's camera in pixels, and where it is from: given, EXIF, or as
        in training.

        Raises MsposeError where nothing says it.
        """
        if self.focal_px is not None:
            return self.focal_px, "as given"
        if view.focal_px is not None:
            return view.focal_px, "from EXIF"
        if self.training is not None and self.training.focal is not None:
            return (
                self.training.focal[1] * min(view.width, view.height),
                "not measured: as in training",
            )
        raise MsposeError(
            f"{view.name}: its focal length is not known, nor that of training: give --focal_px"
        )

    def _size_findings(self, view: View, training: TrainingImages) -> dict[str, str]:
        aspect = view.width / view.height
        matching = [
            width
            for width, height in training.sizes
            if abs(aspect * height / width - 1) <= SIZE_TOLERANCE
        ]
        if not matching:
            text = (
                f"{view.name} is {view.width}x{view.height}, another shape than all training images"
                f" ({training.text}): the network sees another part of the view than in training,"
                " and poses may be far off"
            )
            return {"of another aspect ratio": text}
        known = any(abs(view.width / width - 1) <= SIZE_TOLERANCE for width in matching)
        if (
            not known and len(training.sizes) < MOST_SIZES
        ):  # a list that is full does not name all sizes
            compared = training.focal is not None and (self.focal_px or view.focal_px) is not None
            text = (
                f"{view.name} is {view.width}x{view.height}, training images are {training.text}:"
                " it is resized as "
                "they"
                f" were{'' if compared else '; unless it has their field of view too, positions are off'}"
            )
            return {"of another size": text}
        return {}

    def _focal_findings(self, view: View, training: TrainingImages) -> dict[str, str]:
        focal_px = self.focal_px or view.focal_px
        if focal_px is None or training.focal is None:
            return {}
        lowest, _, highest = training.focal
        relative = focal_px / min(view.width, view.height)
        nearest = min(max(relative, lowest), highest)
        if abs(relative / nearest - 1) <= FOCAL_TOLERANCE:
            return {}
        ratio = relative / nearest
        text = (
            f"{view.name}: its focal length, {focal_px:.0f} px at {view.width}x{view.height}, is"
            f" {ratio:.2f} times that of training ({nearest * min(view.width, view.height):.0f} px"
            f" at that size): things look {ratio:.2f} times as large as from there in training, and"
            " distances to them come out wrong by about that factor"
        )
        return {"of another focal length": text}

    def _unrecorded(self, view: View) -> list[str]:
        """That there is nothing to compare with, once."""
        if self._unrecorded_said:
            return []
        focal_px = self.focal_px or view.focal_px
        if self.training is None:
            what = (
                "what sizes and focal lengths its training images had: queries cannot be compared"
                " with them"
            )
        elif self.training.focal is None and focal_px is not None:
            what = (
                "what focal length its training images had: that of queries cannot be compared"
                " with it"
            )
        else:
            return []
        self._unrecorded_said = True
        return [f"the model does not say {what}"]
