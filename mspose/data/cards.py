"""Data-set cards: what a data set is, where it lies, and how its frames are read.

A card is a YAML file, `datasets/<name>.yaml` or one of your own anywhere, whose keys are the fields
of `Card`. Paths in it are relative to it.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jsonargparse.typing import NonNegativeInt, PositiveFloat, restricted_number_type

from mspose.config import read_dataclass, read_yaml
from mspose.data import cambridge, seven_scenes
from mspose.data.frames import CAMERA_TO_WORLD, POSE_CONVENTIONS, WORLD_TO_CAMERA_POSITION
from mspose.data.label_csv import read_label_csv
from mspose.errors import MsposeError
from mspose.resources import CARDS, data_folder, find_file


@dataclass(frozen=True)
class Format:
    """A layout of the files of a data set."""

    ground_truths: tuple[str, ...]
    """Names of its ground truths, the default one first."""
    label_convention: str = ""
    """Convention of label CSVs that are read in place of its own files; empty: cards state it."""
    split_files: Mapping[str, str] = field(default_factory=dict)
    """Split -> file in the folder of each scene that names the frames of the split."""
    read: Callable[..., pd.DataFrame] | None = None
    """Reads the frame table: `read(root, scenes, split, dataset=, ground_truth=, focal_px=,
    on_bad_frame=)`. None: the card names label CSVs."""


SEVEN_SCENES = Format(
    ("original", "sfm"),
    CAMERA_TO_WORLD,
    seven_scenes.SPLIT_FILES,
    seven_scenes.read_seven_scenes,
)
FORMATS = {
    "7scenes": SEVEN_SCENES,
    "cambridge": Format(
        ("sfm",), WORLD_TO_CAMERA_POSITION, cambridge.SPLIT_FILES, cambridge.read_cambridge
    ),
    "label-csv": Format(("labels",)),
    "virtual": dataclasses.replace(SEVEN_SCENES, ground_truths=("rendered",)),
}
"""Values of a card's `format`."""
INDOOR_THRESHOLDS = ((0.05, 5.0), (0.1, 5.0), (0.25, 5.0), (0.5, 10.0))
"""Default recall thresholds: pairs of metres and degrees."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Names of data sets, scenes and ground truths, which become names of files and columns."""
if TYPE_CHECKING:
    AtLeastTwo = int
else:
    AtLeastTwo = restricted_number_type("AtLeastTwo", int, (">=", 2))


@dataclass(frozen=True)
class SceneFacts:
    """Download and published facts of one scene."""

    url: str | None = None
    """Address of its zip archive."""
    sha256: str | None = None
    """Checksum of the archive, where known."""
    frames: dict[str, int] = field(default_factory=dict)
    """Published number of frames per split."""


@dataclass(frozen=True)
class HeldOut:
    """Test frames of sequences that have no split of their own: whole blocks, or the end."""

    blocks: NonNegativeInt = 0
    """Frames per block; 0: no blocks."""
    every: AtLeastTwo = 5
    """Each `every`-th block is for testing."""
    last: NonNegativeInt = 0
    """Frames at the end of each sequence that are for testing."""

    def is_test(self, number_N: pd.Series, count_N: pd.Series) -> pd.Series:
        """True for test frames, by their numbers from 0 in sequences of `count_N` frames."""
        if self.last:
            return number_N >= count_N - self.last
        return number_N // self.blocks % self.every == self.every - 1


@dataclass(frozen=True)
class Card:
    """A data set. `read_card` makes one from a file."""

    format: str
    """Layout of the files, one of `FORMATS`."""
    name: str = ""
    """Name of the data set; by default the file's."""
    title: str = ""
    """Name in tables; by default `name`."""
    path: Path = Path()
    """The card's own file (set by `read_card`)."""
    root: Path = Path()
    """Default folder of the scenes; if the card leaves it out, the one named like the data set
    beside it, and of format `label-csv` the card's own folder."""
    scenes: dict[str, SceneFacts] = field(default_factory=dict)
    """Scenes used by default, sorted; a list of names in short. For `label-csv` they may be left to
    the files."""
    extra_scenes: dict[str, SceneFacts] = field(default_factory=dict)
    """Further scenes, used when asked for."""
    sequences: list[str] = field(default_factory=list)
    """Folders of the sequences to use of every scene, in place of the scenes' split files (format
    `7scenes`)."""
    split: HeldOut = field(default_factory=HeldOut)
    """With `sequences`: which of their frames are for testing."""
    ground_truths: list[str] = field(default_factory=list)
    """Names of the ground truths, the default one first."""
    label_convention: str = ""
    """Convention of poses in label CSVs, one of `mspose.data.frames.POSE_CONVENTIONS`."""
    focal_px: float = math.nan
    """Focal length in pixels of the original images; left out where it is unknown or differs from
    image to image."""
    thresholds: list[tuple[PositiveFloat, PositiveFloat]] = field(
        default_factory=lambda: list(INDOOR_THRESHOLDS)
    )
    """Recall thresholds: pairs of metres and degrees."""
    pose_convention: str = ""
    """Pose convention of the published files, for people."""
    licence: str = ""
    """Licence of the data."""
    source: str = ""
    """Source of the data."""
    citation: str = ""
    """Publication to cite."""
    labels: list[Path] = field(default_factory=list)
    """Label files that belong to the card (format `label-csv`)."""
    how_to_get: str = ""
    """Advice where the data is missing, in place of the usual one."""
    render: dict[str, Any] = field(default_factory=dict)
    """Settings of the renderer (format `virtual`)."""

    @property
    def known_scenes(self) -> tuple[str, ...]:
        """All scenes that may be asked for, sorted."""
        return tuple(sorted(self.scene_facts))

    @property
    def scene_facts(self) -> dict[str, SceneFacts]:
        """Facts of all scenes that may be asked for."""
        return {**self.extra_scenes, **self.scenes}


def read_card(name_or_path: str | Path) -> Card:
    """The card of that name in `datasets/` (of the current folder, then of the package), or of a
    YAML file.

    Raises MsposeError for a name without card (listing those that exist), and for a card that is
    not right.
    """
    path = find_file(CARDS, name_or_path, "data set").absolute()
    values = read_yaml(path, "a card")
    for key in ("scenes", "extra_scenes"):
        if isinstance(values.get(key), list):
            values[key] = {name: {} for name in values[key]}
        elif isinstance(values.get(key), dict):
            values[key] = {name: facts or {} for name, facts in values[key].items()}
    for key in ("labels", "ground_truths", "sequences"):
        if isinstance(values.get(key), str):
            values[key] = [values[key]]
    card = read_dataclass(Card, values, path)
    if fault := _fault(card, values):
        raise MsposeError(f"{path}: {fault}")
    folder = data_folder(path)
    name = card.name or path.stem
    root = values.get("root", "." if card.format == "label-csv" else name)
    texts: dict[str, Any] = {
        text: " ".join(getattr(card, text).split())
        for text in ("pose_convention", "licence", "source", "citation", "how_to_get")
    }
    return dataclasses.replace(
        card,
        path=path,
        name=name,
        title=card.title or name,
        root=_joined(folder, root),
        scenes=dict(sorted(card.scenes.items())),
        extra_scenes=dict(sorted(card.extra_scenes.items())),
        ground_truths=card.ground_truths or list(FORMATS[card.format].ground_truths),
        label_convention=card.label_convention or FORMATS[card.format].label_convention,
        labels=[_joined(path.parent, label) for label in card.labels],
        **texts,
    )


def _fault(card: Card, values: Mapping[str, Any]) -> str:
    """Describe a wrong value that the fields' types allow; empty without one."""
    if card.format not in FORMATS:
        return f"format is one of {', '.join(FORMATS)}, not {card.format!r}"
    names = {"name": [card.name] if card.name else [], "ground_truths": card.ground_truths}
    for key, texts in {**names, "scenes": card.known_scenes, "sequences": card.sequences}.items():
        for text in texts:
            if not isinstance(text, str) or PLAIN_NAME.fullmatch(text) is None:
                return f"{key}: {text!r} is not a plain name (letters, digits, - _ .)"
    if not card.scenes and card.format != "label-csv":
        return "scenes is missing or empty"
    if card.format == "label-csv" and not card.labels:
        return "labels is missing: a card of format label-csv names its label files"
    if "ground_truths" in values and not card.ground_truths:
        return "ground_truths is empty"
    if card.format == "label-csv" and len(card.ground_truths) > 1:
        return "ground_truths names one ground truth: label CSVs hold one"
    if card.label_convention not in ("", *POSE_CONVENTIONS) or (
        card.format == "label-csv" and not card.label_convention
    ):
        return (
            f"label_convention is one of {', '.join(POSE_CONVENTIONS)}, not"
            f" {card.label_convention!r}"
        )
    if card.focal_px <= 0:
        return f"focal_px is a positive number of pixels, not {card.focal_px}"
    if bool(card.sequences) != bool(card.split.blocks or card.split.last):
        return "sequences and split belong together: split: {blocks: 50, every: 5} or {last: 200}"
    if card.sequences and card.format != "7scenes":
        return "sequences are of format 7scenes"
    for scene, facts in card.scene_facts.items():
        if facts.sha256 and re.fullmatch(r"[0-9a-fA-F]{64}", facts.sha256) is None:
            return f"scenes.{scene}.sha256 is 64 hexadecimal digits, not {facts.sha256!r}"
    return ""


def _joined(folder: Path, path: str | Path) -> Path:
    return Path(os.path.normpath(folder / Path(path).expanduser()))


def data_root(card: Card, root: str | Path | None = None) -> Path:
    """The absolute folder that holds the scenes: `root`, or else the card's."""
    return card.root if root is None else Path(root).expanduser().absolute()


def labels_are_there(
    card: Card, root: str | Path | None = None, labels: Sequence[str | Path] = ()
) -> bool:
    """True where the label files, or the folder of any scene, exist."""
    if labels or card.format == "label-csv":
        files = [Path(label).expanduser() for label in labels] or card.labels
        return all(file.exists() for file in files)
    return any((data_root(card, root) / scene).is_dir() for scene in card.known_scenes)


def load_frames(
    card: Card,
    *,
    root: str | Path | None = None,
    split: str,
    scenes: Sequence[str] = (),
    ground_truth: str | None = None,
    labels: Sequence[str | Path] = (),
    on_bad_frame: str = "stop",
) -> pd.DataFrame:
    """The frame table of one split (see `mspose.data.frames.frame_table`), sorted by scene.

    Args:
        root: folder of the scenes, by default the card's.
        split: `train` or `test`; for label CSVs any name that they use.
        scenes: by default all of the card; where label files are given, all that these hold.
        ground_truth: by default the card's first.
        labels: files to read the poses from in place of the data set's own: label CSVs, or the text
            files of 7Scenes' `sfm` ground truth, `<scene>_<split>.txt`; or a folder of
            `<scene>_<split>.csv` or `.txt`.
        on_bad_frame: `stop`, or `skip` to leave out single frames that are bad (their number is in
            `table.attrs["bad_frames"]`).

    Raises MsposeError for an unknown scene or ground truth, data that is not there, and bad data.
    """
    folder = data_root(card, root)
    truth = ground_truth or card.ground_truths[0]
    if truth not in card.ground_truths:
        raise MsposeError(
            f"{card.name} has no ground truth {truth!r}; there"
            f" {'is' if len(card.ground_truths) == 1 else 'are'}: {', '.join(card.ground_truths)}"
        )
    for scene in scenes:
        if card.known_scenes and scene not in card.known_scenes:
            raise MsposeError(
                f"{card.name} has no scene {scene!r}; its scenes: {', '.join(card.known_scenes)}"
            )
    wanted = sorted(set(scenes) or set(card.scenes))
    options: dict[str, Any] = {
        "dataset": card.name,
        "ground_truth": truth,
        "on_bad_frame": on_bad_frame,
    }

    if card.format == "7scenes" and truth == "sfm":
        text_files = _sfm_files(card, folder, wanted, split, labels, narrow=not scenes)
        return seven_scenes.read_sfm_poses(text_files, split, **options)
    layout = FORMATS[card.format]
    if labels or layout.read is None:
        csv_files = _csv_files(card, wanted, split, truth, labels)
        from_card = not labels and bool(card.scenes)
        return read_label_csv(
            csv_files,
            split,
            convention=card.label_convention,
            scenes=wanted if scenes or from_card else None,
            known_scenes=None if card.format == "label-csv" else card.known_scenes,
            focal_px=card.focal_px,
            **options,
        )
    if split not in layout.split_files:
        raise MsposeError(
            f"there is no split {split!r}; there are: {', '.join(layout.split_files)}"
        )
    needed = card.sequences or [layout.split_files[split]]
    paths = {scene: [folder / scene / name for name in needed] for scene in wanted}
    missing = {
        scene: path for scene in wanted for path in reversed(paths[scene]) if not path.exists()
    }
    if missing:
        raise MsposeError(missing_data(card, missing))
    if card.sequences:
        options["sequences"] = card.sequences
    frames = layout.read(folder, wanted, split, focal_px=card.focal_px, **options)
    return _held_out(frames, card.split, split) if card.sequences else frames


def _held_out(frames: pd.DataFrame, rule: HeldOut, split: str) -> pd.DataFrame:
    """The frames of one split out of whole sequences."""
    # by the number in the name, so that a frame that is left out moves no other to another split
    number_N = frames["image"].str.extract(r"frame-(\d+)", expand=False).astype(int)
    count_N = number_N.groupby([frames["scene"], frames["sequence"]]).transform("max") + 1
    chosen = frames[rule.is_test(number_N, count_N) == (split == "test")].reset_index(drop=True)
    if chosen.empty:
        raise MsposeError(f"the card's split leaves no {split} frames: its sequences are too short")
    return chosen


def stated_frames(card: Card, split: str | None) -> dict[str, int]:
    """Scene -> number of frames of a split, for the scenes of which the card states it."""
    facts = card.scene_facts.items()
    return {scene: fact.frames[split] for scene, fact in facts if split in fact.frames}


def frame_count_faults(card: Card, frames: pd.DataFrame) -> list[str]:
    """Describe each scene and split whose number of frames is not the one that the card states."""
    counts = frames.groupby(["scene", "split"]).size().reset_index(name="frames")
    return [
        f"{scene} {split}: {count} frames here, {stated} as the card says"
        for scene, split, count in counts.itertuples(index=False, name=None)
        if (stated := stated_frames(card, split).get(scene, count)) != count
    ]


def missing_data(card: Card, expected: Mapping[str, Path]) -> str:
    """Write the message for missing data: the expected files (by scene) and ways to get them."""
    names = " ".join(expected)
    what = (
        f"{card.name}: no data of {'scene' if len(expected) == 1 else 'scenes'}"
        f" {', '.join(expected)}"
    )
    where = f"expected {next(iter(expected.values()))}"
    quoted = names if len(expected) == 1 else f'"{names}"'
    published = card.format == "virtual" or all(card.scene_facts[name].url for name in expected)
    advice = card.how_to_get or (
        f"get it with `make data DATASET={card.name} SCENE={quoted}`, or see it work without a"
        " download: `make demo`"
        if published
        else f"put it there, or say with root in {card.path} or with --data.root (of mspose data:"
        " --root) which folder holds it"
    )
    return f"{what} ({where}); {advice}"


def _sfm_files(
    card: Card,
    root: Path,
    scenes: Sequence[str],
    split: str,
    labels: Sequence[str | Path],
    narrow: bool,
) -> dict[str, Path]:
    """Scene -> text file of the sfm poses; with `narrow` and files in `labels`, only the scenes of
    those files.
    """
    given = [Path(label).expanduser() for label in labels]
    folders = [path for path in given if path.is_dir()] or ([] if given else [root / "sfm"])
    found = {}
    for path in given:
        if path in folders:
            continue
        if not path.is_file():
            raise MsposeError(f"no such label file: {path.absolute()}")
        scene, _, its_split = path.stem.rpartition("_")
        if path.suffix != ".txt" or scene not in card.known_scenes:
            raise MsposeError(
                f"{path} is not named like a text file of sfm poses, <scene>_<split>.txt "
                "(label CSVs hold the original ground truth)"
            )
        if its_split == split and scene in scenes:
            found[scene] = path
    for folder in folders:
        for scene in scenes:
            if (folder / f"{scene}_{split}.txt").is_file():
                found[scene] = folder / f"{scene}_{split}.txt"
    missing = [scene for scene in scenes if scene not in found]
    if missing and not (found and narrow and given and not folders):
        place = (
            folders[0] / f"{missing[0]}_{split}.txt"
            if folders
            else f"{missing[0]}_{split}.txt among {given}"
        )
        raise MsposeError(
            f"{card.name}: no sfm poses of {', '.join(missing)} (expected {place}); put the text"
            f" files <scene>_<split>.txt into {root / 'sfm'} ({card.path} says where they are"
            " published), or name their folder with --data.labels"
        )
    return dict(sorted(found.items()))


def _csv_files(
    card: Card, scenes: Sequence[str], split: str, truth: str, labels: Sequence[str | Path]
) -> list[Path]:
    if truth != card.ground_truths[0]:
        raise MsposeError(
            f"label CSVs of {card.name} hold the ground truth {card.ground_truths[0]}, not {truth}"
        )
    files: list[Path] = []
    for path in [Path(label).expanduser() for label in labels] or card.labels:
        if path.is_dir():
            files += [path / f"{scene}_{split}.csv" for scene in scenes] or sorted(
                path.glob("*.csv")
            )
        else:
            files.append(path)
        if path.suffix == ".txt" and card.format == "7scenes":
            raise MsposeError(
                f"{path} holds sfm poses, not the ground truth {truth}: say --data.ground_truth sfm"
            )
    for file in files:
        if not file.is_file():
            advice = card.how_to_get if not labels else ""
            raise MsposeError(
                f"{card.name}: no such label file: {file.absolute()}"
                + (f"; {advice}" if advice else "")
            )
    if not files:
        raise MsposeError(
            f"{card.name}: no label files in {', '.join(str(label) for label in labels)}"
        )
    return files
