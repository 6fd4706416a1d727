"""The verbs that use a trained model and show its results: one each, no logic, like those of `cli.py`."""

from collections.abc import Callable

from jsonargparse import ArgumentParser, Namespace

from mspose.config import Parser
from mspose.errors import MsposeError

Verb = tuple[ArgumentParser, Callable[[Namespace], None]]


def predict() -> Verb:
    """`mspose predict`."""
    parser = Parser(description="Estimate the poses of images, of a folder's images or of a video.")
    return parser, _unfinished


def export() -> Verb:
    """`mspose export`."""
    parser = Parser(description="Write a run's model as one file for deployment, with its preprocessing inside.")
    return parser, _unfinished


def report() -> Verb:
    """`mspose report`."""
    parser = Parser(description="Write one self-contained HTML page about the results of runs.")
    return parser, _unfinished


def view() -> Verb:
    """`mspose view`."""
    parser = Parser(description="Show a run's poses in a 3-D viewer in the browser.")
    return parser, _unfinished


def _unfinished(_: Namespace) -> None:
    raise MsposeError("not there yet")
