"""transforms.json of nerfstudio and instant-ngp, and Blender's transforms_train.json,
..._test.json.

Each frame has a camera-to-world matrix in OpenGL's camera axes: x right, y up, z back
(https://docs.nerf.studio/quickstart/data_conventions.html). Ours differ in the signs of y and z.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mspose.data.frames import CAMERA_TO_WORLD, natural_order
from mspose.errors import MsposeError
from mspose.tools.importing.capture import (
    Capture,
    View,
    existing_folder,
    image_size,
    locate,
    looks_like,
    sequence_of,
    without_dots,
)

FILES = {
    "transforms_train.json": "train",
    "transforms_val.json": "val",
    "transforms_test.json": "test",
}
FROM_OPENGL = np.diag([1.0, -1.0, -1.0])
FOCAL_KEYS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")
DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")
PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
"""Camera models without other distortion than that of `DISTORTION_KEYS`."""


def read_nerfstudio(path: Path, images: Path | None, *, focal_px: float | None) -> Capture:
    """The views of a transforms.json: `path` is the file or its folder.

    Image names in it are relative to its folder, or to `images`. Raises MsposeError where nothing
    in it says the focal length, unless `focal_px` does; for JSON that cannot be read; and for
    frames without a name or matrix.
    """
    path = without_dots(path)
    files = (
        {path: ""}
        if path.suffix == ".json" and path.is_file()
        else _files(existing_folder(path, "nerfstudio"))
    )
    views: list[View] = []
    notes: list[str] = []
    for file, split in files.items():
        content = _content(file)
        base = images or file.parent
        frames = content["frames"]
        if focal_px is None and not any(
            key in scope for scope in [content, *frames] for key in FOCAL_KEYS
        ):
            raise MsposeError(
                f"{file} has no camera model (fl_x or camera_angle_x): add it, or give the focal"
                " length in pixels with --focal_px"
            )
        lists = _split_lists(content)
        size = _Size(content)
        for number, frame in enumerate(frames):
            views.append(_view(f"{file}, frame {number}", frame, content, base, lists, split, size))
        notes += _notes(content)
    return Capture(
        source=next(iter(files)) if len(files) == 1 else path,
        convention=CAMERA_TO_WORLD,
        views=views,
        looked_in=[images or next(iter(files)).parent],
        notes=list(dict.fromkeys(notes)),
    )


def _files(folder: Path) -> dict[Path, str]:
    if (folder / "transforms.json").is_file():
        return {folder / "transforms.json": ""}
    found = {folder / name: split for name, split in FILES.items() if (folder / name).is_file()}
    if not found:
        raise MsposeError(f"{folder} holds no transforms.json{looks_like(folder, 'nerfstudio')}")
    return found


def _content(file: Path) -> dict[str, Any]:
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


class _Size:
    """Width and height in pixels of a frame's image: said, or read from the image; of one camera
    for all once.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self.of_all = (math.nan, math.nan)

    def __call__(self, frame: Mapping[str, Any], file: Path | None) -> tuple[float, float]:
        width, height = (_number(frame.get(key, self.content.get(key))) for key in ("w", "h"))
        if not math.isnan(width):
            return width, height
        if file is not None and any(key in frame for key in FOCAL_KEYS):
            return image_size(file)
        if file is not None and math.isnan(self.of_all[0]):
            self.of_all = image_size(file)
        return self.of_all


def _view(
    place: str,
    frame: Mapping[str, Any],
    content: Mapping[str, Any],
    base: Path,
    lists: Mapping[str, str],
    split: str,
    size: _Size,
) -> View:
    name = frame.get("file_path")
    if not isinstance(name, str) or not name.strip():
        raise MsposeError(f"{place}: file_path is missing")
    image = name.replace("\\", "/").removeprefix("./")
    matrix, fault = _matrix(frame.get("transform_matrix"))
    file = locate(base, image)
    size_px = size(frame, file)
    unread = [
        key
        for scope in (frame, content)
        for key in FOCAL_KEYS
        if math.isnan(_number(scope.get(key, 1)))
    ]
    return View(
        image=image,
        file=file,
        position=matrix[:3, 3].tolist(),
        orientation=matrix[:3, :3] @ FROM_OPENGL,
        sequence=sequence_of(image),
        moment=natural_order(image),
        place=f"{place} ({image})",
        focal_px=_focal(frame, content, size_px),
        size_px=size_px,
        fault=fault or (f"{unread[0]} is not a number" if unread else ""),
        given_split=split or lists.get(image, ""),
    )


def _matrix(value: Any) -> tuple[NDArray[np.float64], str]:
    """(matrix (4, 4), fault): the pose, or NaNs and what is wrong with it."""
    unknown = np.full((4, 4), math.nan)
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return unknown, "transform_matrix is not a matrix of numbers"
    if matrix.shape not in ((4, 4), (3, 4)):
        return unknown, "transform_matrix is not a matrix of 4x4 or 3x4 numbers"
    if len(matrix) == 4 and not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
        return (
            unknown,
            (
                f"the last row of transform_matrix is {matrix[3].tolist()}, not 0 0 0 1: is it"
                " transposed?"
            ),
        )
    return np.vstack([matrix[:3], [0, 0, 0, 1]]), ""


def _focal(
    frame: Mapping[str, Any], content: Mapping[str, Any], size_px: tuple[float, float]
) -> float:
    """Mean focal length of both axes; what a frame says goes before what holds for all."""
    for scope in (frame, content):
        lengths = [_number(scope.get(key)) for key in ("fl_x", "fl_y")]
        lengths = [length for length in lengths if not math.isnan(length)]
        if lengths:
            return sum(lengths) / len(lengths)
        for key, side_px in zip(("camera_angle_x", "camera_angle_y"), size_px, strict=True):
            angle = _number(scope.get(key))
            if not math.isnan(angle):
                return (
                    side_px / 2 / math.tan(angle / 2) if 0 < angle < math.pi else -1.0
                )  # refused like any such length
    return math.nan


def _number(value: Any) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if good else math.nan
    except OverflowError:
        return math.inf


def _split_lists(content: Mapping[str, Any]) -> dict[str, str]:
    lists = {split: content.get(f"{split}_filenames") for split in ("train", "val", "test")}
    return {
        name.replace("\\", "/").removeprefix("./"): split
        for split, names in lists.items()
        if isinstance(names, list)
        for name in names
        if isinstance(name, str)
    }


def _is_distorted(camera: Mapping[str, Any]) -> bool:
    bent = (
        camera.get("camera_model", "OPENCV") not in PERSPECTIVE or camera.get("is_fisheye") is True
    )
    return bent or any(_number(camera.get(key, 0)) != 0 for key in DISTORTION_KEYS)


def _notes(content: Mapping[str, Any]) -> list[str]:
    notes = []
    cameras = [content, *content["frames"]]
    if any(_is_distorted(camera) for camera in cameras):
        notes.append("the camera model has distortion")
    scale = _number(content.get("applied_scale", 1))
    if scale > 0 and scale != 1:
        notes.append(f"applied_scale is {scale:g}: --scale {1 / scale:g} undoes it")
    return notes
