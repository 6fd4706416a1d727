"""Lines of docs/attention.md that fit a run: a symptom, its likely cause, and what to try."""

import numpy as np

from mspose.attention.attention_json import Study
from mspose.config import Settings
from mspose.verdict import COLLAPSED, DOES_NOT_MATTER, SELECTIVE, UNIFORM

ALIKE = 0.9
"""Cosine from which on tokens, or the attention of queries, count as alike."""
APART = 0.95
"""Purity from which on queries count as lying among queries alone."""
LINES = 2


def advice(study: Study, settings: Settings) -> list[str]:
    """Return the one or two lines that fit a run, the most telling first."""
    return [line for line, fits in every_line(study, settings) if fits][:LINES]


def every_line(study: Study, settings: Settings) -> list[tuple[str, bool]]:
    """Return all lines, from the most to the least telling, and whether they fit a run."""
    layers, knock_out = study["layers"], study["knock_out"]
    words = [layer["verdict"] for layer in layers]
    mostly_uniform = 2 * words.count(UNIFORM) > len(words)
    at_start = [layer for layer in layers if layer["start"] is not None]
    alike_at_start = any(layer["start"]["similarity"] >= ALIKE for layer in at_start)
    limit = settings.attention.uniform
    strong_encoding = any(
        layer["start"]["entropy"] < limit * layer["entropy_limit"] for layer in at_start
    )
    purity = np.mean([layer["purity"] for layer in layers])
    tokens: dict[str, list[dict[str, float]]] = {}
    for layer in layers:
        if layer["token_similarity"] is not None:
            tokens.setdefault(layer["branch"], []).append(layer["token_similarity"])
    first_and_last = [(of[0]["before"], of[-1]["after"]) for of in tokens.values()]
    # of whole branches, or both
    worthless = knock_out is not None and any(
        row["layer"] is None and row["worth"] == DOES_NOT_MATTER for row in knock_out["rows"]
    )
    return [
        (
            "Collapsed layers (verdict): steps that are too large drive all queries to the same"
            " few keys. Try a tenth of `--training.learning_rate`.",
            COLLAPSED in words,
        ),
        (
            "Scenes alike (decoder, verdict): the scenes' queries attend to the same few tokens."
            " Try `--model.query_initialisation orthogonal`, which needs no more scenes than"
            " channels.",
            any(layer["verdict"] == COLLAPSED for layer in study["decoder"]),
        ),
        (
            "Feature maps too smooth (tokens alike before layer 1, 0.9 or more): there is nothing"
            " to select. Try larger images (`--data.resize`, `--data.crop`) or another"
            " `--model.backbone`.",
            any(first >= ALIKE for first, _ in first_and_last),
        ),
        (
            "Queries alike from the start (similarity at the start 0.9 or more): features, or the"
            " position encoding beside them, hardly tell tokens apart. Try a backbone with ImageNet"
            " weights, `--model.pretrained true`, then `--model.position_encoding rotary`.",
            alike_at_start,
        ),
        (
            "Position decides from the start (entropy at the start below 0.9 of its limit): the"
            " position encoding is too strong beside the features. Try"
            " `--model.position_encoding sine-normalized`.",
            strong_encoding,
        ),
        (
            "Too many layers (tokens grow alike from layer to layer, 0.9 or more behind the last):"
            " try fewer, `--model.position_encoder_layers` and"
            " `--model.orientation_encoder_layers`.",
            any(first < ALIKE <= last for first, last in first_and_last),
        ),
        (
            "Queries and keys apart (purity 0.95 or more): they share no region in which a query"
            " could find its key. Try query-key alignment, `--loss.qka_weight 0.1`.",
            settings.loss.qka_weight == 0 and bool(purity >= APART),
        ),
        (
            "Uniform layers under dropout (verdict): dropping attention weights rewards spreading"
            " them. Try `--model.attention_dropout 0`.",
            mostly_uniform and settings.model.attention_dropout > 0,
        ),
        (
            "Worth nothing (knock-out: does not matter): the errors do not need this attention,"
            " whatever its shape. Try the branch without it, `--model.position_encoder_layers 0`"
            " or `--model.orientation_encoder_layers 0`.",
            worthless,
        ),
        (
            "Uniform layers (verdict): attention averages over the image, as it did before"
            " training. Measure whether that costs anything: `mspose attention RUN --knock-out`.",
            mostly_uniform and knock_out is None,
        ),
        (
            "Selective layers (verdict): different queries attend to different things. Whether the"
            " errors need it, `mspose attention RUN --knock-out` says.",
            SELECTIVE in words and knock_out is None,
        ),
        (
            "Attention that matters (knock-out): errors rise where it is replaced. Leave it as it"
            " is.",
            knock_out is not None and not worthless,
        ),
    ]
