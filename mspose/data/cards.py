"""Data-set cards: what a data set is, where it lies, and how its frames are read.

A card is a YAML file, `datasets/<name>.yaml`, or one of your own anywhere. Paths in it are relative to the card.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mspose.data import cambridge, seven_scenes
from mspose.data.frames import CAMERA_TO_WORLD, POSE_CONVENTIONS, WORLD_TO_CAMERA_POSITION
from mspose.data.label_csv import read_label_csv
from mspose.errors import MsposeError

FORMATS = ("7scenes", "cambridge", "label-csv", "virtual")
GROUND_TRUTHS = {"7scenes": ["original", "sfm"], "cambridge": ["sfm"], "virtual": ["rendered"], "label-csv": ["labels"]}
LABEL_CONVENTIONS = {
    "7scenes": CAMERA_TO_WORLD,
    "virtual": CAMERA_TO_WORLD,
    "cambridge": WORLD_TO_CAMERA_POSITION,
}
INDOOR_THRESHOLDS = ((0.05, 5.0), (0.1, 5.0), (0.25, 5.0), (0.5, 10.0))
"""Pairs metres, degrees of a recall."""
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SceneFacts:
    """What a card knows about one scene."""

    url: str | None = None
    """Address of its zip archive."""
    sha256: str | None = None
    """Checksum of the archive, where known."""
    frames: Mapping[str, int] = field(default_factory=dict)
    """Published number of frames per split."""


@dataclass(frozen=True)
class Card:
    """A data set. `read_card` makes one from a file."""

    name: str
    format: str
    """One of `FORMATS`: how the files are laid out."""
    path: Path
    """The card's own file."""
    root: Path
    """Default folder of the scenes."""
    title: str
    scenes: tuple[str, ...]
    """Scenes used by default, sorted; for `label-csv` they may be left to the files."""
    extra_scenes: tuple[str, ...]
    """Further scenes, used when asked for."""
    scene_facts: Mapping[str, SceneFacts]
    ground_truths: tuple[str, ...]
    """The default one first."""
    label_convention: str
    """How poses in label CSVs are to be read: one of `mspose.data.frames.POSE_CONVENTIONS`."""
    focal_px: float
    """Focal length in pixels of the original images; NaN where unknown or different from image to image."""
    thresholds: tuple[tuple[float, float], ...]
    """Recall thresholds: pairs of metres and degrees."""
    pose_convention: str
    licence: str
    source: str
    citation: str
    labels: tuple[Path, ...]
    """Label files that belong to the card (format `label-csv`)."""
    how_to_get: str
    """What to do where the data is missing, in place of the usual advice."""
    render: Mapping[str, Any]
    """Settings of the renderer (format `virtual`)."""

    @property
    def known_scenes(self) -> tuple[str, ...]:
        """All scenes that may be asked for, sorted."""
        return tuple(sorted({*self.scenes, *self.extra_scenes}))


def read_card(name_or_path: str | Path) -> Card:
    """The card of that name in `datasets/` (of the current directory, then of the repository), or of a YAML file.

    Raises MsposeError for a name without card (listing those that exist), and for a card that is not right.
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        path = Path(text).expanduser()
        if not path.is_file():
            raise MsposeError(f"no such card: {path.absolute()}")
        return _parse_card(path)
    folders = list(dict.fromkeys((Path.cwd() / "datasets", REPOSITORY / "datasets")))
    for folder in folders:
        path = folder / f"{text}.yaml"
        if path.is_file():
            return _parse_card(path)
    there = sorted({card.stem for folder in folders for card in folder.glob("*.yaml")})
    raise MsposeError(
        f"there is no data set {text!r}; there are: {', '.join(there) or 'none'} (cards in {folders[0]}), "
        "or give the path of a card of your own"
    )


def data_root(card: Card, root: str | Path | None = None) -> Path:
    """The absolute folder that holds the scenes: `root`, or else the card's."""
    return card.root if root is None else Path(root).expanduser().absolute()


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
        labels: files to read the poses from in place of the data set's own: label CSVs, or the text files of 7Scenes'
            `sfm` ground truth, `<scene>_<split>.txt`; or a folder of `<scene>_<split>.csv` or `.txt`.
        on_bad_frame: `stop`, or `skip` to leave out single frames that are bad (their number is in
            `table.attrs["bad_frames"]`).

    Raises MsposeError for an unknown scene or ground truth, data that is not there, and bad data.
    """
    folder = data_root(card, root)
    truth = ground_truth or card.ground_truths[0]
    if truth not in card.ground_truths:
        raise MsposeError(
            f"{card.name} has no ground truth {truth!r}; there {'is' if len(card.ground_truths) == 1 else 'are'}: "
            f"{', '.join(card.ground_truths)}"
        )
    for scene in scenes:
        if card.known_scenes and scene not in card.known_scenes:
            raise MsposeError(f"{card.name} has no scene {scene!r}; its scenes: {', '.join(card.known_scenes)}")
    wanted = sorted(set(scenes) or set(card.scenes))
    options: dict[str, Any] = {"dataset": card.name, "ground_truth": truth, "on_bad_frame": on_bad_frame}

    if card.format == "7scenes" and truth == "sfm":
        text_files = _sfm_files(card, folder, wanted, split, labels, narrow=not scenes)
        return seven_scenes.read_sfm_poses(text_files, split, **options)
    if labels or card.format == "label-csv":
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
    loader, split_files = (
        (cambridge.read_cambridge, cambridge.SPLIT_FILES)
        if card.format == "cambridge"
        else (seven_scenes.read_seven_scenes, seven_scenes.SPLIT_FILES)
    )
    if split not in split_files:
        raise MsposeError(f"there is no split {split!r}; there are: {', '.join(split_files)}")
    missing = {scene: folder / scene / split_files[split] for scene in wanted}
    missing = {scene: path for scene, path in missing.items() if not path.is_file()}
    if missing:
        raise MsposeError(missing_data(card, missing))
    return loader(folder, wanted, split, focal_px=card.focal_px, **options)


def missing_data(card: Card, looked_for: Mapping[str, Path]) -> str:
    """The message for data that is not there: what was looked for (scene -> file), where, and the ways on."""
    names = " ".join(looked_for)
    what = f"{card.name}: no data of {'scene' if len(looked_for) == 1 else 'scenes'} {', '.join(looked_for)}"
    where = f"looked for {next(iter(looked_for.values()))}"
    quoted = names if len(looked_for) == 1 else f'"{names}"'
    advice = card.how_to_get or (
        f"get it with `make data DATASET={card.name} SCENE={quoted}`, or see it work without a download: `make demo`"
    )
    return f"{what} ({where}); {advice}"


def _sfm_files(
    card: Card, root: Path, scenes: Sequence[str], split: str, labels: Sequence[str | Path], narrow: bool
) -> dict[str, Path]:
    """Scene -> text file of the sfm poses; with `narrow` and files in `labels`, only the scenes of those files."""
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
        place = folders[0] / f"{missing[0]}_{split}.txt" if folders else f"{missing[0]}_{split}.txt among {given}"
        raise MsposeError(
            f"{card.name}: no sfm poses of {', '.join(missing)} (looked for {place}); put the text files "
            f"<scene>_<split>.txt into {root / 'sfm'} ({card.path} says where they are published), or name their "
            "folder with --data.labels"
        )
    return dict(sorted(found.items()))


def _csv_files(card: Card, scenes: Sequence[str], split: str, truth: str, labels: Sequence[str | Path]) -> list[Path]:
    if truth != card.ground_truths[0]:
        raise MsposeError(f"label CSVs of {card.name} hold the ground truth {card.ground_truths[0]}, not {truth}")
    files: list[Path] = []
    for path in [Path(label).expanduser() for label in labels] or card.labels:
        if path.is_dir():
            files += [path / f"{scene}_{split}.csv" for scene in scenes] or sorted(path.glob("*.csv"))
        else:
            files.append(path)
        if path.suffix == ".txt" and card.format == "7scenes":
            raise MsposeError(f"{path} holds sfm poses, not the ground truth {truth}: say --data.ground_truth sfm")
    for file in files:
        if not file.is_file():
            advice = card.how_to_get if not labels else ""
            raise MsposeError(f"{card.name}: no such label file: {file.absolute()}" + (f"; {advice}" if advice else ""))
    if not files:
        raise MsposeError(f"{card.name}: no label files in {', '.join(str(label) for label in labels)}")
    return files


_KEYS = {
    "name", "title", "format", "root", "scenes", "extra_scenes", "ground_truths", "label_convention", "focal_px",
    "thresholds", "pose_convention", "licence", "source", "citation", "labels", "how_to_get", "render",
}  # fmt: skip
_SCENE_KEYS = {"url", "sha256", "frames"}
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Names of data sets, scenes and ground truths, which become names of files and columns."""


def _parse_card(path: Path) -> Card:
    path = path.absolute()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise MsposeError(f"cannot read the card {path}: {error}") from error
    except yaml.YAMLError as error:
        raise MsposeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise MsposeError(f"{path} is not a card: expected keys such as name, format, root, scenes")
    _refuse_unknown(path, values, _KEYS, "")
    style = values.get("format")
    if style not in FORMATS:
        raise MsposeError(f"{path}: format is one of {', '.join(FORMATS)}, not {style!r}")
    name = _text(path, values, "name", path.stem)
    convention = _text(path, values, "label_convention", LABEL_CONVENTIONS.get(style, ""))
    if convention not in POSE_CONVENTIONS:
        raise MsposeError(f"{path}: label_convention is one of {', '.join(POSE_CONVENTIONS)}, not {convention!r}")
    scenes = _scenes(path, values, "scenes")
    extra = _scenes(path, values, "extra_scenes")
    if not scenes and style != "label-csv":
        raise MsposeError(f"{path}: scenes is missing or empty")
    labels = _texts(path, values, "labels", [])
    if style == "label-csv" and not labels:
        raise MsposeError(f"{path}: labels is missing: a card of format label-csv names its label files")
    truths = _texts(path, values, "ground_truths", GROUND_TRUTHS[style])
    if not truths or (style == "label-csv" and len(truths) != 1):
        raise MsposeError(f"{path}: ground_truths names one ground truth (one card per ground truth of label CSVs)")
    for key, names in (("name", [name]), ("scenes", [*scenes, *extra]), ("ground_truths", truths)):
        for text in names:
            if PLAIN_NAME.fullmatch(text) is None:
                raise MsposeError(f"{path}: {key}: {text!r} is not a plain name (letters, digits, - _ .)")
    focal = values.get("focal_px")
    if focal is not None and not (_is_number(focal) and focal > 0):
        raise MsposeError(f"{path}: focal_px is a positive number of pixels, not {focal!r}")
    render = values.get("render") or {}
    if not isinstance(render, dict):
        raise MsposeError(f"{path}: render is a mapping of settings, not {render!r}")
    return Card(
        name=name,
        format=style,
        path=path,
        root=_beside(path, _text(path, values, "root", "." if style == "label-csv" else name)),
        title=_text(path, values, "title", name),
        scenes=tuple(sorted(scenes)),
        extra_scenes=tuple(sorted(extra)),
        scene_facts={**extra, **scenes},
        ground_truths=tuple(truths),
        label_convention=convention,
        focal_px=math.nan if focal is None else float(focal),
        thresholds=_thresholds(path, values.get("thresholds")),
        pose_convention=_text(path, values, "pose_convention", ""),
        licence=_text(path, values, "licence", ""),
        source=_text(path, values, "source", ""),
        citation=_text(path, values, "citation", ""),
        labels=tuple(_beside(path, label) for label in labels),
        how_to_get=_text(path, values, "how_to_get", ""),
        render=render,
    )


def _refuse_unknown(path: Path, values: Mapping[Any, Any], known: set[str], place: str) -> None:
    for key in values:
        if key not in known:
            raise MsposeError(f"{path}: unknown key {place}{key!r}; there are: {', '.join(sorted(known))}")


def _beside(card: Path, relative: str) -> Path:
    return Path(os.path.normpath(card.parent / Path(relative).expanduser()))


def _text(path: Path, values: Mapping[str, Any], key: str, default: str) -> str:
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise MsposeError(f"{path}: {key} is a text, not {value!r}")
    return " ".join(value.split())


def _texts(path: Path, values: Mapping[str, Any], key: str, default: list[str]) -> list[str]:
    value = values.get(key)
    if value is None:
        return default
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise MsposeError(f"{path}: {key} is a list of texts, not {value!r}")
    return value


def _scenes(path: Path, values: Mapping[str, Any], key: str) -> dict[str, SceneFacts]:
    """Scenes given as a list of names, or as a mapping of names to what is known about them."""
    value = values.get(key) or {}
    if not isinstance(value, dict):
        return {name: SceneFacts() for name in _texts(path, values, key, [])}
    scenes = {}
    for name, facts in value.items():
        facts = facts or {}
        if not isinstance(name, str) or not isinstance(facts, dict):
            raise MsposeError(f"{path}: {key}: {name!r} is a name with its facts ({', '.join(sorted(_SCENE_KEYS))})")
        _refuse_unknown(path, facts, _SCENE_KEYS, f"{key}.{name}.")
        frames = facts.get("frames") or {}
        if not isinstance(frames, dict) or not all(isinstance(count, int) for count in frames.values()):
            raise MsposeError(f"{path}: {key}.{name}.frames is a number of frames per split, not {frames!r}")
        checksum = _text(path, facts, "sha256", "").lower()
        if checksum and re.fullmatch(r"[0-9a-f]{64}", checksum) is None:
            raise MsposeError(f"{path}: {key}.{name}.sha256 is 64 hexadecimal digits, not {checksum!r}")
        scenes[name] = SceneFacts(_text(path, facts, "url", "") or None, checksum or None, dict(frames))
    return scenes


def _thresholds(path: Path, value: Any) -> tuple[tuple[float, float], ...]:
    if value is None:
        return INDOOR_THRESHOLDS
    good = isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(_is_number(number) and number > 0 for number in pair)
        for pair in value
    )
    if not good:
        raise MsposeError(f"{path}: thresholds is a list of pairs [metres, degrees], not {value!r}")
    return tuple((float(metres), float(degrees)) for metres, degrees in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
