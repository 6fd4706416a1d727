"""Cambridge Landmarks' text files (Kendall et al., ICCV 2015).

    <root>/<Scene>/dataset_train.txt, dataset_test.txt        three header lines, then `file X Y Z W
                                                              P Q R`

X Y Z is the camera's centre, W P Q R a quaternion world-to-camera, which the header does not say,
of norm 1 or not.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mspose.data.frames import WORLD_TO_CAMERA_POSITION, frame_table, parse_numbers, read_lines
from mspose.data.images import find_image
from mspose.errors import MsposeError

SPLIT_FILES = {"train": "dataset_train.txt", "test": "dataset_test.txt"}
HEADER_LINES = 3


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
    """The frame table of one split of `scenes`, in the order of the files.

    With `on_bad_frame="skip"` a frame with a bad line or without image is left out (see
    `frame_table`). Raises MsposeError with file and line for bad lines and missing images.
    """
    if split not in SPLIT_FILES:
        raise MsposeError(f"there is no split {split!r}; there are: {', '.join(SPLIT_FILES)}")
    scene_names: list[str] = []
    names: list[str] = []
    places: list[tuple[Path, int]] = []
    values: list[list[float]] = []
    faults: dict[int, str] = {}
    for scene in scenes:
        path = root / scene / SPLIT_FILES[split]
        for line, text in enumerate(read_lines(path), start=1):
            name, *cells = text.split() or [""]
            if line <= HEADER_LINES:
                if len(cells) == 7 and not parse_numbers(cells)[1]:
                    raise MsposeError(
                        f"{path}, line {line} is a frame: expected {HEADER_LINES} header lines"
                        " before it"
                    )
                continue
            if not name:
                continue
            if len(cells) == 7:
                numbers, fault = parse_numbers(cells)
            else:
                numbers, fault = (
                    [math.nan] * 7,
                    f"expected 7 numbers after the image, found {len(cells)}",
                )
            if not fault:
                try:
                    find_image(root / scene, name)
                except MsposeError as error:
                    fault = str(error)
            if fault:
                faults[len(values)] = fault
            values.append(numbers)
            places.append((path, line))
            scene_names.append(scene)
            names.append(name)
    number_B7 = np.array(values, dtype=np.float64).reshape(-1, 7)
    return frame_table(
        dataset=dataset,
        ground_truth=ground_truth,
        split=split,
        scene=scene_names,
        sequence=[name.rpartition("/")[0] for name in names],
        image=[f"{scene}/{name}" for scene, name in zip(scene_names, names, strict=True)],
        position_B3=number_B7[:, :3],
        orientation=number_B7[:, 3:],
        convention=WORLD_TO_CAMERA_POSITION,
        where=lambda row: "{}, line {}".format(*places[row]),
        source=", ".join(str(root / scene / SPLIT_FILES[split]) for scene in scenes),
        focal_px=focal_px,
        faults=faults,
        scenes=scenes,
        on_bad_frame=on_bad_frame,
    )
