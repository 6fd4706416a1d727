"""The benchmark: both sides do the same work, and the table and the JSON say what was measured."""

import dataclasses
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mspose.cli import main
from mspose.data.batches import Batches
from mspose.data.cache import open_cache
from mspose.errors import MsposeError
from mspose.models.compilation import Compiled
from mspose.tools import bench
from mspose.tools.bench import PAPER, TOY, Call, Results
from mspose.tools.eager_reference import reference_batches, reference_transform

CPU = torch.device("cpu")
RATIOS = {
    "train_b8_float32",
    "train_b8_bfloat16",
    "predict_b1",
    "predict_b1_bfloat16",
    "predict_b32",
    "predict_b32_bfloat16",
    "load_640x480",
    "load_1920x1080",
    "memory_b32",
}


def test_calls_are_timed_in_turn_and_short_ones_repeated_within_a_sample(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def call(name, seconds):
        order.append(name)
        clock[0] += seconds

    calls = {"a": lambda: call("a", 0.25), "b": lambda: call("b", 1.0)}
    found = bench.interleaved(calls, device=CPU, repeat=3, warm_up=2, shortest=0.5)
    assert order == ["a", "a", "b", "b", *("a", "a", "b") * 3]
    assert found == {"a": [0.25] * 3, "b": [1.0] * 3}


def test_operations_of_the_papers_network_are_those_that_were_counted_by_hand():
    found = bench.operations_per_image(PAPER)
    # 28x28 tokens, 6 layers: 6 N (4 C^2 + 2 C F + 2 N C) multiply-adds, the larger part of all
    tokens, dim = 28 * 28, 256
    orientation_encoder = 2 * 6 * tokens * (4 * dim**2 + 2 * dim**2 + 2 * tokens * dim)
    assert orientation_encoder < found["predict"] < 1.5 * orientation_encoder
    assert found["train"] == 3 * found["predict"]


def test_both_training_steps_give_the_same_gradients():
    architecture = TOY.architecture | {"dropout": 0.0, "attention_dropout": 0.0}
    still = dataclasses.replace(TOY, architecture=architecture)
    ours, reference = bench.make_sides(still, CPU)
    batch = bench.random_batch(still, 3, CPU)
    before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    for step in (
        bench.our_training_step(ours, batch),
        bench.reference_training_step(reference, batch),
    ):
        torch.manual_seed(0)
        step.run()
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = expected[name].grad
        tolerance = 1e-4 * float(gradient.abs().max()) + 1e-7
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=tolerance)
        for updated in (parameter, expected[name]):
            assert not torch.equal(updated, before[name]), name


def test_both_predictions_give_the_same_poses():
    ours, reference = bench.make_sides(TOY, CPU)
    batch = bench.random_batch(TOY, 2, CPU)
    found, expected = (
        bench.prediction(network, batch).run() for network in (ours.eval(), reference.eval())
    )
    torch.testing.assert_close(found.position_B3, expected.position_B3, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.orientation_B4, expected.orientation_B4, rtol=1e-4, atol=1e-5)
    assert not found.position_B3.requires_grad


def test_both_loaders_give_the_same_images(tmp_path):
    table = bench.write_frames(tmp_path, 80, 60, frames=9)
    kept, cache = open_cache(
        table, tmp_path, short_side=48, folder=tmp_path / "cache", progress=False
    )
    crop = {"crop": 40, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    batches = Batches(kept, cache, scenes=["library"], batch_size=9, **crop)
    (found,) = batches.in_order()
    transform = reference_transform(resize=48, random_crop=False, jitter=False, **crop)
    (expected,) = reference_batches([tmp_path / image for image in table["image"]], transform, 9)
    torch.testing.assert_close(found.image_B3HW, expected)
    assert not torch.equal(found.image_B3HW[0], found.image_B3HW[1])
    assert torch.equal(found.image_B3HW[0], found.image_B3HW[8])


def test_loading_is_measured_per_image_on_one_core(monkeypatch):
    before = torch.get_num_threads(), os.sched_getaffinity(0)
    seen = []

    def interleaved(calls, **_):
        seen.append((list(calls), torch.get_num_threads(), len(os.sched_getaffinity(0))))
        return {name: [6.0, 12.0] for name in calls}

    monkeypatch.setattr(bench, "interleaved", interleaved)
    small = dataclasses.replace(TOY, frames=(12, 3), resize=48, image=40)
    found = Results(CPU, small, repeat=1)
    bench.measure_loading(found, 80, 60)
    assert seen == [
        ([f"{side}_load_80x60{jitter}" for side in ("reference", "ours")], 1, 1)
        for jitter in ("", "_jitter")
    ]
    for name in ("load_80x60", "load_80x60_jitter"):
        assert found.samples[f"reference_{name}"] == [2.0, 4.0]
        assert found.samples[f"ours_{name}"] == [0.5, 1.0]
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == before


def test_memory_is_that_of_a_process_of_its_own():
    (peak,) = bench.run_alone("ours", TOY, CPU, True, (2,))
    assert 10**8 < peak < 10**10


def test_a_step_that_fails_in_its_process_is_an_error_of_one_line(monkeypatch):
    def fail(*_):
        raise RuntimeError("not enough memory: you tried to allocate 7 bytes\nat ...")

    monkeypatch.setattr(bench, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(bench, "training_memory", fail)
    with pytest.raises(MsposeError, match="step of ours at batch 32 failed.* 7 bytes$"):
        bench.run_alone("ours", TOY, CPU, True, (4, 32))


def test_memory_is_extrapolated_where_it_does_not_fit(monkeypatch):
    def run_alone(side, workload, device, recompute, counts):
        return [(1 + count * (3 if side == "reference" else 1)) * 10**9 for count in counts]

    monkeypatch.setattr(bench, "run_alone", run_alone)
    for free, said in ((10**12, 0), (20 * 10**9, 4)):
        monkeypatch.setattr(bench, "free_memory", lambda device, free=free: free)
        found = Results(CPU, PAPER, repeat=1)
        bench.measure_memory(found)
        assert found.peak_bytes["reference_memory_b32"] == 97 * 10**9
        assert found.peak_bytes["ours_memory_b32_not_recomputed"] == 33 * 10**9
        assert len(found.notes) == said


def test_what_could_not_be_compiled_is_left_out_and_said():
    broken = Compiled(lambda: None)
    broken.chosen = broken.function
    found = Results(CPU, TOY, repeat=1)
    calls = {
        "reference_train_b8": Call(lambda: torch.ones(1), len),
        "ours_train_b8_float32": Call(lambda: torch.ones(1), len),
        "ours_train_b8_float32_compiled": Call(lambda: torch.ones(1), broken),
    }
    bench.time_network(found, calls, 8)
    assert set(found.compared) == {"train_b8_float32"}
    assert len(found.notes) == 1
    assert found.notes[0].startswith("ours_train_b8_float32_compiled was not measured")


def test_everything_that_is_printed_and_written_follows_from_the_samples(
    tmp_path, capsys, monkeypatch
):
    kept = []
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(bench, "run_alone", lambda *_: [10**9])
    files = tmp_path / "results" / "bench-toy.json", tmp_path / "results" / "bench-toy.md"
    words = ["bench", "--quick", "--device", "cpu", "--repeat", "1"]
    main([*words, "--json", str(files[0]), "--markdown", str(files[1])])
    assert kept == [True]
    found = json.loads(files[0].read_text())
    assert found["ratio"].keys() >= RATIOS
    for name in ("ratio", "seconds", "share_of_matrix_rate"):
        assert all(math.isfinite(value) and value > 0 for value in found[name].values())
    seconds = found["seconds"]
    ratio = seconds["reference_train_b8"] / seconds["ours_train_b8_bfloat16"]
    assert found["ratio"]["train_b8_bfloat16"] == ratio
    share = found["operations_per_image"]["train"] * 8 / seconds["ours_train_b8_bfloat16"]
    share /= found["matrix_operations_per_second"]["bfloat16"]
    assert found["share_of_matrix_rate"]["ours_train_b8_bfloat16"] == pytest.approx(share)
    for shares in found["time_by_operation"].values():
        assert 0.3 < sum(shares.values()) <= 1.0001
    table = files[1].read_text()
    assert capsys.readouterr().out == table
    assert table.startswith(found["machine"]["cpu"])
    for name in RATIOS:
        assert f"| {name} | " in table


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("load", ["keep", "loading", "loading"]),
        ("predict", ["keep", "prediction"]),
        # memory in processes that this one starts while it is small
        ("all", ["memory", "keep", "loading", "loading", "training", "prediction"]),
    ],
)
def test_parts_are_measured_alone_or_all_in_turn(part, expected, monkeypatch, capsys):
    done = []
    for name in ("memory", "loading", "training", "prediction"):
        monkeypatch.setattr(bench, f"measure_{name}", lambda *_, name=name: done.append(name))
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: done.append("keep"))
    bench.bench(part, device="cpu", repeat=1, quick=True)
    assert done == expected
    assert "| ratio |" in capsys.readouterr().out


def test_a_wrong_name_ends_in_one_line(refused):
    refused("lood", "bench", "lood")
    refused("--device cpu", "bench", "--device", "nonsense")


COMMITTED = sorted((Path(__file__).parents[2] / "experiments" / "results").glob("bench-*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_whole_and_their_tables_follow_from_them(path):
    found = json.loads(path.read_text())
    assert found["quick"] is False
    assert found["machine"]["commit"]
    assert all(ratio > 0 for ratio in found["ratio"].values())
    if found["format"] == bench.FORMAT:
        assert path.with_suffix(".md").read_text() == bench.make_table(found)
