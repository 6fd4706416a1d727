import errno

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mspose
from mspose.data.batches import Batches
from mspose.data.cache import open_cache
from mspose.data.cards import data_root, load_frames, read_card
from mspose.data.frames import evenly
from mspose.errors import MsposeError
from mspose.inference import predict_frames
from mspose.metrics import compute_metrics
from mspose.models.attention_map import COLLAPSED, HEALTHY, UNIFORM
from mspose.models.kinds import make_network
from mspose.models.network import Observer
from mspose.monitoring import (
    ATTENTION_FRAMES,
    Alarm,
    LayerAttention,
    Monitor,
    attention_of_layers,
    trajectory_figure,
)

POSITION, ESTIMATE = ["tx", "ty", "tz"], ["tx_est", "ty_est", "tz_est"]


@pytest.fixture(scope="module")
def network(small_run):
    return mspose.load(small_run).network


@pytest.fixture(scope="module")
def batches(small_data, network, tmp_path_factory) -> Batches:
    """The test split, three frames at a time."""
    card = read_card(small_data)
    folder = tmp_path_factory.mktemp("cache")
    frames, cache = open_cache(
        load_frames(card, split="test"),
        data_root(card),
        short_side=48,
        folder=folder,
        progress=False,
    )
    return Batches(
        frames,
        cache,
        scenes=network.scenes,
        crop=40,
        mean=network.mean,
        std=network.std,
        batch_size=3,
    )


def centre_crops(batches: Batches, rows: np.ndarray) -> np.ndarray:
    return np.stack([batches.cache[row][4:44, 12:52] for row in rows])


def read_events(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


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


WHAT = ("attention_entropy", "attention_similarity", "query_key_gap")


def figures_of(network, batches) -> dict[str, float]:
    return {
        name: value
        for layer in attention_of_layers(network, batches)
        for name, value in layer.figures().items()
    }


def test_attention_figures_are_the_means_over_the_frames_that_are_looked_at(network, batches):
    found = figures_of(network, batches)
    rows = evenly(10, ATTENTION_FRAMES)
    assert len(rows) == 8  # in batches of three, three and two: a mean of batch means would differ
    expected = {}

    class Watch(Observer):
        def encoder(self, branch, layer, attention):
            query, key = attention.query_BHQD.double().numpy(), attention.key_BHKD.double().numpy()
            score = np.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(query.shape[-1])
            weight = np.exp(score - score.max(axis=-1, keepdims=True))
            weight /= weight.sum(axis=-1, keepdims=True)
            expected[f"attention_entropy/{branch}_layer_{layer + 1}"] = (
                -(weight * np.log(weight)).sum(axis=-1).mean()
            )
            unit = weight / np.linalg.norm(weight, axis=-1, keepdims=True)
            others = ~np.eye(unit.shape[2], dtype=bool)
            cosine = (unit @ unit.swapaxes(2, 3))[:, :, others]
            expected[f"attention_similarity/{branch}_layer_{layer + 1}"] = cosine.mean()
            gap = np.linalg.norm(query.mean(axis=2) - key.mean(axis=2), axis=-1)
            expected[f"query_key_gap/{branch}_layer_{layer + 1}"] = gap.mean()

    image = centre_crops(batches, rows)
    image = (image / 255 - np.array(network.mean)) / np.array(network.std)
    with torch.inference_mode():
        network(torch.from_numpy(image).permute(0, 3, 1, 2).float(), observer=Watch())
    layers = ("position_layer_1", "orientation_layer_1", "orientation_layer_2")
    assert found.keys() == {f"{what}/{layer}" for what in WHAT for layer in layers}
    assert found == pytest.approx(expected, rel=1e-4)
    assert [layer.tokens for layer in attention_of_layers(network, batches)] == [9, 25, 25]


def test_looking_at_attention_leaves_the_network_in_its_mode(network, batches):
    network.train()
    try:
        attention_of_layers(network, batches)
        assert network.training
    finally:
        network.eval()


def fresh(kind="ms-transformer"):
    """A network without an encoder in its position branch."""
    sizes = {
        "dim": 16,
        "heads": 2,
        "feedforward": 16,
        "head_hidden": 16,
        "backbone": "efficientnet_lite0",
    }
    layers = {"position_encoder_layers": 0, "position_decoder_layers": 1}
    layers |= {"orientation_encoder_layers": 1, "orientation_decoder_layers": 1}
    return make_network(kind, scenes=["attic", "cellar"], pretrained=False, **sizes, **layers)


def test_a_branch_without_encoder_has_no_attention_to_look_at(batches):
    assert figures_of(fresh(), batches).keys() == {f"{what}/orientation_layer_1" for what in WHAT}


def test_a_network_without_attention_is_looked_at_all_the_same(batches, tmp_path):
    monitor = Monitor(tmp_path, first_step=0, frames=4)
    values = monitor.look(6, fresh("mspn"), {"train": batches})
    monitor.close()
    assert values.keys() == {
        f"{name}/train"
        for name in ("median_position_m", "median_orientation_deg", "scene_accuracy")
    }


# the alarm

ENTROPY = {HEALTHY: 2.0, UNIFORM: 3.2, COLLAPSED: 0.7}
SIMILARITY = {HEALTHY: 0.3, UNIFORM: 0.99, COLLAPSED: 0.95}


def hear(alarm, caplog, **verdicts):
    """What is logged of a look at the first layers of branches, as (level, message)."""
    caplog.clear()
    caplog.set_level("INFO", logger="mspose")
    layers = [
        LayerAttention(branch, 1, 25, ENTROPY[found], SIMILARITY[found], 0.5)
        for branch, found in verdicts.items()
    ]
    assert [layer.verdict for layer in layers] == list(verdicts.values())
    alarm.hear(layers)
    return [(record.levelname, record.message) for record in caplog.records]


def test_a_collapse_is_said_once_until_the_layer_recovered(caplog):
    alarm = Alarm()
    collapsed = (
        "WARNING",
        (
            "attention of position encoder layer 1 is collapsed: entropy 0.70 of at most 3.22 nats,"
            " similarity 0.95"
        ),
    )
    assert hear(alarm, caplog, position=HEALTHY, orientation=HEALTHY) == []
    assert hear(alarm, caplog, position=COLLAPSED, orientation=HEALTHY) == [collapsed]
    assert hear(alarm, caplog, position=COLLAPSED, orientation=HEALTHY) == []
    ((_, message),) = hear(alarm, caplog, position=COLLAPSED, orientation=COLLAPSED)
    assert "orientation encoder layer 1" in message
    assert hear(alarm, caplog, position=HEALTHY, orientation=COLLAPSED) == []
    assert hear(alarm, caplog, position=COLLAPSED, orientation=COLLAPSED) == [collapsed]
    assert hear(Alarm(), caplog, position=COLLAPSED) == [collapsed]  # of the very first look too


def test_uniform_attention_is_information_and_expected_at_the_first_look(caplog):
    alarm = Alarm()
    assert hear(alarm, caplog, position=UNIFORM, orientation=HEALTHY) == []
    ((level, message),) = hear(alarm, caplog, position=UNIFORM, orientation=HEALTHY)
    assert level == "INFO"
    assert message.startswith(
        "attention of position encoder layer 1 is uniform: entropy 3.20 of at most 3.22 nats"
    )
    assert hear(alarm, caplog, position=UNIFORM, orientation=HEALTHY) == []
    ((level, _),) = hear(alarm, caplog, position=COLLAPSED, orientation=HEALTHY)
    assert level == "WARNING"
    ((level, _),) = hear(alarm, caplog, position=UNIFORM, orientation=HEALTHY)
    assert level == "INFO"


def test_a_look_raises_the_alarm_where_a_layer_has_collapsed(batches, tmp_path, caplog):
    """All queries alike, and one key to which they all attend."""
    torch.manual_seed(0)
    network = fresh().eval()
    attention = network.orientation.encoder.layers[0].self_attention
    with torch.no_grad():
        attention.in_proj_weight[:16] = 0
        attention.in_proj_bias[:16] = 30
        attention.in_proj_weight[16:32] = 3 * torch.randn(
            16, 16, generator=torch.Generator().manual_seed(1)
        )
    monitor = Monitor(tmp_path, first_step=0, frames=4)
    for step in (3, 6):
        values = monitor.look(step, network, {"train": batches})
    monitor.close()
    assert values["attention_similarity/orientation_layer_1"] > 0.9
    (record,) = [record for record in caplog.records if record.name == "mspose"]
    assert record.levelname == "WARNING"
    assert "orientation encoder layer 1 is collapsed" in record.message


# what is written


def test_samples_are_shown_without_the_normalisation(batches, tmp_path):
    monitor = Monitor(tmp_path, first_step=0, frames=10)
    monitor.samples(0, next(batches.in_order(np.array([4, 0, 7]))), batches)
    monitor.close()
    (event,) = read_events(tmp_path).Images("inputs/after_augmentation")
    (tmp_path / "shown.png").write_bytes(event.encoded_image_string)
    shown = np.asarray(Image.open(tmp_path / "shown.png")).astype(int)
    side_by_side = np.concatenate(list(centre_crops(batches, np.array([4, 0, 7]))), axis=1)
    np.testing.assert_allclose(shown, side_by_side, atol=1)


def test_a_look_has_the_figures_of_the_frames_it_looks_at(network, batches, tmp_path):
    monitor = Monitor(tmp_path, first_step=0, frames=4)
    values = monitor.look(6, network, {"train": batches})
    monitor.close()
    average = compute_metrics(predict_frames(network, batches, evenly(10, 4)), thresholds=[])[
        "average"
    ]
    assert average["frames"] == 4
    assert values["median_position_m/train"] == average["median_position_error_m"]
    assert values["median_orientation_deg/train"] == average["median_orientation_error_deg"]
    assert values["scene_accuracy/train"] == average["scene_accuracy"]
    assert figures_of(network, batches).items() <= values.items()
    events = read_events(tmp_path)
    for name, value in values.items():
        (event,) = events.Scalars(name)
        assert event.value == pytest.approx(value, rel=1e-6)
    assert [event.step for event in events.Images("trajectory/train")] == [5]


def test_a_continued_run_replaces_what_the_interrupted_one_wrote_later(network, batches, tmp_path):
    first = Monitor(tmp_path, first_step=0, frames=4)
    for step in range(
        6
    ):  # two epochs of three steps; interrupted before the checkpoint of the second
        first.step(step, {"loss": step})
    kept = first.look(3, network, {"train": batches})
    first.look(6, network, {"train": batches})
    first.close()
    second = Monitor(tmp_path, first_step=3, frames=4)
    for step in range(3, 9):
        second.step(step, {"loss": 10 + step})
    second.close()
    events = read_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        *((step, float(step)) for step in range(3)),
        *((step, 10.0 + step) for step in range(3, 9)),
    ]
    (look,) = events.Scalars("median_position_m/train")
    assert look.value == pytest.approx(kept["median_position_m/train"])


def test_a_run_that_starts_again_replaces_everything(tmp_path):
    for start in (0.0, 5.0):
        monitor = Monitor(tmp_path, first_step=0, frames=4)
        for step in range(2):
            monitor.step(step, {"loss": start + step})
        monitor.close()
    assert [event.value for event in read_events(tmp_path).Scalars("loss")] == [5.0, 6.0]


def test_events_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(MsposeError, match="cannot write TensorBoard events to .*file"):
        Monitor(tmp_path / "file", first_step=0, frames=4)
    monitor = Monitor(tmp_path / "run", first_step=0, frames=4)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(monitor.writer, "add_scalar", full)
    with pytest.raises(MsposeError, match="No space left on device; the last checkpoint is kept"):
        monitor.step(0, {"loss": 1.0})
    monitor.close()
