import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import read_events, vary
from interrupted import interrupted_by

import mspose
from mspose import distributed, training
from mspose.config import Settings, TrainingSettings, read_settings, write_settings
from mspose.data.batches import Batches
from mspose.data.cards import read_card
from mspose.errors import MsposeError
from mspose.evaluation import evaluate_run
from mspose.run import load_checkpoint, load_model, one_training, save_checkpoint, save_model
from mspose.training import (
    FiniteCheck,
    learning_rate,
    make_initial_network,
    open_frames,
    split_into_batches,
    train,
)


def assert_same_state(one, two):
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same_state(one[key], two[key])
    elif isinstance(one, list | tuple):
        for first, second in zip(one, two, strict=True):
            assert_same_state(first, second)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


@pytest.fixture
def own_run(small_run, small_settings) -> tuple[Path, Settings]:
    """A finished run that the test may change, with its settings."""
    settings = replace(small_settings, seed=5)
    run = settings.run_folder("made-up")
    shutil.copytree(small_run, run)
    write_settings(run / "config.yaml", settings)
    return run, settings


def test_a_run_that_is_preempted_and_killed_ends_bit_identical(
    small_settings, small_run, tmp_path, call, monkeypatch
):
    settings = replace(small_settings, seed=5)
    assert settings.model.dropout > 0
    assert settings.model.attention_dropout > 0
    write_settings(tmp_path / "experiment.yaml", settings)
    words = ["train", "--config", str(tmp_path / "experiment.yaml"), "--quiet"]
    run = settings.run_folder("made-up")

    def progress():
        state = load_checkpoint(run)
        return state["epoch"], state["step"]

    def preempted(number, *at):
        with monkeypatch.context() as patch:
            patch.setattr(Batches, "epoch", interrupted_by(number, at))
            status, _, lines = call(*words)
        return status, lines, progress()

    def saved(number, progress):
        said = f"mspose: {number}: saved in {run} after {progress}"
        return f"{said}; the same command goes on from there"

    # the signal arrives while the next batch is made, and that batch is still learned from
    end, middle = "step 5 of epoch 1/2", "step 2 of epoch 2/2"
    assert preempted(signal.SIGUSR1, 0, 4) == (75, [saved("SIGUSR1", end)], (0, 5))
    lines = [f"mspose: continuing {run} after {end}", saved("SIGTERM", middle)]
    assert preempted(signal.SIGTERM, 1, 1) == (75, lines, (1, 2))

    script = [Path(__file__).with_name("interrupted.py"), int(signal.SIGKILL), 1, 3]
    time.sleep(1.1)  # TensorBoard puts logs in order by the second in which they begin
    done = processes.run([sys.executable, *script, *words])
    assert done.stderr.splitlines() == [f"mspose: continuing {run} after {middle}"]
    assert (done.returncode, progress()) == (-signal.SIGKILL, (1, 2))

    time.sleep(1.1)
    train(settings, progress=False)
    assert_same_state(load_checkpoint(small_run), load_checkpoint(run))
    assert_same_state(load_model(small_run)[0], load_model(run)[0])
    events = read_events(run)
    assert [event.step for event in events.Scalars("loss/total")] == [0]
    assert [event.step for event in events.Scalars("median_position_m/train")] == [9]


def test_a_run_with_other_terms_goes_on_bit_identical_too(small_settings, tmp_path, monkeypatch):
    changes = {"loss__entropy_weight": -0.1, "loss__diversity_weight": 0.1}
    settings = vary(small_settings, augmentation__cutout=0.3, **changes)
    whole = train(settings, progress=False)
    again = vary(settings, runs=str(tmp_path / "stopped"))
    real = Batches.epoch

    def stopped(self, seed, epoch, **options):
        if epoch == 1:
            raise KeyboardInterrupt
        return real(self, seed, epoch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(again, progress=False)
    run = train(again, progress=False)
    assert_same_state(load_checkpoint(whole), load_checkpoint(run))
    assert_same_state(load_model(whole)[0], load_model(run)[0])


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_bfloat16_on_a_cpu_without_it_is_warned_of(
    small_settings, monkeypatch, caplog, capability, warned
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    settings = vary(small_settings, training__precision="bfloat16", data__scenes=["garage"])
    with pytest.raises(MsposeError, match="garage"):
        train(settings, progress=False)
    assert ("bfloat16" in caplog.text) is warned


def test_an_mspn_run_trains_evaluates_and_loads(small_settings, caplog):
    caplog.set_level("INFO", logger="mspose")
    changes = {"training__recompute_backbone": True, "training__epochs": 1}
    run = train(vary(small_settings, model__kind="mspn", **changes), progress=False)
    (line,) = [record.message for record in caplog.records if "qka_weight" in record.message]
    assert line.endswith("no queries and keys: loss.qka_weight 0.1 is no term of its loss")
    _, description = load_model(run)
    assert description["scenes"] == ["attic", "cellar"]
    assert description["settings"]["kind"] == "mspn"
    events = read_events(run)
    scalars = set(events.Tags()["scalars"])
    assert {"loss/position", "loss/scene", "median_position_m/train"} <= scalars
    assert not [
        name for name in scalars if "attention" in name or "query_key_gap" in name or "qka" in name
    ]

    metrics, _ = evaluate_run(run, progress=False)
    assert metrics["average"]["frames"] == 10
    estimator = mspose.load(run)
    estimate = estimator(np.zeros((60, 80, 3), np.uint8), "cellar")
    assert estimate.scene == "cellar"
    assert np.isfinite(estimate.position).all()

    second = vary(small_settings, experiment="second", training__start_from=str(run))
    with pytest.raises(MsposeError, match="architecture: kind mspn there, ms-transformer here"):
        train(second, progress=False)


def test_terms_of_attention_that_a_network_cannot_have_are_one_line(small_settings, monkeypatch):
    monkeypatch.setattr(training, "open_frames", None)  # before any data is read
    settings = vary(small_settings, model__kind="mspn", loss__diversity_weight=0.5)
    with pytest.raises(
        MsposeError,
        match="a model of kind mspn has no attention for the terms diversity",
    ):
        train(settings, progress=False)


def test_a_start_from_before_a_setting_had_its_default_value(small_settings, small_run, tmp_path):
    weights, description = load_model(small_run)
    description.pop("format")
    settings = description.pop("settings")
    for added in ("query_key_weights", "attention_scale", "query_initialisation", "pretrained"):
        del settings[added]
    older = {"kind": settings.pop("kind"), "architecture": settings}
    settings["scenes"] = description.pop("scenes")
    save_model(tmp_path / "old", weights, {**description, **older})
    new = vary(
        small_settings,
        experiment="second",
        training__epochs=1,
        training__start_from=str(tmp_path / "old"),
        model__query_initialisation="orthogonal",  # of fresh weights
    )
    train(new, progress=False)
    other = vary(new, experiment="third", model__attention_scale="tokens")
    with pytest.raises(
        MsposeError, match="another architecture: attention_scale head-dim there, tokens here"
    ):
        train(other, progress=False)


def test_the_last_epoch_is_kept_and_a_finished_run_stays(own_run, caplog, monkeypatch):
    run, settings = own_run
    state = load_checkpoint(run)
    weights, description = load_model(run)
    assert state["epoch"] == description["epochs"] == 2
    assert_same_state(weights, dict(state["network"]))
    before = (run / "checkpoint.pt").stat().st_mtime_ns
    caplog.set_level("INFO")
    monkeypatch.setattr(training, "open_frames", None)  # a finished run needs none
    assert train(settings, progress=False) == run
    assert "trained already" in caplog.text
    assert (run / "checkpoint.pt").stat().st_mtime_ns == before
    with pytest.raises(MsposeError, match=r"training.learning_rate: 0.001 -> 0.1.*--variant"):
        train(vary(settings, training__learning_rate=0.1), progress=False)
    elsewhere = vary(settings, data__cache=settings.data.cache + "-moved")
    assert train(elsewhere, progress=False) == run


def test_a_broken_checkpoint_is_one_clear_line(own_run):
    run, settings = own_run
    state = load_checkpoint(run)
    for broken, message in (
        ({**state, "epoch": 1, "network": {"a": torch.zeros(1)}}, "another architecture.*missing"),
        ({**state, "epoch": 1, "optimizer": {}}, "not a checkpoint of this version"),
        ({"epoch": 1}, "not a checkpoint of this version: it has no config_hash"),
        ({**state, "config_hash": "0"}, "made with other settings than these"),
    ):
        save_checkpoint(run, broken)
        with pytest.raises(MsposeError, match=message):
            train(settings, progress=False)


def test_a_loss_that_is_not_finite_names_its_images_and_keeps_the_checkpoint(
    small_settings, monkeypatch
):
    class Broken(training.PoseLoss):
        calls = 0

        def weighted(self, unweighted):
            terms = super().weighted(unweighted)
            Broken.calls += 1
            if Broken.calls == 7:  # second epoch, second step
                terms["position"] = terms["position"] * float("nan")
            return terms

    monkeypatch.setattr(training, "PoseLoss", Broken)
    message = r"epoch 2, step 2 .*position nan.*(attic|cellar)/train-01/frame-\d+\.png"
    with pytest.raises(MsposeError, match=message) as caught:
        train(small_settings, progress=False)
    assert str(caught.value).count(".png") == 4
    assert load_checkpoint(small_settings.run_folder("made-up"))["epoch"] == 1


def test_a_gradient_that_is_not_finite_is_never_saved(small_settings, monkeypatch):
    class Steep(training.PoseLoss):
        calls = 0

        def weighted(self, unweighted):
            terms = super().weighted(unweighted)
            Steep.calls += 1
            if Steep.calls == 5:  # the last step of the first epoch: no later loss would show it
                terms["position"] = terms["position"] + (0 * self.s_position).sqrt()
            return terms

    monkeypatch.setattr(training, "PoseLoss", Steep)
    message = r"the gradient is not finite in epoch 1, step 5 \(total \d.*its images: "
    with pytest.raises(MsposeError, match=message):
        train(small_settings, progress=False)
    run = small_settings.run_folder("made-up")
    assert load_checkpoint(run) is None
    assert not (run / "model.safetensors").exists()


def opened(settings: Settings) -> dict[str, Batches]:
    card, device = read_card(settings.data.dataset), torch.device("cpu")
    frames, cache = open_frames(settings, card, device, progress=False)
    network = make_initial_network(settings, sorted(frames["scene"].unique()), device)
    return split_into_batches(frames, cache, settings, network, device)


def test_the_step_that_is_named_is_the_first_of_all_processes(small_settings, monkeypatch):
    batches = opened(small_settings)["train"]
    batch = next(iter(batches.in_order(np.array([3, 4]))))
    monkeypatch.setattr(distributed, "largest", lambda mine: max(mine, 1))

    def check(theirs):
        check = FiniteCheck(batches, gradients=True)
        for number, loss in enumerate([1.0, 2.0, np.nan]):
            norm = 1.0 if number < 1 else np.nan
            check.add(0, number + 1, batch, {"loss/total": loss, "gradient_norm": norm})
        monkeypatch.setattr(distributed, "gather", lambda mine: [mine, theirs])
        check.raise_if_not_finite()

    with pytest.raises(MsposeError, match="the loss is not finite in step 2 of process 1"):
        check(training.Fault(1, False, "the loss is not finite in step 2 of process 1"))
    message = r"the gradient is not finite in epoch 1, step 2 \(total 2\); its images: "
    for theirs in (None, training.Fault(2, False, "the loss is not finite in step 3")):
        with pytest.raises(MsposeError, match=message):
            check(theirs)


def test_tensorboard_shows_the_run(small_run):
    events = read_events(small_run)
    scalars = set(events.Tags()["scalars"])
    names = ("position", "orientation", "scene", "qka", "total")
    assert {f"loss/{name}" for name in names} <= scalars
    names = ("learning_rate", "gradient_norm", "images_per_second")
    assert {*names, "log_variance/position", "log_variance/orientation"} <= scalars
    for part in ("train", "held_out"):
        names = ("median_position_m", "median_orientation_deg", "scene_accuracy")
        assert {f"{name}/{part}" for name in names} <= scalars
    for layer in ("position_layer_1", "orientation_layer_1", "orientation_layer_2"):
        assert {
            f"{name}/{layer}"
            for name in (
                "attention_entropy",
                "attention_similarity",
                "query_key_gap",
                "query_key_gradient_norm",
                "token_similarity",
            )
        } <= scalars
    for branch in ("position", "orientation"):
        names = ("decoder_entropy", "decoder_similarity")
        assert {f"{name}/{branch}_layer_1" for name in names} <= scalars
    assert {"trajectory/train", "trajectory/held_out", "inputs/after_augmentation"} <= set(
        events.Tags()["images"]
    )
    entropy = events.Scalars("attention_entropy/orientation_layer_1")
    assert [event.step for event in entropy] == [0, 9]  # before the first step, and after the last
    assert 0 < entropy[-1].value <= np.log(25) + 1e-5  # 5x5 tokens of a 40-pixel crop


def test_held_out_frames_are_not_trained_on(small_settings):
    parts = opened(small_settings)
    train_images, held_images = (set(parts[name].frames["image"]) for name in ("train", "held_out"))
    assert (len(train_images), len(held_images)) == (18, 6)
    assert not train_images & held_images
    assert set(opened(vary(small_settings, data__holdout=0.0))) == {"train"}
    with pytest.raises(MsposeError, match="leaves no frame"):
        opened(vary(small_settings, data__holdout=1.0))


def test_training_lowers_the_loss(small_settings):
    settings = vary(small_settings, training__epochs=8, augmentation__enabled=False)
    run = train(settings, progress=False)
    events = read_events(run)
    medians = [event.value for event in events.Scalars("median_position_m/train")]
    assert medians[-1] < 0.8 * medians[0]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_other_precisions_train(small_settings, precision):
    settings = vary(small_settings, training__precision=precision, training__epochs=1)
    run = train(settings, progress=False)
    weights, _ = load_model(run)
    assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in weights.values())


def test_training_goes_on_where_nothing_can_be_compiled(
    small_settings, small_run, monkeypatch, caplog
):
    def compiler(function, **_):
        def no_compiler(*_, **__):
            raise RuntimeError("no C++ compiler\nand a long story")

        return no_compiler

    monkeypatch.setattr(torch, "compile", compiler)
    run = train(vary(small_settings, seed=5, training__compile=True), progress=False)
    (message,) = [record.message for record in caplog.records if "torch.compile" in record.message]
    assert message == "torch.compile cannot be used here, going on without it (no C++ compiler)"
    assert_same_state(load_checkpoint(small_run), load_checkpoint(run))


def test_two_stages_train_the_position_head_alone(small_settings, small_run):
    training = {"start_from": str(small_run), "trains": "position-head", "epochs": 1}
    loss = {"weighting": "fixed", "orientation_weight": 0.0, "qka_weight": 0.0}
    second = replace(
        small_settings,
        experiment="second",
        training=replace(small_settings.training, **training),
        loss=replace(small_settings.loss, **loss),
    )
    before, _ = load_model(small_run)
    after, _ = load_model(train(second, progress=False))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("position_head.") for name in changed)


@pytest.mark.parametrize("kind", ["ms-transformer", "mspn"])
def test_the_position_head_alone_learns_in_networks_of_either_kind(small_settings, kind):
    settings = vary(small_settings, model__kind=kind)
    network = make_initial_network(settings, ["attic"], torch.device("cpu"))
    assert training.freeze(network, "position-head") is network.position_head
    for name, weight in network.named_parameters():
        assert weight.requires_grad == name.startswith("position_head."), name


def test_a_start_of_another_architecture_is_refused(small_settings, small_run):
    other = vary(
        small_settings, training__start_from=str(small_run), model__orientation_encoder_layers=1
    )
    with pytest.raises(MsposeError, match="orientation_encoder_layers 2 there, 1 here"):
        train(other, progress=False)


def test_a_start_that_failed_does_not_block_the_corrected_one(small_settings):
    with pytest.raises(MsposeError, match="data.crop 20 is too small"):
        train(vary(small_settings, data__crop=20), progress=False)
    with pytest.raises(MsposeError, match="has no scene 'garden'|garden"):
        train(vary(small_settings, data__scenes=["garden"], variant="all"), progress=False)
    assert (train(small_settings, progress=False) / "checkpoint.pt").exists()


def test_gradient_clipping_bounds_the_update(small_settings, monkeypatch):
    norms = []
    real = torch.nn.utils.clip_grad_norm_

    def record(weights, most, *args, **kwargs):
        norm = real(weights, most, *args, **kwargs)
        after = torch.stack(
            [weight.grad.norm() for weight in weights if weight.grad is not None]
        ).norm()
        norms.append((float(norm), float(after)))
        return norm

    monkeypatch.setattr(training.nn.utils, "clip_grad_norm_", record)
    train(vary(small_settings, training__clip_gradient=0.01, training__epochs=1), progress=False)
    assert max(before for before, _ in norms) > 0.1
    assert max(after for _, after in norms) < 0.0101


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_learning_rate_of_every_step(name):
    settings = Settings(
        training=TrainingSettings(
            learning_rate=1.0, schedule=name, epochs=4, step_epochs=2, warmup=0.25
        )
    )
    rates = [learning_rate(step, 10, settings) for step in range(40)]
    if name == "step":
        assert rates == pytest.approx([1.0] * 20 + [0.1] * 20)
    else:
        assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert rates[10:] == pytest.approx(
            [(1 + np.cos(np.pi * step / 30)) / 2 for step in range(30)]
        )
        assert rates[-1] < 0.01


def test_the_stored_configuration_is_the_resolved_one(small_run):
    settings = read_settings(small_run / "config.yaml")
    assert settings.seed == 5
    assert settings.run_folder("made-up") == Path(small_run)
    assert Path(settings.data.cache).is_absolute()


# one run folder, one training


def test_a_second_training_of_a_run_is_refused_while_the_first_runs(small_settings):
    run = small_settings.run_folder("made-up")
    with one_training(run), pytest.raises(MsposeError, match="another process trains this run"):
        train(small_settings, progress=False)
    assert not run.exists()  # nothing was written, so nothing is left
    assert train(small_settings, progress=False) == run
