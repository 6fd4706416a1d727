"""Preparation of data sets on disk: download, rendering, frame caches, and their list.

The modules that download, render and decode are imported where they are called, so that what needs
none of them starts sooner.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pandas as pd
from jsonargparse.typing import PositiveInt

from mspose.config import Settings, read_settings
from mspose.data.cards import Card, data_root, read_card
from mspose.errors import MsposeError
from mspose.resources import CARDS, experiment_file, named_files

RENDER_SETTINGS = ("frames_per_sequence", "width", "height", "focal_px", "seed", "image_format")
"""Keys of `render` in a card of format `virtual`: arguments of `render_virtual`."""


def get_data(
    *,
    dataset: str = "7scenes",
    scenes: list[str] | None = None,
    root: str | None = None,
    archive: str | None = None,
    progress: bool = True,
) -> None:
    """Download and unpack a published data set, or render a virtual one.

    Scenes that are whole are left alone.

    Args:
        dataset: name or path of a card.
        archive: a local zip, or a folder of <scene>.zip, in place of the download.
    """
    from mspose.data.download import download_scenes

    card = read_card(dataset)
    if card.format != "virtual":
        download_scenes(card, scenes or (), root, archive, progress)
    elif archive is not None:
        raise MsposeError(f"{card.name} is rendered, not unpacked: leave out --archive")
    else:
        render_card(card, root, scenes or (), progress=progress)


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
    *,
    config: str | None = None,
    dataset: str | None = None,
    scenes: list[str] | None = None,
    root: str | None = None,
    resize: PositiveInt | None = None,
    split: str | None = None,
    ground_truth: str | None = None,
    labels: list[str] | None = None,
    cache: str | None = None,
    on_bad_frame: Literal["stop", "skip"] | None = None,
    progress: bool = True,
) -> str:
    """Decode and resize every frame now, not on first use.

    Args:
        config: experiment whose data settings count where none follows.
        dataset: name or path of a card (default: 7scenes).
        resize: short side of the frames in pixels (default: 256).
        split: one split only (default: train and test).
        cache: folder of the frame cache (default: datasets/.cache).

    Returns:
        Folders and sizes of the caches as Markdown.
    """
    from mspose.data.cache import open_split

    base = read_settings(experiment_file(config)) if config else Settings()
    changes: dict[str, Any] = {
        "dataset": dataset or (None if config else "7scenes"),
        "scenes": scenes,
        "root": root,
        "ground_truth": ground_truth,
        "labels": labels,
        "resize": resize,
        "cache": cache,
    }
    data = replace(base.data, **{name: value for name, value in changes.items() if value})
    render_if_virtual(data.dataset, data.root, data.scenes, progress=progress)
    rows = []
    for name in [split] if split else ["train", "test"]:
        frames, built, left_out = open_split(
            read_card(data.dataset),
            name,
            short_side=data.resize,
            on_bad_frame=on_bad_frame or base.on_bad_frame,
            progress=progress,
            **data.source(),
        )
        rows.append(
            {
                "split": name,
                "frames": len(frames),
                "left out": left_out,
                "GB": f"{built.nbytes / 1e9:.3f}",
                "folder": str(built.folder),
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def list_data() -> str:
    """List the data sets that there are, and which of their scenes are here."""
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
