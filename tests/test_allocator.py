"""glibc's settings, in a process of their own because they hold for the whole process."""

import subprocess
import sys

import pytest

from mspose.allocator import keep_freed_memory

PROGRAM = """
import resource
import numpy as np
from mspose.allocator import keep_freed_memory

def page_faults():
    np.ones(8_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(8_000_000)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(page_faults(), keep_freed_memory(), page_faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is not glibc")
def test_memory_that_is_kept_costs_no_page_faults():
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    returned, taken, kept = answer.stdout.split()
    assert taken == "True"
    assert int(kept) < int(returned) / 20


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
