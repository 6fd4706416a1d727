"""Running an ablation: real processes that are killed, skipped, continued and recorded."""

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import processes
import pytest
import yaml

from mspose.config import Settings, dashed, flatten, read_settings, write_settings
from mspose.errors import MsposeError, Preempted
from mspose.files import with_checksum
from mspose.run import Run
from mspose.studies.ablation import launcher, runner
from mspose.studies.ablation.launcher import (
    ClusterTask,
    LocalJob,
    LocalLauncher,
    SlurmLauncher,
    SlurmSettings,
    share_of_machine,
)
from mspose.studies.ablation.plan import read_ablation
from mspose.studies.ablation.progress import Progress
from mspose.studies.ablation.record import record_runs
from mspose.studies.ablation.runner import failure, hyper_parameters, real_data, run_all
from mspose.studies.ablation.single_run import complete, is_complete, notes, run_of, title

UNTIL_ASKED = "trap 'echo saved; exit 75' TERM; echo at work; while true; do sleep 0.1; done"


@pytest.fixture
def file(small_settings, tmp_path) -> Path:
    """An ablation of the small experiment: its reference and one variant, one seed."""
    write_settings(tmp_path / "base.yaml", small_settings)
    values = {
        "title": "Small",
        "base": "base.yaml",
        "reference": "sine",
        "seeds": [0],
        "variants": {"learned": {"model.position_encoding": "learned"}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return tmp_path / "tiny.yaml"


@pytest.fixture
def change(file):
    """`change(training, **keys)`: change the base's training and keys of the ablation file."""

    def write(training: dict, **keys) -> Path:
        base = yaml.safe_load((file.parent / "base.yaml").read_text())
        base["training"] |= training
        (file.parent / "base.yaml").write_text(yaml.safe_dump(base))
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys, sort_keys=False))
        return file

    return write


@pytest.fixture
def planned(file, tmp_path) -> list[Settings]:
    """Its planned runs, below `tmp_path`."""
    return read_ablation(file).runs(folder=str(tmp_path / "runs"))


@pytest.fixture
def _copies(monkeypatch):
    """Runs as processes that need not load PyTorch."""
    copies = SimpleNamespace(**vars(subprocess) | {"Popen": processes.Popen})
    monkeypatch.setattr(launcher, "subprocess", copies)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 250
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def epochs_of(run: Path) -> int:
    model = run / "model.json"
    return json.loads(model.read_text())["epochs"] if model.is_file() else 0


def stamps(folder: Path) -> dict[Path, int]:
    """When the files of runs were written, but for TensorBoard's hyper-parameters of all runs."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files if path.parent.name != "hparams"}


class Played:
    """A launcher whose jobs end at the second poll, as `ends` says; it counts jobs at once."""

    poll_every = 0.0

    def __init__(self, ends, at_once=1):
        self.ends, self.at_once = ends, at_once
        self.started, self.stopped, self.running, self.most = [], [], 0, 0

    def start(self, settings):
        self.started.append(title(settings))
        self.running += 1
        self.most = max(self.most, self.running)
        return PlayedJob(self, settings)


class PlayedJob:
    def __init__(self, launcher, settings):
        self.launcher, self.settings, self.polls = launcher, settings, 0

    def fault(self):
        self.polls += 1
        if self.polls < 2:
            return None
        self.launcher.running -= 1
        return self.launcher.ends(self.settings) or ""

    def ask_to_stop(self):
        self.launcher.stopped.append(title(self.settings))

    def stop(self):
        self.launcher.stopped.append(f"{title(self.settings)} has ended")


# from beginning to end


@pytest.mark.usefixtures("_copies")
def test_after_a_kill_it_goes_on_where_it_was_and_failures_are_named(change, call, tmp_path):
    variants = {"long": {"training.epochs": 10}, "broken": {"training.start_from": "/not/there"}}
    file = change({"epochs": 1, "evaluate_every": 50}, variants=variants)
    runs = tmp_path / "runs" / "tiny-small"
    finished = complete(read_ablation(file).runs(folder=str(tmp_path / "runs"))[0], progress=False)
    before = stamps(finished)
    assert {"metrics.json", "attention.json"} <= {path.name for path in before}
    command = ["ablate", file, "--runs", tmp_path / "runs"]
    process = processes.Popen(
        [sys.executable, "-m", "mspose", *map(str, command), "--quiet"], start_new_session=True
    )
    long = runs / "long" / "seed-0"
    try:
        wait_for(lambda: process.poll() is not None or epochs_of(long) >= 2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its runs' processes with it
    process.wait()
    assert epochs_of(long) < 10

    status, out, lines = call(*command)
    assert status == 2, lines
    changes = [line.split()[1:5] for line in lines if line[2:3] == ":" and " ended)" in line]
    assert [" ".join(change).replace(",", "") for change in changes] == [
        "sine seed 0: skipped",
        "long seed 0: running",
        "long seed 0: done",
        "broken seed 0: running",
        "broken seed 0: failed",
    ]
    assert lines[-1] == "mspose: error: 1 failed: broken, seed 0; the same command tries again"
    assert "broken, seed 0 failed: /not/there holds no model" in lines[-2]
    assert lines[-2].endswith(f"(its log: {runs / 'cells' / 'broken-seed-0.log'})")
    assert stamps(finished) == before
    assert "continuing" in (runs / "cells" / "long-seed-0.log").read_text()
    assert epochs_of(long) == 10
    assert "| sine" in out and "| long" in out and "Small" in out


@pytest.mark.usefixtures("_copies")
def test_at_sigterm_the_runs_save_and_the_same_command_goes_on(change, call, tmp_path):
    file = change({"epochs": 4000, "evaluate_every": 4000})
    runs = tmp_path / "runs" / "tiny-small"

    def stop_us():
        wait_for(lambda: epochs_of(runs / "sine" / "seed-0") >= 1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_us, daemon=True)
    thread.start()
    status, _, errors = call("ablate", file, "--runs", tmp_path / "runs", "--quiet")
    thread.join()
    assert status == os.EX_TEMPFAIL
    assert "SIGTERM: the runs are asked to save" in errors[-1]
    # the run's process had ended before the command did
    assert "SIGTERM: saved in" in (runs / "cells" / "sine-seed-0.log").read_text()


def test_on_a_cluster(planned, tmp_path, monkeypatch):
    settings = SlurmSettings(cluster="local", partition="a", gpus=0)
    launcher = SlurmLauncher(tmp_path / "submitit", settings, 2)
    launcher.poll_every = 0.1
    notes(planned[0], "").parent.mkdir(parents=True)
    command = "mspose.studies.ablation.launcher._command"
    monkeypatch.setattr(command, lambda _: ["sh", "-c", "echo mspose: error: no; exit 2"])
    assert run_all(planned[1:], launcher, progress=False) == ["learned, seed 0"]
    log = notes(planned[1], ".log")
    assert failure(log, "").startswith("no (its log: ")

    monkeypatch.setattr(command, lambda _: ["sh", "-c", UNTIL_ASKED])
    job = launcher.start(planned[1])
    wait_for(lambda: "at work" in log.read_text())
    assert job.fault() is None
    job.ask_to_stop()
    job.stop()
    wait_for(lambda: job.fault() is not None and "saved" in log.read_text())


def test_a_task_that_reaches_its_time_limit_saves_and_asks_for_another(tmp_path):
    log = tmp_path / "log"
    task = ClusterTask(["sh", "-c", UNTIL_ASKED], str(log))

    # as submitit does: a signal interrupts the task, asks it to save and leaves
    def at_time_limit(*_):
        again = task.checkpoint().function
        assert log.read_text().split() == ["at", "work", "saved"]
        assert (again.command, again.log) == (task.command, task.log) and again is not task
        sys.exit("again")

    def signal_at_work():
        wait_for(lambda: task.process is not None and "at work" in log.read_text())
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, at_time_limit)
    try:
        thread = threading.Thread(target=signal_at_work)
        thread.start()
        with pytest.raises(SystemExit, match="again"):
            task()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_task_that_has_not_begun_or_has_ended_asks_for_another(tmp_path):
    task = ClusterTask(["true"], str(tmp_path / "log"))
    assert task.checkpoint().function.command == ["true"]
    assert task() == 0
    assert task.checkpoint().function.command == ["true"]


def test_a_cluster_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MsposeError, match="--launcher slurm: .*srun.*; here, --launcher local"):
        SlurmLauncher(tmp_path, SlurmSettings(), 1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MsposeError, match=r"needs submitit: pip install submitit"):
        SlurmLauncher(tmp_path, SlurmSettings(), 1)


# which runs are complete


def test_a_complete_run_has_all_results_of_these_settings(planned):
    settings = planned[0]
    assert not is_complete(settings)
    run = complete(settings, progress=False)
    assert run == run_of(settings).folder and is_complete(settings)
    assert not (run / "attention" / "samples.npz").exists()
    metrics = json.loads((run / "metrics.json").read_text())
    assert is_complete(replace(settings, device="cuda"))  # where it runs does not count
    longer = replace(settings, training=replace(settings.training, epochs=3))
    assert not is_complete(longer)

    # an evaluation of another kind, and a broken or missing file, is made anew; the rest stays
    study_before = (run / "attention" / "attention.json").stat().st_mtime_ns
    given = with_checksum(metrics | {"scene_selection": "given"})
    for text in (json.dumps(given), "{"):
        (run / "metrics.json").write_text(text)
        assert not is_complete(settings)
    complete(settings, progress=False)
    assert json.loads((run / "metrics.json").read_text())["average"] == metrics["average"]
    assert (run / "attention" / "attention.json").stat().st_mtime_ns == study_before

    # results of a model that was not trained to the end are not those of the run
    model = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(with_checksum(model | {"epochs": 1})))
    assert not is_complete(settings)

    # a record is complete without a model
    (run / "model.json").unlink()
    assert is_complete(settings)


def test_a_changed_configuration_never_reuses_a_run(planned):
    short = [replace(run, training=replace(run.training, epochs=1)) for run in planned]
    run = complete(short[0], progress=False)
    before = (run / "metrics.json").read_text()
    played = Played(lambda _: None)
    assert run_all(planned, played, progress=False) == ["sine, seed 0", "learned, seed 0"]
    assert played.started == ["learned, seed 0"]
    with pytest.raises(MsposeError, match=r"other settings \(training.epochs: 1 -> 2\): name"):
        complete(planned[0], progress=False)
    (run / "config.yaml").unlink()
    with pytest.raises(MsposeError, match="as the configuration hash of metrics.json says"):
        complete(planned[0], progress=False)
    assert (run / "metrics.json").read_text() == before


@pytest.mark.parametrize(
    "changes", [{"kind": "mspn"}, {"position_encoder_layers": 0, "orientation_encoder_layers": 0}]
)
def test_a_network_without_self_attention_has_no_study(planned, changes):
    settings = planned[0]
    model, loss = replace(settings.model, **changes), replace(settings.loss, qka_weight=0.0)
    training = replace(settings.training, epochs=1)
    settings = replace(settings, model=model, loss=loss, training=training)
    run = complete(settings, progress=False)
    assert is_complete(settings) and not (run / "attention").exists()


def test_results_at_toy_size_are_marked(call, file, tmp_path):
    runs = str(tmp_path / "runs")
    settings = read_ablation(file).runs(quick=True, folder=runs)[0]
    run = complete(settings, progress=False)
    assert run.parts[-3:] == ("tiny-small-quick", "sine", "seed-0")
    assert Run(run).quick and Run(run).attention["quick"]
    status, text, _ = call(
        "ablate", file, "--quick", "--variants", "sine", "--runs", runs, "--quiet"
    )
    assert status == 0
    assert "at toy size (quick)" in text and "|" not in text


def test_two_processes_do_not_work_on_one_run(planned, tmp_path, caplog):
    run = complete(planned[0], progress=False)
    other = replace(planned[0], runs=str(tmp_path / "shared"))
    target = run_of(other).folder
    done = []
    notes(other, ".lock").parent.mkdir(parents=True)
    with notes(other, ".lock").open("w") as lock, caplog.at_level("INFO", "mspose"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: done.append(complete(other, progress=False)))
        thread.start()
        wait_for(lambda: "waiting for another process, which is at" in caplog.text)
        shutil.copytree(run, target)  # what the other one has done
        before = stamps(target)
    thread.join()
    assert done == [target] and stamps(target) == before


# how runs are started


def test_so_many_at_once_in_order_and_all_are_stopped_at_the_end(planned):
    many = [replace(planned[0], seed=seed) for seed in range(5)]
    played = Played(lambda _: "gone", at_once=2)
    assert run_all(many, played, progress=False) == [f"sine, seed {seed}" for seed in range(5)]
    assert (played.most, played.stopped) == (2, [])

    def interrupt(_):
        raise KeyboardInterrupt

    played = Played(interrupt, at_once=2)
    with pytest.raises(KeyboardInterrupt):
        run_all(many, played, progress=False)
    names = ["sine, seed 0", "sine, seed 1"]
    assert played.stopped == [*names, *(f"{name} has ended" for name in names)]

    played = Played(lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Preempted, match="SIGUSR1: the runs are asked to save; the same command"):
        run_all(many, played, progress=False)
    assert len(played.started) == 1


def test_hyper_parameters_are_what_the_runs_differ_in(planned, tmp_path):
    other = replace(planned[0], seed=1, device="cuda", runs=str(tmp_path / "elsewhere"))
    assert hyper_parameters(planned[1], [*planned, other]) == {
        "variant": "learned",
        "seed": 0,
        "model.position_encoding": "learned",
    }


def test_how_many_at_once(planned, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    quick = [replace(run, quick=True) for run in planned]
    local = SlurmSettings(cluster="local")
    assert runner.make_launcher("local", planned, None, local).at_once == 1
    assert runner.make_launcher("local", planned, 3, local).at_once == 3
    assert runner.make_launcher("local", quick, None, local).at_once == 6
    assert runner.make_launcher("slurm", planned * 4, None, local).at_once == 8
    assert share_of_machine(0, 1, 8, ["0", "1"]) == {}
    assert share_of_machine(1, 3, 8, []) == {"OMP_NUM_THREADS": "2"}
    assert share_of_machine(1, 4, 2, ["0"]) == {"OMP_NUM_THREADS": "1"}
    shares = [share_of_machine(slot, 4, 8, ["5", "7"]) for slot in range(4)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == list("5757")


def test_slots_of_processes_that_ended_are_used_again(planned, monkeypatch):
    launcher = LocalLauncher(2)
    command = "mspose.studies.ablation.launcher._command"
    monkeypatch.setattr(command, lambda run: ["sh", "-c", f"sleep {run.seed}"])
    notes(planned[0], "").parent.mkdir(parents=True)
    long, short = (launcher.start(replace(planned[0], seed=seed)) for seed in (100, 0))
    wait_for(lambda: short.fault() is not None)
    third = launcher.start(replace(planned[0], seed=100))
    assert launcher.slots == [long, third]
    for job in (long, third):
        job.ask_to_stop()
        job.stop()
        assert job.fault() == "ended by SIGTERM"


def test_how_a_process_ended_is_said_with_its_last_error(tmp_path):
    log = tmp_path / "log"
    for script, fault, words in (
        ("kill -9 $$", "ended by SIGKILL (is memory short?)", "ended by SIGKILL"),
        ("echo mspose: error: no; echo more; exit 2", "", "no (its log: "),
        ("printf 'Traceback\\n  in x\\nKeyError\\n\\n'; exit 1", "", "KeyError ("),
        ("exit 1", "", "without any output ("),
    ):
        job = LocalJob(["sh", "-c", script], log, dict(os.environ))
        job.process.wait()
        assert job.fault() == fault
        assert failure(log, fault).startswith(words)


def test_a_process_ignores_ctrl_c(tmp_path):
    code = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    job = LocalJob([sys.executable, "-S", "-c", code], tmp_path / "log", dict(os.environ))
    job.process.wait()
    assert (tmp_path / "log").read_text() == "True\n"
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_table(planned, monkeypatch):
    monkeypatch.setattr(
        "mspose.studies.ablation.progress.average_errors", lambda run: (0.25 + run.seed, 3.0)
    )
    every = [replace(run, seed=seed) for seed in (0, 1) for run in planned]
    monkeypatch.setenv("COLUMNS", "40")
    screen, log, quiet = Terminal(), io.StringIO(), io.StringIO()
    for stream in (screen, log, quiet):
        board = Progress(every, show=stream is not quiet, stream=stream)
        board.set(every[0], "done")
        board.draw()
        board.set(every[1], "running")
        board.set(every[2], "skipped")
        board.set(every[3], "failed")
        board.close()
        rows = [" ".join(line.split()) for line in board.table().splitlines()]
        assert rows[0] == "seed 0 seed 1 mean (m / deg)"
        assert rows[2] == "sine done 0.250 / 3.00 skipped 1.250 / 3.00 0.750 / 3.00"
        assert rows[3] == "learned running 0/2 failed -"
    assert max(len(line) for line in screen.getvalue().splitlines()) <= 50
    # drawn twice, the second time over the first
    assert screen.getvalue().count("\x1b[4F\x1b[J") == 1
    assert "\x1b" not in log.getvalue() and quiet.getvalue() == ""
    assert " sine, seed 0: done, 0.250 m / 3.00 deg (1 of 4 ended)" in log.getvalue()


# the record


def test_the_record_has_what_tables_need_and_no_path_of_this_machine(planned, tmp_path):
    run = complete(planned[0], progress=False)
    said = record_runs(planned, tmp_path / "kept")
    assert "kept: 1; left out: models" in said and "without result: learned, seed 0" in said
    target = tmp_path / "kept" / "tiny-small" / "sine" / "seed-0"
    kept = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    files = ["attention/attention.json", "config.yaml", "metrics.json", "predictions/errors.csv"]
    assert kept == files
    assert not any(str(tmp_path) in (target / name).read_text() for name in files)
    before, after = (flatten(read_settings(folder / "config.yaml")) for folder in (run, target))
    differ = {name: after[name] for name in before if before[name] != after[name]}
    # the small data set's card is a path
    assert differ == {"runs": "runs", "data.cache": "cache", "data.dataset": "small.yaml"}
    metrics, there = Run(target).metrics, Run(run).metrics
    assert metrics["provenance"].pop("predictions") == "predictions/test.csv"
    del there["provenance"]["predictions"]
    assert metrics == there
    columns = ["image", "scene", "position_error_m", "orientation_error_deg"]
    assert list(pd.read_csv(target / "predictions/errors.csv")) == columns  # no poses
    pd.testing.assert_frame_equal(Run(target).errors(), Run(run).errors(), rtol=1e-8)


def test_the_real_data_on_disk(tmp_path):
    given = {"data.root": str(tmp_path)}
    for scene in ("chess", "fire"):
        (tmp_path / scene / "seq-01").mkdir(parents=True)
        (tmp_path / scene / "TrainSplit.txt").write_text("sequence1\n")
    assert real_data(given) == (None, given)  # no frames
    (tmp_path / "fire" / "seq-01" / "frame-000000.color.png").touch()
    assert real_data(given) == ("7scenes", {"data.scenes": ["fire"], **given})
    chosen = {**given, "data.scenes": ["chess"]}
    assert real_data(chosen) == ("7scenes", chosen)


# the command line


def test_the_command_line_has_every_setting_and_refuses_unknown_ones(
    call, file, tmp_path, monkeypatch
):
    seen = {}
    monkeypatch.setattr(
        runner, "run_all", lambda planned, launcher, progress: seen.update(runs=planned) or []
    )
    status, out, _ = call("ablate", "--help")
    assert status == 0
    for name in [*flatten(Settings()), "dataset", "seeds", "jobs", "launcher", "slurm.partition"]:
        shown = f"--{dashed(name)} " in out
        assert shown == (name not in ("experiment", "variant", "seed")), name
    for words, said in (
        (("--training.epocs=3",), "did you mean training.epochs"),
        (("--seeds", "-1"), "seeds"),
        (("--seeds", "1", "1"), "--seeds: expected different whole numbers"),
        (("--model.position_encoding=sine",), "is what the variants of"),
        (("--launcher=pbs",), "launcher"),
        (("--dataset=nowhere",), "no experiment 'nowhere'"),
        (("--variants", "sin"), "no variant 'sin'"),
        (("--slurm.minutes=0",), "slurm"),
    ):
        status, _, errors = call("ablate", file, "--runs", tmp_path / "runs", *words)
        assert status == 2 and len(errors) == 1 and said in errors[0], (words, errors)
    assert not seen and not (tmp_path / "runs").exists()
    words = ("--training.epochs=6", "--data.scenes=[attic]")
    _, out, _ = call("ablate", file, "--runs", tmp_path / "runs", *words)
    assert {(run.training.epochs, *run.data.scenes) for run in seen["runs"]} == {(6, "attic")}
    assert "no run has a result" in out
