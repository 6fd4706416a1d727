"""Read COLMAP models: cameras and images of a sparse reconstruction.

Poses are world-to-camera, p_cam = R(q) p_world + t, quaternion w first; camera axes as here. Where
a model has rigs and frames, COLMAP composes the poses of images from these
(https://colmap.github.io/format.html). Text is read here, since pycolmap ends the names of images
at a blank; pycolmap reads the binary format.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mspose.data.frames import WORLD_TO_CAMERA, natural_order, parse_numbers
from mspose.errors import MsposeError
from mspose.tools.importing.camera_models import camera_notes, focal_length, parameter_fault
from mspose.tools.importing.colmap_binary import refuse_cut_off
from mspose.tools.importing.image_paths import existing_folder, hint, images_folder, locate
from mspose.tools.importing.rigid_motion import RigidMotion, difference, parse_motion
from mspose.tools.importing.text_tables import BLANKS, read_rows
from mspose.tools.importing.views import Capture, View, listed, plain_name, sequence_of

SAME_UNITS, SAME_DEGREES = 1e-3, 0.05  # between two statements of one pose, apart by rounding


class _Camera(NamedTuple):
    model: str
    size_px: tuple[float, float]
    parameters: list[float]


class _Image(NamedTuple):
    name: str
    motion: RigidMotion
    camera: int
    frame: int | None
    """Images of one frame were taken at the same time by the cameras of a rig."""
    where: str


class _Frame(NamedTuple):
    number: int
    rig: str
    rig_from_world: RigidMotion


def read_colmap(path: Path, images: Path | None) -> Capture:
    """The views of a model: `path` is its folder, or that of a project with one model in it.

    `images` is the folder of the images; by default it is searched in and above the model. Raises
    MsposeError for a folder without a model or with several, and for files that are damaged.
    """
    model = _model_folder(existing_folder(path, "COLMAP"))
    read = _read_text if _is_model(model, "txt") else _read_binary
    cameras, found, notes = read(model)
    if not found:
        raise MsposeError(f"{model} holds no image with a pose: the reconstruction is empty")
    parents = [model, *list(model.parents)[:3]]
    candidates = [images] if images else [sub for up in parents for sub in (up / "images", up)]
    folder = images_folder(candidates, [image.name for image in found])
    views = [
        _view(image, cameras, folder, *sequence_and_moment)
        for image, sequence_and_moment in zip(found, _taken_together(found), strict=True)
    ]
    notes += camera_notes(camera.model for camera in cameras.values())
    return Capture(model, WORLD_TO_CAMERA, views, [folder] if folder else candidates, notes=notes)


def _view(
    image: _Image, cameras: Mapping[int, _Camera], folder: Path | None, sequence: str, moment: Any
) -> View:
    if image.camera not in cameras:
        raise MsposeError(f"{image.where}: camera {image.camera} is not among the model's cameras")
    camera = cameras[image.camera]
    return View(
        image=image.name.replace("\\", "/"),
        file=locate(folder, image.name) if folder else None,
        position=image.motion.translation_3.tolist(),
        orientation=image.motion.quaternion,
        sequence=sequence,
        moment=moment,
        where=image.motion.where,
        focal_px=focal_length(camera.model, camera.parameters),
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
        names = ", ".join(str(model.relative_to(path)) for model in models)
        raise MsposeError(
            f"{path} holds several COLMAP models ({names}): give the folder of one of them"
        )
    if not models:
        raise MsposeError(
            f"{path} holds no COLMAP model (cameras and images as .txt or .bin)"
            f"{hint(path, 'colmap')}"
        )
    return models[0]


def _read_text(model: Path) -> tuple[dict[int, _Camera], list[_Image], list[str]]:
    """(cameras, images, notes) of the text format, with file and line in every message."""
    cameras = {}
    columns = "CAMERA_ID MODEL WIDTH HEIGHT PARAMS"
    for where, (number, name, *cells) in read_rows(
        model / "cameras.txt", columns, BLANKS, more=True
    ):
        width, height, *parameters = _numbers(cells, where)
        camera = _Camera(name, (width, height), parameters)
        cameras[_whole(number, where)] = _checked(camera, where)
    frames, mounted = _read_frames(model / "frames.txt"), _read_rigs(model / "rigs.txt")
    images, differences = [], {}
    for where, line in _image_lines(model / "images.txt"):
        cells = line.split(None, 9)
        if len(cells) < 10:
            raise MsposeError(
                f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, found"
                f" {len(cells)} values"
            )
        number, camera_number = _whole(cells[0], where), _whole(cells[8], where)
        stated, frame = parse_motion(cells[1:8], where), frames.get(number)
        motion = _composed(frame, camera_number, mounted) or stated
        if not stated.fault and not motion.fault:
            offset, angle = difference(stated, motion)
            if offset > SAME_UNITS or angle > SAME_DEGREES:
                differences[cells[9]] = (offset, angle)
        images.append(
            _Image(cells[9], motion, camera_number, frame.number if frame else None, where)
        )
    notes = []
    if differences:
        offsets, angles = zip(*differences.values(), strict=True)
        notes.append(
            f"images.txt differs from rigs.txt and frames.txt, whose poses are taken as COLMAP"
            f" does: {len(differences)} images, by up to {max(offsets):.3g} units and"
            f" {max(angles):.3g} degrees: {listed(list(differences))}"
        )
    return cameras, images, notes


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


def _read_frames(path: Path) -> dict[int, _Frame]:
    """Image id -> its frame; empty where there is no such file, as before COLMAP 3.12."""
    frames: dict[int, _Frame] = {}
    columns = "FRAME_ID RIG_ID QW QX QY QZ TX TY TZ NUM_DATA_IDS"
    for where, (number, rig, *cells) in _rows_if_any(path, columns):
        data = cells[8:]
        if len(data) % 3:
            raise MsposeError(f"{where}: expected SENSOR_TYPE SENSOR_ID DATA_ID after {columns}")
        frame = _Frame(_whole(number, where), rig, parse_motion(cells[:7], where))
        for kind, image in zip(data[::3], data[2::3], strict=True):
            if kind == "CAMERA":
                frames[_whole(image, where)] = frame
    return frames


def _read_rigs(path: Path) -> dict[tuple[str, int], RigidMotion | None]:
    """(rig, camera) -> sensor_from_rig; None for the rig's reference sensor."""
    mounted: dict[tuple[str, int], RigidMotion | None] = {}
    for where, (rig, _, *cells) in _rows_if_any(path, "RIG_ID NUM_SENSORS"):
        sensors, cells = [(cells[:2], None)], cells[2:]
        while cells:
            with_pose = len(cells) > 2 and cells[2] == "1"
            end = 10 if with_pose else 3
            motion = parse_motion(cells[3:end], where) if len(cells) >= end and with_pose else None
            if motion is not None:
                sensors.append((cells[:2], motion))
            cells = cells[end:]
        for sensor, motion in sensors:
            if sensor[:1] == ["CAMERA"]:
                mounted[rig, _whole(sensor[-1], where)] = motion
    return mounted


def _composed(
    frame: _Frame | None, camera: int, mounted: Mapping[tuple[str, int], RigidMotion | None]
) -> RigidMotion | None:
    """The pose of a frame's camera from the rig's; None where rigs.txt does not have the camera."""
    if frame is None or (frame.rig, camera) not in mounted:
        return None
    sensor_from_rig = mounted[frame.rig, camera]
    return frame.rig_from_world.then(sensor_from_rig) if sensor_from_rig else frame.rig_from_world


def _rows_if_any(path: Path, columns: str) -> Iterator[tuple[str, list[str]]]:
    if path.is_file():
        yield from read_rows(path, columns, BLANKS, more=True)


def _numbers(cells: list[str], where: str) -> list[float]:
    numbers, fault = parse_numbers(cells)
    if fault:
        raise MsposeError(f"{where}: {fault}")
    return numbers


def _whole(cell: str, where: str) -> int:
    if not cell.isdecimal():
        raise MsposeError(f"{where}: {cell[:40]!r} is not a whole number")
    return int(cell)


def _read_binary(model: Path) -> tuple[dict[int, _Camera], list[_Image], list[str]]:
    """(cameras, images, notes) of the binary format, as pycolmap reads it."""
    where = str(model / "images.bin")
    try:
        import pycolmap
    except ImportError as error:
        raise MsposeError(
            f"{where}: COLMAP's binary format needs pycolmap: pip install pycolmap, or write it as"
            " text (colmap model_converter --output_type TXT)"
        ) from error
    refuse_cut_off(model)
    try:
        found = pycolmap.Reconstruction(str(model))
        cameras = {
            number: _checked(
                _Camera(camera.model.name, (camera.width, camera.height), list(camera.params)),
                where,
            )
            for number, camera in found.cameras.items()
        }
        images = []
        for _, image in sorted(found.images.items()):
            pose = image.cam_from_world  # an attribute up to pycolmap 3.11, a method since
            pose = pose() if callable(pose) else pose
            x, y, z, w = pose.rotation.quat
            cells = [repr(float(value)) for value in (w, x, y, z, *pose.translation)]
            motion = parse_motion(cells, f"{where}, image {image.name}")
            frame = getattr(image, "frame_id", None)
            images.append(_Image(image.name, motion, image.camera_id, frame, motion.where))
    except (ValueError, IndexError, KeyError, RuntimeError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise MsposeError(
            f"{model}: pycolmap cannot read the model, it is damaged or incomplete: {reason}"
        ) from error
    return cameras, images, []


def _checked(camera: _Camera, where: str) -> _Camera:
    if fault := parameter_fault(camera.model, camera.parameters):
        raise MsposeError(f"{where}: {fault}")
    return camera
