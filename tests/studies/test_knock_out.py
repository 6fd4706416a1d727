"""The worth of self-attention: errors, intervals and words, against predictions made one by one."""

from contextlib import contextmanager
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch

from mspose import evaluation
from mspose.attention.knock_out import BOTH, KnockOut, knock_outs
from mspose.errors import MsposeError
from mspose.inference import load, predict_frames
from mspose.metrics import ERROR_COLUMNS
from mspose.studies.knock_out import (
    Errors,
    evaluate_knock_outs,
    knock_out_grid,
    read_knock_out_errors,
    summarise,
    worth,
    write_knock_out_errors,
)
from mspose.verdict import DOES_NOT_MATTER, MATTERS


@pytest.fixture(scope="module")
def opened(small_run, tmp_path_factory):
    """The trained small network and the batches of its test split."""
    estimator = load(small_run, "cpu")
    cache = {"cache": str(tmp_path_factory.mktemp("cache"))}
    batches = evaluation.open_for_run(
        small_run, estimator, "test", data=cache, batch_size=4, progress=False
    ).batches
    return estimator.network, batches


@contextmanager
def replaced(network, what):
    """Set the replacement in every layer that is knocked out."""
    names = ("position", "orientation") if what.branch == BOTH else (what.branch,)
    layers = [list(network.get_submodule(name).encoder.layers) for name in names]
    chosen = [of[what.layer - 1 : what.layer] if what.layer else of for of in layers]
    for layer in chain(*chosen):
        layer.self_attention.replacement = what.by
    yield
    for layer in chain(*chosen):
        layer.self_attention.replacement = None


def test_errors_are_those_of_predictions_under_each_knock_out(opened):
    network, batches = opened
    rows = np.array([0, 2, 3, 7, 8, 9])
    found = evaluate_knock_outs(network, batches, rows, progress=False)
    assert list(found.error_VF2) == [None, *knock_outs(network)]
    assert found.frames["image"].tolist() == batches.frames["image"].iloc[rows].tolist()
    as_it_is = predict_frames(network, batches, rows)
    np.testing.assert_allclose(found.error_VF2[None], as_it_is[list(ERROR_COLUMNS)], rtol=1e-4)
    for what in (KnockOut("mean", BOTH), KnockOut("nothing", "orientation", 2)):
        with replaced(network, what):
            table = predict_frames(network, batches, rows)
        np.testing.assert_allclose(found.error_VF2[what], table[list(ERROR_COLUMNS)], rtol=1e-4)


def test_an_estimate_that_is_not_finite_is_refused(opened):
    network, batches = opened
    weight = network.position_head.out.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    try:
        with pytest.raises(MsposeError, match="not finite"):
            evaluate_knock_outs(network, batches, np.arange(3), progress=False)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def made_up(frames: int = 200, **shifts) -> Errors:
    """Errors of two scenes; `position_mean=(0.1, 0)`: metres and degrees that a knock-out adds to
    those of every frame.
    """
    rng = np.random.default_rng(3)
    error_F2 = rng.uniform(0.1, 0.2, (frames, 2)) * [1, 20]
    noise = rng.normal(0, 0.01, (frames, 2))
    whole = [
        KnockOut(by, branch) for branch in ("position", "both") for by in ("mean", "own", "nothing")
    ]
    error_VF2 = {None: error_F2} | {
        what: error_F2 + noise + shifts.get(f"{what.branch}_{what.by}", (0, 0)) for what in whole
    }
    names = [f"{number:03d}.png" for number in range(frames)]
    scenes = np.where(np.arange(frames) < 50, "attic", "cellar")
    return Errors(pd.DataFrame({"image": names, "scene": scenes}), error_VF2)


def test_differences_are_of_medians_averaged_over_scenes_with_an_interval_around_them():
    errors = made_up(position_mean=(0.03, 0))
    found = summarise(errors)
    assert (found["frames"], len(found["rows"])) == (200, 6)
    row = found["rows"][0]
    assert (row["branch"], row["layer"], row["by"]) == ("position", None, "mean")

    def average(what):
        table = errors.frames.assign(error=errors.error_VF2[what][:, 0])
        return table.groupby("scene")["error"].median().mean()

    assert found["intact"]["position_m"] == pytest.approx(average(None), rel=1e-5)
    position = row["position_m"]
    assert position["median"] == pytest.approx(average(KnockOut("mean", "position")), rel=1e-5)
    assert position["difference"] == pytest.approx(
        position["median"] - found["intact"]["position_m"], abs=1e-6
    )
    assert 0.02 < position["low"] < position["difference"] < position["high"] < 0.04
    assert row["worth"] == MATTERS


def test_attention_matters_where_no_replacement_does_as_well():
    shifts = {f"position_{by}": (0.03, 0) for by in ("mean", "own")} | {"position_nothing": (0, 2)}
    found = summarise(made_up(**shifts))
    assert worth(found, "position") == MATTERS
    assert worth(found, "both") == DOES_NOT_MATTER
    assert worth(found, "orientation") is None
    del shifts["position_own"]
    assert worth(summarise(made_up(**shifts)), "position") == DOES_NOT_MATTER


def test_errors_of_whole_branches_are_read_as_they_were_written(tmp_path, opened):
    network, batches = opened
    errors = evaluate_knock_outs(network, batches, np.arange(10), progress=False)
    path = tmp_path / "knock-out.csv"
    write_knock_out_errors(path, errors)
    found = read_knock_out_errors(path)
    pd.testing.assert_frame_equal(found.frames, errors.frames, check_dtype=False)
    wholes = [what for what in errors.error_VF2 if what is None or what.layer is None]
    assert list(found.error_VF2) == wholes
    for what in wholes:
        np.testing.assert_allclose(found.error_VF2[what], errors.error_VF2[what], rtol=1e-5)
    path.write_text(path.read_text().replace("attic/test-01/frame-001.png,attic,", "x,attic,y", 1))
    with pytest.raises(MsposeError, match=r"knock-out.csv, line 3"):
        read_knock_out_errors(path)


def test_the_table_has_a_line_per_knock_out_and_the_network_as_it_is():
    about = {"experiment": "small", "variant": "all", "seed": 0, "quick": False}
    studies = [
        {**about, "knock_out": summarise(made_up(position_mean=(0.03, 0)))},
        {**about, "knock_out": None},
    ]
    grid = knock_out_grid(studies)
    assert len(grid) == 7
    assert grid.iloc[0, 1] == "nothing knocked out"
    assert grid.iloc[1, 2:4].tolist() == ["position", "all"]
    assert not grid.iloc[1, 5].endswith("†")
    assert grid.iloc[2, 5].endswith("†")
    assert grid["worth"].tolist()[:3] == ["", MATTERS, DOES_NOT_MATTER]
