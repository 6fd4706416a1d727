"""Split frames into training and test frames.

Neighbouring frames of a video show nearly the same: a test frame between two training frames
measures memory, not localisation. So whole blocks are held out, with a margin of dropped frames
around them, or whole sequences, or what a list names; taking every n-th frame is not offered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mspose.config import dashed
from mspose.data.frames import read_lines
from mspose.errors import MsposeError
from mspose.tools.importing.views import listed, plain_name

BLOCK, TEST_EVERY, MARGIN = 50, 5, 10
TRAIN, TEST, DROPPED = "train", "test", ""
OWNERS = {
    "block": "blocks",
    "test_every": "blocks",
    "margin": "blocks",
    "test_sequences": "sequence",
    "test_list": "list",
    "train_list": "list",
}
"""Option -> the way to split that it belongs to."""


@dataclass(frozen=True)
class SplitBy:
    """How to split; None stands for the default."""

    how: str = "blocks"
    """`blocks`, `sequence`, `list`, or `given`: as the files state."""
    block: int | None = None
    """Frames of a block; by default `BLOCK`, fewer in a sequence of less than `TEST_EVERY` such."""
    test_every: int | None = None
    """Every so many blocks, one is for testing; by default `TEST_EVERY`."""
    margin: int | None = None
    """Training frames dropped on each side of a test block; by default `MARGIN`, or a fifth of a
    shorter block.
    """
    test_sequences: Sequence[str] = ()
    test_list: Path | None = None
    train_list: Path | None = None

    def refuse_idle_options(self) -> None:
        """Raise MsposeError for an option of another way to split, and where one is missing."""
        for option, how in OWNERS.items():
            if getattr(self, option) not in (None, (), []) and how != self.how:
                raise MsposeError(
                    f"--{dashed(option)} belongs to --split {how}: with --split {self.how} it is"
                    " without effect"
                )
        if self.how == "sequence" and not self.test_sequences:
            raise MsposeError("--split sequence: name test sequences with --test-sequences")
        if self.how == "list" and self.test_list is None:
            raise MsposeError("--split list: name the file of test images with --test-list")


def split_frames(frames: pd.DataFrame, by: SplitBy, left_out: Sequence[str] = ()) -> NDArray[Any]:
    """The split of each row, `DROPPED` for frames that are in none.

    Args:
        frames: columns scene, sequence, name (as in the files), moment, given; sorted by scene,
            sequence and moment.
        by: how to split.
        left_out: names that a list may hold although no frame has them.

    Raises MsposeError where a scene would be without training or test frames, and for names that do
    not exist.
    """
    if by.how == "sequence":
        split = _by_sequence(frames, by.test_sequences)
    elif by.how == "list":
        split = _by_list(frames, by, left_out)
    elif by.how == "given":
        split = frames["given"].to_numpy(object)
        if not set(split) - {DROPPED}:
            raise MsposeError("--split given: the files name no split; say --split blocks")
    else:
        split = _by_blocks(frames, by)
    for scene, rows in frames.assign(split=split).groupby("scene", sort=False):
        for name in (TRAIN, TEST):
            if name not in set(rows["split"]):
                raise MsposeError(f"scene {scene} would have no {name} frames; {_advice(rows, by)}")
    return split


def block_splits(count: int, block: int, test_every: int, margin: int) -> NDArray[Any]:
    """The split (`count`,) of successive moments.

    Of every `test_every` blocks the middle one is for testing; `margin` training moments on each
    side of it are dropped.
    """
    test = np.arange(count) // block % test_every == test_every // 2
    near = test.copy()
    for step in range(1, min(margin, count - 1) + 1):
        near[step:] |= test[:-step]
        near[:-step] |= test[step:]
    return np.where(test, TEST, np.where(near, DROPPED, TRAIN)).astype(object)


def block_size(count: int, by: SplitBy) -> tuple[int, int, int]:
    """(block, test_every, margin) for a sequence of `count` moments."""
    every = by.test_every or TEST_EVERY
    block = by.block or max(1, min(BLOCK, count // every))
    return block, every, max(1, min(MARGIN, block // 5)) if by.margin is None else by.margin


def describe_split(frames: pd.DataFrame, by: SplitBy) -> str:
    """A line about how frames are split."""
    if by.how == "sequence":
        return f"by sequence; for testing: {', '.join(by.test_sequences)}"
    if by.how == "list":
        return f"as listed in {by.test_list}" + (f" and {by.train_list}" if by.train_list else "")
    if by.how == "given":
        return "as the files say"
    sizes = {block_size(count, by) for count in _lengths(frames)}
    blocks = [
        f"{block} frame{'' if block == 1 else 's'}, {margin} dropped on each side"
        for block, _, margin in sorted(sizes, reverse=True)
    ]
    every = by.test_every or TEST_EVERY
    return f"of every {every} blocks of a sequence one is for testing; blocks of {listed(blocks)}"


def _lengths(frames: pd.DataFrame) -> list[int]:
    """Number of moments of each sequence."""
    groups = frames.groupby(["scene", "sequence"], sort=False)["moment"]
    return [len({str(moment) for moment in moments}) for _, moments in groups]


def _by_blocks(frames: pd.DataFrame, by: SplitBy) -> NDArray[Any]:
    split = np.full(len(frames), DROPPED, dtype=object)
    for members in frames.groupby(["scene", "sequence"], sort=False).indices.values():
        moments = frames["moment"].iloc[members].tolist()
        # frames of one moment, taken by several cameras, stay together
        new = [False, *(one != two for one, two in pairwise(moments))]
        rank = np.cumsum(new)
        count = int(rank[-1]) + 1
        split[members] = block_splits(count, *block_size(count, by))[rank]
    return split


def _by_sequence(frames: pd.DataFrame, wanted: Sequence[str]) -> NDArray[Any]:
    full = frames["scene"] + "/" + frames["sequence"]
    for name in wanted:
        if not ((frames["sequence"] == name) | (full == name)).any():
            raise MsposeError(
                f"--test-sequences: there is no sequence {name!r}; there are: "
                + ", ".join(dict.fromkeys(full))
            )
    return np.where(frames["sequence"].isin(wanted) | full.isin(wanted), TEST, TRAIN).astype(object)


def _by_list(frames: pd.DataFrame, by: SplitBy, left_out: Sequence[str]) -> NDArray[Any]:
    rows: dict[str, set[int]] = {}
    for number, (scene, name) in enumerate(zip(frames["scene"], frames["name"], strict=True)):
        for known_as in (name, f"{scene}/{name}"):
            rows.setdefault(known_as, set()).add(number)
    split = np.full(len(frames), TRAIN if by.train_list is None else DROPPED, dtype=object)
    chosen: dict[int, str] = {}
    for file, name in ((by.test_list, TEST), (by.train_list, TRAIN)):
        for where, image in _listed_images(file):
            found = sorted(rows.get(image, ()))
            if not found and image not in left_out:
                raise MsposeError(
                    f"{where}: there is no image {image}; names are those of the model"
                )
            if len(found) > 1:
                scenes = listed([f"{frames['scene'].iloc[row]}/{image}" for row in found])
                raise MsposeError(f"{where}: several scenes have an image {image}: say {scenes}")
            for row in found:
                if chosen.setdefault(row, name) != name:
                    raise MsposeError(f"{where}: {image} is in the other list too")
                split[row] = name
    return split


def _listed_images(file: Path | None) -> list[tuple[str, str]]:
    """(file and line, image) of each line of a list."""
    lines = [] if file is None else read_lines(file)
    return [
        (f"{file}, line {number}", plain_name(line))
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]


def _advice(rows: pd.DataFrame, by: SplitBy) -> str:
    if by.how == "blocks":
        lengths = _lengths(rows)
        return (
            f"its frames are in {len(lengths)} sequence{'' if len(lengths) == 1 else 's'} of at"
            f" most {max(lengths)}: choose --block, --test-every and --margin for that, or --split"
            " sequence, or --split list"
        )
    if by.how == "sequence":
        return f"its sequences: {listed(list(dict.fromkeys(rows['sequence'])))}"
    return "choose others, or --split blocks"
