"""A network from what `model.json` and `model.safetensors` say of it, and back."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mspose.errors import MsposeError
from mspose.models.kinds import network_class
from mspose.models.network import PoseNetwork
from mspose.run import WEIGHTS, read_description, save_model

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""`user/name`."""


def model_folder(source: Path | str, **options: Any) -> Path:
    """The folder of a model: `source` itself, or where the model `user/name` of the Hugging Face
    hub was downloaded to.

    The hub is asked for what looks like `user/name`, is no folder here, and does not begin with
    one, as a mistyped `runs/name` does; `options` are those of `mspose.tools.hub.download`. Raises
    MsposeError where the hub has no such model, does not answer, or cannot be asked.
    """
    folder, name = Path(source), str(source)
    if folder.exists() or HUB_NAME.fullmatch(name) is None or folder.parent.exists():
        return folder
    return hub(f"{name} holds no model: there is no such folder here").download(name, **options)


def hub(otherwise: str) -> ModuleType:
    """`mspose.tools.hub`. Raises MsposeError, `otherwise` and what to install, without
    huggingface_hub.
    """
    try:
        return importlib.import_module("mspose.tools.hub")
    except ImportError as error:
        raise MsposeError(
            f"{otherwise}, and the Hugging Face hub needs huggingface_hub: pip install"
            f" huggingface_hub ({error})"
        ) from error


def describe_network(network: PoseNetwork) -> dict[str, Any]:
    """What `model.json` says of a network. Raises MsposeError for one that cannot be used by that,
    or was fused.
    """
    if network.fused:
        raise MsposeError("a fused network cannot be saved: save the one that it was made of")
    known = network.description
    preprocessing = known.get("preprocessing") or {}
    if missing := [name for name in ("resize", "crop") if name not in preprocessing]:
        raise MsposeError(
            f"the network does not know how images are prepared for it ({' and '.join(missing)}"
            ' missing): set network.description = {"preprocessing": {"resize": 256,'
            ' "crop": 224}}, in pixels, as in its training'
        )
    own = {"kind": network.kind, "architecture": network.architecture}
    normalisation = {
        name: list(getattr(network, name)) for name in ("mean", "std") if name not in preprocessing
    }
    return own | known | {"preprocessing": {**preprocessing, **normalisation}}


def save_network(network: PoseNetwork, folder: Path) -> None:
    """Write a network's `model.safetensors` and `model.json`; see `PoseNetwork.save_pretrained`."""
    description = describe_network(network)
    if (folder / WEIGHTS).exists():
        try:
            read_description(folder)
        except MsposeError as error:
            raise MsposeError(
                f"{folder} holds a model that is not mspose's ({error}): give another folder"
            ) from error
    save_model(folder, network.state_dict(), description)


def build_network(
    description: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path
) -> PoseNetwork:
    """The network that a model's description and weights make, in eval mode, in the precision of
    its weights.

    Raises MsposeError, naming `source`, for a description of no network of this version, and for
    weights of another.
    """
    try:
        network = network_class(description["kind"])(
            **description["architecture"], pretrained=False
        )
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OverflowError,
        MsposeError,
    ) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise MsposeError(
            f"{source}/model.json does not describe a model of this version: {reason}"
        ) from error
    if any(tensor.dtype == torch.float64 for tensor in weights.values()):
        network.double()  # a converted checkpoint keeps its precision
    load_weights(network, weights, source)
    network.description = dict(description)
    return network.eval()


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Fill the network; MsposeError names what is missing, left over or of another shape."""
    own = network.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is not part of this model" for name in weights if name not in own]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise MsposeError(
            f"{source} holds a model of another architecture: {'; '.join(wrong[:3])}{more}"
        )
    network.load_state_dict(weights)
