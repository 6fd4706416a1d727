"""The number of rounds for which an OpenMP thread spins while it waits for the others."""

import os
import sys

SPIN_COUNT = 3000


def limit_spinning() -> bool:
    """Set `GOMP_SPINCOUNT`, where the user set neither it nor `OMP_WAIT_POLICY`; call it before
    torch is imported.

    At the end of each operation that PyTorch spreads over its threads, these wait for the slowest.
    GNU's OpenMP, which PyTorch's wheels for Linux contain, lets them spin for 300,000 rounds before
    they sleep. Beside any other busy process a thread that spins holds the core that the one it
    waits for needs, even if that process is at `nice 19`. To sleep sooner costs a little on a quiet
    machine, as threads have to be woken. Milliseconds of a training step of `virtual` with two
    threads on two cores of an Intel Xeon:

    | GOMP_SPINCOUNT | quiet | beside a busy process at nice 19 |
    |---:|---:|---:|
    | 300000 (GNU's default) | 271 | > 4000 |
    | 30000 | 277 | 1407 |
    | 3000 | 315 | 623 |
    | 0 | 379 | 540 |

    Processes that this one starts inherit the setting.

    Returns:
        whether it was set: False where the user did, or torch is imported already, which is when
        OpenMP reads it.
    """
    if "torch" in sys.modules or not os.environ.keys().isdisjoint(
        ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    ):
        return False
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    return True
