"""Read transforms.json of nerfstudio and instant-ngp, and Blender's transforms_train.json, ...

Each frame has a camera-to-world matrix in OpenGL's camera axes: x right, y up, z back
(https://docs.nerf.studio/quickstart/data_conventions.html). Here y and z have the other sign.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mspose.data.frames import CAMERA_TO_WORLD, natural_order
from mspose.errors import MsposeError
from mspose.tools.importing.image_paths import (
    existing_folder,
    hint,
    image_size,
    locate,
    without_dots,
)
from mspose.tools.importing.views import Capture, View, plain_name, sequence_of

SPLITS = ("train", "val", "test")
FROM_OPENGL = np.diag([1.0, -1.0, -1.0])
FOCAL_KEYS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")
DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")
PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
"""Camera models without other distortion than that of `DISTORTION_KEYS`."""
Scope = Mapping[str, Any]


def read_nerfstudio(path: Path, images: Path | None, *, focal_px: float | None) -> Capture:
    """The views of a transforms.json: `path` is the file or its folder.

    Image names in it are relative to its folder, or to `images`. Raises MsposeError where it does
    not state the focal length and `focal_px` is not given; for JSON that cannot be read; and for
    frames without a name or matrix.
    """
    path = without_dots(path)
    if path.suffix == ".json" and path.is_file():
        files = {path: ""}
    else:
        files = _files(existing_folder(path, "nerfstudio"))
    views: list[View] = []
    notes: list[str] = []
    for file, split in files.items():
        content = _read_json(file)
        frames = content["frames"]
        if focal_px is None and not any(
            key in scope for scope in [content, *frames] for key in FOCAL_KEYS
        ):
            raise MsposeError(
                f"{file} has no camera model (fl_x or camera_angle_x): add it, or give the focal"
                " length in pixels with --focal_px"
            )
        splits, base, size = _split_lists(content), images or file.parent, _ImageSize(content)
        for number, frame in enumerate(frames):
            view = _view(f"{file}, frame {number}", frame, content, base, size)
            views.append(replace(view, given_split=split or splits.get(view.image, "")))
        notes += _notes(content)
    first = next(iter(files))
    return Capture(
        source=first if len(files) == 1 else path,
        convention=CAMERA_TO_WORLD,
        views=views,
        image_folders=[images or first.parent],
        notes=list(dict.fromkeys(notes)),
    )


def _files(folder: Path) -> dict[Path, str]:
    """File -> the split that its name states."""
    if (folder / "transforms.json").is_file():
        return {folder / "transforms.json": ""}
    named = {folder / f"transforms_{split}.json": split for split in SPLITS}
    found = {file: split for file, split in named.items() if file.is_file()}
    if not found:
        raise MsposeError(f"{folder} holds no transforms.json{hint(folder, 'nerfstudio')}")
    return found


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise MsposeError(f"cannot read {file}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise MsposeError(f"{file} is not JSON, or cut off: {error}") from error
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise MsposeError(f"{file} is not a transforms.json: it has no list of frames")
    if not frames:
        raise MsposeError(f"{file} has no frames")
    return dict(content)


class _ImageSize:
    """Width and height in pixels of a frame's image: stated, or read from the image.

    Of one camera for all frames, one image is read.
    """

    def __init__(self, content: Scope) -> None:
        self.content = content
        self.shared = (math.nan, math.nan)

    def __call__(self, frame: Scope, file: Path | None) -> tuple[float, float]:
        width, height = (_number(frame.get(key, self.content.get(key))) for key in ("w", "h"))
        if not math.isnan(width):
            return width, height
        if file is not None and any(key in frame for key in FOCAL_KEYS):
            return image_size(file)
        if file is not None and math.isnan(self.shared[0]):
            self.shared = image_size(file)
        return self.shared


def _view(where: str, frame: Scope, content: Scope, base: Path, size: _ImageSize) -> View:
    name = frame.get("file_path")
    if not isinstance(name, str) or not name.strip():
        raise MsposeError(f"{where}: file_path is missing")
    image = plain_name(name)
    matrix_44, fault = _matrix(frame.get("transform_matrix"))
    file = locate(base, image)
    size_px = size(frame, file)
    for scope in (frame, content):
        for key in FOCAL_KEYS:
            if math.isnan(_number(scope.get(key, 1))):
                fault = fault or f"{key} is not a number"
    return View(
        image=image,
        file=file,
        position=matrix_44[:3, 3].tolist(),
        orientation=matrix_44[:3, :3] @ FROM_OPENGL,
        sequence=sequence_of(image),
        moment=natural_order(image),
        where=f"{where} ({image})",
        focal_px=_focal_length(frame, content, size_px),
        size_px=size_px,
        fault=fault,
    )


def _matrix(value: Any) -> tuple[NDArray[np.float64], str]:
    """(matrix (4, 4), fault): the pose, or NaN and what is wrong with it."""
    unknown = np.full((4, 4), math.nan)
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return unknown, "transform_matrix is not a matrix of numbers"
    if matrix.shape not in ((4, 4), (3, 4)):
        return unknown, "transform_matrix is not a matrix of 4x4 or 3x4 numbers"
    last_4 = matrix[3] if len(matrix) == 4 else np.array([0, 0, 0, 1])
    if not np.allclose(last_4, [0, 0, 0, 1], atol=1e-6):
        fault = f"the last row of transform_matrix is {last_4.tolist()}, not 0 0 0 1"
        return unknown, f"{fault}: is it transposed?"
    return np.vstack([matrix[:3], last_4]), ""


def _focal_length(frame: Scope, content: Scope, size_px: tuple[float, float]) -> float:
    """Mean focal length of both axes; that of a frame precedes that of all."""
    for scope in (frame, content):
        lengths = [_number(scope.get(key)) for key in ("fl_x", "fl_y")]
        lengths = [length for length in lengths if not math.isnan(length)]
        if lengths:
            return sum(lengths) / len(lengths)
        for key, side_px in zip(("camera_angle_x", "camera_angle_y"), size_px, strict=True):
            angle = _number(scope.get(key))
            if 0 < angle < math.pi:
                return side_px / 2 / math.tan(angle / 2)
            if not math.isnan(angle):
                return -1.0  # is refused as an impossible focal length
    return math.nan


def _number(value: Any) -> float:
    """A number of JSON; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _split_lists(content: Scope) -> dict[str, str]:
    """Image -> the split whose list names it."""
    splits = {}
    for split in SPLITS:
        names = content.get(f"{split}_filenames")
        for name in names if isinstance(names, list) else []:
            if isinstance(name, str):
                splits[plain_name(name)] = split
    return splits


def _is_distorted(camera: Scope) -> bool:
    return (
        camera.get("camera_model", "OPENCV") not in PERSPECTIVE
        or camera.get("is_fisheye") is True
        or any(_number(camera.get(key, 0)) != 0 for key in DISTORTION_KEYS)
    )


def _notes(content: Scope) -> list[str]:
    notes = []
    if any(_is_distorted(camera) for camera in [content, *content["frames"]]):
        notes.append("the camera model has distortion")
    scale = _number(content.get("applied_scale", 1))
    if scale > 0 and scale != 1:
        notes.append(f"applied_scale is {scale:g}: --scale {1 / scale:g} undoes it")
    return notes
