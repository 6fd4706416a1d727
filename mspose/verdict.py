"""Words for the attention of a layer: from its measures, and from what it is worth.

`uniform`: attention is spread over the keys almost evenly, whatever else is true of it.
`collapsed`: all queries attend to the same few keys. `selective`: neither.
Where a knock-out was measured (`mspose.studies.knock_out`), a further word says whether the
network's answers owe anything to it: `matters` or `does not matter`.
"""

import math
from typing import NamedTuple

SELECTIVE, UNIFORM, COLLAPSED = VERDICTS = ("selective", "uniform", "collapsed")
MATTERS, DOES_NOT_MATTER = WORTH = ("matters", "does not matter")


class Thresholds(NamedTuple):
    """Values from which on the words hold."""

    uniform: float = 0.9
    """Attention entropy as a share of its limit, the logarithm of the number of keys."""
    similar: float = 0.9
    """Mean cosine similarity of different queries' attention."""


DEFAULT = Thresholds()


def verdict(
    entropy: float, similarity: float, limit: float, thresholds: Thresholds = DEFAULT
) -> str | None:
    """Return `uniform`, `collapsed` or `selective`; None for a single query.

    A fresh network's attention is uniform: entropy comes first, since queries that all attend to
    everything attend to nothing in particular, however little their attention has in common.

    Args:
        entropy: attention entropy, and `limit` its largest value, in nats. At a limit of 0 each
            query sees one key, and attention is uniform.
        similarity: mean cosine of different queries' attention, 0..1; NaN where there is one query
            alone, which is like no other.
    """
    if math.isnan(similarity):
        return None
    if entropy >= thresholds.uniform * limit:
        return UNIFORM
    return COLLAPSED if similarity >= thresholds.similar else SELECTIVE
