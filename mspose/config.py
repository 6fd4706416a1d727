"""Settings: frozen dataclasses whose field docstrings are the `--help`, and how they are read,
checked and stored.

An experiment file (`--config experiments/7scenes.yaml`) sets some fields, the command line
overrides it, and the run's folder keeps the resolved whole in `config.yaml`. Constructors elsewhere
take plain values, never these objects.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypeVar, get_args

import jsonargparse
import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
)

from mspose.errors import MsposeError
from mspose.files import read_bytes, whole_file
from mspose.resources import experiment_file
from mspose.verdict import Thresholds

T = TypeVar("T")
BRANCHES = ("position", "orientation")
"""The two branches of a network with attention, which regress one part of a pose each."""
PLAIN_TAGS = ("map", "seq", "str", "int", "float", "bool", "null")
"""Kinds of values in YAML files that are read."""
MOST_VALUES = 100_000
"""Values in a YAML file."""
set_parsing_settings(docstring_parse_attribute_docstrings=True)
if TYPE_CHECKING:
    HalfTurn = float
    Layers = int
    LayersOrNone = int
    Pixels = int
    Width = int
else:
    # far more than anyone has used: what is meant is another number
    Layers = restricted_number_type("Layers", int, [(">=", 1), ("<=", 256)])
    LayersOrNone = restricted_number_type("LayersOrNone", int, [(">=", 0), ("<=", 256)])
    Pixels = restricted_number_type("Pixels", int, [(">=", 1), ("<=", 16384)])
    Width = restricted_number_type("Width", int, [(">=", 1), ("<=", 65536)])
    HalfTurn = restricted_number_type(
        "HalfTurn", float, [(">=", 0), ("<=", 0.5)], docstring="between 0 and 0.5"
    )


@dataclass(frozen=True)
class DataSettings:
    """Frames to use, and the preparation of images for the network."""

    dataset: str = "virtual"
    """Name of a card in `datasets/`, or the path of a card of your own."""
    root: str | None = None
    """Folder that holds the scenes; by default the one that the card names."""
    version: PositiveInt | None = None
    """Version of a rendered data set (format `virtual`); set by training, which renders no other
    than its own."""
    scenes: list[str] = field(default_factory=list)
    """Scenes to use; empty: all of the data set."""
    frames_per_scene: NonNegativeInt = 0
    """Frames of each scene and split to use, evenly spread; 0: all."""
    ground_truth: str | None = None
    """Which poses, where a data set has several (7Scenes: `original` or `sfm`); by default the
    card's first."""
    labels: list[str] = field(default_factory=list)
    """Label files to read in place of the data set's own (MST/ActMST label CSVs, or 7Scenes' sfm
    text files)."""
    holdout: ClosedUnitInterval = 0.0
    """Share of each training sequence, in one contiguous block, kept from training to watch
    held-out errors."""
    resize: Pixels = 256
    """Length in pixels that the short side of an image is resized to."""
    crop: Pixels = 224
    """Side in pixels of the square crop that the network sees: random in augmented training, else
    the centre."""
    cache: str = "datasets/.cache"
    """Folder for the decoded, resized frames (one byte per value, read through a memory map)."""
    cache_on_device: bool = False
    """Hold all training frames in the memory of the training device (7Scenes at 256 pixels: 6.8
    GB)."""

    def source(self) -> dict[str, Any]:
        """Sources of frames and labels, as arguments of `mspose.data.cache.open_split`."""
        names = ("root", "scenes", "frames_per_scene", "ground_truth", "labels")
        return {"folder": self.cache, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class ModelSettings:
    """The network (MS-Transformer; Shavit et al., ICCV 2021), and what may be changed in its
    attention.
    """

    kind: Literal["ms-transformer", "mspn"] = "ms-transformer"
    """`ms-transformer`, or the baseline `mspn`: backbone, scene classifier, a linear pose head per
    scene (MSPN; Blanton et al., CVPR Workshops 2020), which has no attention and leaves the
    transformers' settings aside."""
    backbone: str = "efficientnet_b0"
    """`efficientnet_b0` (torchvision, downloads its weights), `efficientnet_lite0` (weights from an
    installed package), or any timm model with feature maps of stride 8 and 16, such as
    `tf_efficientnet_b0`."""
    pretrained: bool = True
    """Start the backbone from ImageNet weights."""
    dim: Width = 256
    """Width of the tokens."""
    heads: Width = 8
    """Attention heads."""
    feedforward: Width = 256
    """Width of the feed-forward layers."""
    dropout: ClosedUnitInterval = 0.1
    """Dropout of the residual branches and feed-forward layers; in `mspn`, of the hidden layer."""
    attention_dropout: ClosedUnitInterval = 0.1
    """Dropout of the attention weights."""
    position_encoder_layers: LayersOrNone = 6
    """Encoder layers of the position branch; 0 removes its encoder self-attention."""
    position_decoder_layers: Layers = 6
    """Decoder layers of the position branch."""
    orientation_encoder_layers: LayersOrNone = 6
    """Encoder layers of the orientation branch; 0 removes its encoder self-attention."""
    orientation_decoder_layers: Layers = 6
    """Decoder layers of the orientation branch."""
    position_encoding: str = "sine"
    """Encoding of token positions: `learned`, `sine`, `sine-normalized`: MST's learned tables,
    ActMST's fixed sine, or DETR's sine normalised to 2 pi; or, in the encoders alone (the decoders'
    keys then have the fixed sine): 2-D `rotary`, T5's `relative-bias`, or `none`."""
    query_key_weights: Literal["plain", "spectral-norm", "sigma-reparam"] = "plain"
    """Weights of the encoders' query and key projections: as they are, or under ViTGAN's improved
    spectral normalisation or sigmaReparam."""
    attention_scale: Literal["head-dim", "tokens"] = "head-dim"
    """Scores of the encoders' self-attention are divided by the root of a head's channels, or of
    the number of tokens."""
    query_initialisation: Literal["normal", "orthogonal"] = "normal"
    """Initial values of the decoders' scene queries."""
    head_hidden: Width = 1024
    """Hidden width of the two regressor heads; in `mspn`, of the layer before all heads."""


@dataclass(frozen=True)
class LossSettings:
    """The objective: pose terms under learned or fixed weights, scene, and query-key alignment
    (QKA).
    """

    weighting: Literal["learned", "fixed"] = "learned"
    """`learned`: L exp(-s) + s with a learned log-variance s of each pose term (Kendall and Cipolla
    2017); `fixed`: the two weights below."""
    s_position: float = 0.0
    """Start of the learned log-variance of the position term."""
    s_orientation: float = -3.0
    """Start of the learned log-variance of the orientation term."""
    position_weight: NonNegativeFloat = 1.0
    """Weight of the position term under `fixed`."""
    orientation_weight: NonNegativeFloat = 1.0
    """Weight of the orientation term under `fixed`."""
    scene_weight: NonNegativeFloat = 1.0
    """Weight of the scene classification term."""
    qka_weight: NonNegativeFloat = 0.1
    """Weight of query-key alignment (ActMST's lambda); 0: no term of the loss."""
    entropy_weight: float = 0.0
    """Weight of the encoders' attention entropy, as a share of its limit log(tokens); above 0 it
    holds attention together, below 0 it spreads it; 0: the term is not computed."""
    diversity_weight: NonNegativeFloat = 0.0
    """Weight of the mean cosine similarity of different queries' attention in the encoders; 0: the
    term is not computed."""
    regularisers: dict[str, float] = field(default_factory=dict)
    """Weights of further terms of the encoders' attention, by their names in
    `mspose.losses.REGULARISERS`."""


@dataclass(frozen=True)
class AugmentationSettings:
    """Random changes of the training images."""

    enabled: bool = True
    """Random crop and colour jitter; off: the centre crop alone, as in evaluation."""
    crop_reach: ClosedUnitInterval = 1.0
    """Share of all possible crops, around the centre, that random crops are drawn from: 1 in the
    papers, 0 the centre alone."""
    crop_label: Literal["kept", "turned"] = "kept"
    """Orientation label of a random crop: `kept` as in the papers, though a crop off the
    centre has another direction of view, or `turned` with it, to that of a camera aimed at the
    crop's centre (needs the focal length)."""
    brightness: ClosedUnitInterval = 0.5
    """Brightness factor drawn from 1 - b to 1 + b."""
    contrast: ClosedUnitInterval = 0.5
    """Contrast factor drawn from 1 - c to 1 + c."""
    saturation: ClosedUnitInterval = 0.5
    """Saturation factor drawn from 1 - s to 1 + s."""
    hue: HalfTurn = 0.2
    """Hue shift drawn from -h to h, in turns (0.5 is the opposite colour)."""
    cutout: ClosedUnitInterval = 0.0
    """Side, as a share of the crop's, of a square set to the mean colour about a random pixel
    (cut-out); 0: none."""
    blur: ClosedUnitInterval = 0.0
    """Share of the images that get a motion blur of 3 to 11 pixels in a random direction."""
    jpeg: ClosedUnitInterval = 0.0
    """Share of the images that are compressed as JPEG, with a quality from 30 to 95."""


@dataclass(frozen=True)
class TrainingSettings:
    """The loop."""

    epochs: PositiveInt = 30
    """Passes over the training frames."""
    batch_size: PositiveInt = 8
    """Images per optimisation step, over all processes."""
    learning_rate: PositiveFloat = 1e-4
    """Adam's learning rate (peak, under `cosine`)."""
    adam_eps: NonNegativeFloat = 1e-10
    """Adam's epsilon."""
    weight_decay: NonNegativeFloat = 1e-4
    """Adam's L2 weight decay."""
    schedule: Literal["step", "cosine"] = "step"
    """`step`: times `step_factor` every `step_epochs` epochs; `cosine`: linear warm-up, then half a
    cosine to zero."""
    step_epochs: PositiveInt = 10
    """Epochs between two steps of the `step` schedule."""
    step_factor: PositiveFloat = 0.1
    """Factor of the `step` schedule."""
    warmup: ClosedUnitInterval = 0.1
    """Share of all steps in which the learning rate grows to its peak, under `cosine` alone."""
    clip_gradient: NonNegativeFloat = 0.0
    """Largest norm of the gradient of all parameters; 0: not clipped."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the network's forward pass (autocast)."""
    compile: bool = False
    """Compile the network's forward pass (`torch.compile`), for GPUs; where that does not work, a
    message says so."""
    recompute_backbone: bool = False
    """Forget the backbone's activations and compute them again in the backward pass: a third less
    memory, for the time of one more forward pass of the backbone."""
    equalize_scenes: bool = False
    """Draw every scene until all have as many samples as the largest."""
    trains: Literal["all", "position-head"] = "all"
    """Weights that learn; the rest stays as it is, in evaluation mode and without gradients."""
    start_from: str | None = None
    """Run folder whose model is the start, in place of fresh weights (two-stage training)."""
    log_every: PositiveInt = 10
    """Steps between two entries of loss, gradient norm and speed in TensorBoard."""
    evaluate_every: PositiveInt = 1
    """Epochs between two evaluations of medians, recall, attention entropy and query-key gap; the
    last epoch always has one."""
    evaluate_frames: PositiveInt = 200
    """Largest number of frames, evenly spread, that such an evaluation takes of the training part
    and of the held-out part."""


@dataclass(frozen=True)
class AttentionSettings:
    """Words and measurements of a network's attention; none of it changes the training."""

    uniform: ClosedUnitInterval = 0.9
    """Attention entropy, as a share of its limit, from which on a layer's attention is called
    `uniform`."""
    similar: ClosedUnitInterval = 0.9
    """Mean cosine similarity of different queries' attention from which on, below that entropy, it
    is called `collapsed`."""
    knock_out: bool = False
    """In ablations: measure what the encoders' self-attention is worth (`mspose attention
    --knock-out`)."""

    @property
    def thresholds(self) -> Thresholds:
        """The two thresholds together."""
        return Thresholds(self.uniform, self.similar)


@dataclass(frozen=True)
class Settings:
    """One experiment."""

    experiment: str = "virtual"
    """Name of the experiment: the first folder under `runs`."""
    variant: str | None = None
    """Name of the variant: the second folder; by default `all`, or the scenes and the ground truth
    where chosen."""
    seed: NonNegativeInt = 0
    """Seed of weights, order, augmentation and dropout."""
    runs: str = "runs"
    """Folder of all runs."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    quick: bool = False
    """Marks a try at toy size, whose results share no table with real ones (set by `mspose ablate
    --quick`)."""
    on_bad_frame: Literal["stop", "skip"] = "stop"
    """A missing or broken image or pose file: stop and name it, or leave it out and report how
    many."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    attention: AttentionSettings = field(default_factory=AttentionSettings)

    def run_folder(self, default_ground_truth: str) -> Path:
        """`runs/<experiment>/<variant>/seed-<n>`."""
        variant = self.variant
        if variant is None:
            variant = "-".join(self.data.scenes) or "all"
            if self.data.ground_truth not in (None, default_ground_truth):
                variant += f"-{self.data.ground_truth}"
        return Path(self.runs) / self.experiment / variant / f"seed-{self.seed}"


@dataclass(frozen=True)
class SlurmSettings:
    """Resources that one cell of an ablation asks a Slurm cluster for (`--launcher slurm`)."""

    cluster: Literal["slurm", "local"] = "slurm"
    """`local`: submitit's own processes on this machine in place of a cluster, to try."""
    partition: str | None = None
    """Partition of the cluster; by default the cluster's own choice."""
    minutes: PositiveInt = 1440
    """Time limit of a job; one that reaches it saves and is queued again, three times at most."""
    gpus: NonNegativeInt = 1
    """GPUs of a job."""
    cpus: PositiveInt = 8
    """CPU cores of a job."""
    memory_gb: PositiveInt = 32
    """Memory of a job in GB."""


class Overrides(dict[str, Any]):
    """Settings that were given on the command line, by dotted name, without the defaults."""


PLACES = (
    "runs",
    "device",
    "data.root",
    "data.cache",
    "data.cache_on_device",
    "training.compile",
    "training.recompute_backbone",
    "attention.uniform",
    "attention.similar",
    "attention.knock_out",
    "training.log_every",
)
"""Settings that may differ between two starts of one run: paths, devices, logging and what is
measured beside the training, not mathematics."""
ADDED_LATER = (
    ("data.version", None),
    ("augmentation.blur", 0.0),
    ("augmentation.jpeg", 0.0),
)
"""Settings that `config_hash` leaves out at these defaults, so that models made before the settings
existed keep their hash."""


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of nested settings, dataclass or dict."""
    tree = (
        asdict(settings)
        if dataclasses.is_dataclass(settings) and not isinstance(settings, type)
        else settings
    )
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat


def differences(old: Settings, new: Settings) -> list[str]:
    """`name: old -> new` of every setting that makes another run."""
    before, after = flatten(old), flatten(new)
    names = [name for name in before | after if name not in PLACES]
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def config_hash(settings: Settings) -> str:
    """Twelve hexadecimal digits that stand for everything but places and devices."""
    kept = {
        name: value
        for name, value in flatten(settings).items()
        if name not in PLACES and (name, value) not in ADDED_LATER
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def write_settings(path: Path, settings: Settings) -> None:
    """Write the resolved settings as YAML."""
    with whole_file(path) as file:
        yaml.safe_dump(asdict(settings), file, sort_keys=False)


def dashed(name: str) -> str:
    """An option's name as people type it: `on-bad-frame`. Settings keep theirs: `model.dim`."""
    return name if "." in name else name.replace("_", "-")


class Parser(ArgumentParser):
    """A parser of jsonargparse that raises MsposeError, in one line and with the nearest names that
    exist, where jsonargparse would exit.
    """

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        return self._in_one_line(super().parse_args, *arguments, **options)

    def parse_object(self, *arguments: Any, **options: Any) -> Any:
        return self._in_one_line(super().parse_object, *arguments, **options)

    def _in_one_line(self, parse: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return parse(*arguments, **options)
        except MsposeError:
            raise
        except Exception as error:  # of many kinds, for values that nobody thought of
            self.error(f"cannot read the settings: {type(error).__name__}: {error}")

    def format_help(self, *arguments: Any, **options: Any) -> str:
        """The help, in which commands' options have dashes and classes their names alone."""
        text = re.sub(r"<class\s+'(\w+)'>", r"\1", super().format_help(*arguments, **options))
        return re.sub(r"--(\w+)(?![\w.])", lambda found: f"--{dashed(found[1])}", text)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        message = re.sub(r"<class '(\w+)'>|typing\.(\w+)", r"\1\2", " ".join(message.split()))
        raise MsposeError(message.removeprefix("Parser ") + self._names_that_exist(message))

    def _names_that_exist(self, message: str) -> str:
        found = re.search(
            r"nrecognized arguments: -*(?P<name>[\w.\-]+)"
            r"|(?:Group '(?P<group>[^']+)' does not accept o|O)ption '(?P<option>[^']+)'",
            message,
        )
        if found is None or message.startswith("Parser key"):  # whose message has the names
            return ""
        parts = found["group"], found["name"] or found["option"]
        unknown = ".".join(filter(None, parts)).replace("-", "_")
        hidden = {"h", "print_config", "print_shtab", "==SUPPRESS=="}
        options = [action.option_strings or [action.dest] for action in self._actions]
        names = {words[0].lstrip("-") for words in options} - hidden
        leaves = [name for name in names if not any(n.startswith(f"{name}.") for n in names)]
        group = unknown.rpartition(".")[0]
        listed = {name for name in leaves if group and name.startswith(f"{group}.")} or {
            re.sub(r"\..*", ".*", name) for name in leaves
        }
        close = nearest_names(unknown, leaves)
        meant = f"did you mean {' or '.join(map(dashed, close))}? " if close else ""
        return f"; {meant}names that exist: {', '.join(sorted(map(dashed, listed)))}"


def nearest_names(unknown: str, names: Iterable[str]) -> list[str]:
    """The names, three at most, that a misspelt one is most like: as a whole, or in their last
    components, in whatever group, so that `model.qka` is near to `loss.qka_weight`.
    """
    last = unknown.rpartition(".")[2]
    likeness = {}
    for name in names:
        other = name.rpartition(".")[2]
        as_whole = difflib.SequenceMatcher(None, unknown, name).ratio()
        by_last = difflib.SequenceMatcher(None, last, other).ratio()
        if last in other.split("_"):
            by_last = max(by_last, 0.9)
        likeness[name] = (max(as_whole, by_last), as_whole)
    best = max(likeness.values(), default=(0.0, 0.0))[0]
    close = [name for name, (like, _) in likeness.items() if like >= max(0.65, best - 0.05)]
    return sorted(close, key=lambda name: likeness[name], reverse=True)[:3]


class _ExperimentFile(jsonargparse.ActionConfigFile):  # type: ignore[name-defined]
    """`--config`: the path of an experiment file, or its name."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        plain = _load_yaml(experiment_file(values), "an experiment")
        text = json.dumps(plain, ensure_ascii=False)  # which jsonargparse reads in the same way
        super().__call__(parser, cfg, text, option_string)


def settings_parser(**options: Any) -> Parser:
    """A parser of `Settings` with `--config FILE`; the caller adds its own arguments."""
    parser = Parser(**options)
    parser.add_argument(
        "--config",
        action=_ExperimentFile,
        help="experiment: a YAML file, or its name in experiments/; what follows overrides it",
    )
    parser.add_class_arguments(Settings, None, fail_untyped=True)
    return parser


def to_settings(parsed: Namespace, parser: ArgumentParser) -> Settings:
    """The frozen dataclasses of what was parsed, with plain Python numbers.

    Raises MsposeError for a group that is not a mapping, a number that is not finite, or a name
    that cannot be a folder's.
    """
    for item in dataclasses.fields(Settings):
        is_group = dataclasses.is_dataclass(getattr(Settings(), item.name))
        if is_group and not isinstance(parsed.get(item.name), Namespace):
            raise MsposeError(
                f"{item.name} is {parsed.get(item.name)!r}, expected settings by name, as"
                " `mspose train --help` lists them"
            )
    settings = _instantiate(parser, parsed, Settings)
    flat = flatten(settings)
    for name, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise MsposeError(f"{name} {value} is not a finite number")
    for name in ("experiment", "variant"):
        if flat[name] is not None and re.fullmatch(r"[\w+][\w.+=-]*", flat[name]) is None:
            raise MsposeError(
                f"{name} {flat[name]!r} is not a plain name (letters, digits, - _ . + =)"
            )
    if settings.seed >= 2**63:
        raise MsposeError(f"seed {settings.seed} is too large: choose one below 2**63")
    return settings


def _instantiate(parser: ArgumentParser, parsed: Namespace, kind: type[T]) -> T:
    try:
        objects = parser.instantiate_classes(parsed)
        names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
        return _plain(kind(**{name: objects[name] for name in names}))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MsposeError(
            f"the settings do not fit together: {' '.join(str(error).split())}"
        ) from error


def _plain(value: Any) -> Any:
    """The value without jsonargparse's restricted number classes, which YAML does not write.

    Raises TypeError for a null where a field takes none, which jsonargparse lets pass.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        for item in dataclasses.fields(value):
            if fields[item.name] is None and NoneType not in get_args(item.type):
                raise TypeError(f"{item.name} is null, and cannot be")
        return type(value)(**{name: _plain(field) for name, field in fields.items()})
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def read_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a YAML file, then command-line style overrides such as `--seed=1`.

    Raises MsposeError for a missing file, a misspelt key (with the nearest that exist) or a value
    of the wrong kind.
    """
    if not Path(path).is_file():
        raise MsposeError(f"no such settings file: {path}")
    parser = _parser_of_changes()
    return to_settings(parser.parse_args([f"--config={path}", *overrides]), parser)


@cache
def _parser_of_changes() -> ArgumentParser:
    return settings_parser(prog="mspose")


def changed_settings(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with some changed, by dotted name as `flatten` gives them.

    Raises MsposeError for a name that does not exist (with the nearest that do) or a value of the
    wrong kind.
    """
    parser = _parser_of_changes()
    tree, known = asdict(settings), flatten(settings)
    for name, value in changes.items():
        if name not in known:
            parser.error(f"Option '{name}' is not accepted")
        group, _, leaf = name.rpartition(".")
        (tree[group] if group else tree)[leaf] = value
    return to_settings(parser.parse_object(tree), parser)


class _PlainYaml(yaml.SafeLoader):
    """Reads mappings, lists, text, numbers, true, false and null, and no dates or tags of others.

    Refuses a key that is there twice, of which YAML would silently keep the last.
    """

    yaml_constructors: ClassVar = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in PLAIN_TAGS
    }
    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        start: [rule for rule in rules if rule[0].rpartition(":")[2] in (*PLAIN_TAGS, "merge")]
        for start, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (name := key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} is there twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


_PlainYaml.add_implicit_resolver(  # 1e-4, which YAML 1.1 takes for text
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _load_yaml(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file; `what` it is to be, as in "a card".

    Raises MsposeError where it cannot be read, is not a mapping, has a key twice, holds anything
    but plain values, or more than `MOST_VALUES` of them.
    """
    try:
        values = yaml.load(read_bytes(path).decode("utf-8-sig"), _PlainYaml)
        _refuse_odd(values)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise MsposeError(f"{path} is not YAML that can be read: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise MsposeError(
            f"{path} is not {what}: expected lines `name: value`, found {values!r:.60}"
        )
    return values


def _refuse_odd(values: Any) -> None:
    """Raise ValueError for a NUL in a text, and for too many values, which aliases can make endless
    or very many.
    """
    waiting, count = [values], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES} values, or one that holds itself")
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and "\0" in value:
            raise ValueError(f"{value!r} holds a NUL character")


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file, without those that are left empty, see `_load_yaml`."""
    values = _load_yaml(path, what)
    return {name: value for name, value in values.items() if value is not None}


@cache
def _parser_of(kind: type[Any]) -> ArgumentParser:
    parser = Parser(prog="mspose")
    parser.add_class_arguments(kind, None, fail_untyped=True)
    return parser


def read_dataclass(kind: type[T], values: Mapping[str, Any], path: Path) -> T:
    """The dataclass `kind` of the values of the file `path`, checked against its fields' types.

    Raises MsposeError with the file, the key and what is expected.
    """
    parser = _parser_of(kind)  # type: ignore[arg-type]
    try:
        return _instantiate(parser, parser.parse_object(dict(values)), kind)
    except MsposeError as error:
        raise MsposeError(f"{path}: {error}") from error
