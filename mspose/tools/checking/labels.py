"""Which data set is meant, and all its labels: the bad ones listed, the good ones as a frame table."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mspose.data.cards import Card, data_root, load_frames, read_card
from mspose.data.frames import NoFramesLeft
from mspose.data.label_csv import POSE_COLUMNS, label_rows
from mspose.errors import MsposeError
from mspose.tools.checking.findings import Finding, share

log = logging.getLogger("mspose")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Labels:
    """What the label files of a data set hold."""

    frames: pd.DataFrame
    """The good frames of all splits, as `frame_table` returns them."""
    rows: pd.DataFrame | None
    """The rows of label CSVs as they stand there (`label_rows`), indexed by image; None for other
    formats.
    """
    findings: list[Finding]


def open_card(place: str) -> Card:
    """The card of a data set: by its name, its own path, or the folder that it lies in.

    Raises MsposeError for a folder without a card or with several, an archive, and a file that is
    no card.
    """
    path = Path(place).expanduser()
    named = "/" not in place and (Path("datasets") / f"{place}.yaml").is_file()
    if path.is_dir() and not named:
        cards = sorted(
            entry
            for entry in path.iterdir()
            if entry.suffix in (".yaml", ".yml") and entry.is_file()
        )
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
        if path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z"):
            raise MsposeError(
                f"{path} is an archive: unpack it, and give the folder that has the card in it"
            )
        if path.suffix not in (".yaml", ".yml"):
            raise MsposeError(
                f"{path} is not a card (<name>.yaml): give a card, its folder, or a data set's name"
            )
        return read_card(path)
    if "/" in place and not path.exists():
        raise MsposeError(
            f"there is nothing at {path.absolute()}: give a folder with a card in it, or a card"
        )
    return read_card(place)


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
    findings: list[Finding] = []
    rows = None
    files = [Path(label).expanduser() for label in labels] or list(card.labels)
    if files and not any(file.suffix == ".txt" for file in files):
        files = [
            path
            for file in files
            for path in (sorted(file.glob("*.csv")) if file.is_dir() else [file])
        ]
        if any(not file.is_file() for file in files):
            load_frames(
                card, root=root, split="train", labels=labels
            )  # says what is missing, and what to do
        rows = label_rows(files)
        if duplicates := _repeated_images(rows):
            findings.append(duplicates)
            return Labels(pd.DataFrame(), rows, findings)
    if rows is not None:
        _refuse_unknown(card, rows, scenes, splits)
    wanted = list(scenes) or _scenes_on_disk(card, root, rows, findings)
    tables = []
    for split in splits or _splits_of(rows):
        for table in _tables_of(card, root, split, wanted, ground_truth, labels, rows, findings):
            tables.append(table)
            if faults := table.attrs["faults"]:
                found = share(len(faults), len(table) + len(faults))
                text = f"bad labels: {found} frames of {_of(table)} cannot be used"
                findings.append(Finding("error", "bad-label", text, tuple(faults)))
    if not tables:
        if not any(
            finding.examples for finding in findings
        ):  # nothing there, rather than something bad
            raise MsposeError(findings[-1].text if findings else f"{card.name} has no frames")
        return Labels(pd.DataFrame(), rows, findings)
    for table in tables:
        table.attrs = {}
    frames = pd.concat(tables, ignore_index=True)
    findings += _split_findings(frames, card, splits)
    if rows is not None:
        rows = rows.set_index("image")
        findings += _raw_quaternions(rows)
    return Labels(frames, rows, findings)


def _refuse_unknown(
    card: Card, rows: pd.DataFrame, scenes: Sequence[str], splits: Sequence[str]
) -> None:
    for what, asked, there in (
        ("scene", scenes, set(rows["scene"])),
        ("split", splits, set(rows["split"])),
    ):
        if unknown := [name for name in asked if name not in there]:
            listed = ", ".join(sorted(there)) or "none"
            raise MsposeError(f"{card.name} has no {what} {unknown[0]!r}; its {what}s: {listed}")


def _of(table: pd.DataFrame) -> str:
    scenes = sorted(set(table["scene"]))
    return (
        f"{' '.join(scenes)} {table['split'].iloc[0]}"
        if len(scenes) == 1
        else f"the {table['split'].iloc[0]} split"
    )


def _repeated_images(rows: pd.DataFrame) -> Finding | None:
    repeated = rows[rows.duplicated("image", keep=False)].sort_values("image", kind="stable")
    if repeated.empty:
        return None
    examples = (f"{image}: {'; '.join(part['place'])}" for image, part in repeated.groupby("image"))
    count = repeated["image"].nunique()
    text = (
        f"{count} image{'s' * (count > 1)} labelled more than once; put that right first, the rest"
        " is not checked"
    )
    return Finding("error", "image-labelled-twice", text, tuple(examples))


def _scenes_on_disk(
    card: Card, root: str | Path | None, rows: pd.DataFrame | None, findings: list[Finding]
) -> list[str]:
    """The card's scenes, or those of them whose folder is there; notes the others."""
    if rows is not None:
        if card.scenes and (others := sorted(set(rows["scene"]) - set(card.scenes))):
            text = (
                "label rows of scenes that the card does not list are never used:"
                f" {', '.join(others)}"
            )
            findings.append(Finding("warning", "unlisted-scene", text))
        return list(card.scenes)
    folder = data_root(card, root)
    here = [scene for scene in card.scenes if (folder / scene).is_dir()]
    missing = [scene for scene in card.scenes if scene not in here]
    if here and missing:
        text = f"not on disk, and not checked: {', '.join(missing)} (looked in {folder})"
        findings.append(Finding("note", "scene-not-here", text))
    return here


def _splits_of(rows: pd.DataFrame | None) -> list[str]:
    further = sorted(set(rows["split"]) - set(SPLITS)) if rows is not None else []
    return [*SPLITS, *further]


def _tables_of(
    card: Card,
    root: str | Path | None,
    split: str,
    scenes: Sequence[str],
    ground_truth: str | None,
    labels: Sequence[str],
    rows: pd.DataFrame | None,
    findings: list[Finding],
) -> list[pd.DataFrame]:
    """The frame table of a split, or where it cannot be read as one, those of the single scenes
    that can.
    """
    options = {
        "root": root,
        "split": split,
        "ground_truth": ground_truth,
        "labels": labels,
        "on_bad_frame": "skip",
    }
    if rows is not None:  # a scene or split without rows is said of the whole data set, once
        there = set(rows.loc[rows["split"] == split, "scene"])
        scenes = sorted(there & set(scenes) if scenes else there)
        if not scenes:
            return []
    with _quiet():
        try:
            return [load_frames(card, scenes=scenes, **options)]  # type: ignore[arg-type]
        except MsposeError as error:
            if len(scenes) < 2:
                findings.append(_unreadable(error))
                return []
        tables = []
        for scene in scenes:
            try:
                tables.append(load_frames(card, scenes=[scene], **options))  # type: ignore[arg-type]
            except MsposeError as error:
                findings.append(_unreadable(error))
        return tables


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log's warnings about bad frames: the findings list every one."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _unreadable(error: MsposeError) -> Finding:
    faults = error.faults if isinstance(error, NoFramesLeft) else []
    return Finding(
        "error", "unreadable-labels", f"{error}{' that can be used' * bool(faults)}", tuple(faults)
    )


def _split_findings(frames: pd.DataFrame, card: Card, splits: Sequence[str]) -> list[Finding]:
    """Scenes and splits that are missing, and counts that are not the published ones."""
    findings = []
    scenes = {split: set(part["scene"]) for split, part in frames.groupby("split")}
    train, test = scenes.get("train", set()), scenes.get("test", set())
    if not splits or {"train", "test"} <= set(splits):
        if not train:
            text = (
                "there are no training frames: no split called train, but"
                f" {', '.join(sorted(map(str, scenes)))}"
            )
            findings.append(Finding("error", "no-training-frames", text))
        elif not test:
            findings.append(
                Finding(
                    "warning", "no-test-frames", "there are no test frames: nothing to evaluate on"
                )
            )
        else:
            if unseen := sorted(test - train):
                text = f"scenes with test frames but no training frames: {', '.join(unseen)}"
                findings.append(Finding("error", "scene-only-in-test", text))
            if untested := sorted(train - test):
                text = f"scenes with training frames but no test frames: {', '.join(untested)}"
                findings.append(Finding("warning", "scene-only-in-train", text))
    counts = frames.groupby(["scene", "split"]).size()
    different = [
        f"{scene} {split}: {counts[scene, split]} frames here, {facts.frames[split]} as the card"
        " says"
        for scene, facts in card.scene_facts.items()
        for split in facts.frames
        if (scene, split) in counts.index and counts[scene, split] != facts.frames[split]
    ]
    if different:
        text = "the number of frames is not the one that the card states"
        findings.append(Finding("warning", "frame-count", text, tuple(different)))
    return findings


def _raw_quaternions(rows: pd.DataFrame) -> list[Finding]:
    """Notes on how label CSVs store quaternions; all of it is put right when they are read."""
    raw_B4 = rows[list(POSE_COLUMNS[3:])].to_numpy(np.float64)
    norm_B = np.linalg.norm(raw_B4, axis=1)
    good = np.isfinite(norm_B) & (norm_B > 0)
    if not good.any():
        return []
    findings = []
    low, high = float(norm_B[good].min()), float(norm_B[good].max())
    if max(1 - low, high - 1) > 1e-3:
        text = f"quaternions have norms from {low:.3g} to {high:.3g}; they are normalised when read"
        findings.append(Finding("note", "quaternion-norm", text))
    unit_B4 = raw_B4 / np.where(good, norm_B, math.nan)[:, None]
    dot_B = (unit_B4[1:] * unit_B4[:-1]).sum(axis=1)
    names = rows[["scene", "sequence"]].to_numpy()
    same = (names[1:] == names[:-1]).all(axis=1)
    flipped = np.flatnonzero(
        same & (dot_B < -0.9)
    )  # nearly the same orientation, written with the other sign
    if flipped.size:
        places = rows["place"].to_numpy()
        text = (
            f"the label files mix the signs of quaternions: {share(flipped.size, int(same.sum()))}"
            " neighbouring rows, with w < 0 in"
            f" {share(int((raw_B4[good, 0] < 0).sum()), int(good.sum()))} rows; w >= 0 is taken"
            " when they are read, but other programs may stumble"
        )
        findings.append(Finding("note", "mixed-signs", text, tuple(places[flipped + 1])))
    return findings
