"""Rendered frames with their poses, and imports of them."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tools.importing.builders import FOCAL, SIZE, Room

from mspose.data.cards import load_frames, read_card
from mspose.data.virtual.dataset import render_virtual
from mspose.errors import MsposeError
from mspose.tools.importing.importer import import_data

FRAMES = 15


@pytest.fixture(scope="session")
def room(tmp_path_factory) -> Room:
    """Two sequences of rendered frames whose names need natural order; not to be changed."""
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


def import_to(out: Path, kind: str, *paths: object, **options) -> str:
    """Import paths without a progress bar."""
    return import_data(kind, list(map(str, paths)), out=str(out), progress=False, **options)


@pytest.fixture
def imported(tmp_path):
    """`imported(kind, path..., out=name, ...)`: summary, frames of both splits by image, card."""

    def run(kind: str, *paths: object, out: str = "own", **options):
        text = import_to(tmp_path / out, kind, *paths, **options)
        (file,) = (tmp_path / out).glob("*.yaml")
        card = read_card(file)
        tables = [load_frames(card, split=split) for split in ("train", "test")]
        return text, pd.concat(tables).set_index("image"), card

    return run


@pytest.fixture
def refused(tmp_path):
    """`refused(pattern, kind, path..., out=name, ...)`: one line, and nothing is written."""

    def check(pattern: str, kind: str, *paths: object, out: str = "refused", **options) -> None:
        before = set(tmp_path.rglob("*"))
        with pytest.raises(MsposeError, match=pattern) as caught:
            import_to(tmp_path / out, kind, *paths, **options)
        assert "\n" not in str(caught.value)
        assert set(tmp_path.rglob("*")) == before

    return check
