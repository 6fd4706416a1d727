"""The actions of `mspose data`: one each, no logic, like the verbs of `cli.py`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt, restricted_number_type

from mspose.config import DataSettings, Parser, Settings, read_settings

AT_LEAST_TWO = restricted_number_type("AT_LEAST_TWO", int, (">=", 2))
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
    parser = Parser(
        description="Download and unpack a published data set, or render a virtual one."
    )
    _add_data_set(parser)
    parser.add_argument(
        "--archive",
        type=str,
        help="a local zip, or a folder of <scene>.zip, in place of the download",
    )

    def run(parsed: Namespace) -> None:
        from mspose.data.preparation import get_data

        dataset = parsed.dataset or "7scenes"
        get_data(dataset, parsed.scenes, parsed.root, parsed.archive, progress=not parsed.quiet)

    return parser, run


def _cache() -> Action:
    parser = Parser(description="Decode and resize every frame now, not on first use.")
    _add_data_set(parser)
    parser.add_argument(
        "--config", type=str, help="experiment file whose data settings count where none follows"
    )
    parser.add_argument(
        "--resize", type=PositiveInt, help="short side of the frames in pixels (default: 256)"
    )
    parser.add_argument("--split", type=str, help="one split only (default: train and test)")
    parser.add_argument(
        "--ground_truth", type=str, help="which poses, where a data set has several"
    )
    parser.add_argument(
        "--labels", nargs="+", type=str, help="label files in place of the data set's own"
    )
    parser.add_argument(
        "--cache", type=str, help="folder of the frame cache (default: datasets/.cache)"
    )
    parser.add_argument(
        "--on_bad_frame", type=Literal["stop", "skip"], help="broken or missing images"
    )

    def run(parsed: Namespace) -> None:
        from mspose.data.preparation import cache_data

        dataset = DataSettings(parsed.dataset or "7scenes")
        settings = read_settings(Path(parsed.config)) if parsed.config else Settings(data=dataset)
        names = ("dataset", "scenes", "root", "ground_truth", "labels", "resize", "cache")
        chosen = dataclasses.replace(
            settings.data, **{name: parsed[name] for name in names if parsed[name]}
        )
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
    parser = Parser(
        description="List the data sets that there are, and which of their scenes are here."
    )

    def run(_: Namespace) -> None:
        from mspose.data.preparation import list_data

        print(list_data())

    return parser, run


def _check() -> Action:
    parser = Parser(
        description=(
            "Read everything of a data set, say what is wrong or odd, draw the trajectories."
        )
    )
    parser.add_argument(
        "folder", type=str, help="folder with a card in it, a card, or a data set's name"
    )
    parser.add_argument("--scenes", nargs="+", type=str, default=[], help="some scenes only")
    parser.add_argument("--root", type=str, help="folder of the scenes, in place of the card's")
    parser.add_argument(
        "--splits", nargs="+", type=str, default=[], help="some splits only (default: all)"
    )
    parser.add_argument(
        "--ground_truth", type=str, help="which poses, where a data set has several"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        type=str,
        default=[],
        help="label files in place of the data set's own",
    )
    parser.add_argument(
        "--out", type=str, help="folder of picture and check.json (default: check/ beside the card)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")

    def run(parsed: Namespace) -> None:
        from mspose.tools.checking.check import check_data

        names = ("scenes", "root", "splits", "ground_truth", "labels", "out")
        checked = check_data(
            parsed.folder, **{name: parsed[name] for name in names}, progress=not parsed.quiet
        )
        print(checked.text)
        if checked.has_errors:
            raise SystemExit(1)

    return parser, run


def _import() -> Action:
    parser = Parser(
        description="Make a data set of your own from COLMAP, nerfstudio, TUM or kapture folders."
    )
    parser.add_argument(
        "kind", type=Literal["colmap", "nerfstudio", "tum", "kapture"], help="format of the folders"
    )
    parser.add_argument(
        "paths", nargs="+", type=str, help="one folder per scene (nerfstudio: or transforms.json)"
    )
    parser.add_argument(
        "--out", type=str, required=True, help="folder to make; its name is the data set's"
    )
    parser.add_argument(
        "--images", nargs="+", type=str, default=[], help="folder of the images, one per path"
    )
    parser.add_argument(
        "--scenes", nargs="+", type=str, default=[], help="names of the scenes, one per path"
    )
    parser.add_argument(
        "--scale", type=PositiveFloat, default=1.0, help="metres per unit of the poses"
    )
    parser.add_argument(
        "--focal_px", type=PositiveFloat, help="focal length in pixels, in place of the files'"
    )
    parser.add_argument(
        "--missing",
        type=Literal["stop", "skip"],
        help="images that are not on disk (default: stop; nerfstudio: skip)",
    )
    parser.add_argument(
        "--on_bad_frame", type=Literal["stop", "skip"], default="stop", help="broken poses"
    )
    parser.add_argument(
        "--copy", action="store_true", help="copy the images too, so that the folder can travel"
    )
    parser.add_argument(
        "--split",
        type=Literal["blocks", "sequence", "list", "given"],
        default="blocks",
        help="how to choose test frames",
    )
    parser.add_argument(
        "--block", type=PositiveInt, help="blocks: frames per block (default: 50, or fewer)"
    )
    parser.add_argument(
        "--test_every",
        type=AT_LEAST_TWO,
        help="blocks: every how many-th is for testing (default: 5)",
    )
    parser.add_argument(
        "--margin", type=NonNegativeInt, help="blocks: training frames dropped beside a test block"
    )
    parser.add_argument(
        "--test_sequences", nargs="+", type=str, default=[], help="sequence: those for testing"
    )
    parser.add_argument("--test_list", type=str, help="list: file with a test image per line")
    parser.add_argument(
        "--train_list",
        type=str,
        help="list: file with a training image per line (default: the rest)",
    )
    parser.add_argument(
        "--trajectory", nargs="+", type=str, default=[], help="tum: file of poses, one per path"
    )
    parser.add_argument(
        "--image_list", nargs="+", type=str, default=[], help="tum: file of images, one per path"
    )
    parser.add_argument(
        "--tolerance",
        type=PositiveFloat,
        help="tum: seconds between image and pose (default: 0.02)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")

    def run(parsed: Namespace) -> None:
        from mspose.tools.importing.importer import import_data
        from mspose.tools.importing.splits import SplitBy

        split = SplitBy(
            parsed.split,
            parsed.block,
            parsed.test_every,
            parsed.margin,
            parsed.test_sequences,
            Path(parsed.test_list) if parsed.test_list else None,
            Path(parsed.train_list) if parsed.train_list else None,
        )
        of_all = ("images", "scenes", "scale", "focal_px", "missing", "on_bad_frame", "copy")
        options = {
            name: parsed[name] for name in (*of_all, "trajectory", "image_list", "tolerance")
        }
        text = import_data(
            parsed.kind, parsed.paths, parsed.out, split=split, progress=not parsed.quiet, **options
        )
        print(text)

    return parser, run


ACTIONS = {"get": _get, "import": _import, "cache": _cache, "list": _list, "check": _check}
