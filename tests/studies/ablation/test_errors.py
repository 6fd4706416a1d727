"""Errors of test frames, from predictions and from a record."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mspose.errors import MsposeError
from mspose.metrics import ERROR_COLUMNS, read_predictions
from mspose.studies.ablation.errors import (
    PREDICTIONS,
    RECORDED,
    has_errors,
    read_errors,
    record_errors,
)
from mspose.studies.ablation.table import ablation_table

GOLDEN = Path(__file__).parents[2] / "golden"
RUN = GOLDEN / "results" / "remedies-small" / "none" / "seed-0"


def test_a_record_gives_the_errors_of_the_predictions(tmp_path):
    assert has_errors(RUN) and not has_errors(tmp_path)
    record_errors(RUN, tmp_path)
    assert has_errors(tmp_path)
    expected, found = read_predictions(RUN / PREDICTIONS), read_errors(tmp_path)
    assert found[["image", "scene"]].equals(expected[["image", "scene"]])
    np.testing.assert_allclose(found[list(ERROR_COLUMNS)], expected[list(ERROR_COLUMNS)], rtol=1e-8)


def test_a_table_from_recorded_errors_is_the_table_from_predictions(tmp_path):
    shutil.copytree(GOLDEN / "results", tmp_path / "results")
    for path in sorted((tmp_path / "results").rglob(PREDICTIONS)):
        run = path.parents[2]
        record_errors(run, run)
        path.unlink()
    table = [
        ablation_table(GOLDEN / "remedies.yaml", [folder])
        for folder in (GOLDEN / "results", tmp_path / "results")
    ]
    assert table[0] == table[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a/2.jpg,a,-0.1,2", "line 3: position_error_m is below zero"),
        ("a/2.jpg,a,0.1,nan", "line 3: orientation_error_deg is 'nan', expected a finite number"),
        ("a/1.jpg,a,0.1,2", "line 3: a/1.jpg is there twice in scene a"),
        ("a/1.jpg,a,0.1", "line 3: 3 values, expected 4"),
    ],
)
def test_broken_records_are_refused_with_their_line(tmp_path, row, message):
    (tmp_path / "predictions").mkdir()
    header = "image,scene,position_error_m,orientation_error_deg"
    (tmp_path / RECORDED).write_text(f"{header}\na/1.jpg,a,0.5,3\n{row}\n")
    with pytest.raises(MsposeError, match=message):
        read_errors(tmp_path)
