"""Read KITTI odometry: `poses.txt` with the 3x4 camera-to-world matrix of an image in each line,
`calib.txt`, `times.txt`, and images in `image_0/` to `image_3/`.

Poses are those of camera 0, metres, camera axes as here; the matrices P0 to P3 of calib.txt say
where the other cameras are (https://www.cvlibs.net/datasets/kitti/eval_odometry.php).
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mspose.data.frames import (
    CAMERA_TO_WORLD,
    last_row_fault,
    natural_order,
    parse_numbers,
    read_lines,
)
from mspose.errors import MsposeError
from mspose.tools.importing.image_paths import existing_folder, images_in, wrong_layout
from mspose.tools.importing.text_tables import EITHER, read_rows
from mspose.tools.importing.views import Capture, View

POSES, TIMES = "poses.txt", "times.txt"
CALIBRATIONS = ("calib.txt", "calib_cam_to_cam.txt")
IMAGE_FOLDERS = (
    *(f"image_{name}" for name in ("2", "02/data", "0", "00/data", "3", "03/data", "1", "01/data")),
    *("images", "image", "rgb", "data", "."),
)
"""Folders of images, of which the first that holds some is taken."""


def read_kitti(path: Path, images: Path | None, *, trajectory: Path | None) -> Capture:
    """The views of a sequence, or of the sequences of one place in folders of their own.

    `path` has poses.txt (or `trajectory`, or `../../poses/<its name>.txt` as in KITTI's own
    folders) or folders that have it, whose poses are in one frame. Each sequence has a camera of
    its own. Images are in the first of `IMAGE_FOLDERS`, or in `images`. Raises MsposeError for
    missing or damaged files, and where it is not plain which image a pose belongs to.
    """
    scene = existing_folder(path, "KITTI")
    if trajectory is not None and not trajectory.is_file():
        raise MsposeError(f"--trajectory: there is no file {trajectory}")
    published = scene.parent.parent / "poses" / f"{scene.name}.txt"
    own = next(
        (file for file in (trajectory, scene / POSES, published) if file and file.is_file()), None
    )
    sequences = {scene: own} if own else {file.parent: file for file in scene.glob(f"*/{POSES}")}
    if not sequences:
        raise wrong_layout(
            scene, "kitti", f"there is no file {POSES}; say which one it is with --trajectory"
        )
    views: list[View] = []
    notes: list[str] = []
    if len(sequences) > 1:
        notes.append(f"poses of the {len(sequences)} sequences are taken to be in one frame")
    for folder, poses_file in sorted(
        sequences.items(), key=lambda item: natural_order(str(item[0]))
    ):
        of_sequence = images and (images if own else images / folder.name)
        found, line = _read_sequence(scene, folder, poses_file, of_sequence)
        views += found
        notes.append(line)
    return Capture(scene, CAMERA_TO_WORLD, views, [images or scene], notes=notes)


def _read_sequence(
    scene: Path, folder: Path, poses_file: Path, images: Path | None
) -> tuple[list[View], str]:
    """(views of a sequence, a line on its camera)."""
    places = [images] if images else [folder / name for name in IMAGE_FOLDERS]
    place = next((place for place in places if place.is_dir() and images_in(place)), None)
    if place is None and images is not None:
        raise MsposeError(f"--images: {images} holds no images of sequence {folder.name}")
    if place is None:
        raise wrong_layout(folder, "kitti", "it holds no images; say where they are with --images")
    names = sorted(images_in(place), key=natural_order)
    poses = _read_poses(poses_file)
    numbers = _numbers_of_images(names, poses, place, poses_file)
    times = folder / TIMES
    if times.is_file() and (count := len(list(read_rows(times, "time", EITHER)))) != len(poses):
        raise MsposeError(f"{times} holds {count} times for the {len(poses)} poses of {poses_file}")
    matrix_34, camera = _projection(folder, scene, place)
    centre_3: NDArray[np.float64] = np.zeros(3)
    if matrix_34 is not None:
        centre_3 = np.asarray(-np.linalg.solve(matrix_34[:, :3], matrix_34[:, 3]))
    views = []
    for rank, (name, number) in enumerate(zip(names, numbers, strict=True)):
        where, pose_44, fault = poses[number]
        file = place / name
        views.append(
            View(
                image=(
                    file.relative_to(scene) if file.is_relative_to(scene) else Path(name)
                ).as_posix(),
                file=file,
                position=(pose_44[:3, :3] @ centre_3 + pose_44[:3, 3]).tolist(),
                orientation=pose_44[:3, :3],
                sequence=folder.relative_to(scene).as_posix(),
                moment=rank,
                where=where,
                focal_px=math.nan if matrix_34 is None else (matrix_34[0, 0] + matrix_34[1, 1]) / 2,
                fault=fault,
            )
        )
    shift = f", {np.linalg.norm(centre_3):.3g} m from camera 0, whose poses the file has"
    return views, f"{place}: {camera}{shift if centre_3.any() else ''}"


def _read_poses(file: Path) -> dict[int, tuple[str, NDArray[np.float64], str]]:
    """Number of a pose, from 0 or in its line -> (file and line, pose (4, 4), fault)."""
    poses = {}
    for rank, (where, cells) in enumerate(read_rows(file, "r11", EITHER, more=True)):
        numbers, fault = parse_numbers(cells)
        if len(cells) not in (12, 13, 16, 17):
            advice = ", 8 are TUM's: try mspose data import tum" if len(cells) == 8 else ""
            raise MsposeError(
                f"{where}: expected the 12 numbers of a 3x4 camera-to-world matrix, row by row (or"
                f" 16), after the number of the image or without; found {len(cells)} values{advice}"
            )
        number = rank
        if len(cells) in (13, 17):
            if not cells[0].isdecimal():
                raise MsposeError(f"{where}: {cells[0][:40]!r} is not the number of an image")
            number, numbers = int(cells[0]), numbers[1:]
        if number in poses:
            raise MsposeError(f"{where}: there is a second pose of image {number}")
        pose_44 = np.vstack([np.reshape(numbers, (-1, 4)), [0, 0, 0, 1]])[:4]
        poses[number] = (where, pose_44, fault or last_row_fault(pose_44))
    if not poses:
        raise MsposeError(f"{file} is empty: expected a line of 12 numbers per image")
    return poses


def _numbers_of_images(
    names: list[str], poses: Mapping[int, object], place: Path, poses_file: Path
) -> list[int]:
    """The number of each image's pose: its rank where there are as many, else that in its name."""
    if len(names) == len(poses) and list(poses) == list(range(len(poses))):
        return list(poses)
    stems = [Path(name).stem for name in names]
    if all(stem.isascii() and stem.isdecimal() and int(stem) in poses for stem in stems):
        return [int(stem) for stem in stems]
    raise MsposeError(
        f"{poses_file} holds {len(poses)} poses for the {len(names)} images in {place}: expected a"
        " line for each image, or images called by the number of their line from 0 (000000.png)"
    )


def _projection(folder: Path, scene: Path, place: Path) -> tuple[NDArray[np.float64] | None, str]:
    """(P (3, 4) of the camera that took the images, None where it is unknown; which one it is)."""
    files = [up / name for up in (folder, scene) for name in CALIBRATIONS]
    file = next((file for file in files if file.is_file()), None)
    parts = re.findall(
        r"image_0*(\d+)", str(place.relative_to(folder) if place.is_relative_to(folder) else place)
    )
    named = int(parts[-1]) if parts else None
    if file is None:
        return None, (
            f"camera {named or 0}; there is no {CALIBRATIONS[0]}, so the focal length is unknown"
            " and poses are taken to be this camera's"
        )
    matrices = _read_calibration(file)
    number = named if named is not None else min(matrices)
    if number not in matrices:
        raise MsposeError(
            f"{file} has no matrix P{number}, of the camera that took the images in {place};"
            f" it has: {', '.join(f'P{known}' for known in matrices)}"
        )
    return matrices[number], f"camera {number} of {file}"


def _read_calibration(file: Path) -> dict[int, NDArray[np.float64]]:
    """Number of a camera -> P (3, 4), of lines `P2: ` and 12 numbers (raw data: `P_rect_02: `).

    Also `K: ` and the 9 numbers of a camera matrix, or the numbers alone.
    """
    found: dict[int, NDArray[np.float64]] = {}
    alone: list[float] = []
    for line in read_lines(file):
        key, _, text = line.rpartition(":")
        match = re.fullmatch(r"(?:P(?:_rect)?|K)_?0*(\d*)", key.strip())
        numbers, fault = parse_numbers(text.split())
        if fault or not numbers or (key and match is None):
            continue
        if match is None:
            alone += numbers
        elif len(numbers) in (9, 12) and (len(numbers) == 12 or int(match[1] or 0) not in found):
            found[int(match[1] or 0)] = _matrix_34(numbers)
    if not found and len(alone) in (4, 9, 12):
        found[0] = _matrix_34(alone)
    good = [
        np.isfinite(matrix).all()
        and matrix[0, 0] > 0 < matrix[1, 1]
        and abs(np.linalg.det(matrix[:, :3])) > 0
        for matrix in found.values()
    ]
    if not found or not all(good):
        raise MsposeError(
            f"{file}: expected a line `P0:` with the 12 numbers of a 3x4 projection matrix for each"
            " camera (or `K:` and 9), focal lengths above 0"
        )
    return found


def _matrix_34(numbers: list[float]) -> NDArray[np.float64]:
    if len(numbers) == 4:  # fx fy cx cy
        fx, fy, cx, cy = numbers
        numbers = [fx, 0, cx, 0, fy, cy, 0, 0, 1]
    matrix = np.reshape(numbers, (3, -1))
    return matrix if matrix.shape[1] == 4 else np.hstack([matrix, np.zeros((3, 1))])
