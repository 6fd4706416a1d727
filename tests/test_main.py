"""Signals that come before a command has begun, or while no training takes them."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest


def started(words, **options):
    command = [sys.executable, "-m", "mspose", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


ANSWERS = {
    signal.SIGINT: (130, "mspose: interrupted\n"),
    signal.SIGTERM: (75, "mspose: SIGTERM: ended on request.*\n"),
}


@pytest.mark.parametrize(
    ("seconds", "number"),
    [(0.5, signal.SIGINT), (1, signal.SIGTERM), (2, signal.SIGINT), (4, signal.SIGTERM)],
)
def test_a_signal_during_the_start_ends_it_in_one_line(tmp_path, seconds, number):
    card = tmp_path / "rooms.yaml"
    card.write_text(
        "name: rooms\nformat: virtual\nroot: rooms\nscenes: {atelier: {frames: {train: 500,"
        " test: 50}}}\nrender: {width: 320, height: 240, focal_px: 300}\n"
    )
    process = started(["train", "--data.dataset", card, "--runs", tmp_path / "runs", "--quiet"])
    time.sleep(seconds)
    assert process.poll() is None
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    status, said = ANSWERS[number]
    assert process.returncode == status
    assert re.fullmatch(said, error)


def test_a_signal_that_the_shell_ignores_stays_ignored(tmp_path):
    """As of a job that `nohup` or a shell in the background starts."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import mspose.__main__ as m\n"
    )
    code += "import sys; sys.argv[1:] = ['data', 'list']; m.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL, env=dict(os.environ)
    )
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
