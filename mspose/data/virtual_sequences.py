"""The sequences of the virtual data set: the camera's path, the lighting, and the frames written to disk.

Kept apart from what checks and fills the data set's folder, so that a rendering process imports no more than it needs.
"""

import functools
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mspose.data.virtual_render import Camera, Lighting, Renderer, Scene
from mspose.data.virtual_rooms import build_scene, scene_key
from mspose.data.virtual_textures import Image

SPLITS = ("train", "test")
ENCODINGS = {
    "png": (".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]),
    "jpg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]),
}

WAYPOINTS = 10  # per sequence
SECONDS_PER_SEQUENCE = 33.0  # what a sequence lasts, however many frames are taken of it


def trajectory(scene: Scene, rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """Camera-to-world poses (frames, 4, 4) along a smooth path with a hand's tremor.

    Position, point looked at and roll are uniform cubic B-splines. Their control points are a Latin hypercube of the
    scene's boxes, which covers each coordinate evenly; a B-spline never leaves the box of its control points.
    """
    count = WAYPOINTS + 3
    strata = np.stack([rng.permutation(count) for _ in range(7)], axis=1)
    unit = (strata + rng.random((count, 7))) / count
    low = np.concatenate([scene.view_low_3, scene.target_low_3, [-0.14]])
    high = np.concatenate([scene.view_high_3, scene.target_high_3, [0.14]])
    controls = low + unit * (high - low)

    share = (np.arange(frames) + 0.5) / frames
    segment = np.minimum((share * WAYPOINTS).astype(int), WAYPOINTS - 1)
    t = share * WAYPOINTS - segment
    weights = (
        np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
        / 6.0
    )
    path = np.einsum("kf,kfc->fc", weights, np.stack([controls[segment + k] for k in range(4)]))

    seconds = share * SECONDS_PER_SEQUENCE
    frequency, phase = rng.uniform(0.4, 3.0, (5, 6)), rng.uniform(0.0, 2.0 * np.pi, (5, 6))
    tremor = np.sin(2.0 * np.pi * frequency * seconds[:, None, None] + phase).sum(axis=1) / np.sqrt(
        5
    )
    position_F3 = path[:, :3] + 0.004 * tremor[:, :3]

    forward_F3 = path[:, 3:6] - position_F3
    forward_F3 /= np.linalg.norm(forward_F3, axis=1, keepdims=True)
    right_F3 = np.cross(forward_F3, [0.0, 0.0, 1.0])
    right_F3 /= np.linalg.norm(right_F3, axis=1, keepdims=True)
    down_F3 = np.cross(forward_F3, right_F3)
    steady_F33 = np.stack([right_F3, down_F3, forward_F3], axis=-1)
    shake_F3 = 0.007 * tremor[:, 3:] + path[:, 6:7] * np.array([0.0, 0.0, 1.0])

    pose_F44 = np.tile(np.eye(4), (frames, 1, 1))
    for pose_44, steady_33, shake_3, position_3 in zip(
        pose_F44, steady_F33, shake_F3, position_F3, strict=True
    ):
        pose_44[:3, :3] = steady_33 @ cv2.Rodrigues(shake_3)[0]
        pose_44[:3, 3] = position_3
    return pose_F44


@dataclass(frozen=True)
class Sequence:
    """One sequence of one scene, with all that decides how it looks."""

    scene: str
    split: str
    number: int  # in the scene, from 1: the folder's
    number_in_split: int  # from 0: seeds the path and the lighting
    frames: int
    seed: int
    camera: Camera
    image_format: str

    @property
    def folder(self) -> str:
        return f"seq-{self.number:02d}"

    def render(self) -> Iterator[tuple[Image, NDArray[np.float64]]]:
        """The frames: RGB image (H, W, 3) and camera-to-world pose (4, 4)."""
        key = [self.seed, scene_key(self.scene), SPLITS.index(self.split), self.number_in_split]
        rng = np.random.default_rng(key)
        scene = _built_scene(self.scene, self.seed)
        renderer = Renderer(scene, self.camera, Lighting.draw(rng))
        for pose_44 in trajectory(scene, rng, self.frames):
            yield renderer.render(pose_44)[0], pose_44


_built_scene = functools.lru_cache(maxsize=1)(
    build_scene
)  # sequences of one scene come one after the other


def plan_sequences(
    scene: str,
    train_frames: int,
    test_frames: int,
    frames_per_sequence: int,
    seed: int,
    camera: Camera,
    image_format: str,
) -> list[Sequence]:
    """The sequences of a scene, training first; the last of a split takes what remains."""
    plan: list[Sequence] = []
    for split, total in zip(SPLITS, (train_frames, test_frames), strict=True):
        for index, first in enumerate(range(0, total, frames_per_sequence)):
            frames = min(frames_per_sequence, total - first)
            plan.append(
                Sequence(scene, split, len(plan) + 1, index, frames, seed, camera, image_format)
            )
    return plan


def file_names(sequence: Sequence) -> set[str]:
    """The files of a whole sequence."""
    suffix = ENCODINGS[sequence.image_format][0]
    return {
        f"frame-{i:06d}.{kind}"
        for i in range(sequence.frames)
        for kind in (f"color{suffix}", "pose.txt")
    }


def render_sequence(sequence: Sequence, folder: Path) -> Iterator[int]:
    """Render one sequence into its folder below the scene's `folder`, yielding after each frame.

    The folder appears under its name when all frames are written. Raises OSError where that fails.
    """
    suffix, options = ENCODINGS[sequence.image_format]
    partial = folder / f".{sequence.folder}.partial"
    if partial.exists():
        shutil.rmtree(partial)  # of an interrupted call
    partial.mkdir(parents=True)
    for number, (image, pose_44) in enumerate(sequence.render()):
        encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1]
        (partial / f"frame-{number:06d}.color{suffix}").write_bytes(encoded.tobytes())
        (partial / f"frame-{number:06d}.pose.txt").write_text(
            matrix_text(pose_44), encoding="utf-8"
        )
        yield number
    partial.rename(folder / sequence.folder)


def matrix_text(matrix: NDArray[np.float64]) -> str:
    """Rows of tab-separated numbers, each with all its digits."""
    return "".join("\t".join(repr(float(value)) for value in row) + "\n" for row in matrix)


def start_worker() -> None:
    """Prepare a rendering process."""
    cv2.setNumThreads(1)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a waiting worker has nothing to say when a person presses ctrl-C


def render_job(sequence: Sequence, folder: Path) -> int:
    """What a rendering process does: one whole sequence. Returns its number of frames."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return sum(1 for _ in render_sequence(sequence, folder))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
