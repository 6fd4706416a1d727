import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mspose.config import read_settings
from mspose.data.cards import load_frames, read_card
from mspose.errors import MsposeError
from mspose.metrics import PREDICTION_COLUMNS, compute_metrics
from mspose.studies.baselines import evaluate_baselines, mean_pose, most_similar, nearest_image
from mspose.studies.tables import table_text

REPOSITORY = Path(__file__).parents[2]
needs_shared = pytest.mark.skipif(
    not (REPOSITORY / "../shared/data").is_dir(),
    reason="../shared/data is not there, no real labels",
)
POSITION, ORIENTATION = ["tx", "ty", "tz"], ["qw", "qx", "qy", "qz"]
ESTIMATE = ["tx_est", "ty_est", "tz_est", "qw_est", "qx_est", "qy_est", "qz_est"]


def about_z(degrees: float) -> list[float]:
    half = np.radians(degrees) / 2
    return [np.cos(half), 0.0, 0.0, np.sin(half)]


def frames(*rows: tuple[str, list[float], list[float]]) -> pd.DataFrame:
    """A frame table of (scene, position, quaternion)."""
    values = [
        [scene, f"{scene}/{number}.png", *place, *turn]
        for number, (scene, place, turn) in enumerate(rows)
    ]
    return pd.DataFrame(values, columns=["scene", "image", *POSITION, *ORIENTATION])


TRAIN = frames(
    ("hall", [0, 0, 0], about_z(10)),
    ("barn", [10, 0, 0], about_z(0)),
    ("hall", [2, 4, 0], about_z(30)),
    ("hall", [4, 2, 3], [-value for value in about_z(20)]),  # the same orientation as its negative
)


def test_mean_pose_of_each_scene():
    test = frames(
        ("barn", [10, 3, 4], about_z(90)),
        ("hall", [2, 2, 1], about_z(25)),
        ("hall", [2, 2, 4], about_z(20)),
    )
    table = mean_pose(TRAIN, test)
    assert list(table) == list(PREDICTION_COLUMNS)
    assert table["image"].tolist() == test["image"].tolist()
    np.testing.assert_allclose(table[ESTIMATE[:3]], [[10, 0, 0], [2, 2, 1], [2, 2, 1]], atol=1e-12)
    np.testing.assert_allclose(
        table[ESTIMATE[3:]], [about_z(0), about_z(20), about_z(20)], atol=1e-12
    )
    np.testing.assert_allclose(table["position_error_m"], [5, 0, 3], atol=1e-12)
    np.testing.assert_allclose(table["orientation_error_deg"], [90, 5, 0], atol=1e-9)
    assert table["predicted_scene"].isna().all()
    assert compute_metrics(table, thresholds=[])["average"]["scene_accuracy"] is None


def test_the_training_image_with_the_smallest_angle_between_features():
    train = torch.tensor([[1.0, 0.0], [0.0, 100.0], [3.0, 3.0], [-1.0, 0.0]])
    test = torch.tensor([[0.1, 0.9], [50.0, 1.0], [2.0, 1.5], [-5.0, 0.1]])  # lengths do not count
    truth = frames(*[("hall", [0, 0, 0], about_z(0))] * 4).assign(image=list("abcd"))
    nearest_MK = most_similar(train, test, 3)
    assert nearest_MK.tolist() == [[1, 2, 0], [0, 2, 1], [2, 0, 1], [3, 1, 2]]
    table = nearest_image(TRAIN, truth, nearest_MK[:, 0])
    assert list(table) == list(PREDICTION_COLUMNS)
    found = TRAIN.iloc[[1, 0, 2, 3]]
    assert (
        table["predicted_scene"].tolist()
        == found["scene"].tolist()
        == ["barn", "hall", "hall", "hall"]
    )
    np.testing.assert_allclose(table[ESTIMATE], found[POSITION + ORIENTATION])
    np.testing.assert_allclose(table["position_error_m"], [10, 0, np.sqrt(20), np.sqrt(29)])
    np.testing.assert_allclose(table["orientation_error_deg"], [0, 10, 30, 20], atol=1e-9)


def test_features_of_many_images_are_compared_in_parts():
    generator = torch.Generator().manual_seed(3)
    train = torch.randn(7, 5, generator=generator)
    order = torch.randint(7, (2100,), generator=generator)
    many = frames(*[("hall", [float(number), 0, 0], about_z(0)) for number in range(7)])
    test = pd.concat([many.iloc[:1]] * 2100, ignore_index=True).assign(
        image=[str(number) for number in range(2100)]
    )
    table = nearest_image(many, test, most_similar(train, 2 * train[order], 1)[:, 0])
    np.testing.assert_array_equal(table["tx_est"], order.numpy())


@pytest.fixture(scope="module")
def finished(small_run, small_data, tmp_path_factory):
    """(settings, results) of both baselines on data with training images among the test images."""
    folder = tmp_path_factory.mktemp("baselines")
    shutil.copytree(small_data.parent, folder / "data")
    for scene in ("attic", "cellar"):
        shutil.copy(
            folder / "data" / scene / "train-01/frame-007.png",
            folder / "data" / scene / "test-01/frame-003.png",
        )
    shutil.copy(
        folder / "data/attic/train-01/frame-002.png", folder / "data/cellar/test-01/frame-004.png"
    )
    settings = read_settings(small_run / "config.yaml")
    data = replace(
        settings.data, dataset=str(folder / "data" / "small.yaml"), cache=str(folder / "cache")
    )
    settings = replace(settings, runs=str(folder / "runs"), data=data)
    return settings, evaluate_baselines(settings, progress=False)


def test_retrieval_finds_the_image_itself(finished):
    settings, results = finished
    run = results["baseline-retrieval"][1].parent
    table = pd.read_csv(run / "predictions" / "test.csv", index_col="image")
    labels = pd.read_csv(Path(settings.data.dataset).parent / "labels.csv", index_col="img_path")
    for image, source in (
        ("attic/test-01/frame-003.png", "attic/train-01/frame-007.png"),
        ("cellar/test-01/frame-003.png", "cellar/train-01/frame-007.png"),
        ("cellar/test-01/frame-004.png", "attic/train-01/frame-002.png"),
    ):
        expected = labels.loc[source]
        assert table.loc[image, "predicted_scene"] == expected["scene"], image
        found = table.loc[image, ESTIMATE].to_numpy(float)
        np.testing.assert_allclose(
            found, expected[["t1", "t2", "t3", "q1", "q2", "q3", "q4"]].to_numpy(float)
        )
    accuracy = results["baseline-retrieval"][0]["scenes"]["cellar"]["scene_accuracy"]
    assert (
        accuracy == (table.query("scene == 'cellar'")["predicted_scene"] == "cellar").mean() <= 0.8
    )


def test_baselines_are_runs_that_tables_read(finished):
    settings, results = finished
    assert list(results) == ["baseline-mean-pose", "baseline-retrieval"]
    for variant, (metrics, path) in results.items():
        run = Path(settings.runs) / "small" / variant / "seed-0"
        assert path == run / "metrics.json"
        assert metrics["average"]["frames"] == 10
        assert (metrics["experiment"], metrics["variant"], metrics["seed"]) == ("small", variant, 0)
        assert metrics["thresholds"] == [[0.5, 10.0], [2.0, 90.0]]
        assert metrics["provenance"]["model"]["config_hash"]
        assert read_settings(run / "config.yaml").variant == variant
        assert json.loads(path.read_text())["dataset"] == "small"
    text = table_text([settings.runs], published=False)
    assert "baseline-mean-pose (1 seed, scene given)" in text
    assert "baseline-retrieval (1 seed, scene predicted)" in text


def test_baselines_of_some_scenes_stand_beside_those_of_all(finished):
    settings, results = finished
    before = {path: path.read_bytes() for _, path in results.values()}
    some = evaluate_baselines(
        replace(settings, data=replace(settings.data, scenes=["attic"])), progress=False
    )
    assert list(some) == ["baseline-mean-pose-attic", "baseline-retrieval-attic"]
    assert list(some["baseline-retrieval-attic"][0]["scenes"]) == ["attic"]
    assert some["baseline-mean-pose-attic"][0]["scene_selection"] == "given"
    assert {path: path.read_bytes() for path in before} == before


def test_bad_frames_stop_or_are_counted(finished, tmp_path):
    settings, _ = finished
    shutil.copytree(Path(settings.data.dataset).parent, tmp_path / "data")
    (tmp_path / "data/attic/test-01/frame-000.png").write_bytes(b"")
    data = replace(
        settings.data, dataset=str(tmp_path / "data" / "small.yaml"), cache=str(tmp_path / "cache")
    )
    settings = replace(settings, runs=str(tmp_path / "runs"), data=data)
    with pytest.raises(MsposeError, match=r"attic/test-01/frame-000.png"):
        evaluate_baselines(settings, progress=False)
    assert not (tmp_path / "runs").exists()
    results = evaluate_baselines(replace(settings, on_bad_frame="skip"), progress=False)
    for metrics, _ in results.values():
        assert (metrics["bad_frames"], metrics["average"]["frames"]) == (1, 9)


@needs_shared
@pytest.mark.parametrize(
    ("name", "metres", "degrees"), [("blocks", 0.518, 14.50), ("tail", 0.418, 47.30)]
)
def test_the_mean_pose_of_real_frames(name, metres, degrees):
    card = read_card(REPOSITORY / "datasets" / f"redkitchen-{name}.yaml")
    root = REPOSITORY / "../shared/data/7scenes"
    table = mean_pose(*(load_frames(card, root=root, split=split) for split in ("train", "test")))
    figures = compute_metrics(table, thresholds=[])["scenes"]["redkitchen"]
    assert figures["frames"] == 200
    assert figures["median_position_error_m"] == pytest.approx(metres, abs=5e-4)
    assert figures["median_orientation_error_deg"] == pytest.approx(degrees, abs=1e-2)
    labels = pd.read_csv(REPOSITORY / f"../shared/data/redkitchen_{name}.csv").groupby("split")[
        ["t1", "t2", "t3"]
    ]
    apart = labels.get_group("test") - labels.get_group("train").mean()
    assert figures["median_position_error_m"] == pytest.approx(
        np.median(np.linalg.norm(apart, axis=1)), abs=1e-6
    )
