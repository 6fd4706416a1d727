"""Ablation files: a base experiment, and variants of it that each change a few settings.

    title: Query-key alignment and the position encoding
    base: virtual                  # an experiment: its name in experiments/, or a path relative to this file
    settings: {loss.qka_weight: 0} # optional: changes that all rows share, the reference too
    reference: neither             # label of the row without further changes, with which the others are compared
    seeds: [0, 1, 2]
    variants:
      qka: {loss.qka_weight: 0.1}  # label: what it changes

A cell is one variant under one seed: a run of its own, `runs/<file>-<base>/<label>/seed-<n>`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from mspose.config import Settings, changed_settings, differences, flatten, read_settings
from mspose.data.cards import REPOSITORY
from mspose.data.versions import with_version
from mspose.errors import MsposeError

EXPERIMENTS = "experiments"
ABLATIONS = "experiments/ablations"
REQUIRED = ("title", "base", "reference", "seeds", "variants")
KEYS = (*REQUIRED, "settings")
OURS = ("experiment", "variant", "seed", "runs", "quick")
"""Settings that say which cell it is: no file changes them."""

QUICK: Mapping[str, Any] = {
    "data.frames_per_scene": 6,
    "data.resize": 72,
    "data.crop": 64,
    "model.pretrained": False,
    "model.dim": 32,
    "model.heads": 4,
    "model.feedforward": 32,
    "model.head_hidden": 32,
    "model.position_encoder_layers": 1,
    "model.position_decoder_layers": 1,
    "model.orientation_encoder_layers": 1,
    "model.orientation_decoder_layers": 1,
    "training.epochs": 1,
    "training.batch_size": 8,
    "training.evaluate_frames": 8,
    "training.start_from": None,
}
"""The toy size of `--quick`: what is not stated by a variant."""


@dataclass(frozen=True)
class Cell:
    """One variant under one seed."""

    label: str
    seed: int
    settings: Settings

    @property
    def folder(self) -> Path:
        """Of its run."""
        return Path(self.settings.runs) / self.settings.experiment / self.label / f"seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class Ablation:
    """What an ablation file says."""

    path: Path
    title: str
    base: Path
    """The base experiment's file."""
    settings: Mapping[str, Any]
    """Changes to the base that all rows share, by dotted name."""
    reference: str
    seeds: tuple[int, ...]
    variants: Mapping[str, Mapping[str, Any]]
    """Label: what it changes, by dotted name. Without the reference, which changes nothing."""

    @property
    def name(self) -> str:
        """The first part of its experiments' names."""
        return self.path.stem

    @property
    def labels(self) -> tuple[str, ...]:
        """Of all rows, the reference first."""
        return (self.reference, *self.variants)

    def rows(
        self, dataset: str | None = None, *, quick: bool = False, overrides: Mapping[str, Any] | None = None
    ) -> dict[str, Settings]:
        """The settings of every row by label, the reference first.

        Args:
            dataset: another base experiment: its name in `experiments/`, or a path.
            quick: at toy size, `QUICK`, but for what a variant states.
            overrides: further changes that all rows share, by dotted name.

        Raises MsposeError for settings that do not exist or cannot be, an override of what the rows differ in, a
        variant that is like the reference, and two that are alike.
        """
        stated = {name for changes in self.variants.values() for name in changes}
        overrides = overrides or {}
        if clash := [name for name in overrides if name in stated]:
            raise MsposeError(
                f"{clash[0]} is what the variants of {self.path} differ in: leave it out, or edit the file"
            )
        base = read_settings(experiment_file(dataset) if dataset else self.base)
        toy = {name: value for name, value in QUICK.items() if name not in stated} if quick else {}
        about = {"experiment": f"{self.name}-{base.experiment}" + ("-quick" if quick else ""), "quick": quick}
        shared = _changed(base, {**self.settings, **toy, **overrides, **about}, f"{self.path}: settings")
        shared = replace(shared, data=with_version(shared.data))
        rows = {
            label: _changed(shared, {**changes, "variant": label}, f"{self.path}: variants.{label}")
            for label, changes in {self.reference: {}, **self.variants}.items()
        }
        for one, other in combinations(rows, 2):
            if not differences(rows[one], replace(rows[other], variant=one)):
                what = "changes nothing of" if one == self.reference else "is the same as"
                raise MsposeError(f"{self.path}: variants.{other} {what} {one}: change a setting, or remove it")
        return rows

    def cells(
        self,
        dataset: str | None = None,
        seeds: Sequence[int] | None = None,
        quick: bool = False,
        overrides: Mapping[str, Any] | None = None,
        runs: str = "runs",
        variants: Sequence[str] = (),
    ) -> list[Cell]:
        """All cells, or those of some `variants` (labels), seed by seed, so that every row soon has a first figure.

        Raises MsposeError as `rows` does, for seeds that cannot be, and for a label that is not there.
        """
        rows = self.rows(dataset, quick=quick, overrides=overrides)
        if unknown := [label for label in variants if label not in rows]:
            raise MsposeError(f"{self.path} has no variant {unknown[0]!r}; there are: {', '.join(rows)}")
        chosen = {label: settings for label, settings in rows.items() if label in (variants or rows)}
        return [
            Cell(label, seed, replace(settings, seed=seed, runs=runs))
            for seed in (self.seeds if seeds is None else _seeds("--seeds", list(seeds)))
            for label, settings in chosen.items()
        ]


def read_ablation(path_or_name: str | Path) -> Ablation:
    """An ablation file, or that of this name in `experiments/ablations/`, here or in the repository.

    Raises MsposeError, with the file and the place in it, for a file that is missing or not what is expected.
    """
    path = _find(path_or_name, ABLATIONS, "ablation", beside=Path())
    values = _read_yaml(path)
    if not isinstance(values, dict):
        raise MsposeError(f"{path}: expected {', '.join(REQUIRED)} at the top, found {values!r:.60}")
    if unknown := [key for key in values if key not in KEYS]:
        raise MsposeError(f"{path}: unknown key {unknown[0]!r}; there are: {', '.join(KEYS)}")
    if missing := [key for key in REQUIRED if key not in values]:
        raise MsposeError(f"{path}: {missing[0]} is missing; expected: {', '.join(REQUIRED)}")
    for key in ("title", "base", "reference"):
        if not isinstance(values[key], str) or not values[key].strip():
            raise MsposeError(
                f"{path}: {key} is {values[key]!r}, expected text (in quotes where YAML reads it otherwise)"
            )
    variants = values["variants"]
    if not isinstance(variants, dict) or not variants:
        raise MsposeError(f"{path}: variants is {variants!r:.60}, expected a label and its settings for each")
    for label in variants:
        if not isinstance(label, str):
            raise MsposeError(f"{path}: the label {label!r} is no text: put it in quotes")
    if values["reference"] in variants:
        raise MsposeError(
            f"{path}: {values['reference']} is the reference, which changes nothing, and a variant: rename one"
        )
    return Ablation(
        path=path,
        title=values["title"],
        base=_find(values["base"], EXPERIMENTS, f"{path}: base", beside=path.parent),
        settings=_changes(path, "settings", values.get("settings", {})),
        reference=values["reference"],
        seeds=_seeds(f"{path}: seeds", values["seeds"]),
        variants={label: _changes(path, f"variants.{label}", changes) for label, changes in variants.items()},
    )


def experiment_file(name_or_path: str) -> Path:
    """The file of an experiment: of that name in `experiments/`, here or in the repository, or that path."""
    return _find(name_or_path, EXPERIMENTS, "experiment", beside=Path())


def _find(name_or_path: str | Path, folder: str, what: str, *, beside: Path) -> Path:
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        path = beside / Path(text).expanduser()
        if not path.is_file():
            raise MsposeError(f"{what} {text}: there is no such file" + (f" ({path})" if str(path) != text else ""))
        return path
    folders = list(dict.fromkeys((Path.cwd() / folder, REPOSITORY / folder)))
    for place in folders:
        if (place / f"{text}.yaml").is_file():
            return place / f"{text}.yaml"
    there = sorted({path.stem for place in folders for path in place.glob("*.yaml")})
    raise MsposeError(
        f"{what} {text!r} is not in {folders[0]}; there are: {', '.join(there) or 'none'}; or give a path"
    )


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (name := key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise MsposeError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise MsposeError(f"{path} is not YAML that can be read: {' '.join(str(error).split())}") from error


def _changes(path: Path, place: str, values: Any) -> dict[str, Any]:
    """Settings by dotted name, written so or nested."""
    if not isinstance(values, dict):
        raise MsposeError(f"{path}: {place} is {values!r:.60}, expected settings by name, {{loss.qka_weight: 0.1}}")
    try:
        changes = flatten(values)
    except TypeError as error:
        raise MsposeError(f"{path}: {place}: every name is a text such as loss.qka_weight") from error
    if ours := [name for name in changes if name in OURS]:
        raise MsposeError(f"{path}: {place}.{ours[0]} is not for the file to say: it is set for every cell")
    return changes


def _changed(settings: Settings, changes: Mapping[str, Any], place: str) -> Settings:
    try:
        return changed_settings(settings, changes)
    except MsposeError as error:
        raise MsposeError(f"{place}: {error}") from error


def _seeds(place: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise MsposeError(f"{place} is {values!r:.60}, expected whole numbers, [0, 1, 2]")
    for seed in values:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise MsposeError(f"{place} has {seed!r}, expected whole numbers from 0 on")
    if twice := [seed for seed in values if values.count(seed) > 1]:
        raise MsposeError(f"{place} has {twice[0]} twice")
    return tuple(int(seed) for seed in values)
