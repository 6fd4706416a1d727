"""The spinning of OpenMP's threads, in processes of their own: OpenMP reads it when it loads."""

import os
import subprocess
import sys

import pytest

from mspose.openmp import SPIN_COUNT, limit_spinning

COMMAND_LINE = """
from mspose.cli import main
main(["--version"])
import torch
"""
NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def run(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    return subprocess.run(
        [sys.executable, *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, str(SPIN_COUNT)),
        ({"GOMP_SPINCOUNT": "70"}, "70"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
    ids=["default", "spin count of the user", "policy of the user"],
)
def test_the_setting_is_made_unless_the_user_made_one(environment, expected):
    program = "import os, mspose.openmp; mspose.openmp.limit_spinning();"
    program += "print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run("-c", program, **environment).stdout.strip() == str(expected)


def test_the_openmp_of_pytorch_runs_with_it_in_the_command_line():
    shown = run("-c", COMMAND_LINE, OMP_DISPLAY_ENV="verbose")
    if "GOMP_" not in shown.stderr:
        pytest.skip("PyTorch was built with another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in shown.stderr


def test_nothing_is_set_once_torch_is_imported(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", object())
    assert not limit_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ
