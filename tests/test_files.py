"""Locks, files that killed processes left, checksums, and reading what other programs wrote."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from mspose.errors import MsposeError
from mspose.files import (
    locked,
    number,
    read_bytes,
    read_json,
    whole_file,
    whole_folder,
    with_checksum,
)


def held_by_another_process(path):
    """Start a process that holds the lock of `path` until its input ends."""
    code = (
        "import sys; from pathlib import Path; from mspose.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_who_may_not_wait_for_a_lock_is_refused_and_others_wait(tmp_path, caplog):
    path = tmp_path / "lock"
    process = held_by_another_process(path)
    with pytest.raises(MsposeError, match="somebody is at it"):  # noqa: SIM117
        with locked(path, refusal="somebody is at it"):
            pass
    threading.Timer(0.5, process.kill).start()
    with caplog.at_level("INFO", logger="mspose"), locked(path, waiting="waiting for it"):
        assert process.wait(10) != 0
    assert "waiting for it" in caplog.text
    process.stdout.close()
    process.stdin.close()


def test_a_lock_ends_with_the_last_process_that_inherited_it(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import subprocess, sys; from pathlib import Path; from mspose.files import locked\n"
        "with locked(Path(sys.argv[1])) as handle:\n"
        "    child = subprocess.Popen(['sleep', '60'], pass_fds=[handle])\n"
        "    print(child.pid, flush=True); child.wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    with pytest.raises(MsposeError, match="held"), locked(path, refusal="held"):
        pass
    os.kill(child, signal.SIGKILL)
    with locked(path, waiting="until it has ended"):
        assert path.exists()
    assert not path.exists()
    process.stdout.close()


def test_a_folder_that_was_made_for_a_lock_alone_goes_with_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "a/b/.lock"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "a/b/.lock"):
        (tmp_path / "a/b/kept").touch()
    with locked(tmp_path / "a/b/.lock"):
        pass
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["kept"]


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path, whole):
    path = tmp_path / "x[1].json"
    left = tmp_path / ".x[1].json.abcd1234.part"
    others = tmp_path / ".other.json.abcd1234.part"
    others.touch()
    if whole is whole_file:
        left.touch()
    else:
        (left / "x[1].json").mkdir(parents=True)
    with whole(path):
        assert not left.exists()
        (mine,) = set(tmp_path.iterdir()) - {others}
        with whole(tmp_path / "beside"):
            assert mine.exists()
        with whole_file(path if whole is whole_file else tmp_path / "third"):
            assert mine.exists()
    assert not list(tmp_path.glob(".x*"))
    assert others.exists()


@pytest.mark.parametrize(
    ("old", "new"), [("1.5", "1.6"), ("true", "false"), ('"a"', '"b"'), ('"x"', '"y"'), ("é", "e")]
)
def test_a_changed_json_file_does_not_have_its_checksum(tmp_path, old, new):
    path = tmp_path / "file.json"
    content = {"x": [1.5, {"b": True}], "name": "a", "é": None, "n": 1e-300}
    text = json.dumps(with_checksum(content), indent=2, ensure_ascii=False)
    path.write_text(text)
    assert read_json(path) == content
    path.write_text(json.dumps(json.loads(text)))  # spaces and order say nothing
    assert read_json(path) == content
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(MsposeError, match=r"file\.json was changed or damaged.*; do this"):
        read_json(path, "do this")
    path.write_text(json.dumps(content))  # older files have none
    assert read_json(path) == content


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 100000, b"NaN", b'{"a": Infinity}', b"9" * 5000]
)
def test_what_is_no_json_is_one_line(tmp_path, data):
    path = tmp_path / "file.json"
    path.write_bytes(data)
    with pytest.raises(MsposeError, match=r"file\.json is not JSON: ") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path, tmp_path / "gone"):
        with pytest.raises(MsposeError, match=f"cannot read {path}"):
            read_bytes(path)
    with pytest.raises(MsposeError, match="null byte"):
        read_bytes(tmp_path / "a\0b")


def test_numbers_are_in_plain_digits():
    assert [number(text) for text in ("1", b"-1.5e3", " 2 ")] == [1, -1500, 2]
    for text in ("１２", "1_000", b"1_0", "٣", "x", ""):
        with pytest.raises(ValueError):
            number(text)
