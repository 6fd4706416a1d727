"""Running an ablation: real processes that are killed, skipped, continued and recorded."""

import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mspose.cli import main
from mspose.config import Settings, flatten, read_settings, write_settings
from mspose.errors import MsposeError, Preempted
from mspose.studies.ablation import runner
from mspose.studies.ablation.cell import is_finished, notes, run_cell
from mspose.studies.ablation.errors import COLUMNS, read_errors
from mspose.studies.ablation.launcher import (
    ClusterTask,
    LocalJob,
    LocalLauncher,
    SlurmLauncher,
    SlurmSettings,
    share_of_machine,
)
from mspose.studies.ablation.plan import Cell, read_ablation
from mspose.studies.ablation.progress import Board
from mspose.studies.ablation.record import record_cells
from mspose.studies.ablation.runner import ablate, last_words, real_data, run_cells


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
    """`change(seeds=[1])`: write the ablation file with some keys changed."""

    def write(**changes) -> Path:
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes, sort_keys=False))
        return file

    return write


@pytest.fixture
def cells(file, tmp_path) -> list[Cell]:
    """Its cells, with runs below `tmp_path`."""
    return read_ablation(file).cells(runs=str(tmp_path / "runs"))


def commands(file: Path, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "mspose",
        "ablate",
        str(file),
        "--runs",
        str(file.parent / "runs"),
        *words,
    ]


class Played:
    """A launcher whose jobs are played: what `ends` makes of a cell, after two looks; it counts
    jobs at once.
    """

    look_every = 0.0

    def __init__(self, ends, at_once=1):
        self.ends, self.at_once = ends, at_once
        self.started, self.stopped, self.running, self.most = [], [], 0, 0

    def start(self, cell):
        self.started.append(str(cell))
        self.running += 1
        self.most = max(self.most, self.running)
        return PlayedJob(self, cell)


class PlayedJob:
    def __init__(self, launcher, cell):
        self.launcher, self.cell, self.looks = launcher, cell, 0

    def fault(self):
        self.looks += 1
        if self.looks < 2:
            return None
        self.launcher.running -= 1
        return self.launcher.ends(self.cell) or ""

    def ask_to_stop(self):
        self.launcher.stopped.append(str(self.cell))

    def stop(self):
        self.launcher.stopped.append(f"{self.cell} has ended")


# from beginning to end


def test_after_a_kill_it_goes_on_where_it_was_and_failures_are_told_at_the_end(change, tmp_path):
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["training"] |= {"epochs": 1, "evaluate_every": 50}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    file = change(
        variants={
            "broken": {"training.start_from": "/nowhere/at/all"},
            "long": {"training.epochs": 15},
        },
    )
    runs = tmp_path / "runs" / "tiny-small"
    process = subprocess.Popen(
        commands(file), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0
    )
    model = runs / "long" / "seed-0" / "model.json"
    deadline = time.monotonic() + 250
    while not (model.is_file() and json.loads(model.read_text())["epochs"] >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # the cells with it
    process.wait()
    assert json.loads(model.read_text())["epochs"] < 15
    finished = runs / "sine" / "seed-0"
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert {"metrics.json", "attention.json"} <= {path.name for path in before}
    assert "samples.npz" not in {path.name for path in before}

    again = subprocess.run(commands(file), capture_output=True, text=True, check=False)
    assert again.returncode == 2, again.stderr
    lines = again.stderr.splitlines()
    changes = [line.partition(" ")[2] for line in lines if line[2:3] == ":" and " ended)" in line]
    assert [change.replace(",", "").partition(" (")[0].split()[:4] for change in changes] == [
        ["sine", "seed", "0:", "skipped"],
        ["broken", "seed", "0:", "running"],
        ["broken", "seed", "0:", "failed"],
        ["long", "seed", "0:", "running"],
        ["long", "seed", "0:", "done"],
    ]
    assert changes[0].endswith(" deg (1 of 3 ended)") and changes[4].endswith(" deg (3 of 3 ended)")
    assert lines[-1] == "mspose: error: 1 failed: broken, seed 0; the same command tries again"
    assert "broken, seed 0 failed: /nowhere/at/all holds no model" in lines[-2]
    assert lines[-2].endswith(f"(its log: {runs / 'cells' / 'broken-seed-0.log'})")
    assert {
        path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()
    } == before
    assert "continuing" in (runs / "cells" / "long-seed-0.log").read_text()
    assert json.loads(model.read_text())["epochs"] == 15
    assert "| sine" in again.stdout and "| long" in again.stdout and "Small" in again.stdout


def test_at_sigterm_the_cells_save_and_the_same_command_goes_on(change, tmp_path):
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["training"] |= {"epochs": 4000, "evaluate_every": 4000}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    process = subprocess.Popen(commands(change(), "--quiet"), stderr=subprocess.PIPE, text=True)
    model = tmp_path / "runs" / "tiny-small" / "sine" / "seed-0" / "model.json"
    deadline = time.monotonic() + 200
    while not model.is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == os.EX_TEMPFAIL
    assert "SIGTERM: the cells are asked to save" in errors
    log = (tmp_path / "runs" / "tiny-small" / "cells" / "sine-seed-0.log").read_text()
    assert "SIGTERM: saved in" in log  # it had ended before the command did


def test_on_a_cluster(cells, tmp_path, monkeypatch):
    launcher = SlurmLauncher(
        tmp_path / "submitit", SlurmSettings(cluster="local", partition="a", gpus=0), 2
    )
    launcher.look_every = 0.1
    assert run_cells(cells[:1], launcher, progress=False) == []
    assert is_finished(cells[0].settings)
    monkeypatch.setattr(
        "mspose.studies.ablation.launcher._command",
        lambda cell: ["sh", "-c", "echo mspose: error: no; exit 2"],
    )
    assert run_cells(cells, launcher, progress=False) == ["learned, seed 0"]
    assert last_words(notes(cells[1].settings, ".log"), "").startswith("no (its log: ")

    # asked to stop, and at its time limit, of which submitit tells it by a signal
    work = "trap 'echo saved; exit 75' TERM; echo at work; while true; do sleep 0.1; done"
    monkeypatch.setattr(
        "mspose.studies.ablation.launcher._command", lambda cell: ["sh", "-c", work]
    )
    log = notes(cells[1].settings, ".log")
    job = launcher.start(cells[1])
    wait_for(lambda: "at work" in log.read_text())
    assert job.fault() is None
    job.ask_to_stop()
    job.stop()
    wait_for(lambda: job.fault() is not None and "saved" in log.read_text())


def wait_for(condition) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_task_that_reaches_its_time_limit_saves_and_asks_for_another(tmp_path):
    work = "trap 'echo saved; exit 75' TERM; echo at work; while true; do sleep 0.1; done"
    task = ClusterTask(["sh", "-c", work], str(tmp_path / "log"))
    thread = threading.Thread(target=task)
    thread.start()
    wait_for(lambda: (tmp_path / "log").exists() and "at work" in (tmp_path / "log").read_text())
    again = task.checkpoint().function
    thread.join()
    assert (tmp_path / "log").read_text().split() == ["at", "work", "saved"]
    assert (again.command, again.log) == (task.command, task.log) and again is not task


def test_a_cluster_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MsposeError, match="--launcher slurm: .*srun.*; here, --launcher local"):
        SlurmLauncher(tmp_path, SlurmSettings(), 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MsposeError, match=r"needs submitit: pip install submitit"):
        SlurmLauncher(tmp_path, SlurmSettings(), 1)


# which cells are done


def test_a_finished_cell_is_one_with_all_results_of_these_settings(cells):
    cell = cells[0]
    assert not is_finished(cell.settings)
    run = run_cell(cell.settings, progress=False)
    assert run == cell.folder and is_finished(cell.settings)
    metrics = json.loads((run / "metrics.json").read_text())
    study = json.loads((run / "attention" / "attention.json").read_text())
    assert (metrics["quick"], study["quick"]) == (False, False)
    assert is_finished(replace(cell.settings, device="cuda"))  # places may differ
    longer = replace(cell.settings, training=replace(cell.settings.training, epochs=3))
    assert not is_finished(longer)

    # an evaluation of another kind, and a broken or missing file, is made anew; what is good stays
    study_before = (run / "attention" / "attention.json").stat().st_mtime_ns
    for text in (json.dumps(metrics | {"scene_selection": "given"}), "{", None):
        (run / "metrics.json").unlink() if text is None else (run / "metrics.json").write_text(text)
        assert not is_finished(cell.settings)
        run_cell(cell.settings, progress=False)
        assert json.loads((run / "metrics.json").read_text())["average"] == metrics["average"]
    assert (run / "attention" / "attention.json").stat().st_mtime_ns == study_before

    # figures of a model that has not learned to the end are not those of the cell
    model = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(model | {"epochs": 1}))
    assert not is_finished(cell.settings)

    # a record is finished without a model
    (run / "model.json").unlink()
    assert is_finished(cell.settings)


def test_what_was_evaluated_half_way_is_evaluated_again(cells):
    run = run_cell(cells[0].settings, progress=False)
    (run / "metrics.json").write_text(
        (run / "metrics.json").read_text().replace('"frames": 5', '"frames": 4')
    )
    shutil.rmtree(run / "attention")
    for name in ("checkpoint.pt", "model.safetensors", "model.json"):
        (run / name).unlink()
    run_cell(cells[0].settings, progress=False)
    assert json.loads((run / "metrics.json").read_text())["scenes"]["attic"]["frames"] == 5


def test_a_changed_configuration_never_reuses_a_cell(cells):
    changed = [
        replace(
            cell,
            settings=replace(cell.settings, training=replace(cell.settings.training, epochs=1)),
        )
        for cell in cells
    ]
    run = run_cell(changed[0].settings, progress=False)
    before = (run / "metrics.json").read_text()
    played = Played(lambda cell: None)
    said = (
        "holds a run with other settings (training.epochs: 1 -> 2): name another folder with"
        " --runs, or remove it"
    )
    assert run_cells(cells, played, progress=False) == ["sine, seed 0", "learned, seed 0"]
    assert played.started == ["learned, seed 0"]
    with pytest.raises(MsposeError) as caught:
        run_cell(cells[0].settings, progress=False)
    assert said in str(caught.value)
    (run / "config.yaml").unlink()
    with pytest.raises(
        MsposeError, match="other settings .as the configuration hash of its metrics.json says."
    ):
        run_cell(cells[0].settings, progress=False)
    assert (run / "metrics.json").read_text() == before


@pytest.mark.parametrize(
    "change", [{"kind": "mspn"}, {"position_encoder_layers": 0, "orientation_encoder_layers": 0}]
)
def test_a_network_without_self_attention_has_no_study(cells, change):
    settings = cells[0].settings
    loss = replace(settings.loss, qka_weight=0.0)
    settings = replace(settings, model=replace(settings.model, **change), loss=loss)
    run = run_cell(settings, progress=False)
    assert is_finished(settings) and not (run / "attention").exists()


def test_results_at_toy_size_are_marked(file, tmp_path):
    cell = read_ablation(file).cells(quick=True, runs=str(tmp_path / "runs"))[0]
    run = run_cell(cell.settings, progress=False)
    assert run.parts[-3:] == ("tiny-small-quick", "sine", "seed-0")
    assert json.loads((run / "metrics.json").read_text())["quick"] is True
    assert json.loads((run / "attention" / "attention.json").read_text())["quick"] is True
    text, failed = ablate(
        str(file), quick=True, variants=["sine"], runs=str(tmp_path / "runs"), progress=False
    )
    assert "at toy size (quick)" in text and "|" not in text and not failed


def test_two_processes_do_not_work_on_one_cell(cells, tmp_path, caplog):
    run = run_cell(cells[0].settings, progress=False)
    other = replace(cells[0].settings, runs=str(tmp_path / "shared"))
    done = []
    notes(other, ".lock").parent.mkdir(parents=True)
    with notes(other, ".lock").open("w") as lock, caplog.at_level("INFO", "mspose"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: done.append(run_cell(other, progress=False)))
        thread.start()
        wait_for(lambda: "waiting for another process, which is at" in caplog.text)
        shutil.copytree(
            run, tmp_path / "shared" / "tiny-small" / "sine" / "seed-0"
        )  # what the other one has done
        before = (
            (tmp_path / "shared" / "tiny-small" / "sine" / "seed-0" / "metrics.json")
            .stat()
            .st_mtime_ns
        )
    thread.join()
    assert done == [tmp_path / "shared" / "tiny-small" / "sine" / "seed-0"]
    assert (
        done[0] / "metrics.json"
    ).stat().st_mtime_ns == before and "trained already" not in caplog.text


# how cells are run


def test_so_many_at_once_in_order_and_all_are_stopped_at_the_end(cells, tmp_path):
    many = [
        replace(cells[0], seed=seed, settings=replace(cells[0].settings, seed=seed))
        for seed in range(5)
    ]
    played = Played(lambda cell: "gone", at_once=2)
    assert run_cells(many, played, progress=False) == [f"sine, seed {seed}" for seed in range(5)]
    assert (played.most, played.stopped) == (2, [])

    def interrupt(cell):
        raise KeyboardInterrupt

    played = Played(interrupt, at_once=2)
    with pytest.raises(KeyboardInterrupt):
        run_cells(many, played, progress=False)
    names = ["sine, seed 0", "sine, seed 1"]
    assert played.stopped == [*names, *(f"{name} has ended" for name in names)]

    def preempt(cell):
        os.kill(os.getpid(), signal.SIGUSR1)

    played = Played(preempt, at_once=1)
    with pytest.raises(
        Preempted, match="SIGUSR1: the cells are asked to save; the same command goes on"
    ):
        run_cells(many, played, progress=False)
    assert len(played.started) == 1


def test_how_many_at_once(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    quick = [replace(cell, settings=replace(cell.settings, quick=True)) for cell in cells]
    local = SlurmSettings(cluster="local")
    assert runner.make_launcher("local", cells, None, local).at_once == 1
    assert runner.make_launcher("local", cells, 3, local).at_once == 3
    assert runner.make_launcher("local", quick, None, local).at_once == 6
    assert runner.make_launcher("slurm", cells * 4, None, local).at_once == 8
    assert runner.make_launcher("slurm", cells, 1, local).at_once == 1


def test_processes_share_cores_and_take_gpus_in_turn():
    assert share_of_machine(0, 1, 8, ["0", "1"]) == {}
    assert share_of_machine(1, 3, 8, []) == {"OMP_NUM_THREADS": "2"}
    assert share_of_machine(1, 4, 2, ["0"]) == {"OMP_NUM_THREADS": "1"}
    assert [
        share_of_machine(slot, 4, 8, ["5", "7"])["CUDA_VISIBLE_DEVICES"] for slot in range(4)
    ] == list("5757")


def test_places_of_processes_that_ended_are_taken_again(cells, monkeypatch):
    launcher = LocalLauncher(2)
    monkeypatch.setattr(
        "mspose.studies.ablation.launcher._command", lambda cell: ["sh", "-c", f"sleep {cell.seed}"]
    )
    notes(cells[0].settings, "").parent.mkdir(parents=True)
    long, short = (launcher.start(replace(cells[0], seed=seed)) for seed in (100, 0))
    while short.fault() is None:
        time.sleep(0.01)
    third = launcher.start(replace(cells[0], seed=100))
    assert launcher.slots == [long, third]
    for job in (long, third):
        job.ask_to_stop()
        job.stop()
        assert job.fault() == "ended by SIGTERM"


def test_a_process_that_is_killed_and_one_that_fails(tmp_path):
    killed = LocalJob(["sh", "-c", "echo so far; kill -9 $$"], tmp_path / "log", dict(os.environ))
    killed.process.wait()
    assert killed.fault() == "ended by SIGKILL (is memory short?)"
    text = f"ended by SIGKILL (is memory short?) (its log: {tmp_path / 'log'})"
    assert last_words(tmp_path / "log", killed.fault()) == text
    failed = LocalJob(
        ["sh", "-c", "echo mspose: error: no; echo more; exit 2"],
        tmp_path / "log",
        dict(os.environ),
    )
    failed.process.wait()
    assert failed.fault() == ""
    assert last_words(tmp_path / "log", "") == f"no (its log: {tmp_path / 'log'})"
    (tmp_path / "log").write_text("Traceback\n  in x\nKeyError: 'y'\n\n")
    assert last_words(tmp_path / "log", "").startswith("KeyError: 'y' (")
    assert last_words(tmp_path / "none", "").startswith("it said nothing (")


def test_ctrl_c_is_left_to_us(tmp_path):
    code = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    job = LocalJob([sys.executable, "-S", "-c", code], tmp_path / "log", dict(os.environ))
    job.process.wait()
    assert (tmp_path / "log").read_text() == "True\n"
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


# what is shown


class Terminal:
    def __init__(self, terminal):
        self.text, self.terminal = "", terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.terminal


def test_the_progress_table(cells, monkeypatch):
    monkeypatch.setattr(
        "mspose.studies.ablation.progress.average_errors", lambda cell: (0.25 + cell.seed, 3.0)
    )
    all_cells = [replace(cell, seed=seed) for seed in (0, 1) for cell in cells]
    monkeypatch.setenv("COLUMNS", "40")
    screen, log = Terminal(True), Terminal(False)
    for stream in (screen, log):
        board = Board(all_cells, show=True, stream=stream)
        board.set(all_cells[0], "done")
        board.draw()
        board.set(all_cells[1], "running")
        board.set(all_cells[2], "skipped")
        board.set(all_cells[3], "failed")
        board.close()
        rows = [" ".join(line.split()) for line in board.table().splitlines()]
        assert rows[0] == "seed 0 seed 1 mean (m / deg)"
        assert rows[2] == "sine done 0.250 / 3.00 skipped 1.250 / 3.00 0.750 / 3.00"
        assert rows[3] == "learned running 0/2 failed -"
    assert max(len(line) for line in screen.text.splitlines()) <= 50
    assert screen.text.count("\x1b[4F\x1b[J") == 1  # drawn twice, the second time over the first
    assert "\x1b" not in log.text
    assert " sine, seed 0: done, 0.250 m / 3.00 deg (1 of 4 ended)" in log.text
    quiet = Terminal(False)
    board = Board(all_cells, show=False, stream=quiet)
    board.set(all_cells[0], "done")
    board.close()
    assert quiet.text == ""


# the record


def test_the_record_has_what_tables_need_and_no_path_of_this_machine(cells, tmp_path):
    run = run_cell(cells[0].settings, progress=False)
    said = record_cells(cells, tmp_path / "kept")
    target = tmp_path / "kept" / "tiny-small" / "sine" / "seed-0"
    kept = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    files = ["attention/attention.json", "config.yaml", "metrics.json", "predictions/errors.csv"]
    assert kept == files
    assert (
        "kept: 1; left out" in said
        and "without result: learned, seed 0" in said
        and "left out: models" in said
    )
    assert not any(str(tmp_path) in (target / name).read_text() for name in files)
    before, after = (flatten(read_settings(folder / "config.yaml")) for folder in (run, target))
    differ = {name for name in before if before[name] != after[name]}
    assert differ == {"runs", "data.cache", "data.dataset"}  # the small data set's card is a path
    assert (after["runs"], after["data.cache"], after["data.dataset"]) == (
        "runs",
        "cache",
        "small.yaml",
    )
    metrics, there = (json.loads((folder / "metrics.json").read_text()) for folder in (target, run))
    assert metrics["provenance"].pop("predictions") == "predictions/test.csv"
    assert metrics == there | {
        "provenance": {k: v for k, v in there["provenance"].items() if k != "predictions"}
    }
    assert list(pd.read_csv(target / "predictions/errors.csv")) == list(COLUMNS)  # no poses
    pd.testing.assert_frame_equal(read_errors(target), read_errors(run), rtol=1e-8)


def test_the_real_data_that_is_here(tmp_path):
    assert real_data({"data.root": str(tmp_path)}) == (None, {"data.root": str(tmp_path)})
    for scene in ("chess", "fire"):
        (tmp_path / scene / "seq-01").mkdir(parents=True)
        (tmp_path / scene / "TrainSplit.txt").write_text("sequence1\n")
    given = {"data.root": str(tmp_path)}
    assert real_data(given)[0] is None  # no frames
    (tmp_path / "fire" / "seq-01" / "frame-000000.color.png").touch()
    assert real_data(given) == ("7scenes", {"data.scenes": ["fire"], **given})
    assert real_data({**given, "data.scenes": ["chess"]}) == (
        "7scenes",
        {**given, "data.scenes": ["chess"]},
    )


# the command line


def test_the_command_line_has_every_setting_and_refuses_what_is_not_there(
    capsys, file, tmp_path, monkeypatch
):
    loggers = logging.getLogger("mspose")
    monkeypatch.setattr(loggers, "handlers", loggers.handlers[:])
    monkeypatch.setattr(loggers, "level", loggers.level)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    seen = {}
    monkeypatch.setattr(
        runner, "run_cells", lambda cells, launcher, progress: seen.update(cells=cells) or []
    )

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["ablate", *words])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    status, out, _ = call("--help")
    assert status == 0
    for name in [
        *flatten(Settings()),
        "dataset",
        "seeds",
        "jobs",
        "launcher",
        "record",
        "slurm.partition",
    ]:
        assert (f"--{name} " in out) == (name not in ("experiment", "variant", "seed")), name
    for words, said in (
        (("--training.epocs=3",), "did you mean training.epochs"),
        (("--seeds", "-1"), "seeds"),
        (("--seeds", "1", "1"), "--seeds has 1 twice"),
        (("--model.position_encoding=sine",), "is what the variants of"),
        (("--launcher=pbs",), "launcher"),
        (("--jobs=0",), "jobs"),
        (("--dataset=nowhere",), "experiment 'nowhere' is not in"),
        (("--variants", "sin"), "no variant 'sin'"),
        (("--slurm.minutes=0",), "slurm"),
    ):
        status, _, err = call(str(file), "--runs", str(tmp_path / "runs"), *words)
        assert status == 2 and len(err.splitlines()) == 1 and said in err, (words, err)
    assert not seen and not (tmp_path / "runs").exists()
    main(
        [
            "ablate",
            str(file),
            "--runs",
            str(tmp_path / "runs"),
            "--training.epochs=6",
            "--data.scenes=[attic]",
        ]
    )
    assert all(
        cell.settings.training.epochs == 6 for cell in seen["cells"]
    )  # though 6 might be a default
    assert all(cell.settings.data.scenes == ["attic"] for cell in seen["cells"])
    assert "no cell has a result" in capsys.readouterr().out
