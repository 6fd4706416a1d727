"""A run's folder, `runs/<experiment>/<variant>/seed-<n>`, and the files in it.

    config.yaml                         resolved settings of the training
    checkpoint.pt                       state of the training, to resume it
    model.safetensors, model.json       trained network: weights, architecture and preprocessing
    attention-at-start.json             attention of the network before its first step
    events.out.tfevents.*               TensorBoard log of the training
    predictions/<split>.csv, .json      a pose per frame; data set, split and model it is of
    predictions/errors.csv              in a record: the two errors per test frame, without poses
    metrics.json, metrics-<split>.json  computed from predictions alone
    attention/attention.json            study of the network's attention
    attention/knock-out.csv             errors per frame without the encoders' self-attention
    attention/samples.npz               arrays behind the study's plots of single frames

Folders that hold some of these files are runs as well: records (without model and poses), baselines
(without model), and folders with the predictions and metrics of another method.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mspose.config import BRANCHES, Settings, read_settings
from mspose.errors import MsposeError
from mspose.files import (
    checksum,
    locked,
    read_bytes,
    read_json,
    read_tensors,
    whole_file,
    with_checksum,
)
from mspose.metrics import (
    ERROR_COLUMNS,
    PREDICTIONS_CHECKSUM,
    read_errors,
    read_metrics,
    read_predictions,
)
from mspose.verdict import DEFAULT, VERDICTS, WORTH, Thresholds, verdict

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.yaml"
CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
MODEL = "model.json"
METRICS = "metrics.json"
ATTENTION = "attention/attention.json"
SAMPLES = "attention/samples.npz"
EVENTS = "events.out.tfevents.*"
LOCK = ".lock"

MODEL_FORMAT = 1
WEIGHTS_CHECKSUM = "weights_sha256"
"""Key of `model.json`."""
ATTENTION_FORMAT = 3
"""Format of `attention.json`. Format 1 called the query-key gap `gap`; formats 1 and 2 had other
words for a layer (`healthy`), and nothing on decoders, tokens, the start and knock-outs. They are
read as well: words are those of the present, from the stored metrics."""
ATTENTION_MEASURES = ("entropy", "similarity", "query_key_gap", "purity")
EXTERNAL = "external"
"""Experiment in the metrics of predictions that no run of mspose wrote."""


class _File:
    """A property of a `Run`: the path of one of its files."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "Run", _: type) -> Path:
        return run.folder / self.name


@dataclass(frozen=True)
class Run:
    """A run's folder. Files are read when they are asked for, once per object.

    Every property raises MsposeError where its file is missing or broken.
    """

    folder: Path
    split: str = "test"
    """Evaluation that `metrics` and `predictions` are of."""

    config_file = _File(CONFIG)
    """Settings of the training."""
    checkpoint_file = _File(CHECKPOINT)
    """State of the training."""
    weights_file = _File(WEIGHTS)
    """Weights of the trained network."""
    model_file = _File(MODEL)
    """Description of the trained network."""
    attention_file = _File(ATTENTION)
    """Study of the encoders' self-attention."""
    samples_file = _File(SAMPLES)
    """Attention maps and tokens of a few frames."""
    knock_out_file = _File("attention/knock-out.csv")
    """Errors of the study's frames with self-attention knocked out."""
    start_file = _File("attention-at-start.json")
    """Attention of the network before its first step."""
    errors_file = _File("predictions/errors.csv")
    """Errors of test frames in a record, which has no poses."""

    @property
    def metrics_file(self) -> Path:
        """`metrics.json`, or `metrics-<split>.json` of another split than the test split."""
        return self.folder / (METRICS if self.split == "test" else f"metrics-{self.split}.json")

    @property
    def predictions_file(self) -> Path:
        """`predictions/<split>.csv`."""
        return self.folder / "predictions" / f"{self.split}.csv"

    @cached_property
    def settings(self) -> Settings:
        """Settings of the training; those that are younger than the run have their defaults."""
        try:
            return read_settings(self.config_file)
        except MsposeError as error:
            if str(self.config_file) in str(error):
                raise
            raise MsposeError(f"{self.config_file}: {error}") from error

    @cached_property
    def description(self) -> dict[str, Any]:
        """Architecture, scenes, preprocessing and training data of the model (`model.json`)."""
        return read_description(self.folder)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`, see `mspose.metrics.compute_metrics`."""
        return read_metrics(self.metrics_file)

    @cached_property
    def attention(self) -> dict[str, Any] | None:
        """Study of the attention, see `mspose.studies.attention_study`; None without one."""
        path, remedy = self.attention_file, f"run `mspose attention {self.folder}` again"
        if not path.exists():
            return None
        study = read_json(path, remedy)
        try:
            return _checked_study(study)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise MsposeError(
                f"{path} is not a study of attention of this version: {reason}; {remedy}"
            ) from error

    @cached_property
    def attention_of_metrics(self) -> dict[str, Any] | None:
        """`attention`; None where it is of another training or split than `metrics`."""
        study = self.attention
        if study is None:
            return None
        hashes = {self.config_hash, study.get("config_hash")} - {None}
        same = study["split"] == self.metrics["split"] and study["quick"] == self.quick
        return study if same and len(hashes) < 2 else None

    @property
    def experiment(self) -> str:
        """Experiment in the metrics."""
        return str(self.metrics["experiment"])

    @property
    def variant(self) -> str:
        """Variant in the metrics."""
        return str(self.metrics["variant"])

    @property
    def name(self) -> str:
        """`<experiment>/<variant>`, which the runs of all seeds share."""
        return f"{self.experiment}/{self.variant}"

    @property
    def seed(self) -> int | None:
        """Seed in the metrics; another method may have none."""
        return self.metrics["seed"]

    @property
    def quick(self) -> bool:
        """True of a try at toy size (`mspose ablate --quick`)."""
        return bool(self.metrics.get("quick"))

    @property
    def is_baseline(self) -> bool:
        """True of the runs of `mspose baselines`."""
        return self.variant.startswith("baseline-")

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, commit, machine and model behind the metrics; {} if unknown."""
        found = self.metrics.get("provenance")
        return found if isinstance(found, dict) else {}

    @property
    def config_hash(self) -> str | None:
        """Hash of the settings that the evaluated model was trained with; None if unknown."""
        model = self.provenance.get("model")
        return model.get("config_hash") if isinstance(model, dict) else None

    def predictions(self, split: str | None = None) -> pd.DataFrame:
        """Poses, scenes and errors of the frames of a split, see `mspose.metrics.read_predictions`.

        split: `test`, `train`, ...; by default the run's `split`.
        """
        path = self._predictions_path(split or self.split)
        if not path.is_file():
            splits = sorted(file.stem for file in path.parent.glob("*.csv"))
            there = f"; there are predictions of: {', '.join(splits)}" if splits else ""
            raise MsposeError(
                f"{self.folder} has no {path.relative_to(self.folder)}: run `mspose evaluate`"
                f" first{there}"
            )
        metrics_file = Run(self.folder, split or self.split).metrics_file
        if metrics_file.is_file():
            stated = read_metrics(metrics_file).get(PREDICTIONS_CHECKSUM)
            if stated not in (None, checksum(read_bytes(path))):
                raise MsposeError(
                    f"{path} is not the file that {metrics_file.name} was computed from: run"
                    " `mspose evaluate` again"
                )
        return read_predictions(path)

    def _predictions_path(self, split: str) -> Path:
        if self.metrics_file.is_file() and self.experiment == EXTERNAL:
            return self.folder / Path(str(self.provenance.get("predictions"))).name
        return Run(self.folder, split).predictions_file

    @cached_property
    def about(self) -> dict[str, Any]:
        """Data set, ground truth, split and model of the predictions; {} where none is stated."""
        beside = self.predictions_file.with_suffix(".json")
        found = read_json(beside) if beside.exists() else {}
        return found if isinstance(found, dict) else {}

    @property
    def frames_file(self) -> Path:
        """File that `frames` reads: the predictions, or the errors of a record without poses."""
        path = self._predictions_path(self.split)
        if self.split == "test" and not path.is_file() and self.errors_file.is_file():
            return self.errors_file
        return path

    @cached_property
    def frames(self) -> pd.DataFrame:
        """Predictions of `split`; of a record, image, scene and errors alone."""
        if self.frames_file == self.errors_file:
            return read_errors(self.errors_file)
        return self.predictions()

    @property
    def has_errors(self) -> bool:
        """True where there is a file of the frames' errors."""
        return self.frames_file.is_file()

    @property
    def has_poses(self) -> bool:
        """False of a record, which keeps errors alone."""
        return self.frames_file != self.errors_file

    def errors(self) -> pd.DataFrame:
        """Image, scene, `position_error_m` and `orientation_error_deg` of every frame."""
        return self.frames[["image", "scene", *ERROR_COLUMNS]]

    def scalars(self) -> pd.DataFrame:
        """TensorBoard scalars of the training: a column per tag, indexed by step (from 0).

        NaN where a tag was not logged; empty without a log. Steps that an interrupted process
        logged and a later one repeated have the later value.
        """
        if not any(self.folder.glob(EVENTS)):
            return pd.DataFrame()
        # TensorBoard takes seconds to import
        from tensorboard.backend.event_processing.event_accumulator import (
            IMAGES,
            SCALARS,
            EventAccumulator,
        )

        log = EventAccumulator(str(self.folder), size_guidance={SCALARS: 0, IMAGES: 1})
        log.Reload()
        columns = {
            tag: pd.Series({event.step: event.value for event in log.Scalars(tag)}, dtype=float)
            for tag in log.Tags()[SCALARS]
        }
        return pd.DataFrame(columns).sort_index()


def find_runs(paths: Iterable[Path | str], *, other_splits: bool = False) -> list[Run]:
    """Find the evaluated runs: each path that is one, and those below any other folder.

    Hidden folders are left out. With `other_splits` every evaluation of a run is a Run of its own.
    A path may also be a metrics file. Raises MsposeError for a path without any, and without paths.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        files = _metrics_files(path, other_splits)
        if not files:
            raise MsposeError(
                f"no {METRICS} in {path} or below it; run `make train` first, or name folders of"
                " runs"
            )
        for file in files:
            split = "test" if file.name == METRICS else file.stem.removeprefix("metrics-")
            found.setdefault(file.resolve(), Run(file.parent, split))
    if not found:
        raise MsposeError("no runs: name folders of runs, such as `runs`; `make train` makes one")
    return list(found.values())


def _metrics_files(folder: Path, other_splits: bool) -> list[Path]:
    if folder.is_file():
        return [folder] if folder.match(METRICS) or folder.match("metrics-*.json") else []
    search = folder.glob if (folder / METRICS).is_file() else folder.rglob
    patterns = (METRICS, "metrics-*.json") if other_splits else (METRICS,)
    return [
        file
        for file in sorted(file for pattern in patterns for file in search(pattern))
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


@contextmanager
def one_training(run: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder until the block ends.

    Raises MsposeError where one is at it, and where the folder cannot be written.
    """
    refusal = f"{run}: another process trains this run; to train beside it, choose a --variant"
    with ExitStack() as held:
        try:
            held.enter_context(locked(run / LOCK, refusal=refusal))
        except OSError as error:
            raise MsposeError(f"cannot write into {run}: {error.strerror or error}") from error
        yield


def save_checkpoint(run: Path, state: Mapping[str, Any]) -> None:
    """Write `checkpoint.pt` of plain values and tensors; the one before survives any failure."""
    import torch  # here and below: it takes seconds to load, and tables need none

    with whole_file(run / CHECKPOINT, "wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # torch's zip writer, whose message hides the disk's
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """Read what `save_checkpoint` wrote, onto the CPU; None where there is none.

    Raises MsposeError where a part of it does not have its checksum in the file.
    """
    path = run / CHECKPOINT
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as parts:  # torch writes the checksums, and compares none
            damaged = parts.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        damaged = str(error)
    if damaged:
        raise MsposeError(f"{path} is damaged ({damaged}): remove it to train this run anew")
    return dict(read_tensors(path))


def save_model(run: Path, weights: Mapping[str, "Tensor"], description: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, then `model.json`: architecture, scenes, preprocessing, data, and
    checksums of the weights and of itself.
    """

    from safetensors.torch import save

    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    data = save(plain)
    content = {"format": MODEL_FORMAT, **description, WEIGHTS_CHECKSUM: checksum(data)}
    text = json.dumps(with_checksum(content), indent=2)
    with whole_file(run / WEIGHTS, "wb") as file:
        file.write(data)
    with whole_file(run / MODEL) as file:
        file.write(text + "\n")


def load_model(run: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Read (weights, description). Raises MsposeError naming what is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    for path in (run / MODEL, run / WEIGHTS):
        if not path.is_file():
            raise MsposeError(
                f"{run} holds no model ({path.name} is missing): give the folder of a trained run"
            )
    description = read_description(run)
    data = read_bytes(run / WEIGHTS)
    if description.pop(WEIGHTS_CHECKSUM, None) not in (None, checksum(data)):
        raise MsposeError(
            f"{run / WEIGHTS} is damaged, or not the one that {MODEL} describes, as after a kill"
            " between the two: train the run again, which goes on from its checkpoint"
        )
    try:
        return load(data), description
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise MsposeError(f"{run / WEIGHTS} is broken: {error}") from error


def read_description(run: Path) -> dict[str, Any]:
    """Read `model.json`. Raises MsposeError where it is missing, broken or of another format."""
    description = read_json(run / MODEL)
    try:
        found = description["format"]
    except (KeyError, TypeError) as error:
        raise MsposeError(f"{run / MODEL} is not a model description written by mspose") from error
    if found != MODEL_FORMAT:
        raise MsposeError(
            f"{run / MODEL}: format {found} is not {MODEL_FORMAT}, which this version reads"
        )
    return description


def _checked_study(study: Any) -> dict[str, Any]:
    """Return the content in the present format.

    Raises ValueError, TypeError, KeyError or AttributeError for anything that plots and tables
    could not read.
    """
    if study.get("format") not in (1, 2, ATTENTION_FORMAT):
        found = study.get("format", "missing")
        raise ValueError(f"format is {found!r}, expected {ATTENTION_FORMAT}")
    _check_types(study, str, "experiment", "variant", "dataset", "split")
    _check_types(study, int, "seed", "frames", "neighbours")
    _check_types(study, bool, "quick")
    if study["format"] < ATTENTION_FORMAT:
        study = _modernised(study)
    _check_types(study, str, "start")
    for layer in study["layers"]:
        for values in (layer, *layer["heads"]):
            _check_types(values, float, *ATTENTION_MEASURES)
        _check_types(layer, int, "layer", "tokens")
        _check_types(layer, float, "entropy_limit")
        _check_words(layer, VERDICTS)
        if layer["token_similarity"] is not None:
            _check_types(layer["token_similarity"], float, "before", "after")
        histogram = layer["purity_histogram"]
        _check_curves(histogram["edges"][1:], *histogram["share"])
        if len(histogram["share"]) != len(layer["heads"]):
            raise ValueError("purity_histogram does not have a share for every head")
    if not study["layers"]:
        raise ValueError("there are no layers")
    for layer in study["decoder"]:
        _check_types(layer, int, "layer", "tokens")
        for values in (layer, *layer["scenes"]):
            _check_types(values, float, "entropy")
            _check_words({**layer, **values}, (*VERDICTS, None))
            if values["similarity"] is not None:
                _check_types(values, float, "similarity")
        _check_types(layer, float, "entropy_limit")
    for layer in (*study["layers"], *study["decoder"]):
        if layer["start"] is not None:
            _check_types(layer["start"], float, "entropy")
    for profile in study["encoding"].values():
        _check_curves(profile["grid_distance"], profile["token_distance"])
    if (training := study.get("training")) is not None:
        _check_types(training, int, "steps_per_epoch")
        _check_curves(training["step"], *training["query_key_gap"].values())
    if (knock_out := study["knock_out"]) is not None:
        _check_types(knock_out, int, "frames")
        for row in knock_out["rows"]:
            _check_types(row, str, "branch", "by")
            _check_words({**row, "branch": BRANCHES[0]}, WORTH)
            for error in ("position_m", "orientation_deg"):
                _check_types(row[error], float, "median", "difference", "low", "high")
    return study


def _modernised(study: Any) -> dict[str, Any]:
    """Return a study of an older format in the present one."""
    old = study.get("thresholds") or {}
    thresholds = Thresholds(
        float(old.get("spread", DEFAULT.uniform)), float(old.get("similar", DEFAULT.similar))
    )
    layers = []
    for layer in study["layers"]:
        layer = {**layer, "heads": [dict(head) for head in layer["heads"]]}
        for values in (layer, *layer["heads"]):
            if "gap" in values:
                values["query_key_gap"] = values.pop("gap")
        _check_types(layer, float, "entropy", "similarity", "entropy_limit")
        measured = layer["entropy"], layer["similarity"], layer["entropy_limit"]
        layer["verdict"] = verdict(*measured, thresholds)
        layers.append({**layer, "start": None, "token_similarity": None, "worth": None})
    return {
        **study,
        "format": ATTENTION_FORMAT,
        "thresholds": thresholds._asdict(),
        "layers": layers,
        "decoder": [],
        "start": "unknown: studied by an older version",
        "knock_out": None,
    }


def _check_words(layer: Mapping[str, Any], verdicts: Sequence[str | None]) -> None:
    if layer["branch"] not in BRANCHES or layer.get("verdict", layer.get("worth")) not in verdicts:
        raise ValueError(f"unknown branch or word: {layer['branch']}, {layer.get('verdict')}")


def _check_types(values: Mapping[str, Any], kind: type, *names: str) -> None:
    for name in names:
        found = values[name]
        fits = isinstance(found, kind) and (kind is bool or not isinstance(found, bool))
        if kind is float:
            fits = isinstance(found, int | float) and math.isfinite(found)
        if not fits:
            raise ValueError(f"{name} is {found!r}, expected {kind.__name__}")


def _check_curves(x: Sequence[float], *curves: Sequence[float]) -> None:
    for curve in curves:
        if len(curve) != len(x) or not all(map(math.isfinite, (*x, *curve))):
            raise ValueError(f"expected {len(x)} finite numbers, found {curve!r:.40}")
