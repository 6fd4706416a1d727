import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
import yaml

from mspose import cli, evaluation
from mspose.config import Settings, dashed, flatten, read_settings, write_settings
from mspose.run import load_checkpoint


@pytest.fixture
def experiment(small_settings, tmp_path) -> Path:
    """An experiment file of the small settings."""
    write_settings(tmp_path / "experiment.yaml", small_settings)
    return tmp_path / "experiment.yaml"


@pytest.fixture
def own_run(small_run, tmp_path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(small_run, tmp_path / "runs" / "small" / "all" / "seed-5"))


# what a person does, from beginning to end


def test_train_evaluate_baselines_and_table(call, experiment, tmp_path, small_data):
    train = ("train", "--config", experiment, "--quiet", "--training.epochs=1")
    for seed in (0, 1):
        status, out, lines = call(*train, f"--seed={seed}")
        run = tmp_path / "runs" / "small" / "all" / f"seed-{seed}"
        assert (status, lines) == (0, [])
        assert out.splitlines()[-2:] == [str(run), f"evaluate it with: mspose evaluate {run}"]
        status, out, lines = call("evaluate", run, "--quiet", "--thresholds=[[0.5,10]]")
        assert (status, lines) == (0, [])
        assert "0.5 m, 10 deg" in out
        last = [f"report it with: mspose report {run}", str(run / "metrics.json")]
        assert out.splitlines()[-2:] == last
    predictions = tmp_path / "theirs" / "theirs.csv"
    predictions.parent.mkdir()
    shutil.copy(run / "predictions" / "test.csv", predictions)
    words = ("--dataset", small_data, "--split", "test", "--method", "X")
    assert call("evaluate", "--predictions", predictions, *words)[0] == 0
    ours, theirs = (json.loads((f / "metrics.json").read_text()) for f in (run, predictions.parent))
    for name in ("median_position_error_m", "median_orientation_error_deg"):
        assert ours["average"][name] == theirs["average"][name]
    about = {"experiment": "external", "variant": "X", "dataset": "small"}
    assert {name: theirs[name] for name in about} == about
    assert call("baselines", "--config", experiment, "--quiet")[0] == 0
    status, out, lines = call("table", tmp_path / "runs")
    assert (status, lines) == (0, [])
    for name in ("all (2 seeds)", "baseline-mean-pose (1 seed, scene given)", "baseline-retrieval"):
        assert f"small/{name}" in out
    latex = tmp_path / "table.tex"
    assert call("table", tmp_path / "runs", "--format=latex", "--out", latex) == (0, "", [])
    assert "\\begin{tabular}" in latex.read_text()
    status, out, lines = call(*train)
    assert status == 0
    assert any("trained already" in line for line in lines)


def test_scenes_override_the_experiment_file(call, experiment, tmp_path):
    values = yaml.safe_load(experiment.read_text())
    values["data"]["scenes"] = ["attic", "cellar"]
    values["training"]["epochs"] = 1
    experiment.write_text(yaml.safe_dump(values))
    assert call("train", "--config", experiment, "--quiet", "--scenes", "cellar")[0] == 0
    run = tmp_path / "runs" / "small" / "cellar" / "seed-0"
    assert read_settings(run / "config.yaml").data.scenes == ["cellar"]
    assert json.loads((run / "model.json").read_text())["scenes"] == ["cellar"]
    assert call("evaluate", run, "--quiet")[0] == 0
    assert list(json.loads((run / "metrics.json").read_text())["scenes"]) == ["cellar"]


def test_dashes_and_underscores_are_the_same(call, own_run, tmp_path):
    for given, same in (
        ("--on-bad-frame", "--on_bad_frame"),
        ("--model.position-encoding=sine-normalized", "--model.position_encoding=sine-normalized"),
        ("sine-normalized", "sine-normalized"),
        ("a-b.csv", "a-b.csv"),
    ):
        assert cli.with_underscores(given) == cli.with_underscores(same) == same
    words = ("evaluate", own_run, "--given-scene", "--batch_size=3", "--quiet")
    assert call(*words, "--cache", tmp_path / "cache")[0] == 0
    assert json.loads((own_run / "metrics.json").read_text())["scene_selection"] == "given"


def test_a_virtual_data_set_is_rendered_before_it_is_trained_on(
    call, experiment, tmp_path, monkeypatch
):
    # a process for so few frames takes longer to start than to render
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    card = {
        "name": "rooms", "format": "virtual", "root": "rooms",
        "scenes": {name: {"frames": {"train": 4, "test": 1}} for name in ("atelier", "library")},
        "render": {"width": 64, "height": 48, "focal_px": 50, "frames_per_sequence": 4},
    }  # fmt: skip
    (tmp_path / "rooms.yaml").write_text(yaml.safe_dump(card))
    words = ("--data.dataset", tmp_path / "rooms.yaml", "--scenes", "library", "--quiet")
    words = ("--config", experiment, *words, "--training.epochs=1", "--data.holdout=0")
    status, _, lines = call("train", *words)
    assert status == 0
    assert all(": attention of " in line for line in lines)  # of four frames anything may be said
    assert (tmp_path / "rooms" / "library" / "TestSplit.txt").is_file()
    assert not (tmp_path / "rooms" / "atelier").exists()  # nobody asked for it
    assert call("evaluate", tmp_path / "runs/small/library/seed-0", "--quiet")[0] == 0


def test_frames_are_cached_for_training_and_evaluation(call, experiment, tmp_path):
    status, out, lines = call("data", "cache", "--config", experiment, "--quiet")
    assert (status, lines) == (0, [])
    folders = [Path(line.split("|")[-2].strip()) for line in out.splitlines()[2:]]
    assert sorted(folders) == sorted((tmp_path / "cache").iterdir())
    made = {folder: (folder / "index.npy").stat().st_mtime_ns for folder in folders}
    train = ("train", "--config", experiment, "--quiet", "--training.epochs=1")
    assert call(*train, "--data.cache_on_device=true")[0] == 0
    assert call("evaluate", tmp_path / "runs/small/all/seed-0", "--quiet")[0] == 0
    assert set((tmp_path / "cache").iterdir()) == made.keys()
    assert {folder: (folder / "index.npy").stat().st_mtime_ns for folder in made} == made
    words = ("--resize=24", "--scenes", "attic", "--split=test", "--cache", tmp_path / "other")
    status, out, lines = call("data", "cache", "--config", experiment, *words, "--quiet")
    assert (status, lines) == (0, [])
    (folder,) = (tmp_path / "other").iterdir()
    assert (folder / "frames.u8").stat().st_size == 5 * 24 * 32 * 3


# help


def test_help_lists_the_commands_in_their_groups(call):
    status, out, lines = call("--help")
    assert (status, lines) == (0, [])
    groups = re.findall(r"^(\w+):$", out, re.MULTILINE)
    assert groups == ["data", "train", "look", "study", "deploy"]
    assert "cell" not in out  # which `mspose ablate` alone calls
    for name in cli.LISTED:
        assert re.search(rf"^  {name} +\S+ \S+", out, re.MULTILINE), name
    status, out, lines = call("data", "--help")
    assert (status, lines) == (0, [])
    actions = re.findall(r"^  data (\w+)", out, re.MULTILINE)
    assert actions == ["get", "import", "check", "cache", "list"]
    assert call("--version") == (0, "mspose 0.1.0\n", [])


@pytest.mark.parametrize("name", cli.ALL)
def test_every_option_has_a_help_text(call, name):
    status, out, lines = call(*name.split(), "--help")
    assert (status, lines) == (0, [])
    assert f"usage: mspose {name}" in out
    if isinstance(command := cli.ALL[name], cli.Elsewhere):
        assert command.summary in " ".join(out.split())  # as `mspose --help` has it
    for action in cli.parser_of(name)._actions:
        assert len((action.help or "").split()) >= 2, action.dest
        assert all(f"--{dashed(o.lstrip('-'))}" in out for o in action.option_strings if o != "-h")
    assert "<class" not in out
    assert "default" not in out.partition("  --quiet ")[2].partition("  --")[0]  # it is not quiet
    if name == "train":
        assert all(f"--{dashed(setting)}" in out for setting in flatten(Settings()))


def test_the_settings_of_an_ablation_are_those_that_were_given():
    words = ["qka-and-encoding", "--seeds", "0", "1", "--training.epochs", "2", "--slurm.gpus=2"]
    arguments = cli.parse("ablate", words)
    assert arguments.pop("slurm").gpus == 2
    overrides = {"training.epochs": 2}
    assert arguments == {"file": "qka-and-encoding", "seeds": [0, 1], "overrides": overrides}


# bad words


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ("", r"say what to do: mspose data get \|.*train \| evaluate \|.*convert"),
        ("frobnicate", "no command 'frobnicate': say what to do: .*train.*evaluate.*table"),
        ("trian", "no command 'trian': did you mean train"),
        ("--bogus", "--bogus"),
        ("train --model.position_encodng sine", "did you mean model.position_encoding"),
        ("evaluate a --batchsize 3", "did you mean batch-size"),
        ("train --model.position_encoding rotten", "learned.*sine.*sine-normalized.*rotten"),
        ("train --data.scenes chess", "data.scenes.*list.*chess"),
        ("train --on-bad-frame ignore", "on_bad_frame.*stop.*skip.*ignore"),
        ("train --config", "config.*expected one argument"),
        ("train --config nowhere.yaml", "no such experiment: .*nowhere.yaml"),
        ("train extra", "unrecognized arguments: extra"),
        ("train --data.dataset nowhere", "no data set 'nowhere'; there are: 7scenes, cambridge"),
        ("train --data.dataset nowhere.yaml", "no such data set: .*nowhere.yaml"),
        ("evaluate", "folder of a run, or --predictions FILE"),
        ("evaluate a --predictions b", "folder of a run, or --predictions FILE"),
        ("evaluate nowhere", "nowhere holds no model"),
        ("evaluate --predictions nowhere.csv", "cannot read nowhere.csv"),
        ("evaluate --predictions .", "cannot read .: Is a directory"),
        ("evaluate --predictions a.csv --given-scene", "--given-scene: without effect on a.csv"),
        ("evaluate a --quite", "did you mean quiet"),
        ("evaluate a --method mine", "--method: without effect on a"),
        ("evaluate a --thresholds [[0.1,-5]]", "thresholds.*-5"),
        ("evaluate a --batch-size 0", "batch_size.*0"),
        ("table nowhere", "no metrics.json in nowhere"),
        ("table --format html", "format.*markdown.*html"),
        ("table --ablation a --digits 3", "--digits: without effect beside --ablation"),
        ("table --seeds 1", "--seeds: without effect without --ablation"),
        ("attention a --numbers false --frames 3 --scenes b", "--frames, --scenes: without effect"),
        ("data import kapture a --out b --test_every 1", "test_every.*1"),
        ("view a --port 70000", "port.*70000"),
        ("data", "say what to do: mspose data get .*data import .*data list"),
        ("data got", "no command 'data got': did you mean data get.*data list"),
        ("data get --resize 3", "unrecognized arguments: --resize 3; names that exist: archive"),
        ("data cache --archive a.zip", "unrecognized arguments: --archive a.zip"),
        ("data cache --config nowhere.yaml", "no such experiment: .*nowhere.yaml"),
        ("data get --dataset nowhere", "no data set 'nowhere'"),
        ("data get --scenes attic", "7scenes has no scene 'attic'; its scenes: chess"),
        ("convert nowhere.pth", "required: .*out"),
        ("convert nowhere.pth --out run", "nowhere.pth: there is no such checkpoint file"),
    ],
)
def test_bad_words_are_refused_in_one_line(refused, words, pattern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(pattern, *words.split())
    assert not (tmp_path / "run").exists()


def test_a_bad_experiment_file_is_refused_in_one_line(refused, tmp_path):
    for text, pattern in (
        ("- a\n", "is not an experiment: expected"),
        ("model:\n  dim: wide\n", "dim.*wide"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        refused(pattern, "train", "--config", tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ("--data.crop 50", "data.crop 50 does not fit into a frame of 64x48 pixels"),
        ("--model.heads 3", r"dim: expected a multiple of heads \(3\)"),
        ("--model.dropout 1", "dropout: .*below 1"),
        ("--model.backbone resnetty", "no backbone called 'resnetty'; close names"),
        ("--device warp", "device warp cannot be used here"),
        ("--scenes garage", "scene garage has no train frames in .*labels.csv"),
        ("--data.ground_truth sfm", "small has no ground truth 'sfm'; there is: made-up"),
        ("--data.holdout 1", "data.holdout 1 leaves no frame to train on"),
        ("--data.root /nowhere", r"image not found: /nowhere/attic/.*png .*--on-bad-frame skip"),
        ("--data.labels [/]", "small: no label files in /|no such label file"),
        ("--data.labels [nowhere.csv]", "no such label file: .*nowhere.csv"),
        ("--runs {file}", "cannot write into .*seed-0: Not a directory"),
        ("--data.cache {file}", "cannot write the frame cache .*another folder with --data.cache"),
        ("--training.start_from nowhere", "nowhere holds no model"),
        ("--training.learning_rate 1e30", "not finite in epoch 1, step 2 .*; its images: .*png"),
    ],
)
def test_settings_that_do_not_work_out_are_refused_in_one_line(refused, experiment, words, pattern):
    words = words.format(file=experiment).split()
    refused(pattern, "train", "--config", experiment, "--quiet", *words)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nMore of it."), MemoryError()]
)
def test_too_little_memory_is_one_line(refused, own_run, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("mspose.evaluation.predict_frames", full)
    pattern = r"out of memory: a smaller --training.batch_size .*--batch-size"
    refused(pattern, "evaluate", own_run, "--quiet")


def test_messages_of_libraries_are_left_out(call, own_run, tmp_path, monkeypatch):
    predict = evaluation.predict_frames

    def chatty(*values, **options):
        logging.getLogger("some.library").warning("theirs")
        logging.getLogger("mspose").warning("ours")
        return predict(*values, **options)

    monkeypatch.setattr(evaluation, "predict_frames", chatty)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    status, _, lines = call("evaluate", own_run, "--quiet", "--cache", tmp_path / "cache")
    assert (status, lines) == (0, ["mspose: ours"])


# bad data


def test_missing_data_says_where_and_the_two_ways_on(refused, experiment, tmp_path):
    words = ("--data.dataset=7scenes", f"--data.root={tmp_path}", "--scenes", "chess", "fire")
    for verb in ("train", "baselines"):
        pattern = "7scenes: no data of scenes chess, fire"
        line = refused(pattern, verb, "--config", experiment, *words)
        assert str(tmp_path / "chess" / "TrainSplit.txt") in line
        assert 'make data DATASET=7scenes SCENE="chess fire"' in line
        assert "make demo" in line


def test_a_truncated_image_stops_or_is_left_out(refused, call, experiment, own_data):
    image = own_data.parent / "attic/train-01/frame-001.png"
    image.write_bytes(image.read_bytes()[:1000])
    words = ("train", "--config", experiment, "--quiet", "--training.epochs=1")
    words = (*words, "--data.dataset", own_data)
    refused("attic/train-01/frame-001.png.*--on-bad-frame skip", *words)
    status, _, lines = call(*words, "--on-bad-frame=skip", "--variant=skip")
    assert status == 0
    assert len(lines) == 1
    assert "1 of 24 frames left out; the first: " in lines[0]


def test_a_run_with_broken_settings_is_one_line(refused, own_run, small_data):
    (own_run / "config.yaml").write_text("model: [\n")
    card = f"--data.dataset={small_data}"
    refused(
        "parsing", "train", "--runs", own_run.parents[2], "--experiment=small", "--seed=5", card
    )


# real processes, and disks that are full


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_process_ends_with_status_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "mspose", "train", "--model.position-encodng", "sine"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (2, "")
    expected = "mspose: error: .*did you mean model.position_encoding.*\n"
    assert re.fullmatch(expected, finished.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_enough_is_no_error(own_run, call, tmp_path):
    assert call("evaluate", own_run, "--quiet", "--cache", tmp_path / "cache")[0] == 0
    command = [sys.executable, "-m", "mspose", "table", own_run]
    assert processes.run_without_reader(command) == (1, "")


def test_output_that_cannot_be_written_is_one_line(own_run, call, tmp_path, monkeypatch, capsys):
    assert call("evaluate", own_run, "--quiet", "--cache", tmp_path / "cache")[0] == 0
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    full = Path("/dev/full").open("w")  # noqa: SIM115
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        status, _, lines = call("table", own_run)
    assert (status, len(lines)) == (2, 1)
    assert "No space left on device" in lines[0]
    with pytest.raises(OSError, match="No space left"):  # closing writes once more
        full.close()


def test_training_goes_on_after_ctrl_c_and_after_a_full_disk(
    experiment, small_settings, call, tmp_path
):
    settings = replace(small_settings, training=replace(small_settings.training, epochs=6))
    write_settings(experiment, settings)
    run = settings.run_folder("made-up")
    words = ["train", "--config", str(experiment), "--quiet"]

    with (tmp_path / "said").open("w") as said:
        training = processes.Popen([sys.executable, "-m", "mspose", *words], stderr=said)
    deadline = time.time() + 120
    while (
        not (run / "checkpoint.pt").exists() and training.poll() is None and time.time() < deadline
    ):
        time.sleep(0.005)
    training.send_signal(signal.SIGINT)
    assert training.wait(timeout=60) == 130
    assert (tmp_path / "said").read_text() == "mspose: interrupted\n"
    before = (run / "checkpoint.pt").read_bytes()
    state = load_checkpoint(run)
    assert state is not None
    assert 1 <= state["epoch"] < 6

    with files_of_at_most((run / "model.safetensors").stat().st_size - 1000):
        status, _, lines = call(*words)
    assert status == 2
    continuing, error = lines
    assert "continuing" in continuing
    assert re.fullmatch(
        r"mspose: error: cannot write .*model.safetensors: File too large; .*untouched", error
    )
    assert (run / "checkpoint.pt").read_bytes() == before
    assert not list(run.rglob("*.part"))

    status, _, lines = call(*words)
    assert status == 0
    assert "continuing" in lines[0]
    assert all(
        "is uniform" in line for line in lines[1:]
    )  # what the log says of the attention of small networks
    state = load_checkpoint(run)
    assert state is not None
    assert state["epoch"] == 6


def test_a_disk_too_full_for_tensorboard_is_one_line(experiment, refused, call):
    words = ["train", "--config", experiment, "--quiet", "--training.epochs=1"]
    assert call(*words, "--variant=first")[0] == 0  # fills the frame cache
    with files_of_at_most(10_000):
        refused("cannot write TensorBoard events to .*: File too large", *words, "--variant=second")
