"""The networks by the names that `ModelSettings.kind` gives them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mspose.config import ModelSettings
from mspose.errors import MsposeError
from mspose.models.mspn import MSPN
from mspose.models.mstransformer import MSTransformer
from mspose.models.network import PoseNetwork
from mspose.models.stored import read_construction

KINDS: dict[str, type[PoseNetwork]] = {cls.kind: cls for cls in (MSTransformer, MSPN)}


def network_class(kind: str) -> type[PoseNetwork]:
    """The class of the networks of this kind. Raises MsposeError for a kind that there is not."""
    if kind not in KINDS:
        raise MsposeError(f"kind: expected one of {', '.join(KINDS)}, found {kind!r}")
    return KINDS[kind]


def make_network(
    scenes: Sequence[str], settings: ModelSettings | None = None, **changes: Any
) -> PoseNetwork:
    """Build a fresh network of the kind that the settings name; see `PoseNetwork.__init__`."""
    kind = changes.get("kind", (settings or ModelSettings()).kind)
    return network_class(kind)(scenes, settings, **changes)


def build_network(
    description: dict[str, Any], weights: dict[str, Tensor], source: Path
) -> PoseNetwork:
    """Build a trained network of what `load_model(source)` returned, of any kind, in eval mode.

    Raises MsposeError as `PoseNetwork.from_pretrained` does.
    """
    kind = read_construction(description, source)[0].kind
    return network_class(kind).from_description(description, weights, source)
