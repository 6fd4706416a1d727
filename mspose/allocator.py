"""How glibc hands out and takes back memory: settings of the whole process, so only the command
line makes them.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
MIB = 2**20
KEEP = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_MAX: 0}
RETURN = {M_TRIM_THRESHOLD: 64 * MIB, M_MMAP_THRESHOLD: 32 * MIB, M_MMAP_MAX: 65536}


def keep_freed_memory(keep: bool = True) -> bool:
    """Let the process keep the memory that it frees, for its next tensors, rather than give it back
    to the kernel.

    A training step frees and asks for the same large tensors again and again; given back, each of
    their pages costs a
    page fault when it is next touched. The price: the kernel gets memory back at the end of the
    process only. `keep=False` gives back what is free and sets the thresholds at which glibc itself
    arrives after a few large tensors.

    Returns:
        whether the settings were taken: False on a C library without glibc's `mallopt`.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError):
        return False
    taken = all(mallopt(name, value) for name, value in (KEEP if keep else RETURN).items())
    if not keep:
        malloc_trim(0)
    return taken
