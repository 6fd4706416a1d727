"""Images of the frames that a run predicted, read from disk when they are needed."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mspose.data.images import find_image, read_image, resize_short_side
from mspose.data.versions import predicted_data
from mspose.errors import MsposeError
from mspose.run import Run

USUAL_SHAPE, USUAL_ANGLE = (480, 640), math.radians(50)  # of an unknown camera


class FrameImages:
    """Images by their names in a predictions file.

    Attributes:
        root: their folder; None where there are none.
        missing: why there are none, else "".
        aspect: width over height of an image.
        angle: vertical field of view, radians.
    """

    def __init__(
        self,
        root: Path | None,
        missing: str,
        shape: tuple[int, int] = USUAL_SHAPE,
        focal_px: float = math.nan,
    ):
        self.root = root
        self.missing = missing
        height, width = shape
        self.aspect = width / height
        self.angle = 2 * math.atan(height / 2 / focal_px) if focal_px > 0 else USUAL_ANGLE
        self.read = lru_cache(maxsize=64)(self._read)

    def _read(self, image: str, short_side: int) -> NDArray[np.uint8] | None:
        """Read RGB (H, W, 3) with this shorter side; None where the image is missing or broken."""
        if self.root is None:
            return None
        try:
            return resize_short_side(read_image(find_image(self.root, image)), short_side)
        except MsposeError:  # one broken image is no reason to stop
            return None


def images_of_run(run: Run, names: Sequence[str], root: str | None) -> FrameImages:
    """Find the images of a run's predictions, below `root` or where the run's settings say.

    names: some images, of which one has to be there. Without any, `missing` says why. Raises
    MsposeError where `root` is given and has none of them.
    """
    folder = Path(root).expanduser() if root else None
    focal_px, missing = math.nan, ""
    try:
        data = run.settings.data
        card, own_folder = predicted_data(data.dataset, data.root, run.about)
        folder, focal_px = folder or own_folder, card.focal_px
    except MsposeError as error:
        missing = "" if root else str(error)
    shape, known_focal_px = _training_camera(run)
    focal_px = focal_px if focal_px > 0 else known_focal_px
    for name in names:
        if folder is None:
            break
        try:
            found = read_image(find_image(folder, name))
            return FrameImages(folder, "", found.shape[:2], focal_px)
        except MsposeError as error:  # perhaps only some of the scenes are here
            missing = missing or str(error)
    if root:
        raise MsposeError(missing)
    return FrameImages(None, missing, shape or USUAL_SHAPE, focal_px if shape else math.nan)


def _training_camera(run: Run) -> tuple[tuple[int, int] | None, float]:
    """Read (height, width) and focal length, in pixels, of the training images; None, NaN if
    unknown.
    """
    try:
        learned = run.description.get("trained_on") or {}
    except MsposeError:
        return None, math.nan
    if run.about.get("dataset") not in (None, learned.get("dataset")):
        return None, math.nan
    sizes = learned.get("image_sizes") or []
    shape = (int(sizes[0][1]), int(sizes[0][0])) if sizes else None
    return shape, float(learned.get("focal_px") or math.nan)
