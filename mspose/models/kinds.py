"""The networks by their names in settings and in `model.json`."""

from typing import Any

from mspose.errors import MsposeError
from mspose.models.mspn import MSPN
from mspose.models.mstransformer import MSTransformer
from mspose.models.network import PoseNetwork

NetworkClass = type[MSTransformer] | type[MSPN]
KINDS: dict[str, NetworkClass] = {MSTransformer.kind: MSTransformer, MSPN.kind: MSPN}


def network_class(kind: str) -> NetworkClass:
    """The class of the networks of this kind. Raises MsposeError for a kind that there is not."""
    if kind not in KINDS:
        raise MsposeError(f"kind: expected one of {', '.join(KINDS)}, found {kind!r}")
    return KINDS[kind]


def make_network(kind: str, **settings: Any) -> PoseNetwork:
    """A fresh network of this kind. Of the settings it takes those that it has: what is another
    kind's is left out.

    Raises:
        MsposeError: an unknown kind, or settings that make no network.
        TypeError: a setting that no kind has.
    """
    network = network_class(kind)
    foreign = {
        name for other in KINDS.values() for name in other.settings()
    } - network.settings().keys()
    return network(**{name: value for name, value in settings.items() if name not in foreign})
