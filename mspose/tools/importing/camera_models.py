"""COLMAP's camera models, which kapture shares (https://colmap.github.io/cameras.html)."""

import math
from collections.abc import Iterable, Sequence

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
"""How many a camera has. A model's place in this order is its number in COLMAP's binary files."""
WITHOUT_DISTORTION = ("SIMPLE_PINHOLE", "PINHOLE")
WITHOUT_FOCAL_LENGTH = ("EQUIRECTANGULAR",)


def wrong_parameters(model: str, parameters: Sequence[float]) -> str:
    """What is wrong with the number of a camera's parameters; nothing where it is right, or the
    model unknown.
    """
    expected = PARAMETERS.get(model, len(parameters))
    return f"camera model {model} has {expected} parameters, not {len(parameters)}" * (
        len(parameters) != expected
    )


def focal_length(model: str, parameters: Sequence[float]) -> float:
    """Focal length in pixels, the mean of both axes; NaN for a model without, and for one that is
    unknown here.

    In all others the parameters begin with f, or with fx and fy.
    """
    if model not in PARAMETERS or model in WITHOUT_FOCAL_LENGTH:
        return math.nan
    one = model.startswith("SIMPLE_") or model in ("RADIAL", "RADIAL_FISHEYE")
    return parameters[0] if one else (parameters[0] + parameters[1]) / 2


def notes_on(models: Iterable[str]) -> list[str]:
    """What a reader should know about the cameras of these models, a line each."""
    used = set(models)
    found = {
        "camera models with distortion": sorted((used & {*PARAMETERS}) - {*WITHOUT_DISTORTION}),
        "camera models whose focal length is not known here": sorted(used - {*PARAMETERS}),
    }
    return [f"{what}: {', '.join(names)}" for what, names in found.items() if names]
