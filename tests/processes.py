"""Python in processes of its own that need not load PyTorch again: each begins as a copy of this
one.

They are as real as others: signals, kills, exit statuses, environments and output are their own.
What a fresh interpreter does before it runs a command is tested with `subprocess` itself, and so is
everything on other systems than Linux, and beside GPUs, where a copy cannot compute gradients.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

import torch


class Copy:
    """A running `python -m MODULE WORDS` or `python SCRIPT WORDS`, with those methods of
    `subprocess.Popen` that are used.
    """

    def __init__(
        self,
        args: Sequence[object],
        *,
        stdin: int | None = None,
        stdout: IO | None = None,
        stderr: IO | int | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> None:
        """Start it. stdin: not read, whatever is given."""
        words = [str(word) for word in args if word != "-u"]
        assert words.pop(0) == sys.executable
        out = 1 if stdout is None else stdout.fileno()
        files = {None: 2, subprocess.STDOUT: out}
        err = files[stderr] if stderr in files else stderr.fileno()
        values = (words, out, err, dict(os.environ if env is None else env), start_new_session)
        self._process = multiprocessing.get_context("fork").Process(target=_run, args=values)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a copy", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _run(
    words: list[str], out: int, err: int, environment: dict[str, str], new_session: bool
) -> None:
    # a new program ignores what was ignored, and knows no handlers
    for number, default in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGUSR1, signal.SIG_DFL),
    ):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, default)
    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(err, 2)
    if out != 1:
        os.dup2(out, 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


copies = sys.platform == "linux" and not torch.cuda.is_available()
Popen = Copy if copies else subprocess.Popen


def run(args: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` to its end, as `subprocess.run` does; returns its status and output."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        status = Popen([str(word) for word in args], stdout=out, stderr=err).wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(args, status, *texts)


def run_without_reader(args: Sequence[object]) -> tuple[int, str]:
    """Run `python WORDS` whose standard output nobody reads; returns its status and its errors."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out, tempfile.TemporaryFile("w+") as err:
        status = Popen([str(word) for word in args], stdout=out, stderr=err).wait()
        err.seek(0)
        return status, err.read()
