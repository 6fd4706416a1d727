"""The actions of `mspose data`: one each, no logic, like the verbs of `cli.py`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from mspose.config import DataSettings, Parser, Settings, read_settings

Action = tuple[ArgumentParser, Callable[[Namespace], None]]


def data() -> Action:
    """`mspose data`: what follows is one of its actions, each with options of its own."""
    parser = Parser(description="Get data sets, import your own, check them.")
    commands = parser.add_subcommands(dest="action", metavar="ACTION")
    runs = {}
    for name, make in ACTIONS.items():
        action, runs[name] = make()
        commands.add_subcommand(name, action, help=action.description)
        action.prog = f"mspose data {name}"

    def run(parsed: Namespace) -> None:
        runs[parsed.action](parsed[parsed.action])

    return parser, run


def _add_data_set(parser: ArgumentParser) -> None:
    parser.add_argument("--dataset", type=str, help="name or path of a card (default: 7scenes)")
    parser.add_argument("--scenes", nargs="+", type=str, default=[], help="some scenes only")
    parser.add_argument("--root", type=str, help="folder of the scenes, in place of the card's")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _get() -> Action:
    parser = Parser(description="Download and unpack a published data set, or render a virtual one.")
    _add_data_set(parser)
    parser.add_argument("--archive", type=str, help="a local zip, or a folder of <scene>.zip, in place of the download")

    def run(parsed: Namespace) -> None:
        from mspose.data.preparation import get_data

        dataset = parsed.dataset or "7scenes"
        get_data(dataset, parsed.scenes, parsed.root, parsed.archive, progress=not parsed.quiet)

    return parser, run


def _cache() -> Action:
    parser = Parser(description="Decode and resize every frame now, not on first use.")
    _add_data_set(parser)
    parser.add_argument("--config", type=str, help="experiment file whose data settings count where none follows")
    parser.add_argument("--resize", type=PositiveInt, help="short side of the frames in pixels (default: 256)")
    parser.add_argument("--split", type=str, help="one split only (default: train and test)")
    parser.add_argument("--ground_truth", type=str, help="which poses, where a data set has several")
    parser.add_argument("--labels", nargs="+", type=str, help="label files in place of the data set's own")
    parser.add_argument("--cache", type=str, help="folder of the frame cache (default: datasets/.cache)")
    parser.add_argument("--on_bad_frame", type=Literal["stop", "skip"], help="broken or missing images")

    def run(parsed: Namespace) -> None:
        from mspose.data.preparation import cache_data

        dataset = DataSettings(parsed.dataset or "7scenes")
        settings = read_settings(Path(parsed.config)) if parsed.config else Settings(data=dataset)
        names = ("dataset", "scenes", "root", "ground_truth", "labels", "resize", "cache")
        chosen = dataclasses.replace(settings.data, **{name: parsed[name] for name in names if parsed[name]})
        splits = [parsed.split] if parsed.split else ["train", "test"]
        text = cache_data(
            chosen.dataset,
            splits,
            short_side=chosen.resize,
            on_bad_frame=parsed.on_bad_frame or settings.on_bad_frame,
            progress=not parsed.quiet,
            **chosen.source(),
        )
        print(text)

    return parser, run


def _list() -> Action:
    parser = Parser(description="List the data sets that there are, and which of their scenes are here.")

    def run(_: Namespace) -> None:
        from mspose.data.preparation import list_data

        print(list_data())

    return parser, run


ACTIONS = {"get": _get, "cache": _cache, "list": _list}
