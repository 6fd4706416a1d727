import errno
import json
import os
import stat
from collections import OrderedDict

import pytest
import torch

from mspose.errors import MsposeError
from mspose.files import read_tensors, whole_file, whole_folder
from mspose.run import load_checkpoint, load_model, save_checkpoint, save_model


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
    save_checkpoint(tmp_path, {"epoch": 1, "weight": torch.ones(3)})
    real = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *args, **kwargs: FullDisk(real(*args, **kwargs)))
    with pytest.raises(MsposeError, match=r"cannot write .*checkpoint.pt: .*untouched"):
        save_checkpoint(tmp_path, {"epoch": 2, "weight": torch.zeros(1000)})
    monkeypatch.undo()
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path) is None


class Dangerous:
    def __reduce__(self):
        return (os.system, ("touch /tmp/mspose-was-here",))


@pytest.mark.parametrize("content", [Dangerous(), {"model": Dangerous()}, torch.nn.Linear(2, 2)])
def test_a_file_that_needs_code_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(MsposeError, match="refused, reading it would run code"):
        read_tensors(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", b"PK\x03\x04 broken zip", b"\x80\x02."]
)
def test_a_broken_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(
        MsposeError, match=r"bad\.pt: not a checkpoint that can be read, or damaged"
    ) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_one_clear_line(tmp_path):
    path = tmp_path / "cut.pt"
    torch.save({"weight": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(MsposeError, match="not a checkpoint that can be read, or damaged"):
        read_tensors(path)
    with pytest.raises(MsposeError, match="there is no such checkpoint file"):
        read_tensors(tmp_path / "none.pt")


def test_model_goes_out_and_in(tmp_path):
    weights = OrderedDict(a=torch.randn(3, 4).t(), b=torch.arange(3))
    save_model(tmp_path, weights, {"kind": "ms-transformer"})
    back, description = load_model(tmp_path)
    assert description == {"format": 1, "kind": "ms-transformer"}
    for name, tensor in weights.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", None, "model.json is missing"),
        ("model.json", "{", "not a model description"),
        ("model.json", json.dumps({"format": 99}), "format 99 is not 1"),
        ("model.safetensors", "short", "is broken"),
    ],
)
def test_a_broken_model_is_named(tmp_path, name, content, message):
    save_model(tmp_path, {"a": torch.ones(2)}, {})
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(MsposeError, match=message):
        load_model(tmp_path)
