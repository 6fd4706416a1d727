"""The benchmark: both sides do the same work, what is measured is what the table and the JSON say."""

import copy
import dataclasses
import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch

from mspose.cli import main
from mspose.data.batches import Batches
from mspose.data.cache import open_cache
from mspose.errors import MsposeError
from mspose.models.compilation import Compiled
from mspose.tools.bench import alone, measure, sides, timing
from mspose.tools.bench.alone import Finished, Task, measure_memory, run_alone
from mspose.tools.bench.loading import measure_loading, write_frames
from mspose.tools.bench.machine import copy_rate, describe_machine, free_memory, matrix_rate
from mspose.tools.bench.measure import benchmark
from mspose.tools.bench.report import Results, markdown
from mspose.tools.bench.sides import (
    PAPER,
    TOY,
    Call,
    make_sides,
    operations_per_image,
    our_training_step,
    prediction,
    random_batch,
    reference_module,
    reference_training_step,
)
from mspose.tools.bench.timing import interleaved

CPU = torch.device("cpu")
RATIOS = {
    "train_b8_float32",
    "train_b8_bfloat16",
    "predict_b1",
    "predict_b32",
    "load_640x480",
    "load_1920x1080",
    "memory_b32",
}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless a test turns it: `clock[0] += seconds`."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_sides_are_timed_in_turn(clock):
    order = []

    def call(name, seconds):
        order.append(name)
        clock[0] += seconds

    found = interleaved(
        {"a": lambda: call("a", 0.25), "b": lambda: call("b", 1.0)},
        device=CPU,
        repeat=3,
        warm_up=2,
        shortest=0.0,
    )
    assert order == ["a", "a", "b", "b", *("a", "b") * 3]
    assert found == {"a": [0.25] * 3, "b": [1.0] * 3}


def test_a_short_call_is_repeated_within_a_sample_and_the_first_call_does_not_count(clock):
    calls = []

    def call():
        clock[0] += 0.01 if calls else 9.0
        calls.append(1)

    found = interleaved({"a": call}, device=CPU, repeat=2, warm_up=2, shortest=0.045)
    assert len(calls) == 2 + 2 * 5
    assert found["a"] == pytest.approx([0.01, 0.01])


def test_the_machine_is_measured_and_described():
    for dtype in (torch.float32, torch.bfloat16):
        rate, how = matrix_rate(dtype, CPU, (64, 128), repeat=2)
        assert 0 < rate < 1e18
        assert how.rpartition(" ")[2] in ("64", "128")
    assert 0 < copy_rate(CPU, 1000, repeat=2) < 1e15
    about = describe_machine(CPU)
    assert about["threads"] == torch.get_num_threads()
    assert about["torch"] == torch.__version__.split("+")[0]
    assert 0 < free_memory(CPU) <= about["memory_bytes"]


def test_operations_of_the_papers_network_are_those_that_were_counted_by_hand():
    found = operations_per_image(PAPER)
    # 28x28 tokens, 6 layers: 6 N (4 C^2 + 2 C F + 2 N C) multiply-adds, the larger part of all
    tokens, dim = 28 * 28, 256
    orientation_encoder = 2 * 6 * tokens * (4 * dim**2 + 2 * dim**2 + 2 * tokens * dim)
    assert orientation_encoder < found["predict"] < 1.5 * orientation_encoder
    assert found["predict"] == pytest.approx(11e9, rel=0.05)
    assert found["train"] == 3 * found["predict"]


def test_both_training_steps_give_the_same_gradients():
    still = dataclasses.replace(
        TOY, architecture={**TOY.architecture, "dropout": 0.0, "attention_dropout": 0.0}
    )
    ours, reference = make_sides(still, CPU)
    batch = random_batch(still, 3, CPU)
    before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    for step in (our_training_step(ours, batch), reference_training_step(reference, batch)):
        torch.manual_seed(0)
        step.run()
    judges = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        judge = judges[name].grad
        torch.testing.assert_close(
            parameter.grad, judge, rtol=1e-3, atol=1e-4 * float(judge.abs().max()) + 1e-7
        )
        assert not torch.equal(parameter, before[name]), f"{name} was not updated"
        assert not torch.equal(judges[name], before[name]), (
            f"{name} of the reference was not updated"
        )


def test_both_predictions_give_the_same_poses():
    ours, reference = make_sides(TOY, CPU)
    batch = random_batch(TOY, 2, CPU)
    found, expected = (
        prediction(network, batch).run() for network in (ours.eval(), reference.eval())
    )
    torch.testing.assert_close(found.position_B3, expected.position_B3, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.orientation_B4, expected.orientation_B4, rtol=1e-4, atol=1e-5)
    assert not found.position_B3.requires_grad


def test_both_loaders_give_the_same_images(tmp_path):
    table = write_frames(tmp_path, 80, 60, pictures=2, frames=5)
    assert len(table) == 5
    kept, cache = open_cache(
        table, tmp_path, short_side=48, folder=tmp_path / "cache", progress=False
    )
    shape = {"crop": 40, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    batches = Batches(kept, cache, scenes=["library"], batch_size=8, **shape)
    (found,) = batches.in_order()
    transform = reference_module().reference_transform(
        resize=48, random_crop=False, jitter=False, **shape
    )
    (expected,) = reference_module().reference_batches(
        [tmp_path / image for image in table["image"]], transform, 8
    )
    torch.testing.assert_close(found.image_B3HW, expected)
    assert not torch.equal(found.image_B3HW[0], found.image_B3HW[1])
    assert torch.equal(found.image_B3HW[0], found.image_B3HW[2])


def test_loading_is_measured_per_image_on_one_core(monkeypatch):
    before = torch.get_num_threads(), os.sched_getaffinity(0)
    seen = []

    def run_all(calls, **_):
        loaded = {name: call() for name, call in calls.items()}
        seen.append((loaded, torch.get_num_threads(), len(os.sched_getaffinity(0))))
        return {name: [6.0, 12.0] for name in calls}

    monkeypatch.setattr("mspose.tools.bench.loading.interleaved", run_all)
    small = dataclasses.replace(TOY, frames={"80x60": (1, 12, 3)}, resize=48, image=40)
    found = measure_loading(small, 80, 60, device=CPU, repeat=1)
    sides = {"reference_load_80x60": 3, "ours_load_80x60": 12}
    assert seen == [({**sides, **{f"{name}_jitter": count for name, count in sides.items()}}, 1, 1)]
    assert found["reference_load_80x60"] == found["reference_load_80x60_jitter"] == [2.0, 4.0]
    assert found["ours_load_80x60"] == found["ours_load_80x60_jitter"] == [0.5, 1.0]
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == before


def test_a_process_of_its_own_says_its_memory():
    (found,) = run_alone(
        Task("ours", (2,), "cpu", quick=True, keep_freed_memory=True, recompute_backbone=True)
    )
    assert found.batch == 2
    assert 10**8 < found.before <= found.peak < 10**10


def test_either_side_is_compared_as_its_users_run_it(results, monkeypatch):
    """By default its own allocator settings; beside that, both sides with the same."""
    clock = {"reference": 8.0, "ours": 2.0}
    monkeypatch.setattr(
        measure,
        "interleaved",
        lambda calls, **_: {name: [clock[name.partition("_")[0]]] for name in calls},
    )
    calls = {name: Call(lambda: None, len) for name in ("reference_predict_b1", "ours_predict_b1")}
    measure._time(results, calls, 1, "default_allocator")
    clock.update(reference=5.0, ours=1.0)
    measure._time(results, calls, 1, "kept_memory")
    assert results.ratio == {
        "predict_b1_default_allocator": 8 / 2,
        "predict_b1_kept_memory": 5 / 1,
        "predict_b1": 8 / 1,
    }


def test_a_process_that_fails_ends_in_one_line(monkeypatch):
    task = Task("ours", (4, 32), "cpu", quick=True, keep_freed_memory=False)

    def ends(code, words):
        answer = subprocess.CompletedProcess([], code, stdout="", stderr=words)
        monkeypatch.setattr(alone.subprocess, "run", lambda *_, **__: answer)

    ends(-9, "")
    with pytest.raises(
        MsposeError, match=r"step of ours at batch 32: killed by the system.*memory"
    ):
        run_alone(task)
    ends(
        1,
        "Traceback\n  somewhere\nRuntimeError: not enough memory: you tried to allocate 7 bytes\n",
    )
    with pytest.raises(
        MsposeError,
        match="batch 32: RuntimeError: not enough memory: you tried to allocate 7 bytes$",
    ):
        run_alone(task)


class Processes:
    """Stands in for processes with a peak of 1 GB and 2 GB an image, which are killed above `limit`
    images.
    """

    def __init__(self, monkeypatch, free, limit=100):
        self.tasks, self.limit = [], limit
        monkeypatch.setattr(alone, "free_memory", lambda device: free)
        monkeypatch.setattr(alone, "run_alone", self)

    def __call__(self, task):
        self.tasks.append(task)
        if task.batches[-1] > self.limit:
            raise MsposeError("killed")
        return [Finished(batch, 10**9, (1 + 2 * batch) * 10**9) for batch in task.batches]


def test_memory_is_measured_where_it_fits(monkeypatch):
    processes = Processes(monkeypatch, free=10**12)
    assert measure_memory("ours", 32, CPU, quick=False) == {
        "peak_bytes": 65 * 10**9,
        "increment_bytes": 64 * 10**9,
    }
    assert processes.tasks == [Task("ours", (32,), "cpu", quick=False, keep_freed_memory=True)]


def test_memory_is_extrapolated_where_it_does_not_fit(monkeypatch):
    processes = Processes(monkeypatch, free=20 * 10**9)
    found = measure_memory("reference", 32, CPU, quick=False)
    assert found.pop("reason") == "batch 32 needs about 65.0 GB, 20.0 GB are free"
    assert found == {
        "peak_bytes": 65 * 10**9,
        "increment_bytes": 64 * 10**9,
        "extrapolated_from": [4, 8],
    }
    assert [task.batches for task in processes.tasks] == [(4, 8)]
    assert not processes.tasks[0].keep_freed_memory


def test_memory_is_measured_where_the_smaller_batches_say_that_it_fits(monkeypatch):
    small = dataclasses.replace(TOY, memory_per_image=10**12)
    monkeypatch.setitem(sides.WORKLOADS, True, small)
    processes = Processes(monkeypatch, free=70 * 10**9)
    assert "reason" not in measure_memory("reference", 32, CPU, quick=True)
    assert [task.batches for task in processes.tasks] == [(4, 8), (32,)]
    Processes(monkeypatch, free=70 * 10**9, limit=8)
    found = measure_memory("reference", 32, CPU, quick=True)
    assert (found["reason"], found["peak_bytes"]) == ("killed", 65 * 10**9)


@pytest.fixture(scope="module")
def measured_machine():
    return Results(CPU, repeat=1, quick=True)


@pytest.fixture
def results(measured_machine):
    """Of a test of its own, on one measured machine."""
    return copy.deepcopy(measured_machine)


def test_what_could_not_be_compiled_is_left_out_and_said(results):
    broken = Compiled(lambda: None)
    broken.chosen = broken.function
    calls = {
        "reference_train_b8_float32": Call(lambda: None, len),
        "ours_train_b8_float32": Call(lambda: None, len),
        "ours_train_b8_float32_compiled": Call(lambda: None, broken),
    }
    measure._time(results, calls, 8, "")
    assert set(results.ratio) == {"train_b8_float32"}
    assert results.notes == [
        "ours_train_b8_float32_compiled was not measured: torch.compile cannot be used here"
    ]


def test_figures_follow_from_the_median(results):
    results.add("reference_train_b8_float32", [9.0, 1.0, 2.0], 8, "float32")
    results.add("ours_train_b8_bfloat16", [0.5, 0.25, 7.0], 8, "bfloat16")
    results.add("ours_train_b64_bfloat16", [4.0], 64, "bfloat16")
    results.compare("train_b8_bfloat16", "reference_train_b8_float32", "ours_train_b8_bfloat16")
    results.note("Something was left out.")
    found = results.as_dict()
    assert found["seconds"] == {
        "reference_train_b8_float32": 2.0,
        "ours_train_b8_bfloat16": 0.5,
        "ours_train_b64_bfloat16": 4.0,
    }
    assert found["images_per_second"]["ours_train_b8_bfloat16"] == 16
    assert found["ratio"] == {"train_b8_bfloat16": 4.0}
    share = (
        16
        * found["operations_per_image"]["train"]
        / found["rate"]["bfloat16"]["operations_per_second"]
    )
    assert found["share_of_matrix_rate"]["ours_train_b8_bfloat16"] == pytest.approx(share)
    assert json.loads(json.dumps(found))["samples"]["reference_train_b8_float32"] == [9.0, 1.0, 2.0]
    table = markdown(found)
    assert "| train_b8_bfloat16 | 2 s | 500 ms | **4.00** | 16 | " in table
    assert "| train_b64_bfloat16 |  | 4 s |  | 16 | " in table
    assert "Something was left out." in table
    assert "Toy sizes" in table


def run_cli(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert len(lines) == 1
    return lines[0]


def test_a_wrong_name_ends_in_one_line(capsys):
    assert "lood" in run_cli(capsys, "lood")
    assert "--device cpu" in run_cli(capsys, "--quick", "--device", "nonsense")


def test_without_the_tests_of_the_checkout_it_ends_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        sides, "__file__", str(tmp_path / "site-packages/mspose/tools/bench/sides.py")
    )
    reference_module.cache_clear()
    try:
        line = run_cli(capsys, "--quick")
    finally:
        reference_module.cache_clear()
    assert str(tmp_path / "site-packages/tests/eager_reference.py") in line
    assert "checkout" in line


def test_one_part_alone(monkeypatch):
    for name in ("measure_all_memory", "measure_training", "measure_all_loading"):
        monkeypatch.setattr(measure, name, lambda *_, **__: pytest.fail("not asked for"))
    monkeypatch.setattr(
        measure, "keep_freed_memory", lambda: None
    )  # it would hold for the tests to come
    found = benchmark("predict", device="cpu", repeat=1, quick=True)
    assert set(found["ratio"]) == {
        f"predict_b{count}{precision}{allocator}"
        for count in (1, 32)
        for precision in ("", "_bfloat16")
        for allocator in ("", "_default_allocator", "_kept_memory")
    }
    assert 0 <= max(found["difference"].values()) < 1e-4


def test_everything_is_measured_and_written(tmp_path, capsys, monkeypatch):
    kept = []
    monkeypatch.setattr(measure, "keep_freed_memory", lambda: kept.append(True))
    files = tmp_path / "results" / "bench-toy.json", tmp_path / "results" / "bench-toy.md"
    main(
        [
            "bench",
            "--quick",
            "--device",
            "cpu",
            "--repeat",
            "1",
            "--json",
            str(files[0]),
            "--markdown",
            str(files[1]),
        ]
    )
    assert kept == [True]
    found = json.loads(files[0].read_text())
    assert found["ratio"].keys() >= RATIOS
    figures = [
        *found["ratio"].values(),
        *found["seconds"].values(),
        *found["share_of_matrix_rate"].values(),
    ]
    assert all(math.isfinite(figure) and figure > 0 for figure in figures)
    assert found["quick"] is True
    assert found["machine"]["device"]
    assert found["memory"]["ours"]["peak_bytes"] > 10**8
    assert found["seconds"].keys() >= {
        "ours_train_b8_float32_recomputed",
        "ours_load_640x480_jitter",
    }
    table = files[1].read_text()
    assert capsys.readouterr().out == table
    for name in RATIOS:
        assert f"| {name} | " in table


COMMITTED = sorted((Path(__file__).parents[2] / "experiments" / "results").glob("bench-*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_whole_and_their_tables_follow_from_them(path):
    found = json.loads(path.read_text())
    assert found["quick"] is False
    assert found["machine"]["commit"]
    assert all(ratio > 0 for ratio in found["ratio"].values())
    table = path.with_suffix(".md")
    assert not table.exists() or table.read_text() == markdown(found)
