"""Cambridge Landmarks' text files (Kendall et al., ICCV 2015).

    <root>/<Scene>/dataset_train.txt, dataset_test.txt

have three header lines (or none), then lines `file X Y Z W P Q R`, or in another order that the
header names. X Y Z is the camera's centre, W P Q R a quaternion of any norm, world-to-camera, which
the header does not say.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from mspose.data.frames import (
    WORLD_TO_CAMERA_POSITION,
    PoseLine,
    frame_table,
    read_lines,
    read_pose_lines,
)
from mspose.data.images import find_image
from mspose.errors import MsposeError

SPLIT_FILES = {"train": "dataset_train.txt", "test": "dataset_test.txt"}
HEADER_LINES = 3
COLUMNS = ("x", "y", "z", "w", "p", "q", "r")
OTHER_NAMES = {
    **{f"t{axis}": axis for axis in "xyz"},
    **dict(zip(("qw", "qx", "qy", "qz"), COLUMNS[3:], strict=True)),
}


def read_cambridge(
    root: Path,
    scenes: Sequence[str],
    split: str,
    *,
    dataset: str = "cambridge",
    ground_truth: str = "sfm",
    focal_px: float = math.nan,
    on_bad_frame: str = "stop",
) -> pd.DataFrame:
    """Read the frame table of one split of `scenes`, in the order of the files.

    With `on_bad_frame="skip"` a frame with a bad line or without image is left out (see
    `frame_table`). Raises MsposeError with file and line for bad lines and missing images.
    """
    if split not in SPLIT_FILES:
        raise MsposeError(f"there is no split {split!r}; there are: {', '.join(SPLIT_FILES)}")
    files = {scene: root / scene / SPLIT_FILES[split] for scene in scenes}
    rows = [(scene, line) for scene, path in files.items() for line in read_split_file(path)[0]]
    faults = {}
    for row, (scene, line) in enumerate(rows):
        if line.fault:
            faults[row] = line.fault
            continue
        try:
            find_image(root / scene, line.image)
        except MsposeError as error:
            faults[row] = str(error)
    number_B7 = np.array([line.numbers for _, line in rows], dtype=np.float64).reshape(-1, 7)
    return frame_table(
        dataset=dataset,
        ground_truth=ground_truth,
        split=split,
        scene=[scene for scene, _ in rows],
        sequence=[line.image.rpartition("/")[0] for _, line in rows],
        image=[f"{scene}/{line.image}" for scene, line in rows],
        position_B3=number_B7[:, :3],
        orientation=number_B7[:, 3:],
        convention=WORLD_TO_CAMERA_POSITION,
        where=lambda row: rows[row][1].where,
        source=", ".join(map(str, files.values())),
        focal_px=focal_px,
        faults=faults,
        scenes=scenes,
        on_bad_frame=on_bad_frame,
    )


def read_split_file(path: Path) -> tuple[list[PoseLine], str]:
    """(lines with the numbers x y z w p q r; the order of the quaternion, and who says so).

    Raises MsposeError where the file cannot be read as text.
    """
    lines = read_pose_lines(path, len(COLUMNS), header_lines=HEADER_LINES)
    for text in read_lines(path)[:HEADER_LINES]:
        words = [word.lower() for word in re.findall(r"[A-Za-z]+", text)][-len(COLUMNS) :]
        names = [OTHER_NAMES.get(word, word) for word in words]
        if sorted(names) == sorted(COLUMNS):
            order = [names.index(name) for name in COLUMNS]
            quaternion = " ".join(
                word for word, name in zip(words, names, strict=True) if name in "wpqr"
            )
            return [
                replace(line, numbers=[line.numbers[column] for column in order]) for line in lines
            ], f"{quaternion}, as the header says"
    return lines, "w p q r, as Cambridge Landmarks has it, since no header names columns"
