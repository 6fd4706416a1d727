"""Conversion of checkpoints of the released MS-Transformer and ActMST code. Nothing is unpickled
into code.

Sizes are read off the tensors, except for what leaves no trace in them: 8 attention heads (both
releases ran 8) and dropout 0.1. The backbone is EfficientNet-B0 in TensorFlow style, timm's
`tf_efficientnet_b0`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mspose.config import ModelSettings
from mspose.errors import MsposeError
from mspose.files import read_tensors
from mspose.models.backbone import EFFICIENTNET_B0_NAMES
from mspose.models.mstransformer import MSTransformer

SCENES_BY_COUNT = {
    7: ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs"),
    4: ("KingsCollege", "OldHospital", "ShopFacade", "StMarysChurch"),
}
NOT_RELEASED = "not a checkpoint of the released MS-Transformer or ActMST code"
_WRAPPERS = ("model_state_dict", "state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(eq=False)
class Converted:
    """A released checkpoint as a network of this package.

    Attributes:
        scenes: names of its scenes, in the order of their indices.
        settings: the settings of its `MSTransformer`.
        state_dict: its tensors, in the dtypes of the checkpoint.
        dropped: names of the checkpoint's tensors that nothing reads: later backbone blocks and the
            classifier.
    """

    scenes: list[str]
    settings: ModelSettings
    state_dict: dict[str, Tensor]
    dropped: list[str]


def read_released(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file (`.pth` or the like, or `.safetensors`), by name.

    A state dict inside another dict (`model_state_dict`, `state_dict`, `model`, ...) is taken out,
    and a `module.` (or `_orig_mod.`, `model.`) before every name is removed.

    Raises:
        MsposeError: the file is missing, corrupt, holds no state dict, or would need unpickling
            code.
    """
    loaded: object = read_tensors(Path(path))
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


def convert_released(
    state: Mapping[str, Tensor], *, scenes: Sequence[str] | None = None
) -> Converted:
    """Convert a state dict of the released code.

    Args:
        state: as `read_released` returns it.
        scenes: names of its scenes in the order of their indices; by default the sorted names of
            7Scenes (7 scenes) or of Cambridge Landmarks as published (4).

    Raises:
        MsposeError: tensors are missing, odd-shaped, not finite or unknown (named), or the scenes'
            names do not fit.
    """
    settings = _settings(state)
    names = _scene_names(_size(state, "query_embed_t.weight", 0), scenes)
    try:
        network = MSTransformer(names, settings, pretrained=False)
    except MsposeError as error:
        raise MsposeError(f"the checkpoint's sizes do not make a network: {error}") from error
    own = network.state_dict()
    released_names = {name: _released_name(name) for name in own}

    converted: dict[str, Tensor] = {}
    complaints: dict[str, list[str]] = {
        "missing": [], "odd-shaped": [], "not finite": [], "unknown": []
    }  # fmt: skip
    for name, released in released_names.items():
        if released not in state:
            complaints["missing"].append(released)
            continue
        tensor = state[released]
        expected = tuple(own[name].shape)
        if name.endswith("project.weight"):  # released as a 1x1 convolution
            expected += (1, 1)
        if tuple(tensor.shape) != expected:
            complaints["odd-shaped"].append(
                f"{released} {tuple(tensor.shape)} instead of {expected}"
            )
        elif tensor.is_floating_point() != own[name].is_floating_point():
            complaints["odd-shaped"].append(f"{released} of {tensor.dtype}")
        elif not bool(torch.isfinite(tensor).all()):
            complaints["not finite"].append(released)
        else:
            converted[name] = tensor.reshape(own[name].shape).contiguous()

    rest = [name for name in state if name not in set(released_names.values())]
    dropped = [name for name in rest if _is_unread_backbone(name)]
    complaints["unknown"] = [name for name in rest if not _is_unread_backbone(name)]
    if any(complaints.values()):
        listed = (f"{word}: {_shortened(names)}" for word, names in complaints.items() if names)
        raise MsposeError(f"{NOT_RELEASED} with an EfficientNet-B0 backbone: {'; '.join(listed)}")
    return Converted(names, settings, converted, dropped)


def _settings(state: Mapping[str, Tensor]) -> ModelSettings:
    learned = any(name.startswith("backbone.1.") for name in state)
    return ModelSettings(
        backbone="tf_efficientnet_b0",
        dim=_size(state, "query_embed_t.weight", 1),
        heads=8,
        feedforward=_size(state, "transformer_t.decoder.layers.0.linear1.bias", 0),
        dropout=0.1,
        attention_dropout=0.1,
        position_encoder_layers=_layers(state, "transformer_t.encoder"),
        position_decoder_layers=_layers(state, "transformer_t.decoder"),
        orientation_encoder_layers=_layers(state, "transformer_rot.encoder"),
        orientation_decoder_layers=_layers(state, "transformer_rot.decoder"),
        position_encoding="learned" if learned else "sine",
        head_hidden=_size(state, "regressor_head_t.fc_h.bias", 0),
    )


def _size(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    if name not in state or state[name].dim() <= axis:
        raise MsposeError(f"{NOT_RELEASED}: it has no usable {name}")
    return state[name].shape[axis]


def _layers(state: Mapping[str, Tensor], stack: str) -> int:
    pattern = re.compile(re.escape(stack) + r"\.layers\.(\d{1,2})\.")
    numbers = {int(found[1]) for name in state if (found := pattern.match(name))}
    return max(numbers, default=-1) + 1


def _scene_names(count: int, scenes: Sequence[str] | None) -> list[str]:
    if scenes is None and count not in SCENES_BY_COUNT:
        raise MsposeError(
            f"the checkpoint has {count} scenes, not 7Scenes' 7 or Cambridge's 4: name them,"
            " --scenes"
        )
    names = list(SCENES_BY_COUNT[count] if scenes is None else scenes)
    if len(names) != count:
        raise MsposeError(
            f"--scenes: the checkpoint has {count}, but {len(names)} are named: {', '.join(names)}"
        )
    if len(set(names)) != count:
        raise MsposeError(f"--scenes: a scene is named twice: {', '.join(names)}")
    return names


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
        branch = _BRANCH[part.removesuffix("_head")]
        return f"regressor_head_{branch}.{'fc_h' if layer == 'hidden' else 'fc_o'}.{leaf}"
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


def _is_unread_backbone(name: str) -> bool:
    prefix, body, rest = name.partition("backbone.0.body.")
    return not prefix and bool(body) and rest in EFFICIENTNET_B0_NAMES


def _shortened(names: Sequence[str], shown: int = 6) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
