"""Preparation of data sets on disk: download, rendering, frame caches, and their list.

The modules that download and render are imported where they are called, so that a training run
that needs neither starts sooner.
"""

from collections.abc import Sequence

import pandas as pd

from mspose.data.cache import open_split
from mspose.data.cards import Card, data_root, read_card
from mspose.errors import MsposeError
from mspose.resources import CARDS, named_files

RENDER_SETTINGS = ("frames_per_sequence", "width", "height", "focal_px", "seed", "image_format")
"""Keys of `render` in a card of format `virtual`: arguments of `render_virtual`."""


def get_data(
    dataset: str,
    scenes: Sequence[str] = (),
    root: str | None = None,
    archive: str | None = None,
    *,
    progress: bool = True,
) -> None:
    """Download and unpack the scenes of a published data set, or render those of a virtual one.

    Scenes that are whole are left alone.
    """
    from mspose.data.download import download_scenes

    card = read_card(dataset)
    if card.format != "virtual":
        download_scenes(card, scenes, root, archive, progress)
    elif archive is not None:
        raise MsposeError(f"{card.name} is rendered, not unpacked: leave out --archive")
    else:
        render_card(card, root, scenes, progress=progress)


def render_if_virtual(
    dataset: str, root: str | None, scenes: Sequence[str] = (), *, progress: bool
) -> None:
    """Render what is missing of a virtual data set (default: all of the card's scenes).

    Other data sets are left alone.
    """
    card = read_card(dataset)
    if card.format == "virtual":
        render_card(card, root, scenes, progress=progress)


def render_card(
    card: Card, root: str | None, scenes: Sequence[str] = (), *, progress: bool
) -> None:
    """Render scenes (default: all) of a card of format `virtual`, as its `render` says."""
    from mspose.data.virtual.dataset import render_virtual

    if unknown := [scene for scene in scenes if scene not in card.known_scenes]:
        raise MsposeError(
            f"{card.name} has no scene {unknown[0]!r}; its scenes: {', '.join(card.known_scenes)}"
        )
    frames = {}
    for scene in scenes or card.scenes:
        counts = card.scene_facts[scene].frames
        if "train" not in counts or "test" not in counts:
            raise MsposeError(
                f"{card.path}: scenes.{scene}.frames names the frames to render, {{train: 800,"
                " test: 100}"
            )
        frames[scene] = (counts["train"], counts["test"])
    for name, value in card.render.items():
        if name not in RENDER_SETTINGS:
            raise MsposeError(
                f"{card.path}: unknown key render.{name}; there are: {', '.join(RENDER_SETTINGS)}"
            )
        if not isinstance(value, int | float | str):
            raise MsposeError(f"{card.path}: render.{name} is a number or a word, not {value!r}")
    render_virtual(data_root(card, root), frames=frames, **card.render, progress=progress)


def cache_data(
    dataset: str,
    splits: Sequence[str],
    *,
    short_side: int,
    folder: str,
    root: str | None = None,
    scenes: Sequence[str] = (),
    ground_truth: str | None = None,
    labels: Sequence[str] = (),
    frames_per_scene: int = 0,
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> str:
    """Build the frame caches of some splits; returns their folders and sizes as Markdown."""
    card = read_card(dataset)
    render_if_virtual(dataset, root, scenes, progress=progress)
    rows = []
    for split in splits:
        frames, cache, left_out = open_split(
            card,
            split,
            root=root,
            scenes=scenes,
            ground_truth=ground_truth,
            labels=labels,
            frames_per_scene=frames_per_scene,
            short_side=short_side,
            folder=folder,
            on_bad_frame=on_bad_frame,
            progress=progress,
        )
        rows.append(
            {
                "split": split,
                "frames": len(frames),
                "left out": left_out,
                "GB": f"{cache.nbytes / 1e9:.3f}",
                "folder": str(cache.folder),
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def list_data() -> str:
    """A Markdown table of the data sets with a card, and of their scenes that are on disk."""
    rows = []
    for path in named_files(CARDS).values():
        card = read_card(path)
        there = [scene for scene in card.known_scenes if (data_root(card) / scene).is_dir()]
        rows.append(
            {
                "data set": card.name,
                "title": card.title,
                "scenes": " ".join(card.known_scenes),
                "on disk": " ".join(there) or "-",
                "ground truth": " | ".join(card.ground_truths),
                "folder": str(data_root(card)),
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False)
