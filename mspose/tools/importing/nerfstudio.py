"""Read transforms.json of nerfstudio and instant-ngp, and Blender's transforms_train.json, ...

Each frame has a camera-to-world matrix in OpenGL's camera axes: x right, y up, z back
(https://docs.nerf.studio/quickstart/data_conventions.html). Here y and z have the other sign.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mspose.data.frames import CAMERA_TO_WORLD, last_row_fault, natural_order
from mspose.errors import MsposeError
from mspose.tools.importing.image_paths import (
    existing_folder,
    find_images,
    image_size,
    without_dots,
    wrong_layout,
)
from mspose.tools.importing.views import Capture, View, listed, plain_name, sequence_of

SPLITS = ("train", "val", "test")
FROM_OPENGL = np.diag([1.0, -1.0, -1.0])
FOCAL_KEYS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "x_fov", "y_fov")
"""Pixels, radians (Blender), and degrees (instant-ngp)."""
SAME_FOCAL = 0.01
"""Relative difference between two statements of a focal length, as rounding makes it."""
DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")
PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
"""Camera models without other distortion than that of `DISTORTION_KEYS`."""
READ_KEYS = {
    *(*FOCAL_KEYS, *DISTORTION_KEYS, "w", "h", "camera_model", "is_fisheye", "applied_scale"),
    *("file_path", "transform_matrix", "is_bad", "frames"),
    *(f"{split}_{lists}" for split in SPLITS for lists in ("filenames", "frames")),
}
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
    unposed: dict[str, str] = {}
    folders: dict[Path, None] = {}
    for file, split in files.items():
        content = _read_json(file)
        frames = _frames_by_split(file, content)
        if focal_px is None and not any(
            key in scope
            for scope in [content, *(frame for _, frame in frames)]
            for key in FOCAL_KEYS
        ):
            raise MsposeError(
                f"{file} has no camera model (fl_x or camera_angle_x): add it, or give the focal"
                " length in pixels with --focal-px"
            )
        splits, size = _split_lists(file, content), _ImageSize(content)
        wheres = [f"{file}, frame {number}" for number in range(len(frames))]
        names = [_name(where, frame) for where, (_, frame) in zip(wheres, frames, strict=True)]
        base = images or file.parent
        searched, found = find_images(names, [base, base / "images"], base)
        folders |= dict.fromkeys(searched)
        for where, name, image_file, (its_split, frame) in zip(
            wheres, names, found, frames, strict=True
        ):
            if frame.get("is_bad") is True:
                unposed[name] = "marked as bad (is_bad) in the file"
                continue
            view = _view(where, name, image_file, frame, content, size)
            views.append(replace(view, given_split=split or its_split or splits.get(name, "")))
        notes += _notes(content, [frame for _, frame in frames])
    if not views:
        raise MsposeError(f"{path}: all frames are marked as bad (is_bad)")
    first = next(iter(files))
    return Capture(
        source=first if len(files) == 1 else path,
        convention=CAMERA_TO_WORLD,
        views=views,
        image_folders=list(folders),
        unposed=unposed,
        notes=list(dict.fromkeys(notes)),
    )


def _files(folder: Path) -> dict[Path, str]:
    """File -> the split that its name states."""
    if (folder / "transforms.json").is_file():
        return {folder / "transforms.json": ""}
    named = {folder / f"transforms_{split}.json": split for split in SPLITS}
    found = {file: split for file, split in named.items() if file.is_file()}
    if not found:
        raise wrong_layout(folder, "nerfstudio", "it holds no transforms.json")
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
    if not frames and not any(content.get(f"{split}_frames") for split in SPLITS):
        raise MsposeError(f"{file} has no frames")
    return dict(content)


def _frames_by_split(file: Path, content: Scope) -> list[tuple[str, Scope]]:
    """(split that its list states, frame) of `frames`, and of `test_frames` and the like, as
    ScanNet++ has them; beside these `frames` are for training.
    """
    lists = {"": content["frames"]}
    for split in SPLITS:
        if value := content.get(f"{split}_frames"):
            if not isinstance(value, list) or not all(isinstance(frame, dict) for frame in value):
                raise MsposeError(f"{file}: {split}_frames is not a list of frames")
            lists[split] = value
    main = "train" if len(lists) > 1 else ""
    return [(split or main, frame) for split, frames in lists.items() for frame in frames]


def _name(where: str, frame: Scope) -> str:
    name = frame.get("file_path")
    if not isinstance(name, str) or not name.strip():
        raise MsposeError(f"{where}: file_path is missing")
    return plain_name(name)


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


def _view(
    where: str, image: str, file: Path | None, frame: Scope, content: Scope, size: _ImageSize
) -> View:
    matrix_44, fault = _matrix(frame.get("transform_matrix"))
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
    pose_44 = np.vstack([matrix[:3], matrix[3] if len(matrix) == 4 else [0, 0, 0, 1]])
    return pose_44, last_row_fault(pose_44)


def _statements(scope: Scope, size_px: tuple[float, float]) -> list[list[float]]:
    """The focal lengths in pixels that a scope states, for both axes: in pixels, then by an angle.

    An impossible angle gives -1, which is refused as a focal length.
    """
    found = []
    for axis, side_px in zip("xy", size_px, strict=True):
        radians = (
            _number(scope.get(f"camera_angle_{axis}")),
            math.radians(_number(scope.get(f"{axis}_fov"))),
        )
        by_angle = [
            side_px / 2 / math.tan(angle / 2) if 0 < angle < math.pi else -1.0
            for angle in radians
            if not math.isnan(angle)
        ]
        pixels = _number(scope.get(f"fl_{axis}"))
        found.append(([] if math.isnan(pixels) else [pixels]) + by_angle)
    return found


def _focal_length(frame: Scope, content: Scope, size_px: tuple[float, float]) -> float:
    """Mean focal length of both axes in pixels, or that of one by its angle; NaN without any.

    That of a frame precedes that of all, pixels an angle, as nerfstudio has it.
    """
    for scope in (frame, content):
        lengths = [_number(scope.get(key)) for key in ("fl_x", "fl_y")]
        lengths = [length for length in lengths if not math.isnan(length)]
        if lengths:
            return sum(lengths) / len(lengths)
        for statements in _statements(scope, size_px):
            if statements:
                return statements[0]
    return math.nan


def _number(value: Any) -> float:
    """A number of JSON; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _split_lists(file: Path, content: Scope) -> dict[str, str]:
    """Image -> the split whose list of names has it. Raises MsposeError for one in two."""
    splits: dict[str, str] = {}
    for split in SPLITS:
        names = content.get(f"{split}_filenames")
        for name in names if isinstance(names, list) else []:
            if isinstance(name, str) and splits.setdefault(plain_name(name), split) != split:
                raise MsposeError(
                    f"{file}: {name} is in {splits[plain_name(name)]}_filenames and in"
                    f" {split}_filenames: correct it"
                )
    return splits


def _is_distorted(camera: Scope) -> bool:
    return (
        camera.get("camera_model", "OPENCV") not in PERSPECTIVE
        or camera.get("is_fisheye") is True
        or any(_number(camera.get(key, 0)) != 0 for key in DISTORTION_KEYS)
    )


def _notes(content: Scope, frames: Sequence[Scope]) -> list[str]:
    notes = []
    if any(_is_distorted(camera) for camera in [content, *frames]):
        notes.append("the camera model has distortion")
    scale = _number(content.get("applied_scale", 1))
    if scale > 0 and scale != 1:
        notes.append(f"applied_scale is {scale:g}: --scale {1 / scale:g} undoes it")
    for scope in (content, *frames):
        size_px = (_number(scope.get("w")), _number(scope.get("h")))
        for lengths in _statements(scope, size_px):
            if lengths and max(lengths) > (1 + SAME_FOCAL) * min(lengths):
                several = ", ".join(f"{length:.6g}" for length in lengths)
                notes.append(
                    f"a focal length is stated twice, the first is taken: {several} pixels"
                )
    unread = dict.fromkeys(
        key for scope in [content, *frames] for key in scope if key not in READ_KEYS
    )
    if unread:
        notes.append(f"not read: {listed(list(unread))}")
    return notes
