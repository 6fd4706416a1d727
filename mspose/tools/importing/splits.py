"""Which imported frames are for training and which for testing.

Neighbouring frames of a video show nearly the same: a test frame between two training frames
measures memory, not localisation. So whole blocks are held out, with a margin of dropped frames
around them, or whole sequences, or what a list names; taking every n-th frame is not offered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mspose.data.frames import read_lines
from mspose.errors import MsposeError
from mspose.tools.importing.capture import listed

BLOCK = 50
TEST_EVERY = 5
MARGIN = 10
TRAIN, TEST, DROPPED = "train", "test", ""


@dataclass(frozen=True)
class SplitBy:
    """How to split. None: the default, or not asked for."""

    how: str = "blocks"
    """`blocks`, `sequence`, `list`, or `given`: as the files say."""
    block: int | None = None
    """Length of a block in frames; by default `BLOCK`, less where a sequence has not `TEST_EVERY`
    such blocks.
    """
    test_every: int | None = None
    """Every how many-th block is for testing; by default `TEST_EVERY`."""
    margin: int | None = None
    """Training frames dropped on each side of a test block; by default `MARGIN`, or a fifth of a
    shorter block.
    """
    test_sequences: Sequence[str] = ()
    test_list: Path | None = None
    train_list: Path | None = None

    def refuse_idle_options(self) -> None:
        """Raises MsposeError for options that belong to another way to split, and for one that
        lacks its own.
        """
        owners = {
            "block": "blocks",
            "test_every": "blocks",
            "margin": "blocks",
            "test_sequences": "sequence",
            "test_list": "list",
            "train_list": "list",
        }
        for option, how in owners.items():
            if getattr(self, option) not in (None, (), []) and how != self.how:
                raise MsposeError(
                    f"--{option} belongs to --split {how}: with --split {self.how} it is without"
                    " effect"
                )
        if self.how == "sequence" and not self.test_sequences:
            raise MsposeError(
                "--split sequence: name the sequences for testing with --test_sequences"
            )
        if self.how == "list" and self.test_list is None:
            raise MsposeError(
                "--split list: name the file that lists the test images with --test_list"
            )


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
            raise MsposeError("--split given: the files name no split; leave it out, for blocks")
    else:
        split = _by_blocks(frames, by)
    for scene, rows in frames.assign(split=split).groupby("scene", sort=False):
        for name in (TRAIN, TEST):
            if name not in set(rows["split"]):
                raise MsposeError(f"scene {scene} would have no {name} frames; {_way_on(rows, by)}")
    return split


def block_splits(count: int, block: int, test_every: int, margin: int) -> NDArray[Any]:
    """The split (`count`,) of successive moments: of every `test_every` blocks the middle one is
    for testing.

    `margin` training moments on each side of it are dropped.
    """
    test = np.arange(count) // block % test_every == test_every // 2
    near = test.copy()
    for step in range(1, min(margin, count - 1) + 1):
        near[step:] |= test[:-step]
        near[:-step] |= test[step:]
    return np.where(test, TEST, np.where(near, DROPPED, TRAIN)).astype(object)


def block_size(count: int, by: SplitBy) -> tuple[int, int, int]:
    """(block, test_every, margin) for a sequence of `count` moments: shorter ones have shorter
    blocks and margins.
    """
    every = by.test_every or TEST_EVERY
    block = by.block or max(1, min(BLOCK, count // every))
    return block, every, max(1, min(MARGIN, block // 5)) if by.margin is None else by.margin


def describe_split(frames: pd.DataFrame, by: SplitBy) -> str:
    """How frames are split, in words."""
    if by.how == "sequence":
        return f"by sequence; for testing: {', '.join(by.test_sequences)}"
    if by.how == "list":
        return f"as listed in {by.test_list}" + (f" and {by.train_list}" if by.train_list else "")
    if by.how == "given":
        return "as the files say"
    moments = frames.groupby(["scene", "sequence"])["moment"].agg(
        lambda values: values.map(str).nunique()
    )
    used = {block_size(int(count), by) for count in moments}
    shown = [
        f"{block} frame{'s' * (block > 1)}, {margin} dropped on each side"
        for block, _, margin in sorted(used, reverse=True)
    ]
    return (
        f"every {_nth(by.test_every or TEST_EVERY)} block of a sequence is for testing; blocks of"
        f" {listed(shown)}"
    )


def _nth(number: int) -> str:
    return f"{number}{'th' if number % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _by_blocks(frames: pd.DataFrame, by: SplitBy) -> NDArray[Any]:
    split = np.full(len(frames), DROPPED, dtype=object)
    rows = pd.Series(np.arange(len(frames)))
    for _, members in rows.groupby(
        [frames["scene"].to_numpy(), frames["sequence"].to_numpy()], sort=False
    ):
        moments = frames["moment"].iloc[members].tolist()
        # frames of one moment, taken by several cameras, stay together
        rank = np.cumsum(
            [number > 0 and moment != moments[number - 1] for number, moment in enumerate(moments)]
        )
        split[members] = block_splits(int(rank[-1]) + 1, *block_size(int(rank[-1]) + 1, by))[rank]
    return split


def _by_sequence(frames: pd.DataFrame, wanted: Sequence[str]) -> NDArray[Any]:
    full = frames["scene"] + "/" + frames["sequence"]
    there = list(dict.fromkeys(full))
    for name in wanted:
        if not ((frames["sequence"] == name) | (full == name)).any():
            raise MsposeError(
                f"--test_sequences: there is no sequence {name!r}; there are: {', '.join(there)}"
            )
    return np.where(frames["sequence"].isin(wanted) | full.isin(wanted), TEST, TRAIN).astype(object)


def _by_list(frames: pd.DataFrame, by: SplitBy, left_out: Sequence[str]) -> NDArray[Any]:
    rows: dict[str, list[int]] = {}
    for number, (scene, name) in enumerate(zip(frames["scene"], frames["name"], strict=True)):
        rows.setdefault(name, []).append(number)
        rows.setdefault(f"{scene}/{name}", []).append(number)
    split = np.full(len(frames), TRAIN if by.train_list is None else DROPPED, dtype=object)
    chosen: dict[int, str] = {}
    for file, name in ((by.test_list, TEST), (by.train_list, TRAIN)):
        if file is None:
            continue
        for number, line in enumerate(read_lines(file), 1):
            image = line.replace("\\", "/").removeprefix("./")
            if not image or line.startswith("#"):
                continue
            found = list(dict.fromkeys(rows.get(image, [])))
            if not found and image not in left_out:
                raise MsposeError(
                    f"{file}, line {number}: there is no image {image}; names are those of the"
                    " model"
                )
            if len(found) > 1:
                scenes = listed([f"{frames['scene'].iloc[row]}/{image}" for row in found])
                raise MsposeError(
                    f"{file}, line {number}: several scenes have an image {image}: say {scenes}"
                )
            for row in found:
                if chosen.setdefault(row, name) != name:
                    raise MsposeError(f"{file}, line {number}: {image} is in the other list too")
                split[row] = name
    return split


def _way_on(rows: pd.DataFrame, by: SplitBy) -> str:
    if by.how == "blocks":
        sizes = rows.groupby("sequence", sort=False)["moment"].agg(
            lambda moments: len({str(m) for m in moments})
        )
        return (
            f"its frames are in {len(sizes)} sequence{'s' * (len(sizes) > 1)} of at most"
            f" {max(sizes)}: choose --block, --test_every and --margin for that, or --split"
            " sequence, or --split list"
        )
    if by.how == "sequence":
        return f"its sequences: {listed(list(dict.fromkeys(rows['sequence'])))}"
    return "choose others, or leave --split out for blocks"
