from collections.abc import Iterator

import pytest
from studies.builders import FILE

from mspose.studies.ablation.plan import Ablation, read_ablation


@pytest.fixture(scope="module")
def settings_are_read_once() -> Iterator[None]:
    """The settings of the made-up ablation, which take a while to read."""
    rows = read_ablation(FILE).rows()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ablation, "rows", lambda *_, **__: rows)
        yield
