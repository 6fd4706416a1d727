"""glibc's settings, in processes of their own because they hold for the whole process."""

import subprocess
import sys

import pytest

from mspose.allocator import keep_freed_memory

PROGRAM = """
import resource, sys
import numpy as np
from mspose.allocator import keep_freed_memory
for keep in sys.argv[1]:
    assert keep_freed_memory(keep == "k")
    np.ones(8_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(8_000_000)  # 64 MB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(False), reason="the C library is not glibc")
def test_memory_that_is_kept_costs_no_page_faults_and_the_setting_can_be_undone():
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, "rkr"], capture_output=True, text=True, check=True
    )
    returned, kept, again = map(int, answer.stdout.split())
    assert kept < returned / 20
    assert again > 20 * kept


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
