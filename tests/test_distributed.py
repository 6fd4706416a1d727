"""Two real processes, started by torchrun: they train and evaluate as one."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
from conftest import read_events, settings_for
from two_processes import freeze_batch_norms

from mspose import cli, distributed
from mspose.config import Settings, write_settings
from mspose.errors import MsposeError
from mspose.evaluation import evaluate_run
from mspose.metrics import read_metrics
from mspose.models.kinds import make_network
from mspose.models.network import PoseNetwork
from mspose.run import load_checkpoint, load_model
from mspose.training import convert_sync_batchnorm, train

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


HANDLER = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"


def torchrun(*words: object, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run torchrun and what it starts as copies of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{HANDLER}.Popen", processes.Popen)
        return processes.run([*TORCHRUN, *options, *words])


def settings_below(folder: Path, small_settings: Settings) -> Settings:
    """Eight steps of a pretrained network without dropout: of 22 frames in batches of 7, 7, 7 and
    1.

    Rounding does not grow in them: the network is not random, the steps are small, and no weight
    whose gradient is all rounding makes a step of full length.
    """
    return replace(
        small_settings,
        runs=str(folder / "runs"),
        data=replace(small_settings.data, holdout=0.08),
        model=replace(
            small_settings.model,
            backbone="efficientnet_lite0",
            pretrained=True,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        loss=replace(small_settings.loss, scene_weight=0.0),  # leaves weights without a gradient
        training=replace(
            small_settings.training,
            epochs=2,
            batch_size=7,
            learning_rate=1e-5,
            adam_eps=1e-3,
            evaluate_every=2,
            log_every=5,
        ),
    )


@pytest.fixture(scope="module")
def runs(small_data, tmp_path_factory):
    """(one, two, worker, words): finished runs of one process and of two, with frozen batch norms;
    and what torchrun starts the second with.
    """
    folder = tmp_path_factory.mktemp("distributed")
    settings = settings_below(folder, settings_for(small_data, folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoseNetwork, "train", freeze_batch_norms)
        one = train(settings, progress=False)
    file = folder / "experiment.yaml"
    write_settings(file, replace(settings, runs=str(folder / "two")))
    worker = [Path(__file__).with_name("two_processes.py")]
    words = ["train", "--config", file]
    done = torchrun(*worker, "whole", *words)
    assert done.returncode == 0, done.stderr
    two = folder / "two" / "small" / "all" / "seed-0"
    assert done.stdout.splitlines()[-2:] == [str(two), f"evaluate it with: mspose evaluate {two}"]
    assert done.stdout.count("evaluate it with") == 1
    assert done.stderr.count("training:   0%") == 1  # of one progress bar
    assert done.stderr.count("batch norms use each process's own part of a batch") == 1
    assert "Warning" not in done.stderr
    return one, two, worker, words


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = read_events(run)
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_two_processes_take_the_steps_of_one(runs):
    one, two, *_ = runs
    ours, theirs = scalars(one), scalars(two)
    assert ours.keys() == theirs.keys()
    names = [
        name
        for name in ours
        if name.startswith(("loss", "log_variance", "error", "query_key_gap", "median"))
    ]
    assert {
        "loss/total",
        "log_variance/orientation",
        "median_position_m/train",
        "query_key_gap/position",
    } <= set(names)
    for name in names:  # float32 sums in another order
        assert [step for step, _ in theirs[name]] == [step for step, _ in ours[name]]
        values = [value for _, value in ours[name]]
        assert [value for _, value in theirs[name]] == pytest.approx(values, rel=1e-4, abs=1e-6), (
            name
        )
    assert [step for step, _ in ours["loss/total"]] == [0, 5]
    assert len(list(two.glob("events*"))) == 1

    (weights, about), (others, other_about) = load_model(one), load_model(two)
    assert about == other_about
    for name, tensor in weights.items():
        difference = torch.linalg.vector_norm((others[name] - tensor).double())
        assert difference <= 1e-6 + 1e-5 * torch.linalg.vector_norm(tensor.double()), name
    states = [load_checkpoint(run) for run in (one, two)]
    assert states[0]["optimizer"]["state"].keys() == states[1]["optimizer"]["state"].keys()


def test_evaluation_is_shared_out_and_merged(runs, tmp_path):
    one, *_ = runs
    shutil.copytree(one, run := tmp_path / "seed-0")
    # of ten frames: 4 and 2, and 4
    done = torchrun("-m", "mspose", "evaluate", run, "--batch-size=4", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| average |") == 1
    alone, _ = evaluate_run(one, batch_size=4, progress=False)
    both = read_metrics(run / "metrics.json")
    for name in ("scenes", "average", "thresholds"):
        assert both[name] == alone[name]
    table = "predictions/test.csv"
    assert (run / table).read_bytes() == (one / table).read_bytes()


def test_preempted_then_killed_a_run_goes_on_and_ends_bit_identical(runs, tmp_path):
    _, two, worker, words = runs
    run = tmp_path / "small" / "all" / "seed-0"
    words = (*words, "--runs", tmp_path, "--quiet")
    harmed = torchrun(*worker, "harmed", *words, options=("--max-restarts=2",))
    assert harmed.returncode == 0, harmed.stderr
    said = [
        line
        for line in harmed.stderr.splitlines()
        if line.startswith("mspose: ") and "batch norms" not in line
    ]
    assert said == [
        (
            f"mspose: SIGUSR1: saved in {run} after step 2 of epoch 1/2; the same command goes on"
            " from there"
        ),
        f"mspose: continuing {run} after step 2 of epoch 1/2",
        (
            "mspose: error: process 0 lost another process of this run, which was killed or stopped"
            " with an error of its own; the same command goes on from the last checkpoint"
        ),
        f"mspose: continuing {run} after epoch 1/2",
    ]
    weights, others = load_model(two)[0], load_model(run)[0]
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


@pytest.fixture
def second_of_two(monkeypatch):
    """The environment that torchrun gives to the second of two processes."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": "a",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    level = cli.log.level
    yield
    cli.log.setLevel(level)  # which such a process raises


@pytest.mark.usefixtures("second_of_two")
def test_each_process_has_the_gpu_of_its_number():
    assert distributed.own_device("cuda") == "cuda:1"
    assert distributed.own_device("cpu") == "cpu"
    with pytest.raises(
        MsposeError, match="device cuda:0 cannot be shared by 2 processes: say --device cuda"
    ):
        distributed.own_device("cuda:0")


@pytest.mark.usefixtures("second_of_two")
def test_a_process_that_is_not_the_main_one_says_errors_alone_and_late(capsys, monkeypatch):
    slept = []
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--training.epochs", "none"])
    assert (stopped.value.code, slept) == (2, [2])
    assert capsys.readouterr().err.startswith("mspose: error: ")
    cli.log.info("not for everyone")
    cli.run(["data", "list"])  # nor what commands return
    assert capsys.readouterr() == ("", "")


def test_a_process_on_its_own_is_the_main_one_and_pays_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "3")  # of something else than torchrun
    assert distributed.is_main()
    assert distributed.rank_and_world_size() == (0, 1)
    assert distributed.own_device("cuda:1") == "cuda:1"
    with distributed.joined(torch.device("cpu")), distributed.one_per_machine_first():
        assert not torch.distributed.is_initialized()
        assert distributed.from_main(lambda: 4) == 4
        assert distributed.gather("a") == ["a"]
        assert distributed.largest(-3) == -3
        assert distributed.average({"a": 0.1}) == {"a": 0.1}


def test_a_signal_is_noted_only_while_that_is_asked_for():
    before = [distributed.signal.getsignal(number) for number in distributed.SIGNALS]
    with distributed.Preemption() as preemption:
        assert not preemption.asked()
        os.kill(os.getpid(), distributed.signal.SIGUSR1)
        assert preemption.asked() == distributed.signal.SIGUSR1
    assert [distributed.signal.getsignal(number) for number in distributed.SIGNALS] == before


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "test_resnet"])
def test_synchronised_batch_norms_keep_names_weights_and_activations(backbone):
    torch.manual_seed(0)
    network = make_network(["attic"], kind="mspn", backbone=backbone, pretrained=False)
    network.eval()
    image_B3HW, names = torch.randn(2, 3, 64, 64), list(network.state_dict())
    with torch.no_grad():
        before = network(image_B3HW).position_B3
        convert_sync_batchnorm(network)
        after = network(image_B3HW).position_B3
    assert list(network.state_dict()) == names
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert not norms
    torch.testing.assert_close(after, before)
