"""From a checkpoint of the released MS-Transformer or ActMST code to this network. Nothing is
unpickled into code.

The architecture is read off the tensors, except for what leaves no trace in them: 8 attention heads
(both releases ran 8) and dropout 0.1. The backbone is EfficientNet-B0 in TensorFlow style, timm's
`tf_efficientnet_b0`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mspose.errors import MsposeError
from mspose.files import read_tensors
from mspose.models.backbone import EFFICIENTNET_B0_NAMES
from mspose.models.mstransformer import MSTransformer

HEADS = 8
SCENES_BY_COUNT = {
    7: ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs"),
    4: ("KingsCollege", "OldHospital", "ShopFacade", "StMarysChurch"),
}
_WRAPPERS = ("model_state_dict", "state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(eq=False)
class Converted:
    """A released checkpoint as this network's.

    Attributes:
        architecture: arguments of `MSTransformer` (without `pretrained`).
        state_dict: its tensors, in the dtypes of the checkpoint.
        dropped: names of the checkpoint's tensors that nothing reads: later backbone blocks and the
            classifier.
    """

    architecture: dict[str, Any]
    state_dict: dict[str, Tensor]
    dropped: list[str]


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file (`.pth` or the like, or `.safetensors`), by name.

    A state dict inside another dict (`model_state_dict`, `state_dict`, `model`, ...) is taken out,
    and a `module.` (or `_orig_mod.`, `model.`) before every name is removed.

    Raises:
        MsposeError: the file is missing, corrupt, holds no state dict, or would need unpickling
            code.
    """
    return _state_dict_in(read_tensors(Path(path)), Path(path))


def convert_released(
    state: Mapping[str, Tensor], *, scenes: Sequence[str] | None = None
) -> Converted:
    """Turn a state dict of the released code into this network's.

    Args:
        state: as `read_released` returns it.
        scenes: names of its scenes in the order of their indices; by default the sorted names of
            7Scenes (7 scenes) or of Cambridge Landmarks as published (4).

    Raises:
        MsposeError: tensors are missing, odd-shaped, not finite or unknown (named), or the scenes'
            names do not fit.
    """
    architecture = _architecture(state, scenes)
    try:
        network = MSTransformer(**architecture, pretrained=False)
    except MsposeError as error:
        raise MsposeError(f"the checkpoint's sizes do not make a network: {error}") from error
    own = network.state_dict()
    released_names = {name: _released_name(name) for name in own}

    converted, missing, odd, not_finite = {}, [], [], []
    for name, released in released_names.items():
        if released not in state:
            missing.append(released)
            continue
        tensor = state[released]
        expected = tuple(own[name].shape)
        if name.endswith("project.weight"):  # released as a 1x1 convolution
            expected += (1, 1)
        if tuple(tensor.shape) != expected:
            odd.append(f"{released} {tuple(tensor.shape)} instead of {expected}")
        elif tensor.is_floating_point() != own[name].is_floating_point():
            odd.append(f"{released} of {tensor.dtype}")
        elif not bool(torch.isfinite(tensor).all()):
            not_finite.append(released)
        else:
            converted[name] = tensor.reshape(own[name].shape).contiguous()

    read = set(released_names.values())
    dropped = [name for name in state if name not in read and _is_unused(name)]
    unknown = [name for name in state if name not in read and not _is_unused(name)]
    complaints = [
        f"{what}: {_shortened(names)}"
        for what, names in (
            ("missing", missing), ("odd-shaped", odd), ("not finite", not_finite), ("unknown", unknown)
        )
        if names
    ]  # fmt: skip
    if complaints:
        raise MsposeError(
            "not a checkpoint of the released MS-Transformer or ActMST code with an EfficientNet-B0"
            " backbone: " + "; ".join([*_other_backbone(state), *complaints])
        )
    return Converted(architecture, converted, dropped)


def _state_dict_in(loaded: object, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(loaded, Mapping):
            break
        inner = [loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, Mapping) or not loaded:
        raise MsposeError(
            f"{path}: expected a state dict (names and tensors), found {type(loaded).__name__}"
        )
    others = [
        str(key)
        for key, value in loaded.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if others:
        raise MsposeError(
            f"{path}: expected a state dict, but these are not named tensors: {_shortened(others)}"
        )
    state = dict(loaded)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _architecture(state: Mapping[str, Tensor], scenes: Sequence[str] | None) -> dict[str, Any]:
    scene_count = _size(state, ("query_embed_t.weight", 0), ("query_embed_rot.weight", 0))
    dim = _size(
        state,
        ("query_embed_t.weight", 1),
        ("input_proj_t.bias", 0),
        ("input_proj_rot.bias", 0),
        ("transformer_t.decoder.norm.weight", 0),
        ("transformer_rot.decoder.norm.weight", 0),
    )
    head_hidden = _size(
        state,
        ("regressor_head_t.fc_h.bias", 0),
        ("regressor_head_rot.fc_h.bias", 0),
        ("regressor_head_t.fc_o.weight", 1),
    )
    layer = "transformer_t.decoder.layers.0"
    feedforward = _size(
        state,
        (f"{layer}.linear1.bias", 0),
        (f"{layer}.linear1.weight", 0),
        (f"{layer}.linear2.weight", 1),
    )
    learned = any(name.startswith("backbone.1.") for name in state)
    return {
        "scenes": _scene_names(state, scene_count, scenes),
        "backbone": "tf_efficientnet_b0",
        "dim": dim,
        "heads": HEADS,
        "feedforward": feedforward,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "position_encoder_layers": _layers(state, "transformer_t.encoder"),
        "position_decoder_layers": _layers(state, "transformer_t.decoder"),
        "orientation_encoder_layers": _layers(state, "transformer_rot.encoder"),
        "orientation_decoder_layers": _layers(state, "transformer_rot.decoder"),
        "position_encoding": "learned" if learned else "sine",
        "head_hidden": head_hidden,
    }


def _size(state: Mapping[str, Tensor], *places: tuple[str, int]) -> int:
    """The size that most of the (tensor, axis) places have, so that one odd tensor is named as odd,
    not the others.
    """
    sizes = [
        state[name].shape[axis]
        for name, axis in places
        if name in state and state[name].dim() > axis
    ]
    if not sizes:
        names = dict.fromkeys(name for name, _ in places)
        raise MsposeError(
            "not a checkpoint of the released MS-Transformer or ActMST code: it has no usable"
            f" {', '.join(names)}"
        )
    return Counter(sizes).most_common(1)[0][0]


def _layers(state: Mapping[str, Tensor], stack: str) -> int:
    pattern = re.compile(re.escape(stack) + r"\.layers\.(\d{1,2})\.")
    numbers = {int(found[1]) for name in state if (found := pattern.match(name))}
    return max(numbers, default=-1) + 1


def _scene_names(
    state: Mapping[str, Tensor], count: int, scenes: Sequence[str] | None
) -> list[str]:
    counts = {
        name: state[name].shape[0]
        for name in ("query_embed_t.weight", "query_embed_rot.weight")
        if name in state
    }
    if len(set(counts.values())) > 1:
        found = " and ".join(f"{name} {tuple(state[name].shape)}" for name in counts)
        raise MsposeError(f"odd-shaped: {found} disagree about the number of scenes")
    if scenes is None:
        if count not in SCENES_BY_COUNT:
            raise MsposeError(
                f"the checkpoint has {count} scenes, not 7Scenes' 7 or Cambridge's 4: name them,"
                " --scenes"
            )
        return list(SCENES_BY_COUNT[count])
    if len(scenes) != count:
        raise MsposeError(
            f"--scenes: the checkpoint has {count}, but {len(scenes)} are named:"
            f" {', '.join(scenes)}"
        )
    if len(set(scenes)) != count:
        raise MsposeError(f"--scenes: a scene is named twice: {', '.join(scenes)}")
    return list(scenes)


_BRANCH = {"position": "t", "orientation": "rot"}
_RELEASED_BACKBONE = {
    f"backbone.net.{own}": f"backbone.0.body.{name}" for name, own in EFFICIENTNET_B0_NAMES.items()
}
_POSITION_TABLES = {
    "position_encoding.row": "backbone.1.row_embed.weight",
    "position_encoding.column": "backbone.1.col_embed.weight",
}


def _released_name(name: str) -> str:
    """The released code's name of one of this network's tensors."""
    if name.startswith("backbone."):
        return _RELEASED_BACKBONE[name]
    if name in _POSITION_TABLES:
        return _POSITION_TABLES[name]
    part, _, rest = name.partition(".")
    if part == "scene":
        return f"scene_embed.{rest}"
    if part.endswith("_head"):
        layer, leaf = rest.split(".")
        return f"regressor_head_{_BRANCH[part.removesuffix('_head')]}.{'fc_h' if layer == 'hidden' else 'fc_o'}.{leaf}"
    branch = _BRANCH[part]
    if rest == "scene_query":
        return f"query_embed_{branch}.weight"
    if rest.startswith("project."):
        return f"input_proj_{branch}.{rest.removeprefix('project.')}"
    for ours, released in (
        ("self_attention", "self_attn"),
        ("cross_attention", "multihead_attn"),
        ("feedforward.", ""),
    ):
        rest = rest.replace(ours, released)
    return f"transformer_{branch}.{rest}"


def _is_unused(name: str) -> bool:
    return (
        name.startswith("backbone.0.body.")
        and name.removeprefix("backbone.0.body.") in EFFICIENTNET_B0_NAMES
    )


def _other_backbone(state: Mapping[str, Tensor]) -> list[str]:
    """What says that the backbone is another EfficientNet than B0, in words."""
    stem = state.get("backbone.0.body._conv_stem.weight")
    blocks = {
        int(found[1])
        for name in state
        if (found := re.match(r"backbone\.0\.body\._blocks\.(\d+)\.", name))
    }
    signs = []
    if stem is not None and stem.shape[0] != 32:
        signs.append(f"a stem of {stem.shape[0]} channels")
    if blocks and max(blocks) > 15:
        signs.append(f"{max(blocks) + 1} blocks")
    return (
        [f"its backbone has {' and '.join(signs)}, B0 has 32 channels and 16 blocks"]
        if signs
        else []
    )


def _shortened(names: Sequence[str], shown: int = 6) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
