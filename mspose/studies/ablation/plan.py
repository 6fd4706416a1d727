"""Ablation files: a base experiment, and variants of it that each change a few settings.

    title: Query-key alignment and the position encoding
    base: virtual                  # an experiment: its name in experiments/, or a path relative to
                                   this file
    settings: {loss.qka_weight: 0} # optional: changes that all rows share, the reference too
    reference: neither             # label of the row without further changes, with which the others
                                   are compared
    seeds: [0, 1, 2]
    knock_out: true                # optional: measure the worth of the encoders' self-attention too
    variants:
      qka: {loss.qka_weight: 0.1}  # label: what it changes

Every variant under every seed is a run, `runs/<file>-<base>/<label>/seed-<n>`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from mspose.config import (
    Settings,
    changed_settings,
    differences,
    flatten,
    read_dataclass,
    read_settings,
    read_yaml,
)
from mspose.data.versions import with_version
from mspose.errors import MsposeError
from mspose.resources import ABLATIONS, EXPERIMENTS, experiment_file, find_file

OURS = ("experiment", "variant", "seed", "runs", "quick")
"""Settings that say which run it is: no file changes them."""

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
"""Toy size of `--quick`, except for what a variant states."""


@dataclass(frozen=True)
class AblationFile:
    """The keys of an ablation file."""

    title: str
    """Heading of its table."""
    base: str
    """An experiment: its name in `experiments/`, or a path relative to the file."""
    reference: str
    """Label of the row without further changes, with which the others are compared."""
    seeds: list[int]
    """Seeds of every variant."""
    variants: dict[str, dict[str, Any]]
    """Label: the settings that it changes, nested or by dotted name."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Changes to the base that all rows share."""
    knock_out: bool = False
    """Measure what the encoders' self-attention is worth to every run (`attention.knock_out`)."""


@dataclass(frozen=True)
class Ablation(AblationFile):
    """An ablation file that was read: `base` is a path, and settings are by dotted name."""

    path: Path = Path()

    @property
    def name(self) -> str:
        """Name of the file, the first part of its experiments' names."""
        return self.path.stem

    def rows(
        self,
        dataset: str | None = None,
        *,
        quick: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> dict[str, Settings]:
        """Settings of every row by label, the reference first.

        Args:
            dataset: another base experiment: its name in `experiments/`, or a path.
            quick: at toy size, `QUICK`.
            overrides: further changes that all rows share, by dotted name.

        Raises MsposeError for settings that do not exist or cannot be, an override of what the rows
        differ in, and for two rows with the same settings.
        """
        stated = {name for changes in self.variants.values() for name in changes}
        overrides = overrides or {}
        if clash := [name for name in overrides if name in stated]:
            raise MsposeError(
                f"{clash[0]} is what the variants of {self.path} differ in: leave it out, or edit"
                " the file"
            )
        base = read_settings(experiment_file(dataset) if dataset else Path(self.base))
        toy = {name: value for name, value in QUICK.items() if name not in stated} if quick else {}
        about = {
            "experiment": f"{self.name}-{base.experiment}" + ("-quick" if quick else ""),
            "quick": quick,
        }
        shared = _changed(
            base, {**self.settings, **toy, **overrides, **about}, f"{self.path}: settings"
        )
        shared = replace(shared, data=with_version(shared.data))
        rows = {
            label: _changed(shared, {**changes, "variant": label}, f"{self.path}: variants.{label}")
            for label, changes in {self.reference: {}, **self.variants}.items()
        }
        for one, other in combinations(rows, 2):
            if not differences(rows[one], replace(rows[other], variant=one)):
                what = "changes nothing of" if one == self.reference else "is the same as"
                raise MsposeError(
                    f"{self.path}: variants.{other} {what} {one}: change a setting, or remove it"
                )
        return rows

    def runs(
        self,
        dataset: str | None = None,
        seeds: Sequence[int] | None = None,
        quick: bool = False,
        overrides: Mapping[str, Any] | None = None,
        folder: str = "runs",
        variants: Sequence[str] = (),
    ) -> list[Settings]:
        """Settings of all runs, or of those of some `variants` (labels), below `folder`.

        They are in the order of the seeds, so that every row soon has a first result. Raises
        MsposeError as `rows` does, for impossible seeds, and for a label that does not exist.
        """
        rows = self.rows(dataset, quick=quick, overrides=overrides)
        if unknown := [label for label in variants if label not in rows]:
            raise MsposeError(
                f"{self.path} has no variant {unknown[0]!r}; there are: {', '.join(rows)}"
            )
        return [
            replace(settings, seed=seed, runs=folder)
            for seed in (self.seeds if seeds is None else _seeds("--seeds", seeds))
            for label, settings in rows.items()
            if label in (variants or rows)
        ]


def read_ablation(path_or_name: str | Path) -> Ablation:
    """Read an ablation file, or that of this name in `experiments/ablations/`, here or packaged.

    Raises MsposeError, with the file and the key, for a file that is missing or not as expected.
    """
    path = find_file(ABLATIONS, path_or_name, "ablation")
    file = read_dataclass(AblationFile, read_yaml(path, "an ablation file"), path)
    if not file.variants or file.reference in file.variants:
        raise MsposeError(
            f"{path}: variants: expected some, and none with the label of the reference"
        )
    try:
        base = find_file(EXPERIMENTS, file.base, "experiment", beside=path.parent)
    except MsposeError as error:
        raise MsposeError(f"{path}: base: {error}") from error
    settings = _changes(f"{path}: settings", file.settings)
    if file.knock_out:
        settings["attention.knock_out"] = True
    read = {
        "base": str(base),
        "seeds": _seeds(f"{path}: seeds", file.seeds),
        "settings": settings,
        "variants": {
            label: _changes(f"{path}: variants.{label}", changes)
            for label, changes in file.variants.items()
        },
    }
    return Ablation(**vars(file) | read, path=path)


def _changes(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Read settings by dotted name, written so or nested."""
    try:
        changes = flatten(values)
    except TypeError as error:
        raise MsposeError(f"{where}: every name is a text such as loss.qka_weight") from error
    if ours := [name for name in changes if name in OURS]:
        raise MsposeError(f"{where}.{ours[0]} is not for the file to say: it is set for every run")
    return changes


def _changed(settings: Settings, changes: Mapping[str, Any], where: str) -> Settings:
    try:
        return changed_settings(settings, changes)
    except MsposeError as error:
        raise MsposeError(f"{where}: {error}") from error


def _seeds(where: str, values: Sequence[int]) -> list[int]:
    if (
        not values
        or len(set(values)) < len(values)
        or not all(0 <= seed < 2**63 for seed in values)
    ):
        raise MsposeError(f"{where}: expected different whole numbers from 0 on, found {values}")
    return [int(seed) for seed in values]
