"""The exceptions that a person sees."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class MsposeError(Exception):
    """Bad input, said in one line: what is wrong, where, and what to do. The command line prints it
    and exits 2.
    """


class Preempted(Exception):
    """A signal asked a run to stop; it is saved. The command line says so and exits 75: start me
    again.
    """


def none_if_broken(read: Callable[[], T]) -> T | None:
    """Call `read`; None where it raises MsposeError, as for a file that is missing or broken."""
    try:
        return read()
    except MsposeError:
        return None
