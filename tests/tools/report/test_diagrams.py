"""The numbers of the diagrams are those of the predictions and of the metrics."""

import base64
import json

import numpy as np
import pandas as pd
import pytest
from tools.report.builders import THRESHOLDS, predictions, write_run

from mspose.metrics import ESTIMATED_POSITION, TRUE_POSITION, with_errors
from mspose.tools.report.diagrams import (
    ALL_SCENES,
    error_diagrams,
    scene_choices,
    training_curves,
    trajectories,
)
from mspose.tools.report.evaluations import evaluated_runs

SCENES = {"attic": 60, "cellar": 30}


def unpacked(packed):
    return np.frombuffer(base64.b64decode(packed["b"]), np.dtype(packed["t"]).newbyteorder("<"))


@pytest.fixture
def results(tmp_path):
    write_run(tmp_path / "a", predictions(SCENES, wrong=2), variant="a")
    write_run(tmp_path / "b", predictions({"attic": 60}, seed=1, shift=0.3), variant="b")
    return evaluated_runs([tmp_path / "a", tmp_path / "b"])


def test_recall_agrees_with_the_errors_and_the_last_place_is_the_mean_over_scenes(results):
    assert scene_choices(results) == ["attic", "cellar", ALL_SCENES]
    diagrams = error_diagrams(results, THRESHOLDS)
    frames = results[0].frames
    for which, column in enumerate(("position_error_m", "orientation_error_deg")):
        of_scenes = []
        for place, scene in zip(diagrams, SCENES, strict=False):
            errors = frames.loc[frames["scene"] == scene, column].to_numpy()
            curve = place["curves"][which]
            expected = [100 * np.mean(errors <= x * (1 + 1e-5)) for x in curve["x"]]
            np.testing.assert_allclose(curve["y"][0], expected, atol=0.06 + 100 / len(errors))
            of_scenes.append(np.interp(0.1, curve["x"], curve["y"][0]))
        mean = diagrams[2]["curves"][which]
        np.testing.assert_allclose(
            np.interp(0.1, mean["x"], mean["y"][0]), np.mean(of_scenes), atol=2
        )
    assert diagrams[1]["curves"][0]["y"][1] is None  # run b has no cellar
    for place in (diagrams[0], diagrams[2]):
        assert place["medians"][1][0] == pytest.approx(
            results[1].metrics["average"]["median_position_error_m"], rel=1e-4
        )


def test_histograms_hold_all_frames(results):
    for place in error_diagrams(results, THRESHOLDS):
        for histogram in place["histograms"]:
            for shares in filter(None, histogram["y"]):
                assert sum(shares) == pytest.approx(100, abs=2)
                assert len(histogram["edges"]) == len(shares) + 1


def test_the_map_of_recall_agrees_with_the_errors(results):
    diagram = error_diagrams(results, THRESHOLDS)[0]["map"]
    frames = results[0].frames[results[0].frames["scene"] == "attic"]
    share = unpacked(diagram["z"][0]).reshape(len(diagram["y"]), len(diagram["x"]))
    position, orientation = (
        frames["position_error_m"].to_numpy(),
        frames["orientation_error_deg"].to_numpy(),
    )
    for row in (5, 15, 27):
        for column in (5, 15, 27):
            inside = (position <= diagram["x"][column]) & (orientation <= diagram["y"][row])
            assert share[row, column] == pytest.approx(100 * inside.mean(), abs=0.6 + 100 / 60)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_perfect_and_absurd_estimates_are_drawn_too(tmp_path, shift):
    table = predictions({"attic": 3})
    table[ESTIMATED_POSITION] = table[TRUE_POSITION].to_numpy() + shift
    table[["qw_est", "qx_est", "qy_est", "qz_est"]] = table[["qw", "qx", "qy", "qz"]].to_numpy()
    write_run(tmp_path / "run", table)
    (diagram,) = error_diagrams(evaluated_runs([tmp_path / "run"]), [])
    for part in (*diagram["curves"], *diagram["histograms"]):
        assert np.isfinite(part["y"][0]).all()
        assert np.all(np.diff(part.get("x", part.get("edges"))) > 0)


def test_gross_errors_do_not_stretch_the_recall_curves_over_the_rest(tmp_path):
    table = predictions({"attic": 40})
    table.loc[:1, ESTIMATED_POSITION] = 1e6
    result = evaluated_runs([write_run(tmp_path / "run", with_errors(table))])[0]
    curve = error_diagrams([result], THRESHOLDS)[0]["curves"][0]
    median = result.metrics["average"]["median_position_error_m"]
    assert curve["x"][-1] == pytest.approx(10 * median, rel=1e-3)
    assert curve["y"][0][-1] == 95


def test_trajectories_are_the_poses_and_runs_share_what_is_the_same(results):
    drawn, remark = trajectories(results)
    assert remark == ""
    assert [part["scene"] for part in drawn["sets"]] == ["attic", "cellar"]
    assert drawn["runs"][0]["attic"]["set"] == drawn["runs"][1]["attic"]["set"]
    for number, result in enumerate(results):
        for scene, part in result.frames.groupby("scene"):
            found = drawn["runs"][number][scene]
            of_set = drawn["sets"][found["set"]]
            assert of_set["names"] == list(part["image"])
            np.testing.assert_allclose(
                unpacked(of_set["truth"]).reshape(-1, 3), part[TRUE_POSITION], atol=1e-5
            )
            np.testing.assert_allclose(
                unpacked(found["estimate"]).reshape(-1, 3), part[ESTIMATED_POSITION], atol=1e-5
            )
            np.testing.assert_allclose(
                unpacked(found["errors"][0]), part["position_error_m"], rtol=1e-6
            )
            named = [drawn["predicted"][number] for number in unpacked(found["predicted"])]
            assert named == list(part["predicted_scene"])
            assert of_set["plane"] == [0, 1]  # the walk is flat


def test_far_from_the_origin_positions_keep_their_digits(tmp_path):
    table = predictions({"attic": 10})
    for columns in (TRUE_POSITION, ESTIMATED_POSITION):
        table[columns] = table[columns].to_numpy() + np.array([448_213.25, 5_411_862.5, 0])
    write_run(tmp_path / "run", table)
    result = evaluated_runs([tmp_path / "run"])[0]
    drawn, _ = trajectories([result])
    of_set = drawn["sets"][0]
    assert np.abs(of_set["origin"][:2]).min() > 4e5
    back = unpacked(drawn["runs"][0]["attic"]["estimate"]).reshape(-1, 3) + of_set["origin"]
    np.testing.assert_allclose(back, result.frames[ESTIMATED_POSITION], atol=1e-4)


def test_too_many_frames_are_thinned_out_evenly_and_that_is_said(results):
    drawn, remark = trajectories(results, budget=3000)
    share = float(remark.partition(" %")[0].rpartition(" ")[2]) / 100
    names = drawn["sets"][0]["names"]
    assert len(names) == pytest.approx(60 * share, abs=2)
    assert (names[0], names[-1]) == (
        "attic/seq-01/frame-000000.color.png",
        "attic/seq-01/frame-000059.color.png",
    )


def test_names_count_as_the_page_writes_them(tmp_path):
    table = predictions({"attic": 200})
    table["image"] = [f"写真写真写真写真写真写真/{number}.png" for number in range(200)]
    result = evaluated_runs([write_run(tmp_path / "run", table)])
    budget = 18_000
    drawn, remark = trajectories(result, budget)
    assert "are drawn" in remark
    assert 0.5 * budget < len(json.dumps(drawn)) < budget


def test_training_curves_are_means_of_neighbours_and_leave_out_what_is_not_finite():
    logged = {
        "loss/total": {step: float(step) for step in range(1000)},
        "images_per_second": {0: 1.0},
        "learning_rate": {0: 0.1, 1: float("nan"), 2: 0.2},
        "attention_entropy/position_layer_1": {9: 1.0, 19: 2.0},
        "attention_entropy/orientation_layer_1": {9: 3.0, 19: 4.0, 29: 9.0},
    }
    scalars = pd.DataFrame({tag: pd.Series(values) for tag, values in logged.items()})
    curves = training_curves(scalars, points=100)
    assert "images_per_second" not in curves
    assert curves["loss/total"][1][:2] == [4.5, 14.5]
    assert len(curves["loss/total"][0]) == 100
    assert curves["learning_rate"] == [[0, 2], [0.1, 0.2]]
    assert curves["attention_entropy/mean"] == [[9, 19], [2.0, 3.0]]
