"""The files of runs, records and other methods, and what is said where they are not right."""

import json

import pytest
from tools.report.builders import predictions, write_run

from mspose.config import Settings
from mspose.errors import MsposeError
from mspose.evaluation import evaluate_predictions
from mspose.metrics import compute_metrics, read_metrics, write_metrics, write_predictions
from mspose.studies.ablation.errors import record_errors
from mspose.tools.report.results import grouped, in_short, labels, read_results

SCENES = {"attic": 20, "cellar": 12}


@pytest.fixture
def run(tmp_path):
    return write_run(
        tmp_path / "walk" / "all" / "seed-0", predictions(SCENES), settings=Settings(), logged=True
    )


def test_a_run_is_read_with_all_that_it_left(run):
    (result,) = read_results([run])
    assert len(result.frames) == 32
    assert result.has_poses
    assert result.settings["training.epochs"] == 30
    assert len(result.scalars["loss/total"]) == 600
    assert (result.study, result.notes) == (None, [])


def test_a_folder_of_runs_stands_for_all_in_it_and_a_run_named_twice_counts_once(run, tmp_path):
    write_run(tmp_path / "walk" / "all" / "seed-1", predictions(SCENES, seed=1), seed=1)
    assert [result.metrics["seed"] for result in read_results([tmp_path])] == [0, 1]
    assert len(read_results([run, tmp_path / "walk", run])) == 2


def test_another_split_is_read_where_it_was_evaluated(run):
    with pytest.raises(
        MsposeError,
        match=r"has no metrics-train.json: run `mspose evaluate .*seed-0 --split train`",
    ):
        read_results([run], "train")
    table = predictions({"attic": 7})
    write_predictions(run / "predictions" / "train.csv", table)
    stated = (
        read_metrics(run / "metrics.json")
        | {"split": "train"}
        | compute_metrics(table, thresholds=[[1, 1]])
    )
    write_metrics(run / "metrics-train.json", stated)
    (result,) = read_results([run], "train")
    assert len(result.frames) == 7
    assert read_results([run])[0].metrics["split"] == "test"
    (run / "predictions" / "train.csv").unlink()
    with pytest.raises(
        MsposeError, match=r"no predictions/train.csv: run `mspose evaluate .* --split train`"
    ):
        read_results([run], "train")


def test_a_record_has_errors_without_poses(run, tmp_path):
    record = tmp_path / "record"
    record_errors(run, record)
    (record / "metrics.json").write_text((run / "metrics.json").read_text())
    (result,) = read_results([record])
    assert not result.has_poses
    assert len(result.frames) == 32


def test_another_method_is_read_from_beside_its_metrics(tmp_path):
    path = tmp_path / "other" / "poses.csv"
    write_predictions(path, predictions(SCENES))
    evaluate_predictions(path, method="other method")
    (result,) = read_results([path.parent])
    assert (result.source, result.variant) == (path, ("external", "other method"))
    path.rename(tmp_path / "elsewhere.csv")
    with pytest.raises(
        MsposeError, match=r"poses.csv, which is not beside it.*mspose evaluate --predictions"
    ):
        read_results([path.parent])


def test_what_is_no_evaluated_run_is_said_in_one_line(run, tmp_path):
    for path, words in (
        (tmp_path / "nowhere", "no such run"),
        (run / "config.yaml", "is a file: name the folder"),
        (tmp_path / "empty", "no metrics.json in"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(MsposeError, match=words) as caught:
            read_results([path])
        assert "\n" not in str(caught.value)
    (run / "metrics.json").unlink()
    with pytest.raises(
        MsposeError, match=r"has no metrics.json: run `mspose evaluate .*seed-0` first"
    ):
        read_results([run])


def test_a_run_without_predictions_says_how_to_get_them(run):
    (run / "predictions" / "test.csv").unlink()
    with pytest.raises(
        MsposeError, match=r"no predictions/test.csv: run `mspose evaluate .*seed-0` again"
    ):
        read_results([run])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (predictions({"attic": 20, "cellar": 11}), "11 frames of cellar"),
        (predictions({"attic": 20}), "other scenes than"),
        (predictions(SCENES, seed=3), "median position_error_m of attic is not that of"),
    ],
)
def test_predictions_of_another_evaluation_are_refused(run, table, words):
    write_predictions(run / "predictions" / "test.csv", table)
    with pytest.raises(MsposeError, match=words) as caught:
        read_results([run])
    assert "mspose evaluate --predictions" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "1: {2: 3}", "data: {1: 2}"])
def test_settings_and_studies_that_cannot_be_read_are_noted(run, text):
    (run / "config.yaml").write_text(text)
    (run / "attention").mkdir()
    (run / "attention" / "attention.json").write_text("{}")
    (result,) = read_results([run])
    assert result.settings == {}
    assert result.study is None
    assert [
        "config.yaml holds no settings" in result.notes[0],
        "mspose attention" in result.notes[1],
    ] == [True, True]


def test_baselines_are_with_the_runs_of_their_data_and_other_data_is_apart(run, tmp_path):
    table = predictions(SCENES)
    write_run(tmp_path / "mean", table, variant="baseline-mean-pose", scene_selection="given")
    write_run(tmp_path / "other", table, dataset="halls")
    write_run(tmp_path / "quick", table, quick=True)
    groups = grouped(read_results([tmp_path / "mean", tmp_path / "other", run, tmp_path / "quick"]))
    counted = {(group.dataset, group.quick): len(results) for group, results in groups.items()}
    assert counted == {("halls", False): 1, ("rooms", False): 2, ("rooms", True): 1}


def test_labels_tell_runs_apart(tmp_path):
    table = predictions(SCENES)
    folders = [
        write_run(tmp_path / "a", table, variant="both", seed=0),
        write_run(tmp_path / "b", table, variant="both", seed=1),
        write_run(tmp_path / "c", table, variant="neither", seed=0),
    ]
    assert labels(read_results(folders)) == ["both, seed 0", "both, seed 1", "neither"]
    assert labels(read_results(folders[:1])) == ["walk/both"]
    again = write_run(tmp_path / "d", table, variant="neither", seed=0, dataset="halls", quick=True)
    stated = json.loads((again / "metrics.json").read_text())
    (again / "metrics.json").write_text(json.dumps(stated | {"experiment": "other"}))
    assert labels(read_results([folders[2], again])) == ["walk/neither", "other/neither (quick)"]


def test_seeds_are_named_together():
    assert in_short(["both, seed 0", "both, seed 2", "neither", "qka, seed 1"]) == [
        "both, seeds 0, 2",
        "neither",
        "qka, seed 1",
    ]


@pytest.mark.parametrize("provenance", ["text", None, [1], {"model": "text"}])
def test_provenance_of_another_kind_says_nothing(run, provenance):
    stated = json.loads((run / "metrics.json").read_text()) | {"provenance": provenance}
    (run / "metrics.json").write_text(json.dumps(stated))
    (result,) = read_results([run])
    assert result.provenance["model"] == {}


def test_events_that_are_none_are_no_curves(run):
    for file in run.glob("events.*"):
        file.write_bytes(b"no events")
    (result,) = read_results([run])
    assert not result.scalars.get("loss/total")
