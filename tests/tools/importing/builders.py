"""Folders in the formats of other tools, written from camera-to-world matrices.

The writers do not use the package's own conversions, so that a wrong sign there cannot cancel out.
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pose_matrix import pose_matrix

ALL = {"block": 3, "margin": 0}
"""A split that drops no frame."""
SIZE = (48, 36)
FOCAL = 40.0


@dataclass
class Room:
    """Frames of one scene: image files, their names, camera-to-world matrices (B, 4, 4)."""

    files: list[Path]
    names: list[str]
    pose_B44: np.ndarray

    def copy_images(self, folder: Path) -> None:
        for file, name in zip(self.files, self.names, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)


def quaternion(rotation_33: np.ndarray) -> list[float]:
    """w x y z of a rotation matrix, from its angle and axis."""
    cosine = np.clip((np.trace(rotation_33) - 1) / 2, -1, 1)
    angle = math.acos(cosine)
    skew = rotation_33 - rotation_33.T
    axis = np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
    if angle < 1e-9:
        return [1.0, 0.0, 0.0, 0.0]
    assert math.sin(angle) > 1e-6, "a half turn has no such formula"
    axis = axis / np.linalg.norm(axis)
    return [math.cos(angle / 2), *(math.sin(angle / 2) * axis)]


def rotation(q: list[float]) -> np.ndarray:
    """Rotation matrix of a unit quaternion, as the product v -> q v q*."""
    w, x, y, z = q
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    right = np.array([[w, x, y, z], [-x, w, -z, y], [-y, z, w, -x], [-z, -y, x, w]])
    return (left @ right)[1:, 1:]


def numbers(*values: float) -> str:
    return " ".join(repr(float(value)) for value in values)


def write_colmap(folder: Path, room: Room, camera: str = "") -> Path:
    """A COLMAP text model in `folder/sparse/0`, images in `folder/images`; returns the model."""
    room.copy_images(folder / "images")
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    camera = camera or f"SIMPLE_RADIAL {SIZE[0]} {SIZE[1]} {FOCAL} {SIZE[0] / 2} {SIZE[1] / 2} 0.01"
    (model / "cameras.txt").write_text(f"# cameras\n3 {camera}\n")
    lines = [
        "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
        "#   POINTS2D[] as (X, Y, POINT3D_ID)",
    ]
    for number, (name, pose_44) in enumerate(zip(room.names, room.pose_B44, strict=True)):
        world_to_camera = np.linalg.inv(pose_44)
        pose = numbers(*quaternion(world_to_camera[:3, :3]), *world_to_camera[:3, 3])
        lines += [f"{7 * number + 2} {pose} 3 {name}", "" if number % 2 else "1.5 2.5 -1 3 4 17"]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    (model / "points3D.txt").write_text("17 0 0 1 9 9 9 0.1 2 1\n" if len(room.names) else "")
    return model


def write_nerfstudio(
    folder: Path, room: Room, name: str = "transforms.json", **content: object
) -> Path:
    """A transforms.json beside the images; returns it."""
    room.copy_images(folder)
    to_opengl = np.diag([1.0, -1.0, -1.0, 1.0])
    frames = [
        {"file_path": image, "transform_matrix": (pose_44 @ to_opengl).tolist()}
        for image, pose_44 in zip(room.names, room.pose_B44, strict=True)
    ]
    camera = {"fl_x": FOCAL, "fl_y": FOCAL, "w": SIZE[0], "h": SIZE[1]}
    (folder / name).write_text(json.dumps({**(content or camera), "frames": frames}))
    return folder / name


def write_tum(
    folder: Path, room: Room, start: float = 1305031102.175, step: float = 1 / 30
) -> Path:
    """groundtruth.txt and rgb.txt, poses 3 ms after the images; returns the folder."""
    room.copy_images(folder)
    poses, images = (
        ["# ground truth trajectory", "# timestamp tx ty tz qx qy qz qw"],
        ["# color images"],
    )
    for number, (name, pose_44) in enumerate(zip(room.names, room.pose_B44, strict=True)):
        w, x, y, z = quaternion(pose_44[:3, :3])
        time = start + number * step
        poses.append(f"{time + 0.003:.6f} {numbers(*pose_44[:3, 3], x, y, z, w)}")
        images.append(f"{time:.6f} {name}")
    (folder / "groundtruth.txt").write_text("\n".join(poses) + "\n")
    (folder / "rgb.txt").write_text("\n".join(images) + "\n")
    return folder


def write_kapture(folder: Path, room: Room, rig_B44: np.ndarray | None = None) -> Path:
    """A kapture; with `rig_B44` (2, 4, 4), rig-to-camera, its frames are those of two cameras."""
    sensors = folder / "sensors"
    room.copy_images(sensors / "records_data")
    camera = f"OPENCV, {SIZE[0]}, {SIZE[1]}, {FOCAL - 1}, {FOCAL + 1}, 24, 18, 0, 0, 0, 0"
    head = "# kapture format: 1.1\n"
    (sensors / "sensors.txt").write_text(
        f"{head}c0, left, camera, {camera}\nc1, , camera, {camera}\ngps, , gnss\n"
    )
    records, trajectory = [], {}
    for number, (name, pose_44) in enumerate(zip(room.names, room.pose_B44, strict=True)):
        world_to_camera = np.linalg.inv(pose_44)
        if rig_B44 is None:
            time, camera_number, device = number, 0, "c0"
        else:
            time, camera_number, device = number // 2, number % 2, "rig"
            world_to_camera = np.linalg.inv(rig_B44[camera_number]) @ world_to_camera
        records.append(f"{time:04d}, c{camera_number}, {name}")
        pose = numbers(*quaternion(world_to_camera[:3, :3]), *world_to_camera[:3, 3]).replace(
            " ", ", "
        )
        if (
            rig_B44 is None or camera_number == 0
        ):  # of a rig's two cameras the first says where the rig is
            trajectory[time, device] = f"{time}, {device}, {pose}"
    (sensors / "records_camera.txt").write_text(head + "\n".join(records) + "\n")
    (sensors / "trajectories.txt").write_text(head + "\n".join(trajectory.values()) + "\n")
    if rig_B44 is not None:
        lines = []
        for number, pose_44 in enumerate(rig_B44):
            pose = numbers(*quaternion(pose_44[:3, :3]), *pose_44[:3, 3]).replace(" ", ", ")
            lines.append(f"rig, c{number}, {pose}")
        (sensors / "rigs.txt").write_text(head + "\n".join(lines) + "\n")
    return folder


def write_seven_scenes(folder: Path, room: Room) -> Path:
    """7Scenes' layout, walk 1 for training and walk 2 for testing; returns the scene's folder."""
    of_scenes = renamed(room, "seq-0{}/frame-{:06d}.color.jpg")
    of_scenes.copy_images(folder)
    for name, pose_44 in zip(of_scenes.names, room.pose_B44, strict=True):
        np.savetxt(folder / name.replace("color.jpg", "pose.txt"), pose_44, fmt="%.17g")
    (folder / "TrainSplit.txt").write_text("sequence1\n")
    (folder / "TestSplit.txt").write_text("sequence2\n")
    intrinsics(folder, FOCAL)
    return folder


def intrinsics(folder: Path, focal_px: float) -> None:
    np.savetxt(folder / "camera-intrinsics.txt", [[focal_px, 0, 24], [0, focal_px, 18], [0, 0, 1]])


def write_cambridge(folder: Path, room: Room) -> Path:
    """Cambridge Landmarks' layout, split as `write_seven_scenes`; returns the scene's folder."""
    of_cambridge = renamed(room, "seq{}/frame{:05d}.jpg")
    of_cambridge.copy_images(folder)
    for number, split in ((1, "train"), (2, "test")):
        lines = ["Visual Landmark Dataset V1", "ImageFile, Camera Position [X Y Z W P Q R]", ""]
        for name, pose_44 in zip(of_cambridge.names, room.pose_B44, strict=True):
            if name.startswith(f"seq{number}"):
                turned = quaternion(pose_44[:3, :3].T)
                lines.append(f"{name} {numbers(*pose_44[:3, 3], *turned)}")
        (folder / f"dataset_{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_kitti(folder: Path, room: Room, camera: int = 2) -> Path:
    """KITTI's layout: images of a camera whose poses follow from camera 0's by calib.txt."""
    names = [f"image_{camera}/{number:06d}.jpg" for number in range(len(room.names))]
    Room(room.files, names, room.pose_B44).copy_images(folder)
    camera_33 = np.array([[FOCAL - 1, 0, 24], [0, FOCAL + 1, 18], [0, 0, 1]])
    offset_3 = np.zeros(3) if camera == 0 else np.array([0.06 * camera, -0.01, 0.003])
    shift_44 = np.eye(4)
    shift_44[:3, 3] = offset_3  # of a point from camera 0 to this one
    lines = [numbers(*(pose_44 @ shift_44)[:3].ravel()) for pose_44 in room.pose_B44]
    (folder / "poses.txt").write_text("\n".join(lines) + "\n")
    matrix_34 = camera_33 @ np.column_stack([np.eye(3), offset_3])
    calibration = [f"P0: {numbers(*np.column_stack([camera_33, np.zeros(3)]).ravel())}"]
    if camera != 0:
        calibration.append(f"P{camera}: {numbers(*matrix_34.ravel())}")
    (folder / "calib.txt").write_text("\n".join([*calibration, "Tr: 1 0 0 0 0 1 0 0 0 0 1 0", ""]))
    (folder / "times.txt").write_text("".join(f"{k / 10:e}\n" for k in range(len(names))))
    return folder


def renamed(room: Room, pattern: str) -> Room:
    """The room with names of `walk 1/frame-7.jpg`'s two numbers."""
    both = [name.removesuffix(".jpg").split("/frame-") for name in room.names]
    names = [pattern.format(walk.removeprefix("walk "), int(frame)) for walk, frame in both]
    return Room(room.files, names, room.pose_B44)


WRITE = {
    "colmap": write_colmap,
    "nerfstudio": write_nerfstudio,
    "tum": write_tum,
    "kapture": write_kapture,
    "7scenes": write_seven_scenes,
    "cambridge": write_cambridge,
    "kitti": write_kitti,
}
NAMING = ("colmap", "nerfstudio", "tum", "kapture")
"""Formats in which images have names of any kind."""


def change_line(path: Path, line: int, old: str, new: str) -> None:
    """Replace `old` by `new` in a line, counted from 1."""
    lines = path.read_text().split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("\n".join(lines))


def matrices(frames: pd.DataFrame) -> np.ndarray:
    """Camera-to-world matrices (B, 4, 4) of a frame table."""
    return pose_matrix(
        frames[["tx", "ty", "tz"]].to_numpy(), frames[["qw", "qx", "qy", "qz"]].to_numpy()
    )
