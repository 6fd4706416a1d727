"""The images of one folder with their poses as its files state them, in their own convention."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHOWN = 10  # names in a list


@dataclass(frozen=True)
class View:
    """One image with its pose, in the convention and unit of the files."""

    image: str
    """Its name as the files have it, with `/`."""
    file: Path | None
    """None where the image is not on disk."""
    position: Sequence[float]
    orientation: Any
    """Quaternion w x y z, or rotation matrix (3, 3); NaN where it could not be read."""
    sequence: str
    moment: Any
    """Sorts a sequence; cameras of a rig share the moments at which they took images."""
    where: str
    """File and line, for messages."""
    focal_px: float = math.nan
    size_px: tuple[float, float] = (math.nan, math.nan)
    """Width and height of the image that `focal_px` was measured in."""
    fault: str = ""
    given_split: str = ""
    """Split that the files put it in, if they do."""


@dataclass(frozen=True)
class Capture:
    """All views of one folder."""

    source: Path
    """Model folder or file that was read."""
    convention: str
    """One of `mspose.data.frames.POSE_CONVENTIONS`."""
    views: list[View]
    image_folders: Sequence[Path]
    """Folders in which images were searched."""
    unposed: Mapping[str, str] = field(default_factory=dict)
    """Image -> why it has no pose."""
    notes: Sequence[str] = ()
    """Lines for the summary of the import."""


def stacked(views: Sequence[View]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Positions (B, 3), orientations (B, 4) or (B, 3, 3), and focal lengths (B,) of views."""
    position_B3 = np.array([view.position for view in views], dtype=np.float64).reshape(-1, 3)
    orientation = np.array([view.orientation for view in views], dtype=np.float64)
    return position_B3, orientation, np.array([view.focal_px for view in views], dtype=np.float64)


def sequence_of(image: str) -> str:
    """The folder part of an image's name, taken as its sequence; `.` for none."""
    return plain_name(image).rpartition("/")[0] or "."


def plain_name(image: str) -> str:
    """An image's name with `/` between its parts and no `./` or `file://` before them."""
    return image.replace("\\", "/").removeprefix("file://").removeprefix("./")


def listed(names: Sequence[str]) -> str:
    """The first `SHOWN` names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
