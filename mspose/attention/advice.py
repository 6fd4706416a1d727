"""Lines of docs/attention.md that fit a run: a symptom, its likely cause, and what to try."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mspose.attention.attention_json import Study
from mspose.config import Settings
from mspose.verdict import COLLAPSED, DOES_NOT_MATTER, SELECTIVE, UNIFORM

ALIKE = 0.9
"""Cosine from which on tokens, or the attention of queries, count as alike."""
APART = 0.95
"""Purity from which on queries count as lying among queries alone."""
LINES = 2


class Advice(NamedTuple):
    """A line, and the question whether it fits a study and the settings of its run."""

    line: str
    fits: Callable[[Study, Settings], bool]


def advice(study: Study, settings: Settings) -> list[str]:
    """Return the one or two lines that fit a run, the most telling first."""
    return [entry.line for entry in ADVICE if entry.fits(study, settings)][:LINES]


def _words(study: Study, part: str = "layers") -> list[str | None]:
    return [layer["verdict"] for layer in study[part]]


def _first_and_last(study: Study) -> list[tuple[Any, Any]]:
    """Return the first and the last encoder layer of every branch that has tokens measured."""
    branches: dict[str, list[Any]] = {}
    for layer in study["layers"]:
        if layer["token_similarity"] is not None:
            branches.setdefault(layer["branch"], []).append(layer)
    return [(layers[0], layers[-1]) for layers in branches.values()]


def _smooth_maps(study: Study, _: Settings) -> bool:
    return any(first["token_similarity"]["before"] >= ALIKE for first, _ in _first_and_last(study))


def _smoothed(study: Study, _: Settings) -> bool:
    return any(
        first["token_similarity"]["before"] < ALIKE <= last["token_similarity"]["after"]
        for first, last in _first_and_last(study)
    )


def _starts(study: Study) -> list[Any]:
    return [layer for layer in study["layers"] if layer["start"] is not None]


def _alike_at_the_start(study: Study, _: Settings) -> bool:
    return any(layer["start"]["similarity"] >= ALIKE for layer in _starts(study))


def _strong_encoding(study: Study, settings: Settings) -> bool:
    limit = settings.attention.uniform
    return any(
        layer["start"]["entropy"] < limit * layer["entropy_limit"] for layer in _starts(study)
    )


def _apart(study: Study, settings: Settings) -> bool:
    purity = np.mean([layer["purity"] for layer in study["layers"]])
    return settings.loss.qka_weight == 0 and bool(purity >= APART)


def _mostly_uniform(study: Study) -> bool:
    words = _words(study)
    return 2 * words.count(UNIFORM) > len(words)


def _worth(study: Study) -> set[str]:
    """Words for whole branches, or both, where they were knocked out."""
    rows = study["knock_out"]["rows"] if study["knock_out"] is not None else []
    whole: dict[str, list[str]] = {}
    for row in rows:
        if row["layer"] is None:
            whole.setdefault(row["branch"], []).append(row["worth"])
    return {branch for branch, words in whole.items() if DOES_NOT_MATTER in words}


ADVICE = (
    Advice(
        "Collapsed layers (verdict): steps that are too large drive all queries to the same few"
        " keys. Try a third of `--training.learning_rate`, or `--training.clip_gradient 1`.",
        lambda study, _: COLLAPSED in _words(study),
    ),
    Advice(
        "Scenes alike (decoder, verdict): the scenes' queries attend to the same few tokens. Try"
        " `--model.query_initialisation orthogonal`, which needs no more scenes than channels.",
        lambda study, _: COLLAPSED in _words(study, "decoder"),
    ),
    Advice(
        "Feature maps too smooth (tokens alike before layer 1, 0.9 or more): there is nothing to"
        " select. Try larger images (`--data.resize`, `--data.crop`) or another"
        " `--model.backbone`.",
        _smooth_maps,
    ),
    Advice(
        "Queries alike from the start (similarity at the start 0.9 or more): the position encoding"
        " is too weak beside the features. Try `--model.position_encoding sine`.",
        _alike_at_the_start,
    ),
    Advice(
        "Position decides from the start (entropy at the start below 0.9 of its limit): the"
        " position encoding is too strong beside the features. Try"
        " `--model.position_encoding sine-normalized`.",
        _strong_encoding,
    ),
    Advice(
        "Too many layers (tokens grow alike from layer to layer, 0.9 or more behind the last): try"
        " fewer, `--model.position_encoder_layers` and `--model.orientation_encoder_layers`.",
        _smoothed,
    ),
    Advice(
        "Queries and keys apart (purity 0.95 or more): they share no region in which a query could"
        " find its key. Try query-key alignment, `--loss.qka_weight 0.1`.",
        _apart,
    ),
    Advice(
        "Uniform layers under dropout (verdict): dropping attention weights rewards spreading them."
        " Try `--model.attention_dropout 0`.",
        lambda study, settings: _mostly_uniform(study) and settings.model.attention_dropout > 0,
    ),
    Advice(
        "Worth nothing (knock-out: does not matter): the errors do not need this attention,"
        " whatever its shape. Try the branch without it, `--model.position_encoder_layers 0` or"
        " `--model.orientation_encoder_layers 0`.",
        lambda study, _: bool(_worth(study)),
    ),
    Advice(
        "Uniform layers (verdict): attention averages over the image, as it did before training."
        " Measure whether that costs anything: `mspose attention RUN --knock-out`.",
        lambda study, _: _mostly_uniform(study) and study["knock_out"] is None,
    ),
    Advice(
        "Selective layers (verdict): different queries attend to different things. Whether the"
        " errors need it, `mspose attention RUN --knock-out` says.",
        lambda study, _: SELECTIVE in _words(study) and study["knock_out"] is None,
    ),
    Advice(
        "Attention that matters (knock-out): errors rise where it is replaced. Leave it as it is.",
        lambda study, _: study["knock_out"] is not None and not _worth(study),
    ),
)
"""From the most to the least telling."""
