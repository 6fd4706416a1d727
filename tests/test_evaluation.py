import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from kornia.metrics import auc_from_errors
from PIL import Image
from pose_matrix import pose_matrix

from mspose.config import DataSettings, config_hash, read_settings, write_settings
from mspose.errors import MsposeError
from mspose.evaluation import evaluate_predictions, evaluate_run, summary
from mspose.metrics import read_metrics
from mspose.poses import invert_quaternion, quaternion_to_rotation
from mspose.provenance import device_name
from mspose.run import Run, load_model, save_model
from mspose.studies.rows import collect_runs
from mspose.studies.tables import table_text
from mspose.training import train

COLUMNS = [
    *("image", "scene", "predicted_scene", "scene_probability"),
    *("tx", "ty", "tz", "qw", "qx", "qy", "qz"),
    *("tx_est", "ty_est", "tz_est", "qw_est", "qx_est", "qy_est", "qz_est"),
    *("position_error_m", "orientation_error_deg"),
]
POSITION, ORIENTATION = ["tx", "ty", "tz"], ["qw", "qx", "qy", "qz"]
ESTIMATE = [f"{name}_est" for name in (*POSITION, *ORIENTATION)]


def copy_of(run: Path, folder: Path) -> Path:
    """A copy of what evaluation reads of a run, in the layout of run folders."""
    target = folder / "runs" / "small" / "all" / run.name
    target.mkdir(parents=True)
    for name in ("config.yaml", "model.json", "model.safetensors"):
        shutil.copy(run / name, target)
    return target


def cached(folder: Path, **data):
    return {"cache": str(folder / "cache"), **data}


@pytest.fixture(scope="module")
def evaluated(small_run, tmp_path_factory) -> Path:
    """A run whose test split was evaluated; not to be changed."""
    folder = tmp_path_factory.mktemp("evaluated")
    run = copy_of(small_run, folder)
    evaluate_run(run, data=cached(folder), progress=False)
    return run


@pytest.fixture
def own_run(small_run, tmp_path) -> Path:
    """A run that the test may change."""
    return copy_of(small_run, tmp_path)


def errors_by_hand(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Metres, and degrees between two rotations by the trace of R^T R'."""
    metres = np.sqrt(
        ((table[ESTIMATE[:3]].to_numpy() - table[POSITION].to_numpy()) ** 2).sum(axis=1)
    )
    rotations = [
        quaternion_to_rotation(table[names].to_numpy()) for names in (ESTIMATE[3:], ORIENTATION)
    ]
    cosine = (np.einsum("bij,bij->b", *rotations) - 1) / 2
    return metres, np.degrees(np.arccos(np.clip(cosine, -1, 1)))


# predictions and metrics


def test_predictions_have_the_documented_columns_for_every_frame(evaluated, small_data):
    table = pd.read_csv(evaluated / "predictions" / "test.csv")
    labels = pd.read_csv(small_data.parent / "labels.csv").query("split == 'test'")
    assert list(table) == COLUMNS
    assert table["image"].tolist() == labels["img_path"].tolist()
    assert table["scene"].tolist() == labels["scene"].tolist()
    np.testing.assert_allclose(
        table[POSITION].to_numpy(), labels[["t1", "t2", "t3"]].to_numpy(), atol=1e-12
    )
    np.testing.assert_allclose(
        table[ORIENTATION].to_numpy(), labels[["q1", "q2", "q3", "q4"]].to_numpy(), atol=1e-12
    )
    np.testing.assert_allclose(
        np.linalg.norm(table[ESTIMATE[3:]].to_numpy(), axis=1), 1, atol=1e-12
    )
    assert set(table["predicted_scene"]) <= {"attic", "cellar"}
    assert table["scene_probability"].between(0.5, 1).all()  # the more probable of two
    metres, degrees = errors_by_hand(table)
    np.testing.assert_allclose(table["position_error_m"], metres, rtol=1e-9)
    np.testing.assert_allclose(table["orientation_error_deg"], degrees, atol=1e-5)


def test_metrics_are_those_of_the_csv_alone(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    table = pd.read_csv(evaluated / "predictions" / "test.csv")
    metres, degrees = errors_by_hand(table)
    expected = {}
    for scene in ("attic", "cellar"):
        rows = (table["scene"] == scene).to_numpy()
        within = [(metres[rows] <= m) & (degrees[rows] <= d) for m, d in ((0.5, 10), (2, 90))]
        expected[scene] = {
            "frames": 5,
            "median_position_error_m": np.median(metres[rows]),
            "median_orientation_error_deg": np.median(degrees[rows]),
            "recall": [np.mean(share) for share in within],
            "scene_accuracy": np.mean(table["predicted_scene"][rows] == scene),
            "position_error_m_quantiles": np.quantile(metres[rows], [0.75, 0.9, 0.95]),
            "orientation_error_deg_quantiles": np.quantile(degrees[rows], [0.75, 0.9, 0.95]),
            "auc": [
                auc_from_errors(
                    torch.from_numpy(np.maximum(metres[rows] / m, degrees[rows] / d)), 1.0
                )[1.0]
                / 100
                for m, d in ((0.5, 10), (2, 90))
            ],
        }
    average = {
        name: np.mean([expected[scene][name] for scene in expected], axis=0)
        for name in expected["attic"]
    }
    expected["average"] = average | {"frames": 10}
    for name, values in expected.items():
        found = metrics["average"] if name == "average" else metrics["scenes"][name]
        assert found.keys() == values.keys()
        for key, value in values.items():
            assert found[key] == pytest.approx(value, abs=1e-5), (name, key)
    about = {
        "dataset": "small",
        "ground_truth": "made-up",
        "split": "test",
        "scene_selection": "predicted",
        "experiment": "small",
        "variant": "all",
        "seed": 5,
        "bad_frames": 0,
        "thresholds": [[0.5, 10.0], [2.0, 90.0]],  # the card's
    }
    assert {name: metrics[name] for name in about} == about
    provenance = metrics["provenance"]
    assert provenance["device"] == device_name(torch.device("cpu"))
    assert provenance["model"]["dataset"] == "small"
    assert provenance["model"]["config_hash"] == config_hash(Run(evaluated).settings)
    assert Path(provenance["predictions"]) == evaluated / "predictions" / "test.csv"


def test_metrics_can_be_made_again_from_the_file(evaluated, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    before = read_metrics(run / "metrics.json")
    (run / "metrics.json").unlink()
    again, path = evaluate_predictions(run / "predictions" / "test.csv")
    assert path == run / "metrics.json"
    for metrics in (before, again):
        metrics.pop("provenance")
    assert json.loads(json.dumps(again)) == before
    looser, _ = evaluate_predictions(run / "predictions" / "test.csv", thresholds=[(3.0, 180.0)])
    assert looser["thresholds"] == [[3.0, 180.0]]
    assert looser["average"]["recall"] == [1.0]
    with pytest.raises(MsposeError, match=r"test.csv was predicted on split test, not train"):
        evaluate_predictions(run / "predictions" / "test.csv", split="train")


def test_the_estimate_does_not_depend_on_the_batch_size(evaluated, own_run, tmp_path):
    evaluate_run(own_run, data=cached(tmp_path), batch_size=3, progress=False)
    one, two = (pd.read_csv(run / "predictions" / "test.csv") for run in (evaluated, own_run))
    np.testing.assert_allclose(one[ESTIMATE], two[ESTIMATE], atol=1e-5)


def test_the_given_scene_takes_the_place_of_the_predicted_one(own_run, tmp_path):
    weights, description = load_model(own_run)
    weights["scene.weight"].zero_()  # all scenes are equally probable, and the first is taken
    save_model(own_run, weights, description)
    metrics, tables = {}, {}
    for given in (False, True):
        metrics[given], _ = evaluate_run(
            own_run, data=cached(tmp_path), given_scene=given, progress=False
        )
        tables[given] = pd.read_csv(own_run / "predictions" / "test.csv")
        assert set(tables[given]["predicted_scene"]) == {"attic"}
        assert metrics[given]["average"]["scene_accuracy"] == 0.5
    assert (metrics[False]["scene_selection"], metrics[True]["scene_selection"]) == (
        "predicted",
        "given",
    )
    same = np.isclose(tables[False][ESTIMATE], tables[True][ESTIMATE], atol=1e-6).all(axis=1)
    np.testing.assert_array_equal(same, tables[True]["scene"] == "attic")


def test_another_split_has_files_of_its_own(own_run, tmp_path):
    metrics, path = evaluate_run(own_run, split="train", data=cached(tmp_path), progress=False)
    assert path == own_run / "metrics-train.json"
    assert (metrics["split"], metrics["average"]["frames"]) == ("train", 24)
    assert len(pd.read_csv(own_run / "predictions" / "train.csv")) == 24
    assert not (own_run / "metrics.json").exists()
    with pytest.raises(
        MsposeError, match=r"no frames of split 'validation' in .*; splits there: test, train"
    ):
        evaluate_run(own_run, split="validation", data=cached(tmp_path), progress=False)


def test_some_scenes_and_other_thresholds(own_run, tmp_path):
    data = cached(tmp_path, scenes=["cellar"])
    metrics, _ = evaluate_run(own_run, data=data, thresholds=[(1.0, 20.0)], progress=False)
    assert list(metrics["scenes"]) == ["cellar"]
    assert metrics["thresholds"] == [[1.0, 20.0]]
    again, _ = evaluate_predictions(own_run / "predictions" / "test.csv")
    assert again["thresholds"] == [[1.0, 20.0]]


def test_a_summary_for_people(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    lines = summary(metrics).splitlines()
    names = [lines[row].split("|")[1].strip() for row in (0, 2, 3, 4)]
    assert names == ["scene", "attic", "cellar", "average"]
    assert f"{metrics['scenes']['attic']['median_position_error_m']:.3f}" in lines[2]
    metrics["average"]["scene_accuracy"] = None
    assert " - " in summary(metrics).splitlines()[-1]


# another method's predictions


def test_another_methods_file_needs_poses_alone(evaluated, small_data, tmp_path):
    table = pd.read_csv(evaluated / "predictions" / "test.csv")
    poses = table[["image", *POSITION, *ORIENTATION, *ESTIMATE]]
    poses.to_csv(tmp_path / "theirs.csv", index=False)
    metrics, path = evaluate_predictions(
        tmp_path / "theirs.csv", dataset=str(small_data), split="test", method="Theirs"
    )
    assert path == tmp_path / "metrics.json"
    assert list(metrics["scenes"]) == ["all"]
    assert metrics["average"]["median_position_error_m"] == pytest.approx(
        np.median(table["position_error_m"])
    )
    assert metrics["average"]["scene_accuracy"] is None
    about = {
        "dataset": "small",
        "ground_truth": "made-up",
        "split": "test",
        "experiment": "external",
    }
    about |= {"variant": "Theirs", "seed": None, "thresholds": [[0.5, 10.0], [2.0, 90.0]]}
    assert {name: metrics[name] for name in about} == about

    (tmp_path / "b").mkdir()
    poses.assign(scene=table["scene"]).to_csv(tmp_path / "b" / "theirs.csv", index=False)
    metrics, _ = evaluate_predictions(tmp_path / "b" / "theirs.csv")
    ours = json.loads((evaluated / "metrics.json").read_text())
    for scene, medians in ours["scenes"].items():
        for key in ("frames", "median_position_error_m", "median_orientation_error_deg"):
            assert metrics["scenes"][scene][key] == pytest.approx(medians[key])
    assert (metrics["dataset"], metrics["split"], metrics["variant"]) == (None, None, "theirs")
    assert metrics["thresholds"] == [[0.05, 5.0], [0.1, 5.0], [0.25, 5.0], [0.5, 10.0]]


def test_another_methods_file_must_fit_the_data_set_that_is_named(evaluated, small_data, tmp_path):
    shutil.copy(evaluated / "predictions" / "test.csv", tmp_path / "theirs.csv")
    with pytest.raises(MsposeError, match="7scenes has no scene 'attic'; its scenes: chess"):
        evaluate_predictions(tmp_path / "theirs.csv", dataset="7scenes")
    with pytest.raises(MsposeError, match="small has no ground truth 'sfm'; it has: made-up"):
        evaluate_predictions(tmp_path / "theirs.csv", dataset=str(small_data), ground_truth="sfm")


def theirs_of(evaluated: Path, folder: Path, change) -> Path:
    """A file of another method: a run's, changed."""
    table = pd.read_csv(evaluated / "predictions" / "test.csv")
    path = folder / "theirs.csv"
    change(table).to_csv(path, index=False)
    return path


def shifted(table: pd.DataFrame) -> pd.DataFrame:
    """Estimates 1 cm from the truth."""
    table = table.drop(columns=["position_error_m", "orientation_error_deg"])
    table[ESTIMATE] = table[[*POSITION, *ORIENTATION]]
    return table.assign(tx_est=table["tx"] + 0.01)


@pytest.mark.parametrize("with_scene", [True, False])
def test_frames_without_prediction_fail_in_recall(
    with_scene, evaluated, small_data, tmp_path, caplog
):
    """Of attic's five frames, three are there; cellar's are whole."""
    absent = ["attic/test-01/frame-001.png", "attic/test-01/frame-004.png"]

    def change(table):
        table = shifted(table[~table["image"].isin(absent)])
        return table if with_scene else table.drop(columns="scene")

    path = theirs_of(evaluated, tmp_path, change)
    metrics, _ = evaluate_predictions(path, dataset=str(small_data), split="test")
    assert "2 of the 10 test frames of small have no prediction" in caplog.text
    assert all(image in caplog.text for image in absent)
    recall = {name: scene["recall"] for name, scene in metrics["scenes"].items()}
    if with_scene:
        assert recall == {"attic": [3 / 5] * 2, "cellar": [1.0] * 2}
        assert metrics["scenes"]["attic"]["missing_frames"] == 2
        assert "missing_frames" not in metrics["scenes"]["cellar"]
        assert metrics["average"]["recall"] == [0.8, 0.8]
    else:
        assert recall == {"all": [0.8, 0.8]}
    assert (metrics["average"]["frames"], metrics["average"]["missing_frames"]) == (8, 2)
    assert metrics["average"]["median_position_error_m"] == pytest.approx(0.01)
    assert "without prediction" in summary(metrics).splitlines()[0]
    assert "frames without prediction: 2, failed in recall" in table_text(
        [tmp_path], published=False
    )


def test_a_scene_without_any_prediction_is_named(evaluated, small_data, tmp_path, caplog):
    path = theirs_of(evaluated, tmp_path, lambda table: table[table["scene"] == "attic"])
    metrics, _ = evaluate_predictions(path, dataset=str(small_data))
    assert (metrics["split"], list(metrics["scenes"])) == ("test", ["attic"])
    assert "missing_frames" not in metrics["average"]


@pytest.mark.parametrize(
    "name",
    ["test-01/frame-{}.png", "/home/me/small/attic/test-01/frame-{}.png",
     "attic\\test-01\\frame-{}.jpg"],
)  # fmt: skip
def test_images_are_known_by_the_ends_of_their_names(name, evaluated, small_data, tmp_path, caplog):
    def change(table):
        table = shifted(table[table["scene"] == "attic"])
        return table.assign(image=[name.format(image[-7:-4]) for image in table["image"]])

    path = theirs_of(evaluated, tmp_path, change)
    metrics, _ = evaluate_predictions(path, dataset=str(small_data), scenes=["attic"])
    assert (metrics["average"]["frames"], caplog.text) == (5, "")


def test_predictions_of_other_images_are_named_and_left_out(
    evaluated, small_data, tmp_path, caplog
):
    def change(table):
        table.loc[2, "image"] = "attic/test-01/frame-999.png"
        return table

    path = theirs_of(evaluated, tmp_path, change)
    metrics, _ = evaluate_predictions(path, dataset=str(small_data), split="test")
    assert "left out, not among the test frames of small: attic/test-01/frame-999" in caplog.text
    assert (metrics["average"]["frames"], metrics["average"]["missing_frames"]) == (9, 1)
    with pytest.raises(MsposeError, match=r"none of its images is among the train frames of small"):
        evaluate_predictions(path, dataset=str(small_data), split="train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(tx=t["tx"] + 100), "true poses of 10 of its 10 images are not those"),
        (lambda t: t.assign(qx=t["qx"] + 0.01), "true poses of 10 of its 10 .* degrees off"),
        (lambda t: pd.concat([t, t[:1].assign(image="test-01/frame-000.png")]),
         "several predictions of attic/test-01/frame-000.png"),
        (lambda t: t[:5].drop(columns="scene").assign(image=t["image"].str.slice(-13)),
         r"could be several frames \(.*add a column scene, or give --scenes"),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_the_labels_is_refused(
    change, message, evaluated, small_data, tmp_path
):
    path = theirs_of(evaluated, tmp_path, change)
    with pytest.raises(MsposeError, match=message) as caught:
        evaluate_predictions(path, dataset=str(small_data), split="test")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "metrics.json").exists()


def test_rounded_truths_are_those_of_the_labels(evaluated, small_data, tmp_path, caplog):
    path = theirs_of(evaluated, tmp_path, lambda table: shifted(table).round(4))
    assert evaluate_predictions(path, dataset=str(small_data))[0]["average"]["frames"] == 10
    assert caplog.text == ""


def test_without_labels_the_cards_number_of_frames_counts(evaluated, small_data, tmp_path, caplog):
    scenes = {"attic": {"frames": {"test": 8}}, "cellar": {"frames": {"test": 5}}}
    card = other_card(tmp_path, small_data, name="other", labels=["none.csv"], scenes=scenes)
    path = theirs_of(evaluated, tmp_path, shifted)
    metrics, _ = evaluate_predictions(path, dataset=str(card), split="test")
    assert "not compared with the labels of other, which are not here" in caplog.text
    assert metrics["scenes"]["attic"]["recall"] == [5 / 8] * 2
    assert metrics["scenes"]["cellar"]["recall"] == [1.0] * 2


def test_what_predict_writes_is_no_predictions_file(tmp_path):
    (tmp_path / "poses.csv").write_text("image,time_s,tx,ty,tz,qw,qx,qy,qz,scene\n")
    with pytest.raises(MsposeError, match=r"column tx_est, .*what mspose predict writes has estim"):
        evaluate_predictions(tmp_path / "poses.csv")


def test_metrics_of_another_file_are_not_overwritten(evaluated, tmp_path):
    for name in ("one.csv", "two.csv"):
        shutil.copy(evaluated / "predictions" / "test.csv", tmp_path / name)
    evaluate_predictions(tmp_path / "one.csv")
    evaluate_predictions(tmp_path / "one.csv")
    with pytest.raises(
        MsposeError, match=r"metrics.json holds the metrics of .*one.csv: put two.csv into a folder"
    ):
        evaluate_predictions(tmp_path / "two.csv")
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    before = (run / "metrics.json").read_bytes()
    shutil.copy(run / "predictions" / "test.csv", run / "test.csv")
    with pytest.raises(MsposeError, match="into a folder of its own"):
        evaluate_predictions(run / "test.csv")
    assert (run / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"dataset": "a", "ground_truth": "b", "split": "c", "thresholds": "ab"}'],
)
def test_a_broken_note_beside_predictions_is_named(evaluated, tmp_path, text):
    shutil.copytree(evaluated, tmp_path / "run")
    (tmp_path / "run" / "predictions" / "test.json").write_text(text)
    with pytest.raises(
        MsposeError, match="test.json is not (JSON|what mspose writes beside predictions): "
    ):
        evaluate_predictions(tmp_path / "run" / "predictions" / "test.csv")


# other data than the run's own


def other_card(folder: Path, small_data: Path, **changes) -> Path:
    card = yaml.safe_load(small_data.read_text())
    card |= {
        "root": str(small_data.parent),
        "labels": [str(small_data.parent / "labels.csv")],
        **changes,
    }
    (folder / f"{card['name']}.yaml").write_text(yaml.safe_dump(card))
    return folder / f"{card['name']}.yaml"


def test_another_data_set_stands_in_the_file_names(own_run, small_data, tmp_path):
    write_settings(
        own_run / "config.yaml",
        replace(
            settings := read_settings(own_run / "config.yaml"),
            data=replace(settings.data, scenes=["attic"]),
        ),
    )
    card = other_card(
        tmp_path, small_data, name="other", ground_truths=["lidar"], thresholds=[[1, 2]]
    )
    metrics, path = evaluate_run(own_run, data=cached(tmp_path, dataset=str(card)), progress=False)
    assert path == own_run / "metrics-other-lidar-test.json"
    assert (own_run / "predictions" / "other-lidar-test.csv").is_file()
    assert not (own_run / "metrics.json").exists()
    assert (metrics["dataset"], metrics["ground_truth"], metrics["thresholds"]) == (
        "other",
        "lidar",
        [[1.0, 2.0]],
    )
    assert list(metrics["scenes"]) == [
        "attic",
        "cellar",
    ]  # the run's own choice is of its own data set
    assert metrics["provenance"]["model"]["dataset"] == "small"


def test_scenes_that_the_model_does_not_know(own_run, small_data, tmp_path):
    known = r"is unknown to the model.*, which knows: attic, cellar"
    with pytest.raises(MsposeError, match=f"scene garage {known}"):
        evaluate_run(own_run, data=cached(tmp_path, scenes=["attic", "garage"]), progress=False)
    with pytest.raises(MsposeError, match=f"scene chess, .*stairs {known}"):
        evaluate_run(own_run, data=cached(tmp_path, dataset="7scenes"), progress=False)
    labels = (small_data.parent / "labels.csv").read_text()
    (tmp_path / "garage.csv").write_text(labels.replace("attic,test", "garage,test"))
    card = other_card(tmp_path, small_data, name="other", labels=[str(tmp_path / "garage.csv")])
    with pytest.raises(MsposeError, match=f"scene garage {known}"):
        evaluate_run(own_run, data=cached(tmp_path, dataset=str(card)), progress=False)
    assert not (own_run / "predictions").exists()


def test_other_label_files_bring_their_own_scenes(own_run, small_data, tmp_path):
    labels = pd.read_csv(small_data.parent / "labels.csv")
    labels.query("scene == 'cellar'").to_csv(tmp_path / "cellar.csv", index=False)
    metrics, _ = evaluate_run(
        own_run, data=cached(tmp_path, labels=[str(tmp_path / "cellar.csv")]), progress=False
    )
    assert list(metrics["scenes"]) == ["cellar"]


def test_bad_frames_stop_or_are_counted(own_run, own_data, tmp_path, caplog):
    image = own_data.parent / "attic/test-01/frame-001.png"
    image.write_bytes(image.read_bytes()[:1000])
    labels = own_data.parent / "labels.csv"
    lines = labels.read_text().splitlines()
    row = next(number for number, line in enumerate(lines) if "cellar/test-01/frame-002" in line)
    whole = lines[row]
    lines[row] = ",".join([*whole.split(",")[:4], "nan", *whole.split(",")[5:]])
    labels.write_text("\n".join(lines) + "\n")

    data = cached(tmp_path, dataset=str(own_data))
    with pytest.raises(
        MsposeError, match=rf"labels.csv, line {row + 1}: .*NaN.*--on-bad-frame skip"
    ):
        evaluate_run(own_run, data=data, progress=False)
    labels.write_text("\n".join([*lines[:row], whole, *lines[row + 1 :]]) + "\n")
    with pytest.raises(MsposeError, match=r"attic/test-01/frame-001.png.*--on-bad-frame skip"):
        evaluate_run(own_run, data=data, progress=False)
    assert not (own_run / "metrics.json").exists()

    labels.write_text("\n".join(lines) + "\n")
    metrics, path = evaluate_run(own_run, data=data, on_bad_frame="skip", progress=False)
    assert path == own_run / "metrics.json"  # the same data set by its name, wherever it lies
    assert metrics["bad_frames"] == 2
    assert {name: scene["frames"] for name, scene in metrics["scenes"].items()} == {
        "attic": 4,
        "cellar": 4,
    }
    assert "frame-001.png" in caplog.text
    assert "bad frames left out: 2" in table_text([own_run], published=False)


def test_the_cards_number_of_frames_stands_beside_that_of_the_evaluated(
    own_run, own_data, tmp_path, caplog
):
    stated = {"attic": {"frames": {"train": 12, "test": 7}}, "cellar": {}}
    own_data.write_text(own_data.read_text() + yaml.safe_dump({"scenes": stated}))
    data = cached(tmp_path, dataset=str(own_data))
    metrics, path = evaluate_run(own_run, data=data, progress=False)
    assert "attic test: 5 frames here, 7 as the card says" in caplog.text
    scenes = json.loads(path.read_text())["scenes"]
    assert (scenes["attic"]["frames"], scenes["attic"]["frames_expected"]) == (5, 7)
    assert "frames_expected" not in scenes["cellar"]  # the card does not say
    again, _ = evaluate_predictions(own_run / "predictions" / "test.csv")
    assert again["scenes"] == metrics["scenes"]

    (tmp_path / "theirs").mkdir()
    shutil.copy(own_run / "predictions" / "test.csv", tmp_path / "theirs" / "theirs.csv")
    theirs, _ = evaluate_predictions(
        tmp_path / "theirs" / "theirs.csv", dataset=str(own_data), split="test"
    )
    assert theirs["scenes"]["attic"]["frames_expected"] == 7


# what a run says of itself


def test_settings_that_changed_since_are_reported(own_run, tmp_path, caplog):
    stored = load_model(own_run)[1]["config_hash"]
    write_settings(own_run / "config.yaml", replace(read_settings(own_run / "config.yaml"), seed=6))
    metrics, _ = evaluate_run(own_run, data=cached(tmp_path), progress=False)
    assert "the settings were changed since the model was made" in caplog.text
    assert metrics["provenance"]["model"]["config_hash"] == stored


def test_the_variant_is_the_settings_own_or_the_folders(own_run, tmp_path):
    moved = tmp_path / "runs" / "small" / "elsewhere" / "seed-5"
    shutil.copytree(own_run, moved)
    assert evaluate_run(moved, data=cached(tmp_path), progress=False)[0]["variant"] == "elsewhere"
    settings = replace(read_settings(moved / "config.yaml"), variant="mine")
    write_settings(moved / "config.yaml", settings)
    weights, description = load_model(moved)
    save_model(moved, weights, {**description, "config_hash": config_hash(settings)})
    assert evaluate_run(moved, data=cached(tmp_path), progress=False)[0]["variant"] == "mine"


def test_a_full_disk_keeps_what_was_there(evaluated, tmp_path, monkeypatch):
    shutil.copytree(evaluated, run := tmp_path / "run")
    files = ["metrics.json", "predictions/test.csv", "predictions/test.json"]
    before = [(run / name).read_bytes() for name in files]

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MsposeError, match=r"cannot write .*test.csv: No space left on device"):
        evaluate_run(run, data={"cache": str(evaluated.parents[3] / "cache")}, progress=False)
    with pytest.raises(MsposeError, match=r"cannot write .*metrics.json: No space left on device"):
        evaluate_predictions(run / "predictions" / "test.csv")
    assert [(run / name).read_bytes() for name in files] == before
    assert not list(run.rglob("*.part"))


# the two ground truths of 7Scenes


def write_seven_scenes(root: Path, scenes: list[str]) -> Path:
    """Scenes in 7Scenes' layout with three training and two test frames each, and both ground
    truths; the card.
    """
    rng = np.random.default_rng(11)
    for scene in scenes:
        for sequence, split, count in ((1, "train", 3), (2, "test", 2)):
            folder = root / scene / f"seq-{sequence:02d}"
            folder.mkdir(parents=True)
            lines = []
            for number in range(count):
                name = f"frame-{number:06d}"
                position, quaternion = (
                    rng.uniform(-1, 1, (1, 3)),
                    np.array([[1, *rng.uniform(-0.3, 0.3, 3)]]),
                )
                np.savetxt(folder / f"{name}.pose.txt", pose_matrix(position, quaternion)[0])
                Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(
                    folder / f"{name}.color.png"
                )
                # the second truth is 0.5 m further along x, and world-to-camera
                centre = position + np.array([0.5, 0, 0])
                translation = -np.einsum(
                    "bij,bj->bi", quaternion_to_rotation(invert_quaternion(quaternion)), centre
                )
                numbers = [*invert_quaternion(quaternion)[0], *translation[0], 525.0]
                lines.append(
                    f"seq-{sequence:02d}/{name}.color.png"
                    f" {' '.join(map(repr, map(float, numbers)))}\n"
                )
            (root / scene / f"{split.capitalize()}Split.txt").write_text(f"sequence{sequence}\n")
            (root / "sfm").mkdir(exist_ok=True)
            (root / "sfm" / f"{scene}_{split}.txt").write_text("".join(lines))
    card = {"name": "7scenes", "format": "7scenes", "root": ".", "scenes": scenes}
    (root / "7scenes.yaml").write_text(yaml.safe_dump(card))
    return root / "7scenes.yaml"


def test_ground_truths_are_kept_separate_in_all_files(small_settings, tmp_path):
    card = write_seven_scenes(tmp_path / "data", ["chess", "heads"])
    data = replace(small_settings.data, dataset=str(card), holdout=0.0)
    settings = replace(
        small_settings, data=data, training=replace(small_settings.training, epochs=1)
    )
    runs = {
        truth: train(replace(settings, data=replace(data, ground_truth=truth)), progress=False)
        for truth in ("original", "sfm")
    }
    assert [run.parent.name for run in runs.values()] == ["all", "all-sfm"]
    tables = {}
    for truth, run in runs.items():
        assert read_settings(run / "config.yaml").data.ground_truth == truth
        assert load_model(run)[1]["trained_on"]["ground_truth"] == truth
        metrics, path = evaluate_run(run, progress=False)
        assert path == run / "metrics.json"
        assert (metrics["ground_truth"], metrics["variant"]) == (truth, run.parent.name)
        assert metrics["provenance"]["model"]["ground_truth"] == truth
        assert json.loads((run / "predictions" / "test.json").read_text())["ground_truth"] == truth
        tables[truth] = pd.read_csv(run / "predictions" / "test.csv")
    np.testing.assert_allclose(tables["sfm"]["tx"], tables["original"]["tx"] + 0.5, atol=1e-9)
    np.testing.assert_allclose(
        tables["sfm"][ORIENTATION], tables["original"][ORIENTATION], atol=1e-9
    )

    crossed, path = evaluate_run(runs["original"], data={"ground_truth": "sfm"}, progress=False)
    assert path == runs["original"] / "metrics-7scenes-sfm-test.json"
    assert (crossed["ground_truth"], crossed["provenance"]["model"]["ground_truth"]) == (
        "sfm",
        "original",
    )
    assert json.loads((runs["original"] / "metrics.json").read_text())["ground_truth"] == "original"

    with pytest.raises(
        MsposeError, match=r"cannot share a table: .*ground truth original.*ground truth sfm"
    ):
        table_text([tmp_path / "runs"], published=False)
    assert [row.name for row in collect_runs(runs.values(), ground_truth="original")] == [
        "small/all"
    ]
    rows = collect_runs(runs.values(), ground_truth="sfm")
    assert {row.name for row in rows} == {"small/all", "small/all-sfm"}
    with pytest.raises(
        MsposeError, match="7scenes has no ground truth 'lidar'; there are: original, sfm"
    ):
        evaluate_run(runs["sfm"], data={"ground_truth": "lidar"}, progress=False)


def test_settings_of_another_data_set_start_from_the_defaults(own_run, small_data, tmp_path):
    settings = read_settings(own_run / "config.yaml")
    changed = DataSettings(
        dataset=str(small_data), root="/nowhere", labels=["/nowhere.csv"], cache=settings.data.cache
    )
    write_settings(own_run / "config.yaml", replace(settings, data=changed))
    card = other_card(tmp_path, small_data, name="other")
    metrics, _ = evaluate_run(own_run, data=cached(tmp_path, dataset=str(card)), progress=False)
    assert metrics["average"]["frames"] == 10
    with pytest.raises(MsposeError, match="/nowhere"):
        evaluate_run(own_run, data=cached(tmp_path), progress=False)
