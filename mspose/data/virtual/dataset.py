"""The virtual data set on disk: rendered rooms and courtyards in 7Scenes' own layout.

    <root>/<scene>/virtual.json                               the settings that it was rendered with
    <root>/<scene>/seq-01/frame-000000.color.jpg|png, frame-000000.pose.txt
    <root>/<scene>/camera-intrinsics.txt, TrainSplit.txt, TestSplit.txt

The pose of the rendering camera is the label. Everything follows from the seed: a scene from (seed,
scene), a sequence from (seed, scene, split, its number within the split), so that a larger data set
has the same scenes and a sequence of more frames follows the same path more slowly. A sequence is
rendered into a hidden folder and renamed when it is whole, the split files come last: what was
interrupted is continued by the next call and never taken for complete, and a sequence that is not
whole any more is rendered anew. Rendering processes end with the one that started them, and hold
its lock until then. A scene that an older version of this program rendered is deleted and rendered
anew.
"""

import fcntl
import json
import logging
import math
import multiprocessing
import os
import re
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mspose.data.virtual import RECORD, VERSION
from mspose.data.virtual.rendering import Camera
from mspose.data.virtual.rooms import SCENE_NAMES
from mspose.data.virtual.sequences import (
    ENCODINGS,
    InheritedLock,
    Sequence,
    file_names,
    matrix_text,
    plan_sequences,
    render_job,
    render_sequence,
    start_worker,
)
from mspose.errors import MsposeError
from mspose.files import locked, read_json, whole_file

LOCK = ".rendering.lock"
SPLIT_FILES = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}
SCENE_FILES = (*SPLIT_FILES.values(), "camera-intrinsics.txt", RECORD)
SEQUENCE_FOLDER = re.compile(r"seq-\d{2,}|\.seq-\d{2,}\.partial")
FRAME_FILE = re.compile(r"frame-\d{6}\.(color\.(jpg|png)|pose\.txt)")

log = logging.getLogger("mspose")


def render_virtual(
    root: Path | str,
    *,
    frames: Mapping[str, tuple[int, int]],
    frames_per_sequence: int = 50,
    width: int = 320,
    height: int = 240,
    focal_px: float = 292.5,
    seed: int = 0,
    image_format: str = "jpg",
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Render what is missing of the scenes in `frames` below `root`; complete scenes of this
    version are left alone.

    Args:
        frames: scene -> number of (training, test) frames; the scenes are `SCENE_NAMES`.
        frames_per_sequence: a scene's frames are shared out over sequences of this length, each a
            path of its own.
        width, height, focal_px: the camera, in pixels.
        image_format: `jpg` (quality 95) or `png`.
        workers: processes to render with, by default one per core that this process may use.

    Processes that render into the same root wait for each other.

    Raises MsposeError for settings that make no sense, a folder below `root` that was rendered with
    other settings or holds anything else, and where files cannot be written. Nothing is ever
    deleted but unfinished sequences and scenes of an older version, and of these only if they hold
    nothing but what was rendered.
    """
    root = Path(root).expanduser()
    camera = Camera(width, height, focal_px)
    _check_settings(frames, frames_per_sequence, camera, seed, image_format)
    shared = {
        "seed": seed,
        "width": width,
        "height": height,
        "focal_px": focal_px,
        "image_format": image_format,
        "frames_per_sequence": frames_per_sequence,
    }
    records = {
        scene: {
            "version": VERSION,
            **shared,
            "scene": scene,
            "train_frames": train,
            "test_frames": test,
        }
        for scene, (train, test) in frames.items()
    }
    plans = {
        scene: plan_sequences(scene, *counts, frames_per_sequence, seed, camera, image_format)
        for scene, counts in frames.items()
    }
    try:
        root.mkdir(parents=True, exist_ok=True)
        if _is_complete(root, shared, records, plans):
            return
        waiting = f"waiting for another process that renders into {root}"
        with locked(root / LOCK, waiting=waiting) as lock:
            missing = _missing_sequences(root, shared, records, plans)
            if outdated := [root / scene for scene in records if _is_outdated(root / scene)]:
                names = ", ".join(folder.name for folder in outdated)
                log.info(
                    "%s: %s of an older version: rendered anew in version %d", root, names, VERSION
                )
                for folder in outdated:
                    _delete_scene(folder)
            for scene, record in records.items():
                if not (root / scene / RECORD).is_file() or _is_outdated(root / scene):
                    with whole_file(root / scene / RECORD) as file:
                        json.dump(record, file, indent=2)
            if missing:
                cores = (
                    len(os.sched_getaffinity(0))
                    if hasattr(os, "sched_getaffinity")
                    else os.cpu_count() or 1
                )
                processes = max(1, min(workers or cores, len(missing)))
                _render_all(root, missing, processes, lock, progress)
            for scene, plan in plans.items():
                _finish_scene(root / scene, plan)
    except OSError as error:
        raise MsposeError(
            f"cannot render into {root}: {error.filename or ''} {error.strerror or error}; what is"
            " there is kept, the same command continues"
        ) from error


def _check_settings(
    frames: Mapping[str, tuple[int, int]],
    frames_per_sequence: int,
    camera: Camera,
    seed: int,
    image_format: str,
) -> None:
    unknown = [scene for scene in frames if scene not in SCENE_NAMES]
    if unknown or not frames:
        raise MsposeError(
            f"no virtual scene is called {', '.join(unknown) or 'nothing'}; there are:"
            f" {', '.join(SCENE_NAMES)}"
        )
    for scene, counts in frames.items():
        if min(counts) < 1:
            raise MsposeError(
                f"virtual scene {scene}: needs at least one training and one test frame, not"
                f" {counts}"
            )
    wholes = {
        "frames_per_sequence": frames_per_sequence,
        "width": camera.width,
        "height": camera.height,
    }
    for name, value in wholes.items():
        if type(value) is not int or value < 1:
            raise MsposeError(f"virtual data: {name} is a whole number, 1 or more, not {value!r}")
    if type(seed) is not int or seed < 0:
        raise MsposeError(f"virtual data: the seed is a whole number, 0 or more, not {seed!r}")
    if not (isinstance(camera.focal_px, int | float) and 0 < camera.focal_px < math.inf):
        raise MsposeError(
            f"virtual data: focal_px is a positive number of pixels, not {camera.focal_px!r}"
        )
    if image_format not in ENCODINGS:
        raise MsposeError(
            f"virtual data: image_format is one of {', '.join(ENCODINGS)}, not {image_format!r}"
        )


def _is_rendered_into(root: Path) -> bool:
    """Check whether another process renders into `root` now."""
    try:
        with (root / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _is_complete(
    root: Path,
    shared: Mapping[str, Any],
    records: Mapping[str, Any],
    plans: Mapping[str, list[Sequence]],
) -> bool:
    """True where there is nothing to do. Raises MsposeError where `root` holds something else."""
    try:
        missing = _missing_sequences(root, shared, records, plans)
    except (MsposeError, OSError):
        # by another process, which may have only begun: checked again when alone
        if _is_rendered_into(root):
            return False
        missing = _missing_sequences(root, shared, records, plans)  # it may just have ended
    return not missing and all(
        (root / scene / name).is_file() for scene in plans for name in SPLIT_FILES.values()
    )


def _missing_sequences(
    root: Path,
    shared: Mapping[str, Any],
    records: Mapping[str, Any],
    plans: Mapping[str, list[Sequence]],
) -> list[Sequence]:
    """List the sequences that are not there yet. Raises MsposeError where `root` holds something
    else.
    """
    _check_root(root, shared)
    missing: list[Sequence] = []
    for scene, plan in plans.items():
        if not (root / scene / RECORD).is_file():
            missing += plan
            continue
        _check_record(root / scene, records[scene])
        if _is_outdated(root / scene):
            _rendered_files(root / scene)
            missing += plan
        else:
            missing += _missing_of_scene(root / scene, plan)
    return missing


def _check_root(root: Path, shared: Mapping[str, Any]) -> None:
    """Refuse a `root` with anything but virtual scenes of the same settings and hidden files."""
    for folder in sorted(root.iterdir()):
        if folder.name.startswith(".") or (folder.is_dir() and not any(folder.glob("[!.]*"))):
            continue
        if folder.name not in SCENE_NAMES or not (folder / RECORD).is_file():
            raise MsposeError(
                f"{folder} is not a virtual scene: nothing is rendered beside other data; "
                "choose an empty folder, or move it away"
            )
        _check_record(folder, shared)


def _check_record(folder: Path, wanted: Mapping[str, Any]) -> None:
    """The scene must have these settings, and no newer version than this program's."""
    found = _read_record(folder)
    differing = [
        f"{key} {found.get(key)!r} there, {value!r} asked for"
        for key, value in wanted.items()
        if found.get(key) != value and not (key == "version" and _is_outdated(folder))
    ]
    if differing:
        raise MsposeError(
            f"{folder} was rendered with other settings ({'; '.join(differing)}); choose another"
            " folder, or move that one away"
        )


def _read_record(folder: Path) -> dict[str, Any]:
    found = read_json(folder / RECORD, f"move {folder} away to have it rendered")
    return found if isinstance(found, dict) else {}


def _is_outdated(folder: Path) -> bool:
    """Check whether the scene was rendered by an older version of this program."""
    version = _read_record(folder).get("version") if (folder / RECORD).is_file() else None
    return isinstance(version, int) and version < VERSION


def _rendered_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """List (files, folders of sequences) of a rendered scene, without hidden files.

    Raises MsposeError where anything else is among them, which must not be deleted with them.
    """
    files, sequences = [], []
    for path in sorted(folder.iterdir()):
        if SEQUENCE_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            sequences.append(path)
            found = sorted(path.iterdir())
            foreign = [
                file for file in found if not (FRAME_FILE.fullmatch(file.name) and file.is_file())
            ]
            files += found
        else:
            foreign = (
                [path] if path.name not in SCENE_FILES and not path.name.startswith(".") else []
            )
        if foreign:
            raise MsposeError(
                f"{foreign[0]} is no part of the virtual data set, whose older version in {folder}"
                " is to be deleted; move it away"
            )
    return files, sequences


def _delete_scene(folder: Path) -> None:
    """Delete a rendered scene, what makes it complete first, but for its record: by that the next
    call goes on.
    """
    files, sequences = _rendered_files(folder)
    for name in SPLIT_FILES.values():
        (folder / name).unlink(missing_ok=True)
    for path in files:
        path.unlink()
    for path in sequences:
        path.rmdir()
    (folder / "camera-intrinsics.txt").unlink(missing_ok=True)


def _missing_of_scene(folder: Path, plan: list[Sequence]) -> list[Sequence]:
    known = {*SCENE_FILES, *(sequence.folder for sequence in plan)}
    for path in sorted(folder.iterdir()):
        if path.name not in known and not path.name.startswith("."):
            raise MsposeError(f"{path} is no part of the virtual data set; move it away")
    missing = []
    for sequence in plan:
        path = folder / sequence.folder
        if not path.exists():
            missing.append(sequence)
            continue
        sizes = {file.name: file.stat().st_size for file in os.scandir(path)}
        if foreign := [name for name in sizes if not FRAME_FILE.fullmatch(name)]:
            raise MsposeError(
                f"{path / foreign[0]} is no part of the virtual data set; move it away"
            )
        if sizes.keys() != file_names(sequence) or not all(sizes.values()):
            log.info("%s is not whole: it is rendered anew", path)
            missing.append(sequence)
    return missing


def _finish_scene(folder: Path, plan: list[Sequence]) -> None:
    """Write the files that make a scene complete."""
    if all((folder / name).is_file() for name in SPLIT_FILES.values()):
        return
    with whole_file(folder / "camera-intrinsics.txt") as file:
        file.write(matrix_text(plan[0].camera.intrinsics_33))
    for split, name in reversed(SPLIT_FILES.items()):
        with whole_file(folder / name) as file:
            file.writelines(
                f"sequence{sequence.number}\n" for sequence in plan if sequence.split == split
            )


def _render_all(
    root: Path, missing: list[Sequence], workers: int, lock: int, progress: bool
) -> None:
    total = sum(sequence.frames for sequence in missing)
    with tqdm(
        total=total, desc="rendering", unit="frame", disable=not progress, dynamic_ncols=True
    ) as bar:
        if workers == 1:
            for sequence in missing:
                for _ in render_sequence(sequence, root / sequence.scene):
                    bar.update()
            return
        # Spawned, not forked: a fork of a process with threads (torch, OpenCV) can hang.
        context = multiprocessing.get_context("spawn")
        ended, running = context.Pipe(duplex=False)  # closed with this process, however it ends
        started = (ended, InheritedLock(lock))
        with (
            closing(running),
            ProcessPoolExecutor(
                workers, mp_context=context, initializer=start_worker, initargs=started
            ) as pool,
        ):
            try:
                jobs = [
                    pool.submit(render_job, sequence, root / sequence.scene) for sequence in missing
                ]
                for job in as_completed(jobs):
                    bar.update(job.result())
            except BrokenProcessPool as error:
                raise MsposeError(
                    "a rendering process died (out of memory, or a script without `if __name__ =="
                    " '__main__':`); the same command continues, workers=1 renders without further"
                    " processes"
                ) from error
            except BaseException:
                running.close()  # nobody waits for sequences that nobody will take
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
