"""The sequences of the virtual data set: each with a path and a lighting of its own, rendered and
written to disk.

Kept apart from what checks and fills the data set's folder, so that a rendering process imports no
more than it needs.
"""

import functools
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mspose.data.virtual.rendering import Camera, Lighting, Renderer
from mspose.data.virtual.rooms import build_scene
from mspose.data.virtual.scene import scene_key
from mspose.data.virtual.textures import Image
from mspose.data.virtual.trajectory import trajectory

SPLITS = ("train", "test")
ENCODINGS = {
    "png": (".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]),
    "jpg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]),
}


@dataclass(frozen=True)
class Sequence:
    """One sequence of one scene, with all that decides what it shows."""

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
        """Render the frames: RGB image (H, W, 3) and camera-to-world pose (4, 4)."""
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
    """Share a scene's frames out over sequences, training first; the last of a split takes what
    remains.
    """
    plan: list[Sequence] = []
    for split, total in zip(SPLITS, (train_frames, test_frames), strict=True):
        for index, first in enumerate(range(0, total, frames_per_sequence)):
            frames = min(frames_per_sequence, total - first)
            plan.append(
                Sequence(scene, split, len(plan) + 1, index, frames, seed, camera, image_format)
            )
    return plan


def file_names(sequence: Sequence) -> set[str]:
    """Names of the files of a whole sequence."""
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
    for left in (partial, folder / sequence.folder):  # of an interrupted call; not whole any more
        if left.exists():
            shutil.rmtree(left)
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
    """Format a matrix as rows of tab-separated numbers, each with all its digits."""
    return "".join("\t".join(repr(float(value)) for value in row) + "\n" for row in matrix)


class InheritedLock:
    """A locked file's descriptor that processes inherit, which hold the lock until they end."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __reduce__(self) -> Any:
        return InheritedLock, (DupFd(self.handle),)


def start_worker(main: Connection, lock: InheritedLock) -> None:  # noqa: ARG001 - held by being here
    """Prepare a rendering process, which ends at once when the other end of `main` is closed."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C ends the main process, and that this one
    threading.Thread(target=_end_with, args=(main,), daemon=True).start()


def _end_with(main: Connection) -> None:
    with suppress(EOFError, OSError):
        main.recv()  # nothing is ever sent
    os._exit(1)


def render_job(sequence: Sequence, folder: Path) -> int:
    """Render one whole sequence in a rendering process. Returns its number of frames."""
    return sum(1 for _ in render_sequence(sequence, folder))
