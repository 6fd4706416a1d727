import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_batches

import mspose
from mspose.data.cards import data_root, read_card
from mspose.data.images import read_image
from mspose.errors import MsposeError
from mspose.inference import predict_frames, resolve_device
from mspose.metrics import PREDICTION_COLUMNS
from mspose.run import MODEL, WEIGHTS, load_model, save_model


@pytest.fixture
def estimator(small_run):
    return mspose.load(small_run)


@pytest.fixture
def batches(small_data, tmp_path, estimator):
    return small_batches(small_data, tmp_path / "cache", estimator.network)


def test_one_image_gives_the_pose_that_the_whole_split_gives(small_run, small_data, tmp_path):
    estimator = mspose.load(small_run)
    table = predict_frames(
        estimator.network, small_batches(small_data, tmp_path, estimator.network)
    )
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


def test_a_compiled_network_predicts_the_same(estimator, batches, monkeypatch):
    seen = []
    real = torch.compile

    def compiler(function, **options):
        seen.append(options)
        return real(function, backend="eager", **options)  # everything but machine code

    monkeypatch.setattr(torch, "compile", compiler)
    plain, compiled = (
        predict_frames(estimator.network, batches, compile=choice) for choice in (False, True)
    )
    assert seen == [{"dynamic": False, "mode": None}]
    pd.testing.assert_frame_equal(plain, compiled, rtol=1e-5, atol=1e-6)


def test_a_given_scene_takes_that_scenes_pose(estimator, batches, small_data):
    image = np.random.default_rng(0).integers(0, 255, (70, 55, 3), dtype=np.uint8)
    answers = {scene: estimator(image, scene) for scene in estimator.scenes}
    assert [answer.scene for answer in answers.values()] == ["attic", "cellar"]
    assert not np.allclose(answers["attic"].position, answers["cellar"].position)
    assert sum(answer.scene_probability for answer in answers.values()) == pytest.approx(
        1, abs=1e-5
    )
    table = predict_frames(estimator.network, batches, given_scene=True)
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
def test_an_array_of_another_kind_is_refused(estimator, image):
    with pytest.raises(ValueError, match=r"uint8|\(H, W, 3\)"):
        estimator(image)


def test_the_network_answers_as_documented(estimator):
    network = estimator.network
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
        ({"head_hidden": 24}, r"another architecture: position_head.*\(20,.*expected \(24,"),
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (WEIGHTS, None, r"holds no model \(model.safetensors is missing\)"),
        (MODEL, None, r"holds no model \(model.json is missing\)"),
        (WEIGHTS, b"", "model.safetensors is damaged"),
        (WEIGHTS, 0.5, "model.safetensors is damaged"),
        (WEIGHTS, b"\x80\x02cposix\nsystem\n", "model.safetensors is damaged"),
        (MODEL, b"[1]", "not a model description"),
        (MODEL, b'{"format": 1}', "does not describe a model of this version"),
        (MODEL, b'{"format": 1, "kind": ["mspn"]}', "does not describe a model of this version"),
        (MODEL, b'{"format": 1, "settings": {"head_hidden": 1e99}, "scenes": ["a"]}', "not descri"),
        (MODEL, b'{"format": 7}', "format 7 is not 1"),
        (MODEL, b"\xff\xfe", "model.json is not JSON"),
    ],
)
def test_broken_files_are_named(small_run, tmp_path, name, content, message):
    for file in (WEIGHTS, MODEL):
        shutil.copy(small_run / file, tmp_path / file)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if content is not None:
        is_share = isinstance(content, float)
        (tmp_path / name).write_bytes(whole[: int(content * len(whole))] if is_share else content)
    with pytest.raises(MsposeError, match=message) as raised:
        mspose.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_weights_that_give_no_finite_pose_are_named(estimator, batches):
    with torch.no_grad():
        next(estimator.network.position_head.parameters()).fill_(float("nan"))
    with pytest.raises(
        MsposeError, match="the model's estimate is no pose: its weights are unusable"
    ):
        estimator(np.zeros((60, 80, 3), np.uint8))
    with pytest.raises(MsposeError, match=r"estimate for attic/test-01/frame-000.png is no pose"):
        predict_frames(estimator.network, batches)


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(MsposeError, match="device warp:9 cannot be used here"):
        resolve_device("warp:9")


def test_a_float64_model_keeps_its_precision(small_run, small_data, batches, tmp_path):
    weights, _ = load_model(small_run)
    fine = {
        name: tensor.double() + 1e-12 if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    estimator = mspose.load(copy_of(small_run, tmp_path / "run", weights=fine))
    for name, tensor in estimator.network.state_dict().items():
        assert torch.equal(tensor, fine[name]), name
    table = predict_frames(
        estimator.network, small_batches(small_data, tmp_path, estimator.network)
    )
    image = read_image(data_root(read_card(small_data)) / table["image"][0])
    np.testing.assert_allclose(
        estimator(image).position, table.loc[0, ["tx_est", "ty_est", "tz_est"]].astype(float)
    )
