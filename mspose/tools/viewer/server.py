"""`mspose view`: serves the viewer of a run's predictions."""

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
from mspose.run import Run
from mspose.tools.viewer.frame_images import images_of_run
from mspose.tools.viewer.scene_view import scene_view

PORTS = 20
"""Number of ports that are tried."""
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
    """Show the predicted poses of a run's split until interrupted, or until `ended` is set.

    Args:
        scene: the one to begin with.
        root: folder of the scenes' images, in place of the one that the run's settings name.
        started: called with the address; by default it is printed.

    Raises MsposeError where there are no predictions, no such scene, or no free port.
    """
    try:
        from mspose.tools.viewer.viewer import Viewer
    except ImportError as error:
        raise MsposeError(f"mspose view needs viser: pip install viser ({error})") from error
    viewed = Run(run, split)
    table = viewed.predictions()
    names = scenes_in_order(table, scene)
    images = images_of_run(viewed, table.groupby("scene")["image"].first().tolist(), root)
    if images.missing:
        log.warning(
            "cameras are shown without their images (%s); --root says where they are",
            images.missing,
        )
    scenes = {name: scene_view(table, name) for name in names}
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
            (started or _print)(address)
            viewer.play()
        except KeyboardInterrupt:  # the usual end
            log.info("the viewer has ended")
        finally:
            viewer.end()


def _print(address: str) -> None:
    print(f"{address}\nCtrl-C ends it", flush=True)


def scenes_in_order(table: pd.DataFrame, first: str | None) -> list[str]:
    """Sort the scenes, `first` in front. Raises MsposeError where it is not among them."""
    names = sorted(set(table["scene"]))
    if first is not None and first not in names:
        raise MsposeError(f"no scene {first} in the predictions; there are: {', '.join(names)}")
    return sorted(names, key=lambda name: (name != first, name))


@contextmanager
def serving(host: str, port: int) -> Iterator[tuple[Any, str]]:
    """Start viser's server at `port` or the next free one; gives it and its address."""
    import viser

    port = free_port(host, port)
    with redirect_stdout(StringIO()):  # its greeting
        server = viser.ViserServer(host=host, port=port, verbose=False)
    try:
        yield server, f"http://{f'[{host}]' if ':' in host else host}:{server.get_port()}"
    finally:
        with redirect_stdout(StringIO()):
            server.stop()


def free_port(host: str, port: int) -> int:
    """Find the first free port from `port` on; 0 is any. viser itself would try for ever.

    Raises MsposeError where there is none, or no such host.
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
