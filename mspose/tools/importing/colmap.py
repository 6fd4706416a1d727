"""COLMAP models: cameras and images of a sparse reconstruction.

Poses are world-to-camera, p_cam = R(q) p_world + t, quaternion w first; camera axes as ours.
Newer versions write rigs and frames beside the images, whose poses still are each image's own
(https://colmap.github.io/format.html). The text format is read here; pycolmap reads the binary one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mspose.data.frames import WORLD_TO_CAMERA, natural_order, parse_numbers
from mspose.errors import MsposeError
from mspose.tools.importing.camera_models import focal_length, notes_on, wrong_parameters
from mspose.tools.importing.capture import (
    Capture,
    View,
    existing_folder,
    images_folder,
    locate,
    looks_like,
    sequence_of,
    values_of,
)
from mspose.tools.importing.colmap_binary import refuse_cut_off


class _Camera(NamedTuple):
    model: str
    size_px: tuple[float, float]
    parameters: list[float]


class _Image(NamedTuple):
    name: str
    pose: list[float]
    """qw qx qy qz tx ty tz"""
    camera: int
    frame: int | None
    """Images of one frame were taken at the same time by the cameras of a rig."""
    place: str
    fault: str


def read_colmap(path: Path, images: Path | None) -> Capture:
    """The views of a model: `path` is its folder, or that of a project with one model in it.

    `images` is the folder of the images; by default it is looked for in and above the model. Raises
    MsposeError for a folder without a model or with several, and for files that are damaged.
    """
    model = _model_folder(existing_folder(path, "COLMAP"))
    cameras, found = _read_text(model) if _is_model(model, "txt") else _read_binary(model)
    if not found:
        raise MsposeError(f"{model} holds no image with a pose: the reconstruction is empty")
    folders = [model, *list(model.parents)[:3]]
    candidates = (
        [images] if images else [sub for folder in folders for sub in (folder / "images", folder)]
    )
    names = [image.name for image in found]
    folder = images_folder(candidates, names)
    return Capture(
        source=model,
        convention=WORLD_TO_CAMERA,
        views=[
            _view(image, cameras, folder, taken)
            for image, taken in zip(found, _taken_together(found), strict=True)
        ],
        looked_in=[folder] if folder else candidates,
        notes=notes_on(camera.model for camera in cameras.values()),
    )


def _view(
    image: _Image, cameras: Mapping[int, _Camera], folder: Path | None, taken: tuple[str, Any]
) -> View:
    if image.camera not in cameras:
        raise MsposeError(f"{image.place}: camera {image.camera} is not among the model's cameras")
    camera = cameras[image.camera]
    return View(
        image=image.name.replace("\\", "/"),
        file=locate(folder, image.name) if folder else None,
        position=image.pose[4:],
        orientation=image.pose[:4],
        sequence=taken[0],
        moment=taken[1],
        place=image.place,
        focal_px=focal_length(camera.model, camera.parameters),
        size_px=camera.size_px,
        fault=image.fault,
    )


def _taken_together(images: list[_Image]) -> list[tuple[str, Any]]:
    """(sequence, moment) of each image; the folders of a rig's cameras are one sequence, a frame's
    images a moment.
    """
    frames: dict[int, list[str]] = {}
    for image in images:
        if image.frame is not None:
            frames.setdefault(image.frame, []).append(image.name)
    joined: dict[str, str] = {}

    def sequence(name: str) -> str:
        folder = sequence_of(name)
        while folder in joined:
            folder = joined[folder]
        return folder

    for names in frames.values():
        first, *others = sorted({sequence(name) for name in names}, key=natural_order)
        joined |= dict.fromkeys(others, first)
    # the cameras of a rig call the images of a frame alike, each in its own folder
    moments = {
        frame: min(natural_order(_last(name)) for name in names) for frame, names in frames.items()
    }
    return [
        (
            sequence(image.name),
            natural_order(_last(image.name)) if image.frame is None else moments[image.frame],
        )
        for image in images
    ]


def _last(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _is_model(folder: Path, *ends: str) -> bool:
    return any(
        all((folder / f"{part}.{end}").is_file() for part in ("cameras", "images")) for end in ends
    )


def _model_folder(path: Path) -> Path:
    if _is_model(path, "txt", "bin"):
        return path
    half = [path / f"images.{end}" for end in ("txt", "bin") if (path / f"images.{end}").is_file()]
    if half:
        raise MsposeError(
            f"{half[0].with_stem('cameras')} is missing: a COLMAP model has cameras beside its"
            " images"
        )
    places = [path, path / "sparse", path / "colmap" / "sparse", path / "dense" / "sparse"]
    inner = [
        folder
        for place in places
        if place.is_dir()
        for folder in sorted(place.iterdir())
        if folder.is_dir()
    ]
    models = list(
        dict.fromkeys(folder for folder in [*places, *inner] if _is_model(folder, "txt", "bin"))
    )
    if len(models) > 1:
        names = ", ".join(str(model.relative_to(path)) for model in models)
        raise MsposeError(
            f"{path} holds several COLMAP models ({names}): give the folder of one of them"
        )
    if not models:
        raise MsposeError(
            f"{path} holds no COLMAP model (cameras and images as .txt or"
            f" .bin){looks_like(path, 'colmap')}"
        )
    return models[0]


def _read_text(model: Path) -> tuple[dict[int, _Camera], list[_Image]]:
    """(cameras, images) of the text format, with file and line in every message."""
    cameras = {}
    for place, (number, *values) in values_of(model / "cameras.txt", None):
        numbers, fault = parse_numbers([number, *values[1:]])
        if fault or len(values) < 4 or not numbers[0].is_integer():
            raise MsposeError(f"{place}: {fault or 'expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS'}")
        cameras[int(numbers[0])] = _checked(
            _Camera(values[0], (numbers[1], numbers[2]), numbers[3:]), place
        )
    frames = _text_frames(model / "frames.txt")
    return cameras, [
        _text_image(place, line, frames) for place, line in _image_lines(model / "images.txt")
    ]


def _image_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of the images; the line of 2-D points after each, which may be long or empty,
    is passed over.
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


def _text_image(place: str, line: str, frames: Mapping[int, int]) -> _Image:
    values = line.split(None, 9)
    if len(values) < 10:
        raise MsposeError(
            f"{place}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, found {len(values)}"
            " values"
        )
    ids, fault = parse_numbers([values[0], values[8]])
    if fault or not all(number.is_integer() for number in ids):
        raise MsposeError(f"{place}: {fault or 'IMAGE_ID and CAMERA_ID are whole numbers'}")
    pose, fault = parse_numbers(values[1:8])
    return _Image(values[9], pose, int(ids[1]), frames.get(int(ids[0])), place, fault)


def _text_frames(path: Path) -> dict[int, int]:
    """Image id -> frame id; nothing where there is no such file, as before COLMAP 3.12."""
    frames: dict[int, int] = {}
    if not path.is_file():
        return frames
    for place, values in values_of(path, None):
        # FRAME_ID RIG_ID QW QX QY QZ TX TY TZ NUM_DATA_IDS (SENSOR_TYPE SENSOR_ID DATA_ID)...
        kinds, numbers = values[10::3], values[12::3]
        if (
            len(values) < 10
            or (len(values) - 10) % 3
            or not all(n.isdecimal() for n in [values[0], *numbers])
        ):
            raise MsposeError(
                f"{place}: expected FRAME_ID RIG_ID pose NUM_DATA_IDS (SENSOR_TYPE SENSOR_ID"
                " DATA_ID) ..."
            )
        for kind, number in zip(kinds, numbers, strict=True):
            if kind == "CAMERA":
                frames[int(number)] = int(values[0])
    return frames


def _read_binary(model: Path) -> tuple[dict[int, _Camera], list[_Image]]:
    """(cameras, images) of the binary format, as pycolmap reads it."""
    place = str(model / "images.bin")
    try:
        import pycolmap
    except ImportError as error:
        raise MsposeError(
            f"{place}: COLMAP's binary format needs pycolmap: pip install pycolmap, or write it as"
            " text (colmap model_converter --output_type TXT)"
        ) from error
    refuse_cut_off(model)
    try:
        found = pycolmap.Reconstruction(str(model))
        cameras = {
            number: _checked(
                _Camera(camera.model.name, (camera.width, camera.height), list(camera.params)),
                place,
            )
            for number, camera in found.cameras.items()
        }
        images = []
        for _, image in sorted(found.images.items()):
            # an attribute up to pycolmap 3.11, a method since
            pose = (
                image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world
            )
            x, y, z, w = pose.rotation.quat
            values = [float(value) for value in (w, x, y, z, *pose.translation)]
            frame = getattr(image, "frame_id", None)
            images.append(
                _Image(
                    image.name, values, image.camera_id, frame, f"{place}, image {image.name}", ""
                )
            )
    except (ValueError, IndexError, KeyError, RuntimeError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise MsposeError(
            f"{model}: pycolmap cannot read the model, it is damaged or incomplete: {reason}"
        ) from error
    return cameras, images


def _checked(camera: _Camera, place: str) -> _Camera:
    if fault := wrong_parameters(camera.model, camera.parameters):
        raise MsposeError(f"{place}: {fault}")
    return camera
