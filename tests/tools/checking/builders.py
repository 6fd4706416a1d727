"""Small data sets of a rendered room, filmed in several ways, with labels to be spoiled."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from mspose.data.cards import load_frames, read_card
from mspose.data.virtual import textures as paint
from mspose.data.virtual.rendering import Camera, Lighting, Renderer
from mspose.data.virtual.rooms import build_scene
from mspose.data.virtual.scene import WALL_YAW, Place, SceneBuilder
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


@cache
def statue():
    """A thing of many pieces on a plinth, in a plain hall."""
    build, rng = SceneBuilder("statue"), np.random.default_rng(2)
    build.box(Place(0, 0, 0, 0.3), 0.9, 0.9, 0.7, paint.plaster((180, 160, 120), 0.2, 20))
    for number in range(14):
        angle, away, side = rng.uniform(0, 6.28), rng.uniform(0, 0.35), rng.uniform(0.1, 0.3)
        place = Place(away * np.cos(angle), away * np.sin(angle), 0.7, rng.uniform(0, 6))
        painter = (paint.poster(), paint.picture(), paint.books())[number % 3]
        build.box(place, side, side, rng.uniform(0.15, 0.6), painter)
    build.patch((-5, 5, 0), (10, 0, 0), (0, -10, 0), paint.boards((165, 120, 80), 22), density=60)
    for yaw in WALL_YAW.values():
        wall = Place(0, 0, 0, yaw)
        corner, right = wall.point((-5, 5, 3)), wall.vector((10, 0, 0))
        build.patch(corner, right, (0, 0, -3), paint.plaster((205, 205, 200), 0.1), density=60)
    build.lamps += [(1.0, 1.0, 2.8), (-2.0, -1.0, 2.8)]
    return build.finish(4.0, ((-2, -2, 1), (2, 2, 1.5)), ((0, 0, 1), (0, 0, 1)))


@cache
def street():
    """A street along x, with fronts, windows and cars on both sides."""
    build, rng = SceneBuilder("street"), np.random.default_rng(1)
    for side in (-1, 1):
        place = Place(0, 0, 0, 0 if side > 0 else np.pi)
        for left in range(-30, 30, 6):
            painter = (paint.bricks((175, 95, 75)), paint.plaster((205, 195, 175), 0.2, 25))
            back = 7 + rng.uniform(0, 1.5)
            corner = place.point((left, back, 8))
            build.patch(corner, place.vector((6, 0, 0)), (0, 0, -8), painter[left % 4 // 2])
            for along in (0.8, 3.6):
                corner = place.point((left + along, back - 0.05, 3.2))
                build.patch(corner, place.vector((1.2, 0, 0)), (0, 0, -1.8), paint.window())
            colour = tuple(rng.integers(60, 220, 3).tolist())
            car = Place(left + rng.uniform(0, 2), side * 5.2)
            build.box(car, 4.0, 1.7, 1.5, paint.plaster(colour, 0.1, 4))
    build.patch((-30, 9, 0), (60, 0, 0), (0, -18, 0), paint.paving((120, 120, 118)), density=40)
    build.lamps += [(x, 0.0, 20.0) for x in (-25.0, 0.0, 25.0)]
    return build.finish(60.0, ((-25, -2, 1), (25, 2, 2)), ((-25, -7, 1), (25, 7, 3)))


def orbit(step_degrees: float, frames: int):
    """Camera-to-world poses (frames, 4, 4) round the statue, with the unsteadiness of a hand."""
    rng = np.random.default_rng(frames)
    turn_N = np.radians(step_degrees) * np.arange(frames)
    ring_N3 = 1.6 * np.stack([np.cos(turn_N), np.sin(turn_N), 0.1 * np.sin(2 * turn_N)], axis=1)
    position_N3 = rng.normal((0, 0, 1.5), 0.05, (frames, 3)) + ring_N3
    return looking(position_N3, rng.normal((0, 0, 1), 0.04, (frames, 3)))


def drive(frames: int, bend: float = 0.0, sideways: bool = False):
    """Camera-to-world poses (frames, 4, 4) along the street.

    bend: radians by which the heading swings to each side.
    """
    turn_N = bend * np.sin(np.linspace(0, 4 * np.pi, frames))
    forward_N3 = np.stack([np.cos(turn_N), np.sin(turn_N), 0 * turn_N], axis=1)
    position_N3 = np.array([-14.0, 0.0, 1.65]) + 0.7 * np.cumsum(forward_N3, axis=0)
    look_N3 = np.array([0.0, 1.0, 0.0]) if sideways else forward_N3
    return looking(position_N3, position_N3 + look_N3)


def render(pose_N44, scene=None, camera=CAMERA):
    """Images (N, height, width, 3) of the room, or of another scene."""
    renderer = Renderer(scene or room(), camera, Lighting.draw(np.random.default_rng(0)))
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
    if way == "OpenGL, world-to-camera":
        return misread(misread(ordered, "OpenGL"), "world-to-camera")
    if way.endswith(", in the inverse"):  # of world-to-camera poses, which loaders invert
        inverse = misread(ordered, "world-to-camera")
        return misread(misread(inverse, way.removesuffix(", in the inverse")), "world-to-camera")
    columns = {"x y z w, read as w x y z": [1, 2, 3, 0], "w x y z, read as x y z w": [3, 0, 1, 2]}
    turned_N33 = quaternion_to_rotation(ordered[ORIENTATION].to_numpy()[:, columns[way]])
    return with_poses(ordered, turned_N33, position_N3)


def moved(ordered: pd.DataFrame, turn_33, scale: float, shift_3) -> pd.DataFrame:
    """The same labels in another world frame."""
    rotation_N33, position_N3 = poses_of(ordered)
    return with_poses(
        ordered, turn_33 @ rotation_N33, scale * position_N3 @ np.asarray(turn_33).T + shift_3
    )
