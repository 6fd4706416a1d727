"""Read all labels of a data set: the good ones as a frame table, the bad ones as findings."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mspose.data.cards import Card, data_root, frame_count_faults, load_frames, read_card
from mspose.data.frames import NoFramesLeft
from mspose.data.label_csv import POSE_COLUMNS, label_rows
from mspose.errors import MsposeError
from mspose.tools.checking.findings import Finding, share
from mspose.tools.importing.image_paths import ARCHIVES

log = logging.getLogger("mspose")
SPLITS = ("train", "test")
CARDS = (".yaml", ".yml")


@dataclass(frozen=True)
class Labels:
    """Labels of a data set."""

    frames: pd.DataFrame
    """The good frames of all splits, as `frame_table` returns them."""
    rows: pd.DataFrame | None
    """The rows of label CSVs as they are (`label_rows`), indexed by image; None for other formats.
    """
    findings: list[Finding]


def open_card(name: str) -> Card:
    """The card of a data set: by its name, its own path, or the folder that holds it.

    Raises MsposeError for a folder without a card or with several, an archive, and a file that is
    no card.
    """
    path = Path(name).expanduser()
    named = "/" not in name and (Path("datasets") / f"{name}.yaml").is_file()
    if path.is_dir() and not named:
        cards = sorted(file for file in path.iterdir() if file.suffix in CARDS and file.is_file())
        if not cards:
            raise MsposeError(
                f"{path} holds no card (<name>.yaml): make one of your own images with `mspose data"
                " import`, or give the name of a data set in datasets/"
            )
        if len(cards) > 1:
            raise MsposeError(
                f"{path} holds several cards: give one of them: {', '.join(map(str, cards))}"
            )
        return read_card(cards[0])
    if path.is_file():
        if path.name.lower().endswith(ARCHIVES):
            raise MsposeError(f"{path} is an archive: unpack it, and give the folder of the card")
        if path.suffix not in CARDS:
            raise MsposeError(
                f"{path} is not a card (<name>.yaml): give a card, its folder, or a data set's name"
            )
        return read_card(path)
    if "/" in name and not path.exists():
        raise MsposeError(
            f"there is nothing at {path.absolute()}: give a folder with a card in it, or a card"
        )
    return read_card(name)


def read_labels(
    card: Card,
    *,
    root: str | Path | None,
    scenes: Sequence[str],
    splits: Sequence[str],
    ground_truth: str | None,
    labels: Sequence[str],
) -> Labels:
    """All labels of `splits` (default: train, test, and any further one that label CSVs name).

    Raises MsposeError where nothing can be read at all.
    """
    options = {"root": root, "ground_truth": ground_truth, "labels": labels}
    rows = _csv_rows(card, labels, options)
    findings: list[Finding] = []
    if rows is None:
        pairs = [
            (scene, split)
            for split in splits or SPLITS
            for scene in scenes or _scenes_on_disk(card, root, findings)
        ]
    else:
        if finding := _repeated_labels(rows):
            return Labels(pd.DataFrame(), rows, [finding])
        _refuse_unknown(card, "scene", scenes, rows["scene"])
        _refuse_unknown(card, "split", splits, rows["split"])
        if not scenes:
            findings += _unlisted_scenes(card, rows)
        known = set(zip(rows["scene"], rows["split"], strict=True))
        further = sorted(set(rows["split"]) - set(SPLITS))
        pairs = [
            (scene, split)
            for split in splits or [*SPLITS, *further]
            for scene in sorted(set(scenes or card.scenes or rows["scene"]))
            if (scene, split) in known
        ]
    tables = _tables(card, pairs, options, findings)
    if not tables:
        if not any(finding.examples for finding in findings):  # nothing, rather than bad labels
            raise MsposeError(findings[-1].text if findings else f"{card.name} has no frames")
        return Labels(pd.DataFrame(), rows, findings)
    frames = pd.concat(tables, ignore_index=True)
    if not splits or set(SPLITS) <= set(splits):
        findings += _missing_splits(frames)
    findings += _frame_counts(frames, card)
    if rows is not None:
        rows = rows.set_index("image")
        findings += _stored_quaternions(rows)
    return Labels(frames, rows, findings)


def _csv_rows(card: Card, labels: Sequence[str], options: dict[str, Any]) -> pd.DataFrame | None:
    """The rows of the data set's label CSVs; None where it has other labels."""
    given = [Path(label).expanduser() for label in labels] or card.labels
    if not given or any(file.suffix == ".txt" for file in given):
        return None
    files = [file for path in given for file in (sorted(path.glob("*.csv")) or [path])]
    if not all(file.is_file() for file in files):
        load_frames(card, split="train", **options)  # raises with advice
    return label_rows(files)


def _tables(
    card: Card,
    pairs: Sequence[tuple[str, str]],
    options: dict[str, Any],
    findings: list[Finding],
) -> list[pd.DataFrame]:
    """The frame table of each scene and split that can be read; notes what is wrong with others."""
    tables = []
    for scene, split in pairs:
        try:
            with _quiet():
                table = load_frames(
                    card, scenes=[scene], split=split, on_bad_frame="skip", **options
                )
        except MsposeError as error:
            faults = error.faults if isinstance(error, NoFramesLeft) else []
            text = f"{error} that can be used" if faults else str(error)
            finding = Finding("error", "unreadable-labels", text, tuple(faults))
            if finding not in findings:
                findings.append(finding)
            continue
        if faults := table.attrs["faults"]:
            count = share(len(faults), len(table) + len(faults))
            text = f"bad labels: {count} frames of {scene} {split} cannot be used"
            findings.append(Finding("error", "bad-label", text, tuple(faults)))
        table.attrs = {}
        tables.append(table)
    return tables


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the log's warnings about bad frames: the findings list every one."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _refuse_unknown(card: Card, what: str, names: Sequence[str], known: pd.Series) -> None:
    if unknown := [name for name in names if name not in set(known)]:
        there = ", ".join(sorted(set(known))) or "none"
        raise MsposeError(f"{card.name} has no {what} {unknown[0]!r}; its {what}s: {there}")


def _repeated_labels(rows: pd.DataFrame) -> Finding | None:
    repeated = rows[rows.duplicated("image", keep=False)].groupby("image")["place"]
    if not len(repeated):
        return None
    examples = tuple(f"{image}: {'; '.join(places)}" for image, places in repeated)
    text = f"images labelled more than once: {len(examples)}; until that is mended, no other checks"
    return Finding("error", "image-labelled-twice", text, examples)


def _unlisted_scenes(card: Card, rows: pd.DataFrame) -> list[Finding]:
    others = sorted(set(rows["scene"]) - set(card.scenes)) if card.scenes else []
    if not others:
        return []
    text = f"label rows of scenes that the card does not list are never used: {', '.join(others)}"
    return [Finding("warning", "unlisted-scene", text)]


def _scenes_on_disk(card: Card, root: str | Path | None, findings: list[Finding]) -> list[str]:
    """The card's scenes whose folder is there, a finding about the others; all where none is."""
    folder = data_root(card, root)
    here = [scene for scene in card.scenes if (folder / scene).is_dir()]
    if here and (missing := [scene for scene in card.scenes if scene not in here]):
        text = f"not on disk, and not checked: {', '.join(missing)} (searched in {folder})"
        finding = Finding("note", "scene-not-here", text)
        if finding not in findings:
            findings.append(finding)
    return here or list(card.scenes)


def _missing_splits(frames: pd.DataFrame) -> list[Finding]:
    scenes = {split: set(part["scene"]) for split, part in frames.groupby("split")}
    train, test = scenes.get("train", set()), scenes.get("test", set())
    if not train:
        names = ", ".join(sorted(map(str, scenes)))
        text = f"there are no training frames: no split called train, but {names}"
        return [Finding("error", "no-training-frames", text)]
    if not test:
        text = "there are no test frames: nothing to evaluate on"
        return [Finding("warning", "no-test-frames", text)]
    findings = []
    if unseen := sorted(test - train):
        text = f"scenes with test frames but no training frames: {', '.join(unseen)}"
        findings.append(Finding("error", "scene-only-in-test", text))
    if untested := sorted(train - test):
        text = f"scenes with training frames but no test frames: {', '.join(untested)}"
        findings.append(Finding("warning", "scene-only-in-train", text))
    return findings


def _frame_counts(frames: pd.DataFrame, card: Card) -> list[Finding]:
    different = tuple(frame_count_faults(card, frames))
    if not different:
        return []
    text = "the number of frames is not the one that the card states"
    return [Finding("warning", "frame-count", text, different)]


def _stored_quaternions(rows: pd.DataFrame) -> list[Finding]:
    """Notes on norms and signs of quaternions in label CSVs, which reading puts right."""
    raw_B4 = rows[list(POSE_COLUMNS[3:])].to_numpy(np.float64)
    norm_B = np.linalg.norm(raw_B4, axis=1)
    good = np.isfinite(norm_B) & (norm_B > 0)
    findings = []
    low, high = (norm_B[good].min(), norm_B[good].max()) if good.any() else (1.0, 1.0)
    if max(1 - low, high - 1) > 1e-3:
        text = f"quaternions have norms from {low:.3g} to {high:.3g}; they are normalised when read"
        findings.append(Finding("note", "quaternion-norm", text))
    unit_B4 = raw_B4 / np.where(good, norm_B, math.nan)[:, None]
    dot_B = (unit_B4[1:] * unit_B4[:-1]).sum(axis=1)
    names = rows[["scene", "sequence"]].to_numpy()
    same = (names[1:] == names[:-1]).all(axis=1)
    # nearly the same orientation, written with the other sign
    flipped = np.flatnonzero(same & (dot_B < -0.9))
    if flipped.size:
        negative = share(int((raw_B4[good, 0] < 0).sum()), int(good.sum()))
        text = (
            f"the label files mix the signs of quaternions: {share(flipped.size, int(same.sum()))}"
            f" neighbouring rows, with w < 0 in {negative} rows; w >= 0 is taken when they are"
            " read, but other programs may not do so"
        )
        findings.append(
            Finding("note", "mixed-signs", text, tuple(rows["place"].iloc[flipped + 1]))
        )
    return findings
