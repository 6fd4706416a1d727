import numpy as np
import pandas as pd
import pytest
import torch

import mspose
from mspose.data.batches import Batches
from mspose.data.cache import open_cache
from mspose.data.cards import data_root, load_frames, read_card
from mspose.data.images import read_image
from mspose.errors import MsposeError
from mspose.inference import predict_frames, resolve_device
from mspose.metrics import PREDICTION_COLUMNS
from mspose.run import load_model, save_model


def batches_for(card_path, estimator, folder, **options) -> Batches:
    card = read_card(card_path)
    frames, cache = open_cache(
        load_frames(card, split="test"),
        data_root(card),
        short_side=48,
        folder=folder,
        progress=False,
    )
    values = {
        "crop": 40,
        "mean": estimator.network.mean,
        "std": estimator.network.std,
        "batch_size": 4,
        **options,
    }
    return Batches(frames, cache, scenes=estimator.scenes, **values)


def test_one_image_gives_the_pose_that_the_whole_split_gives(small_run, small_data, tmp_path):
    estimator = mspose.load(small_run)
    table = predict_frames(estimator.network, batches_for(small_data, estimator, tmp_path))
    assert list(table) == list(PREDICTION_COLUMNS)
    for _, row in table.iterrows():
        estimate = estimator(read_image(data_root(read_card(small_data)) / row["image"]))
        np.testing.assert_allclose(
            estimate.position, row[["tx_est", "ty_est", "tz_est"]].astype(float), atol=1e-5
        )
        np.testing.assert_allclose(
            estimate.orientation,
            row[["qw_est", "qx_est", "qy_est", "qz_est"]].astype(float),
            atol=1e-5,
        )
        assert estimate.scene == row["predicted_scene"]
        assert estimate.scene_probability == pytest.approx(row["scene_probability"], abs=1e-5)
        assert np.linalg.norm(estimate.orientation) == pytest.approx(1)
        assert estimate.orientation[0] >= 0


def test_a_compiled_network_predicts_the_same(small_run, small_data, tmp_path, monkeypatch):
    seen = []
    real = torch.compile

    def compiler(function, **options):
        seen.append(options)
        return real(function, backend="eager", **options)  # everything but machine code

    monkeypatch.setattr(torch, "compile", compiler)
    estimator = mspose.load(small_run)
    batches = batches_for(small_data, estimator, tmp_path)
    plain, compiled = (
        predict_frames(estimator.network, batches, compile=choice) for choice in (False, True)
    )
    assert seen == [{"dynamic": False, "mode": None}]
    pd.testing.assert_frame_equal(plain, compiled, rtol=1e-5, atol=1e-6)


def test_a_given_scene_takes_that_scenes_pose(small_run, small_data, tmp_path):
    estimator = mspose.load(small_run)
    image = np.random.default_rng(0).integers(0, 255, (70, 55, 3), dtype=np.uint8)
    answers = {scene: estimator(image, scene) for scene in estimator.scenes}
    assert {scene: answer.scene for scene, answer in answers.items()} == {
        "attic": "attic",
        "cellar": "cellar",
    }
    assert not np.allclose(answers["attic"].position, answers["cellar"].position)
    assert sum(answer.scene_probability for answer in answers.values()) == pytest.approx(
        1, abs=1e-5
    )
    table = predict_frames(
        estimator.network, batches_for(small_data, estimator, tmp_path), given_scene=True
    )
    row = table.iloc[0]
    given = estimator(read_image(data_root(read_card(small_data)) / row["image"]), row["scene"])
    np.testing.assert_allclose(
        given.position, row[["tx_est", "ty_est", "tz_est"]].astype(float), atol=1e-5
    )
    with pytest.raises(
        MsposeError, match="scene chess is unknown to the model, which knows: attic, cellar"
    ):
        estimator(image, "chess")


@pytest.mark.parametrize(
    "image",
    [np.zeros((50, 60), np.uint8), np.zeros((50, 60, 3)), ["path.png"], np.zeros((3, 50, 60))],
)
def test_an_array_of_another_kind_is_refused(small_run, image):
    with pytest.raises(ValueError, match=r"uint8|\(H, W, 3\)"):
        mspose.load(small_run)(image)


def test_the_network_answers_as_documented(small_run):
    network = mspose.load(small_run).network
    assert not network.training
    output = network(torch.zeros(3, 3, 40, 40))
    assert output.position_B3.shape == (3, 3)
    assert output.orientation_B4.shape == (3, 4)
    assert output.scene_log_probability_BS.shape == (3, 2)
    assert output.query_key_gap["position"].shape == (3, 1, 2)
    assert output.query_key_gap["orientation"].shape == (3, 2, 2)


def copy_of(run, folder, **changes):
    weights, description = load_model(run)
    description.pop("format")
    save_model(folder, changes.pop("weights", weights), description | changes)
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "posenet"}, "kind: expected one of .*mspn, found 'posenet'"),
        ({"kind": "mspn"}, "another architecture: .* is missing"),
        ({"head_hidden": 20}, r"another architecture: position_head.*\(16,.*expected \(20,"),
        ({"head_hidden": "wide"}, "model.json does not describe a model of this version: head_hid"),
        ({"wings": 2}, "model.json does not describe a model of this version: .*wings"),
    ],
)
def test_settings_that_do_not_fit_are_named(small_run, tmp_path, changes, words):
    settings = load_model(small_run)[1]["settings"] | changes
    with pytest.raises(MsposeError, match=words):
        mspose.load(copy_of(small_run, tmp_path, settings=settings))


def test_missing_weights_and_models_are_named(small_run, tmp_path):
    weights, _ = load_model(small_run)
    first = next(iter(weights))
    del weights[first]
    with pytest.raises(MsposeError, match=f"{first} is missing"):
        mspose.load(copy_of(small_run, tmp_path, weights=weights))
    with pytest.raises(MsposeError, match="holds no model"):
        mspose.load(tmp_path / "nowhere")


def test_weights_that_give_no_finite_pose_are_named(small_run, small_data, tmp_path):
    estimator = mspose.load(small_run)
    with torch.no_grad():
        next(estimator.network.position_head.parameters()).fill_(float("nan"))
    with pytest.raises(
        MsposeError, match="the model's estimate is no pose: its weights are unusable"
    ):
        estimator(np.zeros((60, 80, 3), np.uint8))
    with pytest.raises(MsposeError, match=r"estimate for attic/test-01/frame-000.png is no pose"):
        predict_frames(estimator.network, batches_for(small_data, estimator, tmp_path))


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(MsposeError, match="device warp:9 cannot be used here"):
        resolve_device("warp:9")


def test_a_float64_model_keeps_its_precision(small_run, small_data, tmp_path):
    weights, _ = load_model(small_run)
    fine = {
        name: tensor.double() + 1e-12 if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    estimator = mspose.load(copy_of(small_run, tmp_path / "run", weights=fine))
    for name, tensor in estimator.network.state_dict().items():
        assert torch.equal(tensor, fine[name]), name
    table = predict_frames(estimator.network, batches_for(small_data, estimator, tmp_path))
    image = read_image(data_root(read_card(small_data)) / table["image"][0])
    np.testing.assert_allclose(
        estimator(image).position, table.loc[0, ["tx_est", "ty_est", "tz_est"]].astype(float)
    )
