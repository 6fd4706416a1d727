"""Versions of rendered data sets (format `virtual`): on disk, in what was recorded of runs, and
this program's own.

Another version has other rooms, so what was learned or measured on one means nothing on another.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mspose.config import DataSettings
from mspose.data.cards import FORMATS, Card, data_root, read_card
from mspose.data.virtual import RECORD, VERSION
from mspose.errors import MsposeError


def predicted_data(dataset: str, root: str | None, about: Mapping[str, Any]) -> tuple[Card, Path]:
    """The card and folder of the frames that a run predicted: those of its settings (`dataset`,
    `root`), unless what stands beside the predictions or in their metrics, `about`, names another
    data set.

    Raises MsposeError for a data set without card, and where another version of it is rendered
    there now.
    """
    card = read_card(dataset)
    if about.get("dataset") not in (None, card.name):
        card, root = read_card(str(about["dataset"])), None
    recorded, there = recorded_version(about), rendered_version(card, root)
    if recorded and there and recorded != there:
        raise MsposeError(
            f"the frames are of version {recorded} of {card.name}, in {data_root(card, root)} is"
            f" version {there}"
        )
    return card, data_root(card, root)


def rendered_version(
    card: Card, root: str | Path | None = None, scenes: Sequence[str] = ()
) -> int | None:
    """Version of a data set of format `virtual` on disk; None for other formats, and where nothing
    is rendered.

    scenes: by default all of the card. Raises MsposeError where they are of different versions, or
        cannot be read.
    """
    if card.format != "virtual":
        return None
    versions: dict[int, str] = {}
    for scene in scenes or card.scenes:
        path = data_root(card, root) / scene / RECORD
        try:
            versions.setdefault(int(json.loads(path.read_text(encoding="utf-8"))["version"]), scene)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MsposeError(f"cannot read the version in {path}: {error}") from error
    if len(versions) > 1:
        found = ", ".join(f"{scene} {version}" for version, scene in versions.items())
        raise MsposeError(
            f"{data_root(card, root)} holds scenes of different versions ({found}): "
            f"`mspose data get --dataset {card.name}` renders the older ones anew"
        )
    return next(iter(versions), None)


def recorded_version(about: Mapping[str, Any]) -> int | None:
    """Version of a rendered data set by what was recorded of it, which versions that recorded none
    make 1.

    about: what has `ground_truth`, such as metrics. None for data sets that are not rendered.
    """
    return about.get("data_version") or (
        1 if about.get("ground_truth") in FORMATS["virtual"].ground_truths else None
    )


def with_version(data: DataSettings) -> DataSettings:
    """The settings with the version of a data set of format `virtual`, which is the one that this
    program renders.

    A data set without card is left to whoever opens it. Raises MsposeError where they name another
    version.
    """
    try:
        virtual = read_card(data.dataset).format == "virtual"
    except MsposeError:
        virtual = False
    if not virtual:
        return data
    if data.version not in (None, VERSION):
        raise MsposeError(
            f"data.version {data.version}: this mspose renders version {VERSION} of {data.dataset};"
            " leave it out"
        )
    return replace(data, version=VERSION)
