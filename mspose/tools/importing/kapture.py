"""kapture: `sensors/` with sensors.txt, records_camera.txt, trajectories.txt and, where cameras
form rigs, rigs.txt.

Poses are world-to-sensor, or world-to-rig followed by rig-to-sensor: p_sensor = R(q) p_world + t,
quaternion w first, camera axes as ours
(https://github.com/naver/kapture/blob/main/kapture_format.adoc).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mspose import poses
from mspose.data.frames import (
    SMALLEST_QUATERNION_NORM,
    WORLD_TO_CAMERA,
    natural_order,
    parse_numbers,
)
from mspose.errors import MsposeError
from mspose.tools.importing.camera_models import focal_length, notes_on, wrong_parameters
from mspose.tools.importing.capture import (
    Capture,
    View,
    existing_folder,
    locate,
    looks_like,
    sequence_of,
    values_of,
)

NO_MODEL = "UNKNOWN_CAMERA"


class _Camera(NamedTuple):
    model: str
    size_px: tuple[float, float]
    focal_px: float


class _Motion(NamedTuple):
    """World-to-device, or device-to-device."""

    rotation_33: NDArray[np.float64]
    translation_3: NDArray[np.float64]
    place: str
    fault: str

    def then(self, outer: "_Motion") -> "_Motion":
        rotation = outer.rotation_33 @ self.rotation_33
        translation = outer.rotation_33 @ self.translation_3 + outer.translation_3
        bad = outer if outer.fault and not self.fault else self
        return _Motion(rotation, translation, bad.place, bad.fault)


def read_kapture(path: Path, images: Path | None) -> Capture:
    """The views of a kapture: `path` is its folder or the folder `sensors` in it.

    Image names are relative to `sensors/records_data`, or to `images`. Images whose device has no
    pose at their time are left out. Raises MsposeError for missing or damaged files, and where no
    image has a pose.
    """
    path = existing_folder(path, "kapture")
    folder = path if (path / "sensors.txt").is_file() else path / "sensors"
    for name in ("sensors.txt", "records_camera.txt", "trajectories.txt"):
        if not (folder / name).is_file():
            raise MsposeError(
                f"there is no {folder / name}: a kapture with images and poses has"
                f" it{looks_like(path, 'kapture')}"
            )
    cameras = _read_cameras(folder / "sensors.txt")
    rigs = _read_rigs(folder / "rigs.txt")
    moving = _read_trajectories(folder / "trajectories.txt")
    base = images or folder / "records_data"
    views, unposed = [], {}
    for place, values in values_of(folder / "records_camera.txt", ",", 2):
        if len(values) != 3:
            raise MsposeError(f"{place}: expected timestamp, device_id, image_path")
        stamp, device, image = values
        if device not in cameras:
            raise MsposeError(f"{place}: there is no camera {device!r} in {folder / 'sensors.txt'}")
        time = _time(stamp, place)
        motion, carrier = _motion(time, device, moving, rigs, ())
        if motion is None:
            unposed[image] = f"no pose at its time: {device} at {stamp}"
            continue
        camera = cameras[device]
        views.append(
            View(
                image=image,
                file=locate(base, image),
                position=motion.translation_3.tolist(),
                orientation=motion.rotation_33,
                # cameras of one rig see the same place at the same time, so they are one sequence
                sequence=sequence_of(image) if carrier == device else carrier,
                moment=(time, []) if carrier != device else (time, natural_order(image)),
                place=motion.place,
                focal_px=camera.focal_px,
                size_px=camera.size_px,
                fault=motion.fault,
            )
        )
    if not views:
        raise MsposeError(f"{folder}: no image has a pose in trajectories.txt")
    notes = notes_on(camera.model for camera in cameras.values() if camera.model != NO_MODEL)
    return Capture(folder, WORLD_TO_CAMERA, views, [base], unposed, notes)


def _motion(
    time: float,
    device: str,
    moving: Mapping[tuple[float, str], _Motion],
    rigs: Mapping[str, list[tuple[str, _Motion]]],
    passed: tuple[str, ...],
) -> tuple[_Motion | None, str]:
    """(world-to-device pose, the device whose trajectory it comes from): its own, or that of its
    rig.
    """
    if (time, device) in moving:
        return moving[time, device], device
    for rig, inside in rigs.get(device, []):
        if rig not in passed:
            motion, carrier = _motion(time, rig, moving, rigs, (*passed, device))
            if motion is not None:
                return motion.then(inside), carrier
    return None, device


def _read_cameras(file: Path) -> dict[str, _Camera]:
    cameras = {}
    for place, values in values_of(file, ","):
        if len(values) < 3:
            raise MsposeError(f"{place}: expected sensor_id, name, type, parameters")
        sensor, _, kind, *parameters = values
        if kind != "camera":
            continue
        model, numbers = parameters[0] if parameters else NO_MODEL, parameters[1:]
        found, fault = parse_numbers(numbers)
        if model != NO_MODEL:
            fault = fault or wrong_parameters(model, found[2:])
            fault = fault or "expected camera model, width, height and its parameters" * (
                len(found) < 3
            )
        if fault:
            raise MsposeError(f"{place}: {fault}")
        focal = math.nan if model == NO_MODEL else focal_length(model, found[2:])
        size_px = (found[0], found[1]) if len(found) > 1 else (math.nan, math.nan)
        cameras[sensor] = _Camera(model, size_px, focal)
    if not cameras:
        raise MsposeError(f"{file} lists no camera")
    return cameras


def _read_rigs(file: Path) -> dict[str, list[tuple[str, _Motion]]]:
    """Device -> the rigs that it is part of, with the rig-to-device poses."""
    rigs: dict[str, list[tuple[str, _Motion]]] = {}
    if file.is_file():
        for place, values in values_of(file, ","):
            if len(values) != 9:
                raise MsposeError(
                    f"{place}: expected rig_id, sensor_id, qw, qx, qy, qz, tx, ty, tz"
                )
            if all(values[2:]):  # as in trajectories
                rigs.setdefault(values[1], []).append((values[0], _read_motion(values[2:], place)))
    return rigs


def _read_trajectories(file: Path) -> dict[tuple[float, str], _Motion]:
    moving: dict[tuple[float, str], _Motion] = {}
    for place, values in values_of(file, ","):
        if len(values) != 9:
            raise MsposeError(f"{place}: expected timestamp, device_id, qw, qx, qy, qz, tx, ty, tz")
        key = (_time(values[0], place), values[1])
        if key in moving:
            raise MsposeError(
                f"{place}: {values[1]} has two poses at {values[0]} (the first:"
                f" {moving[key].place})"
            )
        if all(
            values[2:]
        ):  # the format allows a pose without orientation or position, which is none for us
            moving[key] = _read_motion(values[2:], place)
    return moving


def _read_motion(cells: list[str], place: str) -> _Motion:
    numbers, fault = parse_numbers(cells)
    quaternion, translation = np.array(numbers[:4]), np.array(numbers[4:])
    rotation = np.full((3, 3), math.nan)
    norm = np.linalg.norm(quaternion)
    if not fault and norm < SMALLEST_QUATERNION_NORM:
        fault = "the quaternion is zero"
    elif math.isfinite(norm):
        rotation = poses.quaternion_to_rotation(quaternion)[0]
    return _Motion(rotation, translation, place, fault)


def _time(stamp: str, place: str) -> float:
    try:
        return int(stamp)  # nanoseconds have more digits than a float
    except ValueError:
        (time,), fault = parse_numbers([stamp])
        if fault or not math.isfinite(time):
            raise MsposeError(f"{place}: {stamp[:40]!r} is not a timestamp") from None
        return time
