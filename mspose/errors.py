"""The exceptions that a person sees."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class MsposeError(Exception):
    """Bad input, said in one line: what is wrong, where, and what to do. The command line prints it
    and exits 2.
    """


class Preempted(BaseException):
    """A signal asked a command to stop. The command line says so and exits 75: start me again.

    No Exception, as it is no error, which code that catches every kind of error would take it for.
    """


def none_if_broken(read: Callable[[], T]) -> T | None:
    """Call `read`; None where it raises MsposeError, as for a file that is missing or broken."""
    try:
        return read()
    except MsposeError:
        return None
