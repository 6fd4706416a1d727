"""The images of the frames that a run predicted, where they are on disk: read when they are looked at."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mspose.checkpoint import read_description
from mspose.config import read_settings
from mspose.data.images import find_image, read_image, resize_short_side
from mspose.data.versions import predicted_data
from mspose.errors import MsposeError

USUAL_SHAPE, USUAL_ANGLE = (480, 640), math.radians(50)  # of a camera that nothing is known about


class FrameImages:
    """Images by their names in a predictions file.

    Attributes:
        root: the folder that they lie in; None where there are none.
        missing: why there are none, else "".
        aspect: width over height of an image.
        angle: vertical field of view, radians.
    """

    def __init__(
        self, root: Path | None, missing: str, shape: tuple[int, int] = USUAL_SHAPE, focal_px: float = math.nan
    ):
        self.root = root
        self.missing = missing
        height, width = shape
        self.aspect = width / height
        self.angle = 2 * math.atan(height / 2 / focal_px) if focal_px > 0 else USUAL_ANGLE
        self.read = lru_cache(maxsize=64)(self._read)

    def _read(self, image: str, short_side: int) -> NDArray[np.uint8] | None:
        """RGB (H, W, 3), its shorter side `short_side`; None where the image is missing or broken."""
        if self.root is None:
            return None
        try:
            return resize_short_side(read_image(find_image(self.root, image)), short_side)
        except MsposeError:  # one broken image is no reason to stop
            return None


def images_of_run(run: Path, about: Mapping[str, Any], names: Sequence[str], root: str | None) -> FrameImages:
    """The images that the run's settings lead to, or those below `root`; what is not there is said in `missing`.

    about: what stands beside the predictions (their data set). names: some images, of which one has to be there.
    Raises MsposeError where `root` is given and has none of them.
    """
    folder: Path | None
    try:
        data = read_settings(run / "config.yaml").data
        card, own_folder = predicted_data(data.dataset, data.root, about)
        folder, focal_px, missing = Path(root).expanduser() if root else own_folder, card.focal_px, ""
    except MsposeError as error:
        folder, focal_px = Path(root).expanduser() if root else None, math.nan
        missing = "" if root else str(error)
    shape, known_focal_px = _training_camera(run, about)
    focal_px = focal_px if focal_px > 0 else known_focal_px
    for name in names:
        if folder is None:
            break
        try:
            return FrameImages(folder, "", read_image(find_image(folder, name)).shape[:2], focal_px)
        except MsposeError as error:  # perhaps only some of the scenes are here
            missing = missing or str(error)
    if root:
        raise MsposeError(missing)
    return FrameImages(None, missing, shape or USUAL_SHAPE, focal_px if shape else math.nan)


def _training_camera(run: Path, about: Mapping[str, Any]) -> tuple[tuple[int, int] | None, float]:
    """((height, width), focal length) of the training images, in pixels, as `model.json` has them; None, NaN if not."""
    try:
        learned = read_description(run).get("trained_on") or {}
        if about.get("dataset") not in (None, learned.get("dataset")):
            return None, math.nan
        sizes = learned.get("image_sizes") or []
        shape = (int(sizes[0][1]), int(sizes[0][0])) if sizes else None
        return shape if shape and min(shape) > 0 else None, float(learned.get("focal_px") or math.nan)
    except (MsposeError, TypeError, ValueError, LookupError, AttributeError):
        return None, math.nan


def read_about(path: Path) -> dict[str, Any]:
    """What `mspose evaluate` wrote beside a predictions file; {} where it did not."""
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}
