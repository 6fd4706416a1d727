"""Runs, records and other methods in a report, and messages where their files are not right."""

import json

import pytest
from tools.report.builders import predictions, write_record, write_run

from mspose.config import Settings
from mspose.errors import MsposeError
from mspose.evaluation import evaluate_predictions
from mspose.files import with_checksum
from mspose.metrics import compute_metrics, read_metrics, write_metrics, write_predictions
from mspose.tools.report.evaluations import (
    evaluated_runs,
    faults,
    grouped,
    in_short,
    labels,
    settings_of,
    study_of,
)

SCENES = {"attic": 20, "cellar": 12}


@pytest.fixture
def run(tmp_path):
    return write_run(
        tmp_path / "walk" / "all" / "seed-0", predictions(SCENES), settings=Settings(), logged=True
    )


def test_a_run_is_read_with_all_its_files(run):
    (found,) = evaluated_runs([run])
    assert found.has_poses and len(found.frames) == 32
    assert settings_of(found)["training.epochs"] == 30
    assert len(found.scalars()["loss/total"].dropna()) == 600
    assert (study_of(found), faults(found)) == (None, [])
    for file in run.glob("events.*"):
        file.write_bytes(b"no events")
    assert found.scalars().empty


def test_another_split_is_read_where_it_was_evaluated(run):
    with pytest.raises(MsposeError, match=r"no metrics-train.json .*mspose evaluate RUN --split"):
        evaluated_runs([run], "train")
    table = predictions({"attic": 7})
    write_predictions(run / "predictions" / "train.csv", table)
    computed = compute_metrics(table, thresholds=[[1, 1]])
    stated = read_metrics(run / "metrics.json") | {"split": "train"} | computed
    write_metrics(run / "metrics-train.json", stated)
    (found,) = evaluated_runs([run], "train")
    assert len(found.frames) == 7
    assert evaluated_runs([run])[0].metrics["split"] == "test"
    (run / "predictions" / "train.csv").unlink()
    with pytest.raises(MsposeError, match=r"no predictions/train.csv: run `mspose evaluate`"):
        evaluated_runs([run], "train")


def test_a_record_has_errors_without_poses(run, tmp_path):
    (found,) = evaluated_runs([write_record(run, tmp_path / "record")])
    assert not found.has_poses and len(found.frames) == 32


def test_another_method_is_read_from_beside_its_metrics(tmp_path):
    path = tmp_path / "other" / "poses.csv"
    write_predictions(path, predictions(SCENES))
    evaluate_predictions(path, method="other method")
    (found,) = evaluated_runs([path.parent])
    assert (found.frames_file, found.name) == (path, "external/other method")
    path.rename(tmp_path / "elsewhere.csv")
    with pytest.raises(MsposeError, match=r"has no poses.csv"):
        evaluated_runs([path.parent])


def test_a_folder_without_an_evaluated_run_is_one_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", run / "config.yaml", tmp_path / "empty"):
        with pytest.raises(MsposeError, match=r"no metrics.json in") as caught:
            evaluated_runs([path])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (predictions({"attic": 20, "cellar": 11}), "median errors of cellar are not those of"),
        (predictions({"attic": 20}), "other scenes than"),
        (predictions(SCENES, seed=3), "median errors of attic are not those of"),
    ],
)
def test_predictions_of_another_evaluation_are_refused(run, table, words):
    write_predictions(run / "predictions" / "test.csv", table)
    with pytest.raises(MsposeError, match=words) as caught:
        evaluated_runs([run])
    assert "mspose evaluate --predictions" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "1: {2: 3}", "data: {1: 2}"])
def test_settings_and_studies_that_cannot_be_read_are_noted(run, text):
    (run / "config.yaml").write_text(text)
    (run / "attention").mkdir()
    (run / "attention" / "attention.json").write_text("{}")
    (found,) = evaluated_runs([run])
    assert (settings_of(found), study_of(found)) == ({}, None)
    notes = faults(found)
    assert "config.yaml" in notes[0] and "mspose attention" in notes[1]


def test_baselines_are_with_the_runs_of_their_data(run, tmp_path):
    table = predictions(SCENES)
    write_run(tmp_path / "mean", table, variant="baseline-mean-pose", scene_selection="given")
    write_run(tmp_path / "other", table, dataset="halls")
    write_run(tmp_path / "quick", table, quick=True)
    groups = grouped(evaluated_runs([tmp_path]))
    counted = {(group.dataset, group.quick): len(runs) for group, runs in groups.items()}
    assert counted == {("halls", False): 1, ("rooms", False): 2, ("rooms", True): 1}


def test_labels_tell_runs_from_each_other(tmp_path):
    table = predictions(SCENES)
    folders = [
        write_run(tmp_path / "a", table, variant="both", seed=0),
        write_run(tmp_path / "b", table, variant="both", seed=1),
        write_run(tmp_path / "c", table, variant="neither", seed=0),
    ]
    assert labels(evaluated_runs(folders)) == ["both, seed 0", "both, seed 1", "neither"]
    assert labels(evaluated_runs(folders[:1])) == ["walk/both"]
    again = write_run(tmp_path / "d", table, variant="neither", seed=0, dataset="halls", quick=True)
    stated = json.loads((again / "metrics.json").read_text())
    (again / "metrics.json").write_text(json.dumps(with_checksum(stated | {"experiment": "other"})))
    assert labels(evaluated_runs([folders[2], again])) == ["walk/neither", "other/neither (quick)"]
    assert in_short(["both, seed 0", "both, seed 2", "neither", "qka, seed 1"]) == [
        "both, seeds 0, 2",
        "neither",
        "qka, seed 1",
    ]
