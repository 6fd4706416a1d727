"""A network from what `model.json` and `model.safetensors` say of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mspose.errors import MsposeError
from mspose.models.kinds import network_class
from mspose.models.network import PoseNetwork


def build_network(description: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> PoseNetwork:
    """The network that a model's description and weights make, in eval mode, in the precision of its weights.

    Raises MsposeError, naming `source`, for a description of no network of this version, and for weights of another.
    """
    try:
        network = network_class(description["kind"])(**description["architecture"], pretrained=False)
    except (KeyError, TypeError, ValueError, AttributeError, MsposeError) as error:
        raise MsposeError(f"{source}/model.json does not describe a model of this version: {error}") from error
    if any(tensor.dtype == torch.float64 for tensor in weights.values()):
        network.double()  # a converted checkpoint keeps its precision
    load_weights(network, weights, source)
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
        raise MsposeError(f"{source} holds a model of another architecture: {'; '.join(wrong[:3])}{more}")
    network.load_state_dict(weights)
