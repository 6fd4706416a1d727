"""A run's folder: whole files, checkpoints, models, and clear messages where a file is broken."""

import errno
import json
import os
import pickle
import shutil
import stat
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from mspose.errors import MsposeError
from mspose.files import checksum, read_tensors, whole_file, whole_folder
from mspose.metrics import ERROR_COLUMNS, PREDICTIONS_CHECKSUM, write_errors, write_metrics
from mspose.run import Run, find_runs, load_checkpoint, load_model, save_checkpoint, save_model

RUN = Path(__file__).parent / "golden" / "results" / "remedies-small" / "none" / "seed-0"


@pytest.fixture
def run(tmp_path) -> Run:
    """A run that the test may change."""
    return Run(Path(shutil.copytree(RUN, tmp_path / "run")))


def test_a_run_reads_its_files(run):
    assert (run.name, run.seed, run.quick, run.is_baseline) == (
        "remedies-small/none",
        0,
        False,
        False,
    )
    assert run.settings.experiment == "remedies-small"
    assert run.attention is not None and run.attention == run.attention_of_metrics
    assert run.has_poses and len(run.predictions()) == len(run.errors())
    assert run.scalars().empty
    for attribute in ("settings", "metrics", "attention", "frames"):
        assert getattr(run, attribute) is getattr(run, attribute)  # read once
    run.attention_file.unlink()
    assert Run(run.folder).attention is None


def test_the_study_of_another_training_is_not_that_of_the_metrics(run):
    study = json.loads(run.attention_file.read_text())
    for change in ({"config_hash": "other"}, {"split": "train"}, {"quick": True}):
        run.attention_file.write_text(json.dumps(study | change))
        again = Run(run.folder)
        assert again.attention and again.attention_of_metrics is None


def test_a_record_has_the_errors_of_the_predictions_without_poses(run):
    expected = run.errors()
    write_errors(run.errors_file, expected)
    run.predictions_file.unlink()
    record = Run(run.folder)
    assert record.has_errors and not record.has_poses
    found = record.errors()
    assert found[["image", "scene"]].equals(expected[["image", "scene"]])
    columns = list(ERROR_COLUMNS)
    np.testing.assert_allclose(found[columns], expected[columns], rtol=1e-8)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a/2.jpg,a,-0.1,2", "line 3: an error is below zero"),
        ("a/2.jpg,a,0.1,nan", "line 3: orientation_error_deg is 'nan', expected a finite number"),
        ("a/1.jpg,a,0.1,2", "line 3: this frame is there twice"),
        ("a/1.jpg,a,0.1", "line 3: 3 values, expected 4"),
    ],
)
def test_broken_records_are_refused_with_their_line(tmp_path, row, message):
    run = Run(tmp_path)
    run.errors_file.parent.mkdir()
    header = "image,scene,position_error_m,orientation_error_deg"
    run.errors_file.write_text(f"{header}\na/1.jpg,a,0.5,3\n{row}\n")
    with pytest.raises(MsposeError, match=message):
        run.errors()


@pytest.mark.parametrize(
    ("name", "text", "attribute", "message"),
    [
        ("config.yaml", None, "settings", "no such settings file: .*config.yaml"),
        ("config.yaml", "a: [", "settings", "config.yaml"),
        ("metrics.json", None, "metrics", "cannot read .*metrics.json"),
        ("metrics.json", "{", "metrics", "metrics.json is not JSON"),
        ("attention/attention.json", "{", "attention", "attention.json is not JSON.*again"),
        ("attention/attention.json", "{}", "attention", "not a study of attention of this version"),
        ("predictions/test.csv", None, "frames", "has no predictions/test.csv: run `mspose eval"),
        ("model.json", None, "description", "cannot read .*model.json"),
        ("model.json", "{", "description", "model.json is not JSON"),
    ],
)
def test_a_file_that_is_broken_or_missing_is_named_in_one_line(run, name, text, attribute, message):
    (run.folder / name).unlink(missing_ok=True)
    if text is not None:
        (run.folder / name).write_text(text)
    with pytest.raises(MsposeError, match=message) as caught:
        getattr(run, attribute)
    assert "\n" not in str(caught.value) and str(run.folder) in str(caught.value)


def test_predictions_of_another_split_are_named(run):
    with pytest.raises(MsposeError, match=r"train.csv: .*there are predictions of: test"):
        run.predictions("train")


def test_scalars_are_indexed_by_step_and_repeated_steps_count_once(tmp_path):
    for values in ({0: 5.0, 1: 4.0, 2: 3.0}, {2: 2.5, 3: 2.0}):  # interrupted, and continued
        with SummaryWriter(str(tmp_path)) as writer:
            for step, value in values.items():
                writer.add_scalar("loss/total", value, step)
            writer.add_scalar("learning_rate", 0.5, 3)
    scalars = Run(tmp_path).scalars()
    assert scalars["loss/total"].to_dict() == {0: 5.0, 1: 4.0, 2: 2.5, 3: 2.0}
    pd.testing.assert_series_equal(
        scalars["learning_rate"].dropna(), pd.Series([0.5], [3]), check_names=False
    )


def test_runs_are_found_below_folders_but_not_in_hidden_ones(tmp_path):
    first, second, hidden = (tmp_path / "runs" / name for name in ("a", "b", ".trash"))
    for folder in (first, second, hidden):
        shutil.copytree(RUN, folder)
    shutil.copy(first / "metrics.json", first / "metrics-train.json")
    assert find_runs([tmp_path / "runs"]) == [Run(first), Run(second)]
    assert find_runs([second, tmp_path / "runs", first / "metrics.json"]) == [
        Run(second),
        Run(first),
    ]
    assert find_runs([first], other_splits=True) == [Run(first, "train"), Run(first)]
    for paths in ([tmp_path / "nowhere"], [first / "config.yaml"], []):
        with pytest.raises(MsposeError, match="make train"):
            find_runs(paths)


# files that appear whole or not at all


class FullDisk:
    """A file object on which nothing more can be written."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with whole_file(path) as file:
        file.write("first")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="half way"), whole_file(path) as file:
        file.write("second")
        raise RuntimeError("half way")
    assert path.read_text() == "first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_failure_leaves_no_new_folders(whole, tmp_path):
    (tmp_path / "old").mkdir()
    for path in (tmp_path / "new" / "deep" / "result", tmp_path / "old" / "result"):
        with pytest.raises(KeyboardInterrupt), whole(path):
            raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
    with pytest.raises(RuntimeError), whole(tmp_path / "new" / "result"):
        (tmp_path / "new" / "of somebody else").touch()
        raise RuntimeError
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["of somebody else"]


def test_the_old_checkpoint_survives_a_full_disk(tmp_path, monkeypatch):
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, {"epoch": 1, "weight": torch.ones(3)})
    real = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *args, **kwargs: FullDisk(real(*args, **kwargs)))
    with pytest.raises(MsposeError, match=r"checkpoint.pt: No space left on device; .*untouched"):
        save_checkpoint(tmp_path, {"epoch": 2, "weight": torch.zeros(1000)})
    monkeypatch.undo()
    state = load_checkpoint(tmp_path)
    assert state is not None and state["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


class RunsCode:
    """Leaves a folder behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_needs_code_is_refused_without_running_it(tmp_path):
    trap = RunsCode(tmp_path / "ran")
    for content in (trap, {"model": {}, "trap": trap}, torch.nn.Linear(2, 2)):
        torch.save(content, tmp_path / "trap.pth")
        with pytest.raises(MsposeError, match=r"trap\.pth: refused, reading it would run code"):
            read_tensors(tmp_path / "trap.pth")
    torch.save(trap, tmp_path / "trap.pth")
    with pytest.raises(MsposeError, match=r"code.*mkdir.*save the state dict alone") as caught:
        read_tensors(tmp_path / "trap.pth")
    assert "\n" not in str(caught.value)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(trap))
    with pytest.raises(MsposeError, match=r"plain\.pth: "):
        read_tensors(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


def test_a_broken_file_of_tensors_is_one_clear_line(tmp_path):
    path = tmp_path / "bad.pt"
    torch.save({"weight": torch.randn(1000)}, path)
    whole = path.read_bytes()
    contents = [b"", b"hello\nworld", b"PK\x03\x04 broken zip", b"\x80\x02."]
    contents += [whole[:-500], whole[: len(whole) // 2]]
    zipfile.ZipFile(path, "w").close()
    for number, content in enumerate([*contents, path.read_bytes(), b"{}"]):
        bad = tmp_path / ("bad.safetensors" if content == b"{}" else f"bad-{number}.pth")
        bad.write_bytes(content)
        with pytest.raises(
            MsposeError, match=f"{bad.name}: not a checkpoint that can be"
        ) as caught:
            read_tensors(bad)
        assert "\n" not in str(caught.value)
    (tmp_path / "folder.pth").mkdir()
    for name in ("folder.pth", "none.pth"):
        with pytest.raises(MsposeError, match=f"{name}: there is no such checkpoint file"):
            read_tensors(tmp_path / name)


def test_a_model_goes_out_and_in(tmp_path):
    weights = OrderedDict(a=torch.randn(3, 4).t(), b=torch.arange(3))
    save_model(tmp_path, weights, {"kind": "ms-transformer"})
    back, description = load_model(tmp_path)
    assert description == {"format": 1, "kind": "ms-transformer"}
    for name, tensor in weights.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)


# checksums


@pytest.mark.parametrize("place", [100, -100, 0.3, 0.5, 0.8])
def test_a_damaged_checkpoint_is_refused(tmp_path, place):
    save_checkpoint(tmp_path, {"epoch": 1, "weight": torch.randn(1000)})
    path = tmp_path / "checkpoint.pt"
    data = bytearray(path.read_bytes())
    position = place if isinstance(place, int) else int(place * len(data))
    data[position] ^= 16
    path.write_bytes(data)
    try:
        state = load_checkpoint(tmp_path)
    except MsposeError as error:
        assert "checkpoint.pt" in str(error)
    else:  # of the file's own bookkeeping, nothing that is read
        assert isinstance(place, int) and state["epoch"] == 1


def test_weights_that_are_not_those_of_the_description_are_refused(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_model(tmp_path / name, {"weight": torch.full((9,), value)}, {"epochs": 1})
    weights, description = load_model(tmp_path / "a")
    assert weights["weight"].eq(1).all() and description["epochs"] == 1
    path = tmp_path / "a" / "model.safetensors"
    shutil.copy(tmp_path / "b" / "model.safetensors", path)
    with pytest.raises(MsposeError, match=r"model\.safetensors is damaged, or not the one that"):
        load_model(tmp_path / "a")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(MsposeError, match=r"model\.safetensors is damaged"):
        load_model(tmp_path / "a")


def test_models_from_before_checksums_load(tmp_path):
    save_model(tmp_path, {"weight": torch.ones(9)}, {"epochs": 1})
    model = json.loads((tmp_path / "model.json").read_text())
    older = {name: model[name] for name in ("format", "epochs")}
    (tmp_path / "model.json").write_text(json.dumps(older))
    assert load_model(tmp_path)[1] == older


@pytest.mark.parametrize("data", [b"", b"\0" * 500, b"\x08" + b"\0" * 7 + b"{}      "])
def test_weights_of_zeros_are_one_line(tmp_path, data):
    save_model(tmp_path, {"weight": torch.ones(9)}, {"epochs": 1})
    (tmp_path / "model.json").write_text('{"format": 1}')
    (tmp_path / "model.safetensors").write_bytes(data)
    if data.endswith(b"{}      "):
        assert load_model(tmp_path)[0] == {}
        return
    with pytest.raises(MsposeError, match=r"model\.safetensors is broken") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_predictions_that_metrics_were_not_computed_from_are_refused(run):
    metrics = run.metrics
    write_metrics(run.metrics_file, {**metrics, PREDICTIONS_CHECKSUM: "another"})
    with pytest.raises(MsposeError, match=r"test\.csv is not the file that metrics\.json was"):
        Run(run.folder).predictions()
    found = checksum(run.predictions_file.read_bytes())
    write_metrics(run.metrics_file, {**metrics, PREDICTIONS_CHECKSUM: found})
    assert len(Run(run.folder).predictions())


def test_numbers_that_were_changed_by_hand_are_refused(run):
    write_metrics(run.metrics_file, run.metrics)
    text = run.metrics_file.read_text()
    scene = next(iter(run.metrics["scenes"].values()))
    old = repr(scene["median_position_error_m"])
    run.metrics_file.write_text(text.replace(old, "0.001"))
    with pytest.raises(MsposeError, match=r"metrics\.json was changed or damaged.*mspose evaluate"):
        Run(run.folder).metrics  # noqa: B018
