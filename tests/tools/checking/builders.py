"""Small data sets of a rendered room, filmed in several ways, with labels to be spoiled."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from mspose.data.cards import load_frames, read_card
from mspose.data.virtual.rendering import Camera, Lighting, Renderer
from mspose.data.virtual.rooms import build_scene
from mspose.data.virtual.trajectory import trajectory
from mspose.poses import quaternion_to_rotation, rotation_to_quaternion
from mspose.tools.checking.trajectories import ORIENTATION, POSITION, in_order

CAMERA = Camera(240, 180, 200.0)
COLUMNS = ["scene", "split", "seq", "img_path", "t1", "t2", "t3", "q1", "q2", "q3", "q4"]
OPENGL = np.diag([1.0, -1.0, -1.0])
MOTIONS = ("hand-held", "inward", "outward", "forward")


def looking(position_N3, target_N3):
    """Camera-to-world poses (N, 4, 4) of upright cameras in a world whose z points up."""
    position_N3 = np.asarray(position_N3, float)
    forward_N3 = np.asarray(target_N3, float) - position_N3
    forward_N3 = forward_N3 / np.linalg.norm(forward_N3, axis=1, keepdims=True)
    right_N3 = np.cross(forward_N3, [0.0, 0.0, 1.0])
    right_N3 /= np.linalg.norm(right_N3, axis=1, keepdims=True)
    pose_N44 = np.tile(np.eye(4), (len(position_N3), 1, 1))
    pose_N44[:, :3, :3] = np.stack([right_N3, np.cross(forward_N3, right_N3), forward_N3], axis=-1)
    pose_N44[:, :3, 3] = position_N3
    return pose_N44


def motion(name: str, frames: int = 24):
    """Camera-to-world poses (frames, 4, 4) of one of `MOTIONS` in the room."""
    turn_N = np.linspace(0, 2 * np.pi, frames, endpoint=False)
    ring_N3 = np.stack([np.cos(turn_N), np.sin(turn_N), 0.1 * np.sin(3 * turn_N)], axis=1)
    middle = np.array([0.0, -0.6, 1.5])
    if name == "hand-held":
        return trajectory(room(), np.random.default_rng(3), 6 * frames)[:frames]
    if name == "inward":
        return looking(middle + 1.2 * ring_N3, middle)
    if name == "outward":
        return looking(middle + 0.4 * ring_N3, middle + 4 * ring_N3)
    along_N3 = middle + np.stack(
        [0.05 * np.sin(2 * turn_N), np.linspace(-1.2, 1.0, frames), 0.0 * turn_N], axis=1
    )
    return looking(along_N3, along_N3 + np.array([0.1, 2.0, -0.1]))


@cache
def room():
    """The room, built once."""
    return build_scene("atelier", 0)


def render(pose_N44):
    """Images of the room (N, 180, 240, 3)."""
    renderer = Renderer(room(), CAMERA, Lighting.draw(np.random.default_rng(0)))
    return np.stack([renderer.render(pose_44)[0] for pose_44 in pose_N44])


def write_set(
    folder: Path, sequences: dict, *, focal_px: float | None = CAMERA.focal_px, name: str = "own"
) -> Path:
    """Write images, labels.csv and a card of (scene, split, sequence) -> (pose_N44, image_NHW3)."""
    rows = []
    for (scene, split, sequence), (pose_N44, image_NHW3) in sequences.items():
        (folder / scene / sequence).mkdir(parents=True, exist_ok=True)
        quaternion_N4 = rotation_to_quaternion(pose_N44[:, :3, :3])
        rows_of = zip(pose_N44, image_NHW3, quaternion_N4, strict=True)
        for number, (pose_44, image, turn) in enumerate(rows_of):
            image_name = f"{scene}/{sequence}/frame-{number}.jpg"
            Image.fromarray(image).save(folder / image_name, quality=95)
            rows.append([scene, split, sequence, image_name, *pose_44[:3, 3], *turn])
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "labels.csv", index=False)
    card = {"name": name, "format": "label-csv", "labels": "labels.csv"}
    card |= {"label_convention": "camera-to-world"} | ({"focal_px": focal_px} if focal_px else {})
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(card))
    return folder


def change_labels(folder: Path, change) -> None:
    """Replace labels.csv with what `change` makes of its table."""
    change(pd.read_csv(folder / "labels.csv")).to_csv(folder / "labels.csv", index=False)


def frames_of(folder: Path, *splits: str) -> pd.DataFrame:
    """The ordered frame table of a written set."""
    card = read_card(next(folder.glob("*.yaml")))
    tables = [load_frames(card, split=split) for split in splits or ("train", "test")]
    return in_order(pd.concat(tables)).reset_index(drop=True)


def poses_of(ordered: pd.DataFrame):
    """(rotation_N33, position_N3) as labelled."""
    return quaternion_to_rotation(ordered[ORIENTATION].to_numpy()), ordered[POSITION].to_numpy()


def with_poses(ordered: pd.DataFrame, rotation_N33, position_N3) -> pd.DataFrame:
    """The frames with other labels."""
    changed = ordered.copy()
    changed[ORIENTATION] = rotation_to_quaternion(rotation_N33)
    changed[POSITION] = position_N3
    return changed


def misread(ordered: pd.DataFrame, way: str) -> pd.DataFrame:
    """Labels that were written in another convention and are read as ours."""
    rotation_N33, position_N3 = poses_of(ordered)
    inverse_N33 = rotation_N33.transpose(0, 2, 1)
    if way == "world-to-camera":
        return with_poses(ordered, inverse_N33, -np.einsum("nij,nj->ni", inverse_N33, position_N3))
    if way == "world-to-camera orientations":
        return with_poses(ordered, inverse_N33, position_N3)
    if way == "OpenGL":
        return with_poses(ordered, rotation_N33 @ OPENGL, position_N3)
    assert way == "OpenGL, world-to-camera"
    return misread(misread(ordered, "OpenGL"), "world-to-camera")


def moved(ordered: pd.DataFrame, turn_33, scale: float, shift_3) -> pd.DataFrame:
    """The same labels in another world frame."""
    rotation_N33, position_N3 = poses_of(ordered)
    return with_poses(
        ordered, turn_33 @ rotation_N33, scale * position_N3 @ np.asarray(turn_33).T + shift_3
    )
