"""Read COLMAP models: cameras and images of a sparse reconstruction.

Poses are world-to-camera, p_cam = R(q) p_world + t, quaternion w first; camera axes as here
(`mspose.poses.camera_to_world` turns them round, for every format). Where a model has rigs and
frames, COLMAP composes the poses of images from these; where it is there as text and as binary
files, it reads the latter (https://colmap.github.io/format.html). Text is read here, since pycolmap
ends the names of images at a blank; pycolmap reads the binary format.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mspose.data.frames import WORLD_TO_CAMERA, natural_order, parse_numbers
from mspose.errors import MsposeError
from mspose.libraries import require
from mspose.tools.importing.camera_models import Camera, camera_notes, make_camera
from mspose.tools.importing.colmap_binary import checked_poses, image_count
from mspose.tools.importing.image_paths import existing_folder, find_images, wrong_layout
from mspose.tools.importing.rigid_motion import RigidMotion, difference, parse_motion
from mspose.tools.importing.text_tables import BLANKS, read_rows
from mspose.tools.importing.views import Capture, View, listed, plain_name, sequence_of

OUTER_FOLDERS = ("sparse", "dense", "colmap", "text", "model")
"""Folders of a project that hold models."""


class _Image(NamedTuple):
    name: str
    motion: RigidMotion
    camera: int
    frame: int | None
    """Images of one frame were taken at the same time by the cameras of a rig."""
    where: str


def read_colmap(path: Path, images: Path | None) -> Capture:
    """The views of a model: `path` is its folder, or that of a project with one model in it.

    `images` is the folder of the images; by default it is searched in and above the model. Raises
    MsposeError for a folder without a model or with several, and for files that are damaged.
    """
    model = _model_folder(existing_folder(path, "COLMAP"))
    binary = all((model / f"{part}.bin").is_file() for part in ("cameras", "images", "points3D"))
    is_text = _is_model(model, "txt") and not binary
    cameras, found, notes = (_read_text if is_text else _read_binary)(model)
    if not found:
        raise MsposeError(f"{model} holds no image with a pose: the reconstruction is empty")
    parents = [model, *list(model.parents)[:3]]
    candidates = [images] if images else [sub for up in parents for sub in (up / "images", up)]
    project = images or next(
        up for up in parents if up.name not in OUTER_FOLDERS and not up.name.isdecimal()
    )
    folders, files = find_images([image.name for image in found], candidates, project)
    views = [
        _view(image, file, cameras, *sequence_and_moment)
        for image, file, sequence_and_moment in zip(
            found, files, _taken_together(found), strict=True
        )
    ]
    notes += camera_notes(camera.model for camera in cameras.values())
    return Capture(model, WORLD_TO_CAMERA, views, folders, notes=notes)


def _view(
    image: _Image, file: Path | None, cameras: Mapping[int, Camera], sequence: str, moment: Any
) -> View:
    if image.camera not in cameras:
        raise MsposeError(f"{image.where}: camera {image.camera} is not among the model's cameras")
    camera = cameras[image.camera]
    return View(
        image=plain_name(image.name),
        file=file,
        position=image.motion.translation_3.tolist(),
        orientation=image.motion.quaternion,
        sequence=sequence,
        moment=moment,
        where=image.motion.where,
        focal_px=camera.focal_px,
        size_px=camera.size_px,
        fault=image.motion.fault,
    )


def _taken_together(images: list[_Image]) -> list[tuple[str, Any]]:
    """(sequence, moment) of each image: the folders of a rig's cameras are one sequence, the images
    of a frame one moment.
    """
    names_of_frame: dict[int, list[str]] = {}
    for image in images:
        if image.frame is not None:
            names_of_frame.setdefault(image.frame, []).append(image.name)
    joined: dict[str, str] = {}

    def sequence(name: str) -> str:
        folder = sequence_of(name)
        while folder in joined:
            folder = joined[folder]
        return folder

    for names in names_of_frame.values():
        first, *others = sorted({sequence(name) for name in names}, key=natural_order)
        joined |= dict.fromkeys(others, first)
    # the cameras of a rig give the images of a frame one name, each in its own folder
    moments = {
        frame: min(natural_order(_last_part(name)) for name in names)
        for frame, names in names_of_frame.items()
    }
    return [
        (
            sequence(image.name),
            natural_order(_last_part(image.name)) if image.frame is None else moments[image.frame],
        )
        for image in images
    ]


def _last_part(name: str) -> str:
    return plain_name(name).rpartition("/")[2]


def _is_model(folder: Path, *endings: str) -> bool:
    return any(
        all((folder / f"{part}.{ending}").is_file() for part in ("cameras", "images"))
        for ending in endings
    )


def _model_folder(path: Path) -> Path:
    if _is_model(path, "txt", "bin"):
        return path
    for ending in ("txt", "bin"):
        if (path / f"images.{ending}").is_file():
            raise MsposeError(
                f"{path / f'cameras.{ending}'} is missing: a COLMAP model has cameras beside its"
                " images"
            )
    parents = [path / sub for sub in (".", "sparse", "colmap/sparse", "dense/sparse")]
    inner = [sub for folder in parents if folder.is_dir() for sub in sorted(folder.iterdir())]
    models = list(
        dict.fromkeys(folder for folder in [*parents, *inner] if _is_model(folder, "txt", "bin"))
    )
    if len(models) > 1:
        counts = {model: _image_count(model) for model in models}
        names = ", ".join(
            f"{model.relative_to(path)}: {count} images" for model, count in counts.items()
        )
        raise MsposeError(
            f"{path} holds several COLMAP models ({names}): give the folder of one of them, as"
            f" {max(models, key=counts.__getitem__)}, which has most images"
        )
    if not models:
        raise wrong_layout(path, "colmap", "it holds no COLMAP model")
    return models[0]


def _image_count(model: Path) -> int:
    if (model / "images.bin").is_file():
        return image_count(model)
    return sum(1 for _ in _image_lines(model / "images.txt"))


def _read_text(model: Path) -> tuple[dict[int, Camera], list[_Image], list[str]]:
    """(cameras, images, notes) of the text format, with file and line in every message."""
    cameras = {}
    columns = "CAMERA_ID MODEL WIDTH HEIGHT PARAMS"
    rows = read_rows(model / "cameras.txt", columns, BLANKS, more=True)
    for where, (number, name, *cells) in rows:
        (width, height, *parameters), fault = parse_numbers(cells)
        if fault:
            raise MsposeError(f"{where}: {fault}")
        cameras[_whole(number, where)] = make_camera(name, (width, height), parameters, where)
    composed, notes = _rig_images(model)
    images, stated = [], {}
    for where, line in _image_lines(model / "images.txt"):
        cells = line.split(None, 9)
        if len(cells) < 10:
            raise MsposeError(
                f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, found"
                f" {len(cells)} values"
            )
        image_id, name = _whole(cells[0], where), cells[9]
        image = _Image(name, parse_motion(cells[1:8], where), _whole(cells[8], where), None, where)
        if image_id in composed:
            stated[name] = image.motion
            image = image._replace(motion=composed[image_id].motion, frame=composed[image_id].frame)
        images.append(image)
    reason = "images.txt differs from rigs.txt and frames.txt"
    return cameras, images, [*notes, *_differences(images, stated, reason)]


def _differences(
    images: Sequence[_Image], stated: Mapping[str, RigidMotion], what: str
) -> list[str]:
    """A line about images whose pose differs from a second one that the model states of them."""
    found = {}
    for image in images:
        if image.name in stated and (by := difference(stated[image.name], image.motion)):
            found[image.name] = by
    if not found:
        return []
    offsets, angles = zip(*found.values(), strict=True)
    return [
        f"{what}, whose poses are taken as COLMAP does: {len(found)} images, by up to"
        f" {max(offsets):.3g} units and {max(angles):.3g} degrees: {listed(list(found))}"
    ]


def _rig_images(model: Path) -> tuple[dict[int, _Image], list[str]]:
    """Image id -> image with the pose that COLMAP composes of rigs.txt and frames.txt; and notes.

    No images where there are no such files, as before COLMAP 3.12.
    """
    rigs = model / "rigs.txt"
    if not rigs.is_file():
        return {}, []
    several = any(cells[1] != "1" for _, cells in read_rows(rigs, "RIG_ID N", BLANKS, more=True))
    if not several and importlib.util.find_spec("pycolmap") is None:
        return {}, ["without pycolmap, poses are those of images.txt, not of frames.txt"]
    return _read_with_pycolmap(model, "txt")[1], []


def _image_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line, text) of the images, without the line of 2-D points after each.

    Those lines may be long or empty; the file is not read as a whole.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            numbered = enumerate(file, 1)
            for number, line in numbered:
                if not line.strip() or line.lstrip().startswith("#"):
                    continue
                yield f"{path}, line {number}", line.strip()
                after, points = next(numbered, (number, ""))
                first = points.split(None, 10)
                if len(first) > 9 and parse_numbers(first[9:10])[1]:
                    raise MsposeError(
                        f"{path}, line {after}: expected the 2-D points of the image above (or an"
                        " empty line)"
                    )
    except OSError as error:
        raise MsposeError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MsposeError(f"{path} is not a text file (byte {error.start} is not UTF-8)") from error


def _whole(cell: str, where: str) -> int:
    if not cell.isdecimal():
        raise MsposeError(f"{where}: {cell[:40]!r} is not a whole number")
    return int(cell)


def _read_binary(model: Path) -> tuple[dict[int, Camera], list[_Image], list[str]]:
    """(cameras, images, notes) of the binary format."""
    require("pycolmap")
    where = str(model / "images.bin")
    stated = {number: parse_motion(pose, where) for number, pose in checked_poses(model).items()}
    cameras, by_number = _read_with_pycolmap(model, "bin")
    images = list(by_number.values())
    of_images = {
        image.name: stated[number] for number, image in by_number.items() if number in stated
    }
    notes = _differences(images, of_images, "images.bin differs from rigs.bin and frames.bin")
    if _is_model(model, "txt"):
        notes.append("the model is there as text too: poses are those of the .bin files")
        try:
            in_text = {image.name: image.motion for image in _read_text(model)[1]}
            notes += _differences(images, in_text, "images.txt differs from the .bin files")
        except MsposeError as error:
            notes.append(f"the text was not compared: {error}")
    return cameras, images, notes


def _read_with_pycolmap(model: Path, ending: str) -> tuple[dict[int, Camera], dict[int, _Image]]:
    """(cameras, images) by their numbers. Raises MsposeError without pycolmap, and as it does."""
    where = str(model / f"images.{ending}")
    pycolmap: Any = require("pycolmap")
    try:
        found = pycolmap.Reconstruction()
        (found.read_text if ending == "txt" else found.read_binary)(str(model))
        cameras = {
            number: make_camera(
                camera.model.name, (camera.width, camera.height), list(camera.params), where
            )
            for number, camera in found.cameras.items()
        }
        images = {}
        for number, image in sorted(found.images.items()):
            pose = image.cam_from_world  # an attribute up to pycolmap 3.11, a method since
            pose = pose() if callable(pose) else pose
            x, y, z, w = pose.rotation.quat
            motion = parse_motion([w, x, y, z, *pose.translation], f"{where}, image {image.name}")
            frame = getattr(image, "frame_id", None)
            images[number] = _Image(image.name, motion, image.camera_id, frame, motion.where)
    except (ValueError, IndexError, KeyError, RuntimeError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise MsposeError(
            f"{model}: pycolmap cannot read the model, it is damaged or incomplete: {reason}"
        ) from error
    return cameras, images
