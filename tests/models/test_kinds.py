import pytest

from mspose.config import ModelSettings
from mspose.errors import MsposeError
from mspose.models.kinds import KINDS, make_network, network_class
from mspose.models.mspn import MSPN
from mspose.models.mstransformer import MSTransformer

SMALL = {
    "backbone": "test_efficientnet",
    "pretrained": False,
    "dim": 16,
    "heads": 4,
    "head_hidden": 20,
    "dropout": 0.3,
}


@pytest.mark.parametrize(("kind", "expected"), [("ms-transformer", MSTransformer), ("mspn", MSPN)])
def test_a_kind_takes_the_settings_that_it_has(kind, expected):
    network = make_network(kind, scenes=["attic"], **SMALL)
    assert type(network) is expected
    assert network.kind == kind
    own = {
        name: value
        for name, value in SMALL.items()
        if name in expected.settings() and name != "pretrained"
    }
    assert {name: network.architecture[name] for name in own} == own
    assert ("dim" in network.architecture) == (kind == "ms-transformer")
    again = network_class(kind)(**network.architecture, pretrained=False)
    assert again.architecture == network.architecture


def test_every_kind_of_the_settings_has_the_settings_of_the_network():
    fields = ModelSettings.__dataclass_fields__.keys() - {"kind"}
    assert ModelSettings().kind in KINDS
    assert set().union(*(network.settings() for network in KINDS.values())) == fields | {"scenes"}
    for network in KINDS.values():
        for name in fields & network.settings().keys():
            assert getattr(ModelSettings(), name) == network.settings()[name], name


def test_what_nobody_knows_is_refused():
    with pytest.raises(
        MsposeError, match="kind: expected one of ms-transformer, mspn, found 'posenet'"
    ):
        make_network("posenet", scenes=["attic"])
    with pytest.raises(TypeError, match="wings"):
        make_network("mspn", scenes=["attic"], wings=2, **SMALL)
