"""The verbs that use a trained model and show its results: one each, no logic, like those of
`cli.py`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt, restricted_number_type

from mspose.config import Parser

Verb = tuple[ArgumentParser, Callable[[Namespace], None]]
PORT = restricted_number_type("PORT", int, [(">=", 0), ("<=", 65535)])
"""Of TCP; 0 is any that is free."""


def predict() -> Verb:
    """`mspose predict`."""
    parser = Parser(
        description=(
            "Estimate the poses of images, of the images in folders, or of videos: camera centre in"
            " metres and camera-to-world quaternion w x y z, in the scene that the model takes each"
            " image for. Poses are written as they are computed."
        )
    )
    parser.add_argument(
        "run", type=str, help="folder of a run or of a model, or user/name on the hub"
    )
    parser.add_argument(
        "images",
        nargs="+",
        type=str,
        help=(
            "images; folders, for all images in them and in folders below; videos that OpenCV opens"
        ),
    )
    parser.add_argument(
        "--scene", type=str, help="the scene of all images (default: predicted for each)"
    )
    parser.add_argument(
        "--format",
        type=Literal["csv", "jsonl", "tum", "colmap"],
        default="csv",
        help=(
            "csv; JSON lines; TUM trajectory (timestamp tx ty tz qx qy qz qw); COLMAP's images.txt,"
            " world-to-camera"
        ),
    )
    parser.add_argument(
        "--out",
        type=str,
        help="file to write, in place of printing; with colmap, folder of a model without points",
    )
    parser.add_argument(
        "--every", type=PositiveInt, help="of a video, one frame in so many (default: all)"
    )
    parser.add_argument(
        "--fps",
        type=PositiveFloat,
        help=(
            "images a second, for timestamps of tum (default: the numbers that their names are,"
            " else 1)"
        ),
    )
    parser.add_argument(
        "--focal_px",
        type=PositiveFloat,
        help=(
            "focal length of the images in their own pixels: compared with training, used for"
            " COLMAP's cameras (default: from EXIF; for cameras, else as in training)"
        ),
    )
    parser.add_argument("--batch_size", type=PositiveInt, default=16, help="images at a time")
    parser.add_argument("--device", default="auto", type=str, help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--on_bad_frame", type=Literal["stop", "skip"], default="stop", help="broken images"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")

    def run(parsed: Namespace) -> None:
        from mspose.allocator import keep_freed_memory
        from mspose.tools.prediction.predict import predict_poses

        keep_freed_memory()
        out = None if parsed.out is None else Path(parsed.out)
        names = (
            "format",
            "scene",
            "every",
            "fps",
            "focal_px",
            "batch_size",
            "device",
            "on_bad_frame",
        )
        options = {name: parsed[name] for name in names}
        predict_poses(parsed.run, parsed.images, out=out, progress=not parsed.quiet, **options)
        if out is not None:
            print(out)

    return parser, run


def export() -> Verb:
    """`mspose export`."""
    parser = Parser(
        description=(
            "Write a run's model as one file for deployment: images of any size in, poses out. It"
            " is kept only where it answers as the model does."
        )
    )
    parser.add_argument(
        "run", type=str, help="folder of a run or of a model, or user/name on the hub"
    )
    parser.add_argument(
        "--format",
        type=Literal["onnx", "torch-export"],
        required=True,
        help="onnx, for onnxruntime and others; torch-export, for PyTorch without mspose",
    )
    parser.add_argument(
        "--out",
        type=str,
        help="file to write (default: model.onnx or model.pt2 in the run's folder)",
    )
    parser.add_argument(
        "--scene", type=str, help="the scene of all images (default: the file predicts it)"
    )

    def run(parsed: Namespace) -> None:
        from mspose.tools.exporting.export import export_run

        out = None if parsed.out is None else Path(parsed.out)
        print(export_run(parsed.run, parsed.format, out, parsed.scene))

    return parser, run


def report() -> Verb:
    """`mspose report`."""
    parser = Parser(
        description=(
            "Write one self-contained HTML page about the results of runs: table, recall curves,"
            " errors, trajectories, frames, training, attention, settings. It needs no network and"
            " can be passed on."
        )
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=str,
        metavar="RUN",
        help="folders of evaluated runs, or folders that hold some",
    )
    parser.add_argument(
        "--out",
        type=str,
        help="the page (default: report.html in the run's folder, of several in the current one)",
    )
    parser.add_argument(
        "--split", type=str, help="another evaluation than that of the test split, such as train"
    )
    parser.add_argument("--title", type=str, help="title of the page")

    def run(parsed: Namespace) -> None:
        from mspose.tools.report import make_report

        print(make_report(parsed.runs, out=parsed.out, split=parsed.split, title=parsed.title))

    return parser, run


def view() -> Verb:
    """`mspose view`."""
    parser = Parser(
        description=(
            "Show the poses of a run's predictions in a 3-D viewer in the browser, truth against"
            " estimate. Nothing is predicted anew; the page is served until Ctrl-C, to this machine"
            " alone."
        )
    )
    parser.add_argument("run", type=str, help="folder of an evaluated run")
    parser.add_argument(
        "--split",
        type=str,
        default="test",
        help="split whose predictions are shown (default: test)",
    )
    parser.add_argument(
        "--scene", type=str, help="scene to begin with (default: the first; the page has all)"
    )
    parser.add_argument(
        "--root", type=str, help="folder of the scenes' images, in place of the run's"
    )
    parser.add_argument(
        "--port", type=PORT, default=8080, help="the first that is free from this one on; 0: any"
    )
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        help="address to listen at (default: 127.0.0.1, this machine alone)",
    )

    def run(parsed: Namespace) -> None:
        from mspose.tools.viewer.server import view_run

        names = ("split", "scene", "root", "host", "port")
        view_run(Path(parsed.run), **{name: parsed[name] for name in names})

    return parser, run
