"""The embedded virtual data set: rendered rooms and courtyards, on disk in 7Scenes' own layout.

    <root>/<scene>/virtual.json                               the settings that it was rendered with
    <root>/<scene>/seq-01/frame-000000.color.jpg|png, frame-000000.pose.txt
    <root>/<scene>/camera-intrinsics.txt, TrainSplit.txt, TestSplit.txt

The pose of the rendering camera is the label. Everything follows from the seed: a scene from (seed, scene), a sequence
from (seed, scene, split, its number within the split), so that a larger data set has the same scenes and a sequence of
more frames follows the same path more slowly. A sequence is rendered into a hidden folder and renamed when it is whole,
the split files come last: what was interrupted is continued by the next call and never taken for complete.
"""

import functools
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mspose.checkpoint import whole_file
from mspose.data.virtual_render import Camera, Lighting, Renderer, Scene
from mspose.data.virtual_rooms import SCENE_NAMES, build_scene, scene_key
from mspose.data.virtual_textures import Image
from mspose.errors import MsposeError

RECORD = "virtual.json"
SPLITS = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}
VERSION = 1  # of the pictures: raise it when the same settings render other images or poses
ENCODINGS = {"png": (".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]), "jpg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95])}

WAYPOINTS = 10  # per sequence
SECONDS_PER_SEQUENCE = 33.0  # what a sequence lasts, however many frames are taken of it


@dataclass(frozen=True)
class VirtualSize:
    """A ready-made size of the data set; the fields are arguments of `render_virtual`."""

    frames: Mapping[str, tuple[int, int]]  # scene -> training frames, test frames
    frames_per_sequence: int
    width: int = 320
    height: int = 240
    focal_px: float = 292.5  # 7Scenes' 585 px at half its size


_SEVEN_SCENES_FRAMES = ((4000, 2000), (2000, 2000), (1000, 1000), (6000, 4000), (4000, 2000), (7000, 5000), (2000, 1000))
SIZES = {
    "demo": VirtualSize(dict.fromkeys(SCENE_NAMES[:4], (400, 100)), 50),
    "7scenes": VirtualSize(dict(zip(SCENE_NAMES, _SEVEN_SCENES_FRAMES, strict=True)), 1000),
    "tiny": VirtualSize(dict.fromkeys(SCENE_NAMES[:2], (12, 6)), 6, 96, 72, 87.75),
}


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
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6.0
    path = np.einsum("kf,kfc->fc", weights, np.stack([controls[segment + k] for k in range(4)]))

    seconds = share * SECONDS_PER_SEQUENCE
    frequency, phase = rng.uniform(0.4, 3.0, (5, 6)), rng.uniform(0.0, 2.0 * np.pi, (5, 6))
    tremor = np.sin(2.0 * np.pi * frequency * seconds[:, None, None] + phase).sum(axis=1) / np.sqrt(5)
    position_F3 = path[:, :3] + 0.004 * tremor[:, :3]

    forward_F3 = path[:, 3:6] - position_F3
    forward_F3 /= np.linalg.norm(forward_F3, axis=1, keepdims=True)
    right_F3 = np.cross(forward_F3, [0.0, 0.0, 1.0])
    right_F3 /= np.linalg.norm(right_F3, axis=1, keepdims=True)
    down_F3 = np.cross(forward_F3, right_F3)
    steady_F33 = np.stack([right_F3, down_F3, forward_F3], axis=-1)
    shake_F3 = 0.007 * tremor[:, 3:] + path[:, 6:7] * np.array([0.0, 0.0, 1.0])

    pose_F44 = np.tile(np.eye(4), (frames, 1, 1))
    for pose_44, steady_33, shake_3, position_3 in zip(pose_F44, steady_F33, shake_F3, position_F3, strict=True):
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
        key = [self.seed, scene_key(self.scene), list(SPLITS).index(self.split), self.number_in_split]
        rng = np.random.default_rng(key)
        scene = _built_scene(self.scene, self.seed)
        renderer = Renderer(scene, self.camera, Lighting.draw(rng))
        for pose_44 in trajectory(scene, rng, self.frames):
            yield renderer.render(pose_44)[0], pose_44


_built_scene = functools.lru_cache(maxsize=1)(build_scene)  # sequences of one scene come one after the other


def plan_sequences(scene: str, train_frames: int, test_frames: int, *, frames_per_sequence: int, seed: int,
                   camera: Camera, image_format: str) -> list[Sequence]:
    """The sequences of a scene, training first; the last of a split takes what remains."""
    plan: list[Sequence] = []
    for split, total in zip(SPLITS, (train_frames, test_frames), strict=True):
        for index, first in enumerate(range(0, total, frames_per_sequence)):
            frames = min(frames_per_sequence, total - first)
            plan.append(Sequence(scene, split, len(plan) + 1, index, frames, seed, camera, image_format))
    return plan


def render_virtual(root: Path | str, *, frames: Mapping[str, tuple[int, int]], frames_per_sequence: int = 50,
                   width: int = 320, height: int = 240, focal_px: float = 292.5, seed: int = 0,
                   image_format: str = "jpg", workers: int | None = None, progress: bool = True) -> None:
    """Render what is missing of the scenes in `frames` below `root`; complete scenes are left alone.

    Args:
        frames: scene -> number of (training, test) frames; the scenes are `SCENE_NAMES`.
        frames_per_sequence: a scene's frames are shared out over sequences of this length, each a path of its own.
        width, height, focal_px: the camera, in pixels.
        image_format: `jpg` (quality 95) or `png`.
        workers: processes to render with, by default one per core that this process may use.

    Raises MsposeError for settings that make no sense, a folder below `root` that was rendered with other settings or
    holds anything else (nothing is ever deleted there), and where files cannot be written.
    """
    root = Path(root).expanduser()
    camera = Camera(width, height, focal_px)
    _check_settings(frames, frames_per_sequence, camera, seed, image_format)
    shared = {"version": VERSION, "seed": seed, "width": width, "height": height, "focal_px": float(focal_px),
              "image_format": image_format, "frames_per_sequence": frames_per_sequence}
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_root(root, shared)
        plans = {scene: plan_sequences(scene, *counts, frames_per_sequence=frames_per_sequence, seed=seed, camera=camera,
                                       image_format=image_format) for scene, counts in frames.items()}
        missing: list[Sequence] = []
        for scene, plan in plans.items():
            record = {**shared, "scene": scene, "train_frames": frames[scene][0], "test_frames": frames[scene][1]}
            missing += _open_scene(root / scene, record, plan)
        if missing:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            _render_all(root, missing, max(1, min(workers or cores, len(missing))), progress)
        for scene, plan in plans.items():
            _finish_scene(root / scene, plan)
    except OSError as error:
        raise MsposeError(f"cannot render into {root}: {error.filename or ''} {error.strerror or error}; what is there "
                          "is kept, the same command continues") from error


def _check_settings(frames: Mapping[str, tuple[int, int]], frames_per_sequence: int, camera: Camera, seed: int,
                    image_format: str) -> None:
    unknown = [scene for scene in frames if scene not in SCENE_NAMES]
    if unknown or not frames:
        raise MsposeError(f"no virtual scene is called {', '.join(unknown) or 'nothing'}; there are: {', '.join(SCENE_NAMES)}")
    for scene, counts in frames.items():
        if min(counts) < 1:
            raise MsposeError(f"virtual scene {scene}: needs at least one training and one test frame, not {counts}")
    for name, value in (("frames_per_sequence", frames_per_sequence), ("width", camera.width), ("height", camera.height)):
        if value < 1:
            raise MsposeError(f"virtual data: {name} is at least 1, not {value}")
    if not (np.isfinite(camera.focal_px) and camera.focal_px > 0):
        raise MsposeError(f"virtual data: focal_px is a positive number of pixels, not {camera.focal_px}")
    if seed < 0:
        raise MsposeError(f"virtual data: the seed is 0 or more, not {seed}")
    if image_format not in ENCODINGS:
        raise MsposeError(f"virtual data: image_format is one of {', '.join(ENCODINGS)}, not {image_format!r}")


def _check_root(root: Path, shared: Mapping[str, Any]) -> None:
    """Everything below `root` (hidden files apart) must be virtual scenes of the same settings."""
    for folder in sorted(root.iterdir()):
        if folder.name.startswith(".") or (folder.is_dir() and not any(folder.iterdir())):
            continue
        if folder.name not in SCENE_NAMES or not (folder / RECORD).is_file():
            raise MsposeError(f"{folder} is not a virtual scene: nothing is rendered beside other data; "
                              "choose an empty folder, or move it away")
        _check_record(folder, shared)


def _check_record(folder: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except ValueError as error:
        raise MsposeError(f"{folder / RECORD} cannot be read ({error}); move {folder} away to have it rendered") from error
    found = found if isinstance(found, dict) else {}
    differing = [f"{key} {found.get(key)!r} there, {value!r} asked for" for key, value in wanted.items()
                 if found.get(key) != value]
    if differing:
        raise MsposeError(f"{folder} was rendered with other settings ({'; '.join(differing)}); choose another folder, "
                          "or move that one away")


def _open_scene(folder: Path, record: Mapping[str, Any], plan: list[Sequence]) -> list[Sequence]:
    """Claim the scene's folder; returns the sequences that are not there yet."""
    if (folder / RECORD).is_file():
        _check_record(folder, record)
    else:
        with whole_file(folder / RECORD) as file:
            json.dump(record, file, indent=2)
    known = {RECORD, "camera-intrinsics.txt", *SPLITS.values(), *(sequence.folder for sequence in plan)}
    for path in sorted(folder.iterdir()):
        if path.name not in known and not path.name.startswith("."):
            raise MsposeError(f"{path} is no part of the virtual data set; move it away")
    missing = []
    for sequence in plan:
        path = folder / sequence.folder
        if not path.exists():
            missing.append(sequence)
        elif sorted(os.listdir(path)) != sorted(_file_names(sequence)):
            raise MsposeError(f"{path} does not hold the {sequence.frames} frames that it was rendered with; "
                              "move it away to have it rendered again")
    return missing


def _file_names(sequence: Sequence) -> list[str]:
    suffix = ENCODINGS[sequence.image_format][0]
    return [f"frame-{i:06d}.{kind}" for i in range(sequence.frames) for kind in (f"color{suffix}", "pose.txt")]


def _finish_scene(folder: Path, plan: list[Sequence]) -> None:
    """Write the files that make a scene complete."""
    if all((folder / name).is_file() for name in SPLITS.values()):
        return
    with whole_file(folder / "camera-intrinsics.txt") as file:
        file.write(_matrix_text(plan[0].camera.intrinsics_33))
    for split, name in reversed(SPLITS.items()):
        with whole_file(folder / name) as file:
            file.writelines(f"sequence{sequence.number}\n" for sequence in plan if sequence.split == split)


def _render_all(root: Path, missing: list[Sequence], workers: int, progress: bool) -> None:
    total = sum(sequence.frames for sequence in missing)
    with tqdm(total=total, desc="rendering", unit="frame", disable=not progress, dynamic_ncols=True) as bar:
        if workers == 1:
            for sequence in missing:
                for _ in render_sequence(sequence, root / sequence.scene):
                    bar.update()
            return
        # Spawned, not forked: a fork of a process with threads (torch, OpenCV) can hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
            try:
                jobs = [pool.submit(_render_job, sequence, root / sequence.scene) for sequence in missing]
                for job in as_completed(jobs):
                    bar.update(job.result())
            except BrokenProcessPool as error:
                raise MsposeError("a rendering process died (out of memory?); the same command continues") from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a waiting worker has nothing to say when a person presses ctrl-C


def _render_job(sequence: Sequence, folder: Path) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return sum(1 for _ in render_sequence(sequence, folder))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


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
        (partial / f"frame-{number:06d}.pose.txt").write_text(_matrix_text(pose_44), encoding="utf-8")
        yield number
    partial.rename(folder / sequence.folder)


def _matrix_text(matrix: NDArray[np.float64]) -> str:
    """Rows of tab-separated numbers, each with all its digits."""
    return "".join("\t".join(repr(float(value)) for value in row) + "\n" for row in matrix)
