"""COLMAP's camera models, which kapture shares (https://colmap.github.io/cameras.html)."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mspose.errors import MsposeError

PARAMETERS = {
    "SIMPLE_PINHOLE": 3,
    "PINHOLE": 4,
    "SIMPLE_RADIAL": 4,
    "RADIAL": 5,
    "OPENCV": 8,
    "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12,
    "FOV": 5,
    "SIMPLE_RADIAL_FISHEYE": 4,
    "RADIAL_FISHEYE": 5,
    "THIN_PRISM_FISHEYE": 12,
    "RAD_TAN_THIN_PRISM_FISHEYE": 16,
    "SIMPLE_DIVISION": 4,
    "DIVISION": 5,
    "SIMPLE_FISHEYE": 3,
    "FISHEYE": 4,
    "EUCM": 6,
    "EQUIRECTANGULAR": 2,
}
"""Number of parameters; a model's rank in this order is its number in COLMAP's binary files."""
WITHOUT_DISTORTION = {"SIMPLE_PINHOLE", "PINHOLE"}
WITHOUT_FOCAL_LENGTH = {"EQUIRECTANGULAR"}


class Camera(NamedTuple):
    """A camera as a file states it."""

    model: str
    size_px: tuple[float, float]
    """Width and height of its images."""
    focal_px: float
    """See `focal_length`."""


def make_camera(
    model: str, size_px: tuple[float, float], parameters: Sequence[float], where: str
) -> Camera:
    """A camera by its parameters. Raises MsposeError, with `where`, for a wrong number of them."""
    expected = PARAMETERS.get(model, len(parameters))
    if len(parameters) != expected:
        raise MsposeError(
            f"{where}: camera model {model} has {expected} parameters, not {len(parameters)}"
        )
    return Camera(model, size_px, focal_length(model, parameters))


def focal_length(model: str, parameters: Sequence[float]) -> float:
    """Focal length in pixels, the mean of both axes; NaN for a model without, or an unknown one.

    In all others the parameters begin with f, or with fx and fy.
    """
    if model not in PARAMETERS or model in WITHOUT_FOCAL_LENGTH:
        return math.nan
    one = model.startswith("SIMPLE_") or model in ("RADIAL", "RADIAL_FISHEYE")
    return parameters[0] if one else (parameters[0] + parameters[1]) / 2


def camera_notes(models: Iterable[str]) -> list[str]:
    """Lines for the summary about cameras of these models."""
    used, notes = set(models), []
    if distorted := sorted(used & set(PARAMETERS) - WITHOUT_DISTORTION):
        notes.append(f"camera models with distortion: {', '.join(distorted)}")
    if unknown := sorted(used - set(PARAMETERS)):
        notes.append(f"camera models whose focal length is not known here: {', '.join(unknown)}")
    return notes
