"""Rendered frames with their poses, and a reader of what an import wrote."""

import os

import numpy as np
import pandas as pd
import pytest
from tools.importing.builders import FOCAL, SIZE, Room

from mspose.data.cards import load_frames, read_card
from mspose.data.virtual import render_virtual
from mspose.poses import pose_matrix

FRAMES = 15


@pytest.fixture(scope="session")
def room(tmp_path_factory) -> Room:
    """Two sequences of rendered frames in one virtual room; not to be changed. Names need natural
    order.
    """
    folder = tmp_path_factory.mktemp("virtual")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            os, "sched_getaffinity", lambda pid: {0}, raising=False
        )  # a process more takes longer to start
        size = {"width": SIZE[0], "height": SIZE[1], "focal_px": FOCAL}
        render_virtual(
            folder,
            frames={"atelier": (FRAMES, FRAMES)},
            frames_per_sequence=FRAMES,
            progress=False,
            **size,
        )
    poses = sorted(folder.glob("atelier/seq-0[12]/*.pose.txt"))
    files = [path.with_name(path.name.replace("pose.txt", "color.jpg")) for path in poses]
    names = [
        f"walk {1 + number // FRAMES}/frame-{number % FRAMES}.jpg" for number in range(2 * FRAMES)
    ]
    assert len(files) == len(names)
    return Room(files, names, np.stack([np.loadtxt(path) for path in poses]))


@pytest.fixture(scope="session")
def frames_of():
    """`frames_of(folder)`: all rows of an imported data set, both splits, in the order of its label
    file.
    """

    def read(folder) -> pd.DataFrame:
        (card,) = folder.glob("*.yaml")
        tables = [load_frames(read_card(card), split=split) for split in ("train", "test")]
        return pd.concat(tables, ignore_index=True)

    return read


@pytest.fixture(scope="session")
def matrices():
    """`matrices(frames)`: camera-to-world matrices (B, 4, 4) of a frame table."""

    def convert(frames: pd.DataFrame) -> np.ndarray:
        return pose_matrix(
            frames[["tx", "ty", "tz"]].to_numpy(), frames[["qw", "qx", "qy", "qz"]].to_numpy()
        )

    return convert
