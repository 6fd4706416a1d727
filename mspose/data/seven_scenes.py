"""7Scenes' folders (Shotton et al., CVPR 2013) and its two ground truths; virtual data is written
in the same layout.

    <root>/<scene>/TrainSplit.txt, TestSplit.txt       a sequence on each line: `sequence3`
    <root>/<scene>/seq-03/frame-000226.color.png|jpg   the image
    <root>/<scene>/seq-03/frame-000226.pose.txt        4x4 camera-to-world matrix, metres
    <root>/<scene>/camera-intrinsics.txt               optional: 3x3 camera matrix, pixels; also
                                                       in a sequence's folder

The second ground truth (Brachmann et al., ICCV 2021) is one text file per scene and split, in any
order, with a line `seq-03/frame-000226.color.png qw qx qy qz tx ty tz f` per image,
world-to-camera.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mspose.data.frames import (
    CAMERA_TO_WORLD,
    WORLD_TO_CAMERA,
    PoseLine,
    frame_table,
    last_row_fault,
    natural_order,
    parse_numbers,
    read_lines,
    read_pose_lines,
)
from mspose.errors import MsposeError

SPLIT_FILES = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}
INTRINSICS = "camera-intrinsics.txt"

MOST_BYTES = 2**16
"""Bytes of a pose file that are read; one has a few hundred."""
_SEQUENCE_NAME = re.compile(r"seq(?:uence)?[-_ ]?0*([0-9]+)", re.IGNORECASE)
_SEQUENCE_FOLDER = re.compile(r"seq-?0*(\d+)")
_FRAME_FILE = re.compile(r"frame-(\d+)\.(pose\.txt|color\.png|color\.jpe?g)")


def read_seven_scenes(
    root: Path,
    scenes: Sequence[str],
    split: str,
    *,
    dataset: str = "7scenes",
    ground_truth: str = "original",
    focal_px: float = math.nan,
    on_bad_frame: str = "stop",
    sequences: Sequence[str] = (),
) -> pd.DataFrame:
    """Read the frame table of one split of `scenes`, by scene, sequence and frame number.

    All frames of the folders `sequences`, where given, in place of those of the split's file.
    The `camera-intrinsics.txt` of a sequence, where it has one, goes before that of its scene, and
    that before `focal_px`. With `on_bad_frame="skip"` a frame without image or with a bad pose file
    is left out (see `frame_table`).

    Raises MsposeError for a split file that is missing, empty or names a sequence that is not
    there, a sequence without frames, and bad frames.
    """
    frames: list[tuple[str, str, str, float]] = []  # scene, sequence, image, focal length
    pose_files: list[str] = []
    values: list[list[float]] = []
    faults: dict[int, str] = {}
    for scene in scenes:
        focal = read_focal(root / scene / INTRINSICS, focal_px)
        folders = [root / scene / name for name in sequences]
        for folder in folders or split_sequences(root / scene, split):
            its_focal = read_focal(folder / INTRINSICS, focal)
            for pose_name, image_name in _list_frames(folder):
                pose_files.append(f"{folder}{os.sep}{pose_name}")
                matrix, fault = read_matrix(pose_files[-1])
                if image_name is None:
                    fault = "there is no image beside it (.color.png or .color.jpg)"
                if fault:
                    faults[len(values)] = fault
                values.append(matrix)
                image = f"{scene}/{folder.name}/{image_name or pose_name}"
                frames.append((scene, folder.name, image, its_focal))
    pose_B44 = np.array(values, dtype=np.float64).reshape(-1, 4, 4)
    for row in np.flatnonzero((pose_B44[:, 3] != [0, 0, 0, 1]).any(axis=1)).tolist():
        if row not in faults and (fault := last_row_fault(pose_B44[row])):
            faults[row] = fault
    return frame_table(
        dataset=dataset,
        ground_truth=ground_truth,
        split=split,
        scene=[frame[0] for frame in frames],
        sequence=[frame[1] for frame in frames],
        image=[frame[2] for frame in frames],
        position_B3=pose_B44[:, :3, 3],
        orientation=pose_B44[:, :3, :3],
        convention=CAMERA_TO_WORLD,
        where=pose_files.__getitem__,
        source=str(root),
        focal_px=[frame[3] for frame in frames],
        faults=faults,
        scenes=scenes,
        on_bad_frame=on_bad_frame,
    )


def read_sfm_poses(
    files: Mapping[str, Path],
    split: str,
    *,
    dataset: str = "7scenes",
    ground_truth: str = "sfm",
    on_bad_frame: str = "stop",
) -> pd.DataFrame:
    """Read the frame table of the structure-from-motion poses in `files` (scene -> text file), by
    sequence and frame number.

    Images are named as in the files and need not exist. Raises MsposeError with file and line
    for bad lines.
    """
    rows: list[tuple[str, PoseLine]] = []
    for scene, path in files.items():
        lines = read_pose_lines(path, 8)
        if not lines:
            raise MsposeError(f"{path} is empty: expected a line per image")
        lines.sort(key=lambda line: natural_order(line.image))
        rows += [(scene, line) for line in lines]
    number_B8 = np.array([line.numbers for _, line in rows], dtype=np.float64).reshape(-1, 8)
    faults = {row: line.fault for row, (_, line) in enumerate(rows) if line.fault}
    for row in np.flatnonzero(~np.isfinite(number_B8[:, 7])).tolist():
        faults.setdefault(row, "the focal length is not a number")
    return frame_table(
        dataset=dataset,
        ground_truth=ground_truth,
        split=split,
        scene=[scene for scene, _ in rows],
        sequence=[line.image.rpartition("/")[0] for _, line in rows],
        image=[f"{scene}/{line.image}" for scene, line in rows],
        position_B3=number_B8[:, 4:7],
        orientation=number_B8[:, :4],
        convention=WORLD_TO_CAMERA,
        where=lambda row: rows[row][1].where,
        source=", ".join(map(str, files.values())),
        focal_px=number_B8[:, 7],
        faults=faults,
        scenes=list(files),
        on_bad_frame=on_bad_frame,
    )


def split_sequences(scene_folder: Path, split: str) -> list[Path]:
    """Read the sequence folders of a split, by number.

    Raises MsposeError for a line that names no sequence, a sequence twice, or one without folder.
    """
    if split not in SPLIT_FILES:
        raise MsposeError(f"there is no split {split!r}; there are: {', '.join(SPLIT_FILES)}")
    split_file = scene_folder / SPLIT_FILES[split]
    named: dict[int, int] = {}
    for line, text in enumerate(read_lines(split_file), start=1):
        if not text:
            continue
        match = _SEQUENCE_NAME.fullmatch(text)
        if match is None:
            raise MsposeError(
                f"{split_file}, line {line}: {text[:40]!r} is not the name of a sequence"
                " (`sequence3`)"
            )
        if int(match[1]) in named:
            raise MsposeError(
                f"{split_file}, line {line}: {text} is there twice (first: line"
                f" {named[int(match[1])]})"
            )
        named[int(match[1])] = line
    if not named:
        raise MsposeError(
            f"{split_file} names no sequence: scene {scene_folder.name} has no {split} frames"
        )
    folders = {}
    for entry in sorted(os.scandir(scene_folder), key=lambda entry: entry.name):
        match = _SEQUENCE_FOLDER.fullmatch(entry.name)
        if match is not None and entry.is_dir():
            folders[int(match[1])] = scene_folder / entry.name
    for number, line in named.items():
        if number not in folders:
            raise MsposeError(
                f"{split_file}, line {line} names sequence {number}, which is not there: "
                f"no folder {scene_folder / f'seq-{number:02d}'}"
            )
    return [folders[number] for number in sorted(named)]


def _list_frames(folder: Path) -> list[tuple[str, str | None]]:
    """List (name of the pose file, name of the image or None) of every frame, by number."""
    frames: dict[str, dict[str, str]] = {}
    for entry in os.scandir(folder):
        match = _FRAME_FILE.fullmatch(entry.name)
        if match is not None:
            frames.setdefault(match[1], {})[match[2]] = entry.name
    if not frames:
        raise MsposeError(
            f"{folder} holds no frames (frame-000000.color.png with frame-000000.pose.txt, ...)"
        )
    listed = []
    for number in sorted(frames, key=int):
        files = frames[number]
        image = files.get("color.png") or files.get("color.jpg") or files.get("color.jpeg")
        listed.append((f"frame-{number}.pose.txt", image))
    return listed


def read_matrix(path: str) -> tuple[list[float], str]:
    """Read a pose file; returns (its 16 numbers, ""), or NaNs and what is wrong."""
    nothing = [math.nan] * 16
    try:
        with open(path, "rb", 0, opener=_not_waiting) as file:
            values = file.read(MOST_BYTES).split()
    except FileNotFoundError:
        return nothing, "the pose file is missing"
    except OSError as error:
        return nothing, f"the pose file cannot be read: {error.strerror}"
    if len(values) != 16:
        what = "is empty" if not values else f"holds {len(values)} values"
        return nothing, f"the pose file {what}: expected the 16 of a 4x4 matrix"
    return parse_numbers(values)


def _not_waiting(path: str, flags: int) -> int:
    """Open a file that, should it be a pipe, is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_focal(path: Path, default: float) -> float:
    """Focal length in pixels of a 3x3 camera matrix in a file; `default` where there is none."""
    if not path.exists():
        return default
    numbers, fault = parse_numbers(" ".join(read_lines(path)).split())
    if fault or len(numbers) != 9 or not (math.isfinite(numbers[0]) and numbers[0] > 0):
        raise MsposeError(
            f"{path}:"
            f" {fault or 'expected the 9 numbers of a 3x3 camera matrix, focal length first'}"
        )
    return numbers[0]
