"""`mspose view`: serves the viewer of a run's predictions."""

import errno
import logging
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from http import HTTPStatus
from io import StringIO
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.parse import urlsplit

import pandas as pd
from jsonargparse.typing import restricted_number_type

from mspose.errors import MsposeError
from mspose.libraries import require
from mspose.run import Run
from mspose.tools.viewer.frame_images import images_of_run
from mspose.tools.viewer.scene_view import scene_view

if TYPE_CHECKING:
    from mspose.tools.viewer.viewer import Viewer

    Port = int
else:
    Port = restricted_number_type("Port", int, [(">=", 0), ("<=", 65535)])

PORTS = 20
"""Number of ports that are tried."""
log = logging.getLogger("mspose")


def view_run(
    run: Path,
    *,
    split: str = "test",
    scene: str | None = None,
    root: str | None = None,
    port: Port = 8080,
    host: str = "127.0.0.1",
) -> None:
    """Show the poses of a run's predictions in a 3-D viewer in the browser.

    Truth against estimate. Nothing is predicted anew; the page is served until Ctrl-C, to this
    machine alone.

    Args:
        run: folder of an evaluated run.
        split: split whose predictions are shown.
        scene: scene to begin with (default: the first; the page has all).
        root: folder of the scenes' images, in place of the run's.
        port: the first that is free from this one on; 0: any.
        host: address to listen at (default: this machine alone).

    Raises:
        MsposeError: no predictions, no such scene, or no free port.
    """
    with viewing(run, split, scene, root, host, port) as (viewer, address):
        try:
            print(f"{address}\nCtrl-C ends it", flush=True)
            viewer.play()
        except KeyboardInterrupt:  # the usual end
            log.info("the viewer has ended")


@contextmanager
def viewing(
    run: Path, split: str, scene: str | None, root: str | None, host: str, port: int
) -> Iterator[tuple["Viewer", str]]:
    """Serve the viewer of a run while the block runs; gives it and its address."""
    require("viser")
    from mspose.tools.viewer.viewer import Viewer

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
    title = f"{'/'.join(run.resolve().parts[-3:])}: {split}"
    with serving(host, port) as (server, address):
        viewer = Viewer(server, scenes, images, title=title)
        try:
            yield viewer, address
        finally:
            viewer.end()


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
    import websockets.asyncio.server as websockets

    port = free_port(host, port)
    own = partial(_serve_own_pages, websockets.serve, names={host, socket.gethostname()})
    # its greeting is left out; it takes no other server, and starts this one before it returns
    with redirect_stdout(StringIO()), patch.object(websockets, "serve", own):
        server = viser.ViserServer(host=host, port=port, verbose=False)
    try:
        yield server, f"http://{f'[{host}]' if ':' in host else host}:{server.get_port()}"
    finally:
        with redirect_stdout(StringIO()):
            server.stop()


def _serve_own_pages(
    serve: Callable[..., Any],
    *arguments: Any,
    names: Collection[str],
    process_request: Callable[..., Any],
    **options: Any,
) -> Any:
    """Serve as `websockets.serve`, but refuse what pages of other sites ask for.

    Such pages run in browsers on this machine. Their requests bear the name of their own site, as
    `Origin`, or, where that name was made to lead here, as `Host`.
    """

    def check(connection: Any, request: Any) -> Any:
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        name = urlsplit(f"//{host}").hostname or ""
        if not (name in {"localhost", *names} or _is_address(name)):
            return connection.respond(HTTPStatus.FORBIDDEN, "this host is not served here\n")
        if origin is not None and urlsplit(origin).netloc != host:
            return connection.respond(HTTPStatus.FORBIDDEN, "pages of other sites get no answer\n")
        return process_request(connection, request)

    return serve(*arguments, process_request=check, **options)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


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
