"""`mspose export`: write a model as one file that runs without this package.

It is kept only where its outputs are those of the model.
"""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mspose import __version__
from mspose.errors import MsposeError
from mspose.files import whole_file
from mspose.inference import PoseEstimator, load
from mspose.tools.exporting.agreement import TOLERANCE, Deviation, deviation
from mspose.tools.exporting.deployed import OUTPUTS, Deployed, GraphPreprocessing
from mspose.tools.exporting.formats import FORMATS, Format, trace

INPUT = "RGB image of any size: uint8 (batch, height, width, 3)"
CONVENTIONS = (
    "camera-to-world poses: position is the camera's centre in metres, orientation a unit"
    " quaternion w x y z with w >= 0; camera axes are x right, y down, z forward"
)


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked."""

    path: Path
    deviation: Deviation

    def __str__(self) -> str:
        outputs = (f"output  {name}: {shape}" for name, shape in OUTPUTS.items())
        deviation = f"largest deviation from mspose.load: {self.deviation}"
        size = f"{self.path} ({self.path.stat().st_size / 1e6:.1f} MB)"
        return "\n".join([f"input   image: {INPUT}", *outputs, deviation, size])


def export_run(
    run: str,
    *,
    format: Literal["onnx", "torch-export"],
    out: Path | None = None,
    scene: str | None = None,
) -> Exported:
    """Write a run's model as one file for deployment: images of any size in, poses out.

    It computes in float32, and is kept only where it answers as the model does; until then an older
    file stays.

    Args:
        run: folder of a run or of a model, or user/name on the hub.
        format: onnx, for onnxruntime and others; torch-export, for PyTorch without mspose.
        out: file to write (default: model.onnx or model.pt2 in the run's folder, for a model of the
            hub in the current one).
        scene: the scene of all images (default: the file predicts it).

    Raises:
        MsposeError: no such model or scene, a package that is missing, a file that cannot be
            written, a network that the exporter does not take, or outputs that deviate by more
            than `TOLERANCE`.
    """
    chosen = FORMATS[format]
    chosen.require()
    estimator = load(run, "cpu")
    if scene is not None:
        estimator.check_scene(scene)
    estimator(np.full((64, 64, 3), 127, np.uint8))  # a broken model is refused at once
    path = out or (Path(run) if Path(run).is_dir() else Path()) / chosen.file_name
    if path.is_dir():
        raise MsposeError(f"cannot write {path}: it is a folder; --out names a file")
    if path.suffix != (suffix := Path(chosen.file_name).suffix):
        raise MsposeError(
            f"--out {path}: the name of a file of format {format} ends in {suffix}, for its readers"
        )
    with whole_file(path, "wb") as file:
        with _silence(), _in_one_line(f"{run} cannot be exported as {format}"):
            content = _content(estimator, chosen, scene)
            found = deviation(chosen.open(content), estimator, scene)
        if not found.tolerable:
            raise MsposeError(
                f"{run} as {format} does not answer as the model does, so that it was not kept:"
                f" largest deviation {found}; at most {TOLERANCE:g} is allowed"
            )
        file.write(content)
    return Exported(path, found)


def _content(estimator: PoseEstimator, format: Format, scene: str | None) -> bytes:
    preparation = estimator.preprocessing
    preprocessing = GraphPreprocessing(
        preparation.resize, preparation.crop, preparation.mean, preparation.std
    )
    network = copy.deepcopy(estimator.network).float().requires_grad_(False)
    index = None if scene is None else estimator.scenes.index(scene)
    return format.write(trace(Deployed(preprocessing, network, index)), _metadata(estimator, scene))


def _metadata(estimator: PoseEstimator, scene: str | None) -> dict[str, Any]:
    """Scenes, units, conventions and origin of the model."""
    description = estimator.description
    return {
        "made_by": f"mspose {__version__}, torch {torch.__version__}",
        "scenes": list(estimator.scenes),
        **({} if scene is None else {"given_scene": scene}),
        "input": INPUT,
        "outputs": OUTPUTS,
        "conventions": CONVENTIONS,
        "preprocessing": {
            "inside": "the image as it comes from the camera goes in",
            **description["preprocessing"],
        },
        **{
            name: description[name]
            for name in ("kind", "trained_on", "config_hash")
            if name in description
        },
    }


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the many messages of exporters off the terminal; errors are reported once, here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)


@contextmanager
def _in_one_line(failure: str) -> Iterator[None]:
    """Turn any exception of exporters and readers into MsposeError with the innermost cause."""
    try:
        yield
    except (MsposeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        reason = lines[0] if lines else type(cause).__name__
        raise MsposeError(f"{failure}: {reason[:300]}") from error
