import errno
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL_NETWORK, read_events, small_batches
from PIL import Image
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import mspose
from mspose.attention.attention_json import read_start
from mspose.attention.measures import AttentionMeasures, Measures
from mspose.config import BRANCHES, Settings
from mspose.data.batches import Batches
from mspose.data.frames import evenly
from mspose.errors import MsposeError
from mspose.inference import predict_frames
from mspose.metrics import compute_metrics, write_metrics
from mspose.models.kinds import make_network
from mspose.models.network import Observer
from mspose.run import Run
from mspose.tensorboard_log import (
    ATTENTION_FRAMES,
    CollapseLog,
    TensorBoardLog,
    attention_scalars,
    log_hyper_parameters,
    measure_attention,
    query_key_gradients,
    trajectory_figure,
)
from mspose.verdict import COLLAPSED, SELECTIVE, UNIFORM, Thresholds

POSITION, ESTIMATE = ["tx", "ty", "tz"], ["tx_est", "ty_est", "tz_est"]


@pytest.fixture(scope="module")
def network(small_run):
    return mspose.load(small_run).network


@pytest.fixture(scope="module")
def batches(small_data, network, tmp_path_factory) -> Batches:
    """The test split, three frames at a time."""
    return small_batches(small_data, tmp_path_factory.mktemp("cache"), network, batch_size=3)


def centre_crops(batches: Batches, rows: np.ndarray) -> np.ndarray:
    return np.stack([batches.cache[row][4:44, 12:52] for row in rows])


# the trajectory


def positions(**scenes) -> pd.DataFrame:
    """Ten frames per scene: a name and the spread (metres) of x, y and z; estimates are 0.1 m off
    along each axis.
    """
    rng = np.random.default_rng(5)
    parts = []
    for scene, spread in scenes.items():
        truth = rng.uniform(-1, 1, (10, 3)) * spread + [100, 0, -50]
        part = pd.DataFrame(np.hstack([truth, truth + 0.1]), columns=[*POSITION, *ESTIMATE])
        parts.append(part.assign(scene=scene))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(
    ("spread", "seen"),
    [
        ((3, 1, 2), "xz"),
        ((1, 3, 2), "yz"),
        ((2, 3, 1), "xy"),
        ((3, 2, 0), "xy"),
        ((0, 0, 5), "yz"),
        ((0, 0, 0), "yz"),
    ],
)
def test_a_trajectory_is_seen_along_the_axis_of_least_spread(spread, seen):
    table = positions(hall=spread)
    (axes,) = trajectory_figure(table).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == tuple(f"{axis} (m)" for axis in seen)
    points = {artist.get_label(): np.asarray(artist.get_offsets()) for artist in axes.collections}
    np.testing.assert_allclose(points["true"], table[[f"t{axis}" for axis in seen]])
    np.testing.assert_allclose(points["estimated"], table[[f"t{axis}_est" for axis in seen]])
    assert axes.get_aspect() == 1  # metres are as long on both axes


def test_true_and_estimated_positions_are_joined_in_pairs():
    table = positions(hall=(3, 2, 1))
    (line,) = trajectory_figure(table).axes[0].lines
    x = line.get_xdata().reshape(10, 3)
    np.testing.assert_allclose(x[:, 0], table["tx"])
    np.testing.assert_allclose(x[:, 1], table["tx_est"])
    assert np.isnan(x[:, 2]).all()


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_a_trajectory_has_a_panel_for_every_scene(count):
    names = [f"room-{number}" for number in range(count)]
    figure = trajectory_figure(positions(**dict.fromkeys(reversed(names), (1, 2, 3))))
    assert [axes.get_title() for axes in figure.axes] == names
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["true", "estimated"]


# attention


TAGS = ("attention_entropy", "attention_similarity", "query_key_gap")
OF_DECODERS = ("decoder_entropy", "decoder_similarity")


def test_attention_scalars_are_means_over_the_chosen_frames(network, batches):
    measures = measure_attention(network, batches)
    assert not network.training
    rows = evenly(10, ATTENTION_FRAMES)
    assert len(rows) == 8  # in batches of three, three and two: a mean of batch means would differ
    expected = {}

    class Oracle(Observer):
        def encoder(self, branch, layer, attention):
            query, key = attention.query_BHQD.double().numpy(), attention.key_BHKD.double().numpy()
            score = np.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(query.shape[-1])
            weight = np.exp(score - score.max(axis=-1, keepdims=True))
            weight /= weight.sum(axis=-1, keepdims=True)
            unit = weight / np.linalg.norm(weight, axis=-1, keepdims=True)
            others = ~np.eye(unit.shape[2], dtype=bool)
            values = (
                -(weight * np.log(weight)).sum(axis=-1).mean(),
                (unit @ unit.swapaxes(2, 3))[:, :, others].mean(),
                np.linalg.norm(query.mean(axis=2) - key.mean(axis=2), axis=-1).mean(),
            )
            for tag, value in zip(TAGS, values, strict=True):
                expected[f"{tag}/{branch}_layer_{layer + 1}"] = value

        def tokens(self, branch, layer, before_BNC, after_BNC):
            for number, tokens in ((layer, before_BNC), (layer + 1, after_BNC)):
                tokens = tokens.double().numpy()
                unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
                others = ~np.eye(unit.shape[1], dtype=bool)
                cosine = (unit @ unit.swapaxes(1, 2))[:, others].mean()
                expected[f"token_similarity/{branch}_layer_{number}"] = cosine

        def decoder(self, branch, layer, weight_BHSN):
            weight = weight_BHSN.double().numpy()
            unit = weight / np.linalg.norm(weight, axis=-1, keepdims=True)
            values = (
                -(weight * np.log(weight)).sum(axis=-1).mean(),
                (unit[:, :, 0] * unit[:, :, 1]).sum(axis=-1).mean(),  # two scenes: one pair
            )
            for tag, value in zip(OF_DECODERS, values, strict=True):
                expected[f"{tag}/{branch}_layer_{layer + 1}"] = value

    image = centre_crops(batches, rows)
    image = (image / 255 - np.array(network.mean)) / np.array(network.std)
    with torch.inference_mode():
        network(torch.from_numpy(image).permute(0, 3, 1, 2).float(), observer=Oracle())
    assert len(expected) == 9 + 5 + 4
    # float32 against float64, and batches of three against one of eight
    assert attention_scalars(measures) == pytest.approx(expected, rel=1e-3)
    limits = [layer.mean()["entropy_limit"] for layer in measures.layers.values()]
    assert limits == pytest.approx(np.log([9, 25, 25]))


def fresh(kind="ms-transformer"):
    """A network without an encoder in its position branch."""
    options = {**SMALL_NETWORK, "position_encoder_layers": 0, "kind": kind}
    return make_network(["attic", "cellar"], **options)


def test_networks_without_encoders_or_attention_are_evaluated_as_well(batches, tmp_path):
    network = fresh().train()
    measures = measure_attention(network, batches)
    assert network.training
    assert attention_scalars(measures).keys() == {
        *(f"{tag}/orientation_layer_1" for tag in TAGS),
        *(f"token_similarity/orientation_layer_{number}" for number in (0, 1)),
        *(f"{tag}/{branch}_layer_1" for tag in OF_DECODERS for branch in BRANCHES),
    }
    board = TensorBoardLog(tmp_path, first_step=0, frames=4)
    values = board.evaluate(5, fresh("mspn"), {"train": batches})
    board.close()
    names = ("median_position_m", "median_orientation_deg", "scene_accuracy")
    assert values.keys() == {f"{name}/train" for name in names}


# collapse

MEASURED = {SELECTIVE: (2.0, 0.3), UNIFORM: (3.2, 0.2), COLLAPSED: (0.7, 0.95)}


def measured(word, parts):
    """Measures of two images that have this verdict."""
    measures = Measures()
    names = ("entropy", "similarity", "entropy_limit", "query_key_gap")
    values = zip(names, (*MEASURED[word], np.log(25), 0.5), strict=True)
    measures.add({name: torch.full((2, parts), value).double() for name, value in values})
    assert measures.verdict() == word
    return measures


def logged(collapse, caplog, position, orientation=SELECTIVE, decoder=SELECTIVE):
    """Levels and messages of an evaluation in which the first layers, of both encoders and of the
    position branch's decoder, have these verdicts.
    """
    caplog.clear()
    caplog.set_level("INFO", logger="mspose")
    measures = AttentionMeasures()
    for branch, verdict in (("position", position), ("orientation", orientation)):
        entropy, similarity = MEASURED[verdict]
        measures.layers[branch, 1] = measured(verdict, parts=1)
    measures.decoders["position", 1] = measured(decoder, parts=2)
    collapse.report(measures)
    return [(record.levelname, record.message) for record in caplog.records]


def test_a_collapse_is_logged_once_until_the_layer_recovered(caplog):
    collapse = CollapseLog()
    message = (
        "attention of position encoder layer 1 is collapsed: entropy 0.70 of at most 3.22 nats,"
        " similarity 0.95"
    )
    assert logged(collapse, caplog, SELECTIVE) == []
    assert logged(collapse, caplog, COLLAPSED) == [("WARNING", message)]
    assert logged(collapse, caplog, COLLAPSED) == []
    ((_, other),) = logged(collapse, caplog, COLLAPSED, COLLAPSED)
    assert "orientation encoder layer 1" in other
    assert logged(collapse, caplog, SELECTIVE, COLLAPSED) == []
    assert logged(collapse, caplog, COLLAPSED, COLLAPSED) == [("WARNING", message)]
    assert logged(CollapseLog(), caplog, COLLAPSED) == [("WARNING", message)]


def test_uniform_attention_is_information_and_expected_at_first(caplog):
    collapse = CollapseLog()
    assert logged(collapse, caplog, UNIFORM) == []
    assert logged(collapse, caplog, UNIFORM) == []
    assert logged(collapse, caplog, SELECTIVE) == []
    ((level, message),) = logged(collapse, caplog, UNIFORM)
    assert level == "INFO"
    assert message.startswith("attention of position encoder layer 1 is uniform: entropy 3.20 of")
    assert logged(collapse, caplog, UNIFORM) == []


def test_a_decoder_whose_scenes_attend_to_the_same_few_tokens_is_logged(caplog):
    collapse = CollapseLog()
    assert logged(collapse, caplog, SELECTIVE) == []
    ((level, message),) = logged(collapse, caplog, SELECTIVE, decoder=COLLAPSED)
    assert level == "WARNING"
    assert message.startswith("attention of position decoder layer 1 is collapsed: entropy 0.70 of")


def test_the_alarm_goes_by_thresholds_that_can_be_set(caplog):
    messages = logged(CollapseLog(Thresholds(similar=0.2)), caplog, SELECTIVE, UNIFORM)
    assert "position encoder layer 1 is collapsed" in messages[0][1]


def test_an_evaluation_warns_of_a_layer_that_collapsed(batches, tmp_path, caplog):
    """All queries are the same, and they agree with one key most."""
    torch.manual_seed(0)
    network = fresh().eval()
    attention = network.orientation.encoder.layers[0].self_attention
    with torch.no_grad():
        attention.in_proj_weight[:16] = 0
        attention.in_proj_bias[:16] = 30
        attention.in_proj_weight[16:32] = 3 * torch.randn(
            16, 16, generator=torch.Generator().manual_seed(1)
        )
    board = TensorBoardLog(tmp_path, first_step=0, frames=4)
    for step in (2, 5):
        values = board.evaluate(step, network, {"train": batches})
    board.close()
    assert values["attention_similarity/orientation_layer_1"] > 0.9
    (record,) = [record for record in caplog.records if record.name == "mspose"]
    assert record.levelname == "WARNING"
    assert "orientation encoder layer 1 is collapsed" in record.message


# what is written


def test_images_are_written_without_the_normalisation(batches, tmp_path):
    board = TensorBoardLog(tmp_path, first_step=0, frames=10)
    board.images(0, next(batches.in_order(np.array([4, 0, 7]))), batches)
    board.close()
    (event,) = read_events(tmp_path).Images("inputs/after_augmentation")
    (tmp_path / "shown.png").write_bytes(event.encoded_image_string)
    shown = np.asarray(Image.open(tmp_path / "shown.png")).astype(int)
    side_by_side = np.concatenate(list(centre_crops(batches, np.array([4, 0, 7]))), axis=1)
    np.testing.assert_allclose(shown, side_by_side, atol=1)


def test_an_evaluation_has_the_metrics_of_its_frames(network, batches, tmp_path):
    board = TensorBoardLog(tmp_path, first_step=0, frames=4)
    values = board.evaluate(5, network, {"train": batches})
    board.close()
    average = compute_metrics(predict_frames(network, batches, evenly(10, 4)), thresholds=[])[
        "average"
    ]
    assert average["frames"] == 4
    assert values["median_position_m/train"] == average["median_position_error_m"]
    assert values["median_orientation_deg/train"] == average["median_orientation_error_deg"]
    assert values["scene_accuracy/train"] == average["scene_accuracy"]
    assert attention_scalars(measure_attention(network, batches)).items() <= values.items()
    events = read_events(tmp_path)
    for name, value in values.items():
        (event,) = events.Scalars(name)
        assert event.value == pytest.approx(value, rel=1e-6)
    assert [event.step for event in events.Images("trajectory/train")] == [5]


def test_recall_is_that_of_the_thresholds(network, batches, tmp_path):
    board = TensorBoardLog(tmp_path, first_step=0, frames=10, recall=[(0.5, 10), (1000, 180)])
    values = board.evaluate(5, network, {"train": batches, "held_out": batches})
    board.close()
    table = predict_frames(network, batches)
    recall = compute_metrics(table, thresholds=[(0.5, 10)])["average"]["recall"][0]
    for part in ("train", "held_out"):
        assert values[f"recall_0.5m_10deg/{part}"] == recall
        (event,) = read_events(tmp_path).Scalars(f"recall_1000m_180deg/{part}")
        assert event.value == 1


def test_settings_are_text_and_the_total_loss_is_explained(tmp_path):
    board = TensorBoardLog(tmp_path, first_step=0, frames=4)
    board.settings(Settings(seed=7))
    for step, value in enumerate((0.5, -1.0)):
        board.scalars(step, {"loss/total": value, "loss/scene": 1.0})
    board.close()
    events = read_events(tmp_path)
    assert [event.value for event in events.Scalars("loss/total")] == [0.5, -1.0]
    assert "goes below zero" in events.SummaryMetadata("loss/total").summary_description
    assert Run(tmp_path).scalars()["loss/total"].tolist() == [0.5, -1.0]
    (text,) = events.Tensors("settings/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert "    seed: 7" in lines and all(line.startswith("    ") for line in lines)


def test_hyper_parameters_stand_beside_the_medians_and_replace_older_ones(small_run, tmp_path):
    run = Run(Path(shutil.copytree(small_run, tmp_path / "run")))
    medians = {"median_position_error_m": 0.25, "median_orientation_error_deg": 4.0}
    scene = {**medians, "frames": 5, "recall": [], "scene_accuracy": None}
    about = dict.fromkeys(("dataset", "ground_truth", "split", "seed"))
    about |= {"scene_selection": "predicted", "experiment": "e", "variant": "v"}
    metrics = {**about, "thresholds": [], "scenes": {"attic": scene}, "average": scene}
    write_metrics(run.metrics_file, metrics)
    before = run.scalars()
    for seed in (3, 4):
        log_hyper_parameters(run, {"seed": seed, "loss.qka_weight": 0.1, "data.scenes": ["a"]})
    events = read_events(run.folder / "hparams")
    assert [event.value for event in events.Scalars("test/median_position_m")] == [0.25]
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(start).session_start_info.hparams
    assert values["seed"].number_value == 4 and values["loss.qka_weight"].number_value == 0.1
    assert values["data.scenes"].string_value == "['a']"
    pd.testing.assert_frame_equal(run.scalars(), before)


def test_a_continued_run_replaces_what_the_interrupted_one_wrote_later(network, batches, tmp_path):
    first = TensorBoardLog(tmp_path, first_step=0, frames=4)
    for step in range(
        6
    ):  # two epochs of three steps; interrupted before the checkpoint of the second
        first.scalars(step, {"loss": step})
    kept = first.evaluate(2, network, {"train": batches})
    first.evaluate(5, network, {"train": batches})
    first.close()
    second = TensorBoardLog(tmp_path, first_step=3, frames=4)
    for step in range(3, 9):
        second.scalars(step, {"loss": 10 + step})
    second.close()
    events = read_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        *((step, float(step)) for step in range(3)),
        *((step, 10.0 + step) for step in range(3, 9)),
    ]
    (event,) = events.Scalars("median_position_m/train")
    assert event.value == pytest.approx(kept["median_position_m/train"])


def test_a_run_that_starts_again_replaces_everything(tmp_path):
    for start in (0.0, 5.0):
        board = TensorBoardLog(tmp_path, first_step=0, frames=4)
        for step in range(2):
            board.scalars(step, {"loss": start + step})
        board.close()
    assert [event.value for event in read_events(tmp_path).Scalars("loss")] == [5.0, 6.0]


def test_events_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(MsposeError, match="cannot write TensorBoard events to .*file"):
        TensorBoardLog(tmp_path / "file", first_step=0, frames=4)
    board = TensorBoardLog(tmp_path / "run", first_step=0, frames=4)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(board.writer, "add_scalar", full)
    with pytest.raises(MsposeError, match="No space left on device; the last checkpoint is kept"):
        board.scalars(0, {"loss": 1.0})
    board.close()


def test_gradients_of_query_and_key_weights_are_those_of_the_two_matrices():
    network = fresh()
    assert query_key_gradients(network) == {}  # before the first backward pass
    network(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])).orientation_B4.sum().backward()
    (layer,) = network.orientation.encoder.layers
    gradient = layer.self_attention.in_proj_weight.grad[:32]
    expected = {"query_key_gradient_norm/orientation_layer_1": float(gradient.norm())}
    assert {name: float(norm) for name, norm in query_key_gradients(network).items()} == (
        pytest.approx(expected)
    )
    assert expected["query_key_gradient_norm/orientation_layer_1"] > 0


def test_the_start_is_measured_for_the_log_and_kept_beside_it(network, batches, tmp_path):
    board = TensorBoardLog(tmp_path, first_step=0, frames=4)
    board.start(network, {"train": batches})
    board.close()
    values = attention_scalars(measure_attention(network, batches))
    events = read_events(tmp_path)
    for name, value in values.items():
        (event,) = events.Scalars(name)
        assert (event.step, event.value) == (0, pytest.approx(value, rel=1e-5))
    start = read_start(tmp_path)
    assert start is not None
    assert [len(start[part]) for part in ("layers", "decoder")] == [3, 2]
    for layer in start["layers"]:
        tag = "attention_entropy/{branch}_layer_{layer}".format(**layer)
        assert layer["entropy"] == pytest.approx(values[tag], rel=1e-5)
