"""`mspose view`: from a run's predictions to a page in the browser."""

import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from mspose.errors import MsposeError
from mspose.metrics import read_predictions
from mspose.tools.viewer.frame_images import images_of_run, read_about
from mspose.tools.viewer.shown import shown_scene

PORTS = 20
"""How many ports are tried, from the one that was asked for on."""
log = logging.getLogger("mspose")


def view_run(
    run: Path,
    *,
    split: str = "test",
    scene: str | None = None,
    root: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    started: Callable[[str], None] | None = None,
    ended: threading.Event | None = None,
) -> None:
    """Show the poses of a run's `predictions/<split>.csv` until interrupted, or until `ended` is
    set.

    scene: the one to begin with. root: folder of the scenes' images, in place of the one that the
        run's settings name.
    started: is told the address; by default it is printed.
    Raises MsposeError where there are no predictions, no such scene, or no free port.
    """
    try:
        from mspose.tools.viewer.viewer import Viewer
    except ImportError as error:
        raise MsposeError(f"mspose view needs viser: pip install viser ({error})") from error
    path = predictions_file(run, split)
    table = read_predictions(path)
    names = scenes_in_order(table, scene, path)
    images = images_of_run(
        run, read_about(path), table.groupby("scene")["image"].first().tolist(), root
    )
    if images.missing:
        log.warning(
            "cameras are shown without their images (%s); --root says where they are",
            images.missing,
        )
    scenes = {name: shown_scene(table, name) for name in names}
    ended = ended or threading.Event()
    with serving(host, port) as (server, address):
        viewer = Viewer(
            server,
            scenes,
            images,
            title=f"{'/'.join(run.resolve().parts[-3:])}: {split}",
            ended=ended,
        )
        try:
            (started or _say)(address)
            viewer.play()
        except KeyboardInterrupt:  # the usual end
            log.info("the viewer has ended")
        finally:
            viewer.end()


def _say(address: str) -> None:
    print(f"{address}\nCtrl-C ends it", flush=True)


def predictions_file(run: Path, split: str) -> Path:
    """The predictions of a split. Raises MsposeError where there are none, naming those that there
    are.
    """
    path = run / "predictions" / f"{split}.csv"
    if not run.is_dir():
        raise MsposeError(
            f"{run} is no folder of a run: give one that `mspose evaluate` has been run on"
        )
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.csv")))
        advice = f"there is --split {there}" if there else f"run `mspose evaluate {run}` first"
        raise MsposeError(
            f"{run} has no predictions of the split {split} ({path.name} is missing); {advice}"
        )
    return path


def scenes_in_order(table: pd.DataFrame, first: str | None, path: Path) -> list[str]:
    """The scenes of a predictions file, sorted, `first` in front. Raises MsposeError where it is
    not among them.
    """
    names = sorted(set(table["scene"]))
    if first is not None and first not in names:
        raise MsposeError(f"{path} has no scene {first}; its scenes: {', '.join(names)}")
    return sorted(names, key=lambda name: (name != first, name))


@contextmanager
def serving(host: str, port: int) -> Iterator[tuple[Any, str]]:
    """A server of viser, at `port` or the next that is free, and its address; it is stopped at the
    end.
    """
    import viser

    port = free_port(host, port)
    with redirect_stdout(StringIO()):  # its greeting: we have one of our own
        server = viser.ViserServer(host=host, port=port, verbose=False)
    try:
        yield server, f"http://{f'[{host}]' if ':' in host else host}:{server.get_port()}"
    finally:
        with redirect_stdout(StringIO()):
            server.stop()


def free_port(host: str, port: int) -> int:
    """The first port from `port` on that can be had; 0 is any. Raises MsposeError where none, or no
    such host, is.

    viser itself would look for one forever.
    """
    for number in range(port, min(port + PORTS, 65536)) or [port]:
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[
                0
            ]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return int(probe.getsockname()[1])
        except (OSError, OverflowError, UnicodeError) as error:
            if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
                reason = getattr(error, "strerror", None) or error
                raise MsposeError(f"cannot listen at {host}, port {number}: {reason}") from error
    raise MsposeError(
        f"ports {port} to {min(port + PORTS, 65536) - 1} of {host} are all in use: give another"
        " --port"
    )
