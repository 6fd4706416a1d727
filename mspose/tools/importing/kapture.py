"""Read a kapture: `sensors/` with sensors.txt, records_camera.txt, trajectories.txt, rigs.txt.

Poses are world-to-sensor, or world-to-rig followed by rig-to-sensor: p_sensor = R(q) p_world + t,
quaternion w first, camera axes as here
(https://github.com/naver/kapture/blob/main/kapture_format.adoc).
"""

import math
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

from mspose.data.frames import WORLD_TO_CAMERA, natural_order, parse_numbers
from mspose.errors import MsposeError
from mspose.tools.importing.camera_models import Camera, camera_notes, make_camera
from mspose.tools.importing.image_paths import existing_folder, find_images, wrong_layout
from mspose.tools.importing.rigid_motion import POSE, RigidMotion, difference, parse_motion
from mspose.tools.importing.text_tables import COMMAS, read_rows
from mspose.tools.importing.views import Capture, View, plain_name, sequence_of
from mspose.tools.timestamps import exact_number

NO_MODEL = "UNKNOWN_CAMERA"


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
            raise wrong_layout(path, "kapture", f"there is no {folder / name}")
    cameras = _read_cameras(folder / "sensors.txt")
    rigs = _read_rigs(folder / "rigs.txt")
    trajectories = _read_trajectories(folder / "trajectories.txt")
    base = images or folder / "records_data"
    views, unposed, differing = [], {}, 0
    records = folder / "records_camera.txt"
    rows = list(read_rows(records, "timestamp, device_id, image_path", COMMAS, rest=True))
    folders, files = find_images([image for _, (_, _, image) in rows], [base], base)
    for (where, (stamp, device, name)), file in zip(rows, files, strict=True):
        image = plain_name(name)
        if device not in cameras:
            raise MsposeError(f"{where}: there is no camera {device!r} in {folder / 'sensors.txt'}")
        time = _time(stamp, where)
        motion, carrier = _world_to_device(time, device, trajectories, rigs, ())
        if motion is None:
            unposed[image] = f"no pose at its time: {device} at {stamp}"
            continue
        own = trajectories.get((time, device))
        if own is not None and difference(own, motion):
            differing += 1
        views.append(
            View(
                image=image,
                file=file,
                position=motion.translation_3.tolist(),
                orientation=motion.quaternion,
                # cameras of one rig see the same at the same time, so they are one sequence
                sequence=sequence_of(image) if carrier == device else carrier,
                moment=(time, []) if carrier != device else (time, natural_order(image)),
                where=motion.where,
                focal_px=cameras[device].focal_px,
                size_px=cameras[device].size_px,
                fault=motion.fault,
            )
        )
    if not views:
        raise MsposeError(f"{folder}: no image has a pose in trajectories.txt")
    notes = camera_notes(camera.model for camera in cameras.values() if camera.model != NO_MODEL)
    if differing:
        notes.append(
            f"{differing} images have a pose of their own in trajectories.txt that differs from"
            " that of their rig, which counts, as in kapture"
        )
    return Capture(folder, WORLD_TO_CAMERA, views, folders, unposed, notes)


def _world_to_device(
    time: Decimal,
    device: str,
    trajectories: Mapping[tuple[Decimal, str], RigidMotion],
    rigs: Mapping[str, list[tuple[str, RigidMotion]]],
    passed: tuple[str, ...],
) -> tuple[RigidMotion | None, str]:
    """(pose, the device whose trajectory it comes from): through its rig, or the device's own,
    which kapture replaces where the rig has a pose.
    """
    for rig, rig_to_device in rigs.get(device, []):
        if rig not in passed:
            motion, carrier = _world_to_device(time, rig, trajectories, rigs, (*passed, device))
            if motion is not None:
                return motion.then(rig_to_device), carrier
    return trajectories.get((time, device)), device


def _read_cameras(file: Path) -> dict[str, Camera]:
    cameras = {}
    for where, values in read_rows(file, "sensor_id, name, type", COMMAS, more=True):
        sensor, _, kind, *parameters = values
        if kind != "camera":
            continue
        model = parameters[0] if parameters else NO_MODEL
        numbers, fault = parse_numbers(parameters[1:])
        if fault:
            raise MsposeError(f"{where}: {fault}")
        size_px = (numbers[0], numbers[1]) if len(numbers) > 1 else (math.nan, math.nan)
        cameras[sensor] = make_camera(model, size_px, numbers[2:], where)
        if model != NO_MODEL and len(numbers) < 3:
            raise MsposeError(f"{where}: expected camera model, width, height and its parameters")
    if not cameras:
        raise MsposeError(f"{file} lists no camera")
    return cameras


def _read_rigs(file: Path) -> dict[str, list[tuple[str, RigidMotion]]]:
    """Device -> the rigs that it is part of, with the rig-to-device poses."""
    rigs: dict[str, list[tuple[str, RigidMotion]]] = {}
    if file.is_file():
        for where, (rig, device, *cells) in read_rows(file, f"rig_id, sensor_id, {POSE}", COMMAS):
            if all(cells):  # as in trajectories
                rigs.setdefault(device, []).append((rig, parse_motion(cells, where)))
    return rigs


def _read_trajectories(file: Path) -> dict[tuple[Decimal, str], RigidMotion]:
    trajectories: dict[tuple[Decimal, str], RigidMotion] = {}
    for where, (stamp, device, *cells) in read_rows(file, f"timestamp, device_id, {POSE}", COMMAS):
        key = (_time(stamp, where), device)
        if key in trajectories:
            raise MsposeError(
                f"{where}: {device} has two poses at {stamp} (first: {trajectories[key].where})"
            )
        if all(cells):  # the format allows a position or an orientation alone
            trajectories[key] = parse_motion(cells, where)
    return trajectories


def _time(stamp: str, where: str) -> Decimal:
    try:
        return exact_number(stamp)
    except ValueError as error:
        raise MsposeError(f"{where}: {error}") from error
