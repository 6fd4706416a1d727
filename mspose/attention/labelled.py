"""What pictures are drawn from: studies of attention under the labels that legends show."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from mspose.errors import MsposeError

Study = Mapping[str, Any]
"""What `attention.json` holds."""
Studies = Sequence[tuple[str, Study]]
"""Studies under the labels that legends show. Those of the same label are seeds of one variant."""
Arrays = Mapping[str, NDArray[Any]]
"""What `samples.npz` holds."""


def by_label(studies: Iterable[tuple[str, Study]]) -> dict[str, list[Study]]:
    """The studies of every label, labels in the order of their first study.

    Raises MsposeError where there are none.
    """
    groups: dict[str, list[Study]] = {}
    for label, study in studies:
        groups.setdefault(label, []).append(study)
    if not groups:
        raise MsposeError(
            "there is no study of attention to draw: run `mspose attention RUN` first"
        )
    return groups


def layers_of(study: Study, branch: str) -> dict[int, Mapping[str, Any]]:
    """What was measured of every encoder layer of a branch, by its number, counted from 1."""
    return {int(layer["layer"]): layer for layer in study["layers"] if layer["branch"] == branch}


def named(label: str, seeds: int, note: str = "") -> str:
    """A legend's entry."""
    label = f"{label} ({seeds} seeds)" if seeds > 1 else label
    return f"{label} ({note})" if note else label
