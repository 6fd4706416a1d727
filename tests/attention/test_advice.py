"""Advice: which lines fit, and that they stand in the documentation."""

from dataclasses import replace
from pathlib import Path

import pytest
from attention.builders import study

from mspose.attention.advice import advice, every_line
from mspose.config import AttentionSettings, LossSettings, ModelSettings, Settings

PAGE = Path(__file__).parents[2] / "docs" / "attention.md"
REMEDIES = Settings(model=ModelSettings(attention_dropout=0.0), loss=LossSettings(qka_weight=0.1))


def changed(values, **of_layers):
    return {**values, "layers": [{**layer, **of_layers} for layer in values["layers"]]}


def knocked_out(values, word):
    rows = [
        {"branch": branch, "layer": None, "by": by, "worth": word}
        for branch in ("both", "position", "orientation")
        for by in ("mean", "own", "nothing")
    ]
    return {**values, "knock_out": {"rows": rows}}


SHARP = study(entropy=0.6, purity=0.6)
EVEN = study(entropy=1.0, purity=0.6, layers=(1, 1))
CASES = {
    "Collapsed layers": (study(entropy=0.4, similarity=0.95, purity=0.6), REMEDIES),
    "Scenes alike": (
        {**SHARP, "decoder": [{"branch": "position", "layer": 1, "verdict": "collapsed"}]},
        REMEDIES,
    ),
    "Feature maps too smooth": (
        changed(SHARP, token_similarity={"before": 0.93, "after": 0.5}),
        REMEDIES,
    ),
    "Queries alike from the start": (
        changed(SHARP, start={"entropy": 5.27, "similarity": 0.95}, entropy_limit=5.28),
        REMEDIES,
    ),
    "Position decides from the start": (
        changed(SHARP, start={"entropy": 4.0, "similarity": 0.2}),
        REMEDIES,
    ),
    "Too many layers": (changed(SHARP, token_similarity={"before": 0.5, "after": 0.92}), REMEDIES),
    "Queries and keys apart": (
        study(entropy=0.6, purity=0.97),
        replace(REMEDIES, loss=LossSettings(qka_weight=0)),
    ),
    "Uniform layers under dropout": (EVEN, replace(REMEDIES, model=ModelSettings())),
    "Worth nothing": (knocked_out(SHARP, "does not matter"), REMEDIES),
    "Uniform layers (": (EVEN, REMEDIES),
    "Selective layers": (SHARP, REMEDIES),
    "Attention that matters": (knocked_out(SHARP, "matters"), REMEDIES),
}


@pytest.mark.parametrize("symptom", CASES)
def test_the_line_of_a_symptom_comes_first(symptom):
    found, settings = CASES[symptom]
    lines = advice(found, settings)
    assert lines[0].startswith(symptom)
    assert len(lines) <= 2


def test_every_line_has_a_case_and_stands_on_the_page():
    lines = [line for line, _ in every_line(SHARP, REMEDIES)]
    assert len(lines) == len(CASES)
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    for line in lines:
        assert any(line.startswith(symptom) for symptom in CASES)
        assert line in page


def test_every_study_gets_a_line():
    for found in (SHARP, EVEN, knocked_out(EVEN, "matters")):
        assert advice(found, replace(REMEDIES, attention=AttentionSettings()))
