"""Libraries that may be missing, and those of the system that they need: one line for each."""

import importlib
import re
from types import ModuleType
from typing import NamedTuple

from mspose.errors import MsposeError


class _Library(NamedTuple):
    purpose: str
    install: str
    otherwise: str = ""


LIBRARIES = {
    "cv2": _Library("virtual rooms, data check and videos need", "opencv-python"),
    "pycolmap": _Library(
        "COLMAP's binary format and rigs need",
        "pycolmap",
        "a model without rigs can be text (colmap model_converter --output_type TXT)",
    ),
    "onnx": _Library("--format onnx needs", "onnx onnxscript onnxruntime"),
    "onnxscript": _Library("--format onnx needs", "onnx onnxscript onnxruntime"),
    "onnxruntime": _Library("--format onnx needs", "onnx onnxscript onnxruntime"),
    "viser": _Library("mspose view needs", "viser"),
    "huggingface_hub": _Library("the Hugging Face hub needs", "huggingface_hub"),
    "submitit": _Library("--launcher slurm needs", "submitit", "or take --launcher local"),
    "plotly": _Library("mspose report needs", "plotly"),
}
"""Module -> a sentence that it ends, the argument of `pip install`, and what to do without it."""
SYSTEM_PACKAGES = {
    "libGL": "libgl1 libglib2.0-0",
    "libgthread-2.0": "libglib2.0-0",
    "libglib-2.0": "libglib2.0-0",
    "libEGL": "libegl1",
    "libSM": "libsm6",
    "libICE": "libice6",
    "libX11": "libx11-6",
    "libXext": "libxext6",
    "libXrender": "libxrender1",
    "libxcb": "libxcb1",
    "libgomp": "libgomp1",
    "libstdc++": "libstdc++6",
}
"""Library of the system -> the packages of Debian and Ubuntu to install."""


def require(*modules: str) -> ModuleType:
    """The first of the modules; MsposeError where one cannot be imported."""
    try:
        first, *_ = [importlib.import_module(module) for module in modules]
    except ImportError as error:
        raise MsposeError(missing_library(error, modules[0]) or str(error)) from error
    return first


def missing_library(error: ImportError, wanted: str = "") -> str | None:
    """A line that says which library is missing and how to get it; None where the fault is in this
    package.

    wanted: the module that was to be imported, where it is known.
    """
    text = " ".join(str(error).split())
    module = _module_of(error) or wanted
    if module in ("", "mspose"):
        return None
    library = LIBRARIES.get(module, _Library("mspose needs", module))
    otherwise = f"; {library.otherwise}" if library.otherwise else ""
    absent = re.search(r"(lib[\w+-]+(?:\.\d+)?)\.so[.\d]*(?=: cannot open shared object)", text)
    if absent is not None:
        package = SYSTEM_PACKAGES.get(absent[1])
        how = f"apt-get install {package}" if package else f"apt-file search {absent[0]} names it"
        return (
            f"{library.purpose} {module}, which cannot be loaded without the system's"
            f" {absent[0]}: install its package (Debian, Ubuntu: {how}){otherwise}"
        )
    if isinstance(error, ModuleNotFoundError):
        return f"{library.purpose} {module}: pip install {library.install}{otherwise}"
    return (
        f"{library.purpose} {module}, which is installed but cannot be imported ({text}): pip"
        f" install --force-reinstall {library.install}{otherwise}"
    )


def _module_of(error: ImportError) -> str:
    """The top-level module that is missing, or whose own code raised the error."""
    if isinstance(error, ModuleNotFoundError) or (error.name or "").startswith("mspose"):
        return (error.name or "").partition(".")[0]
    module, trace = (error.name or "").partition(".")[0], error.__traceback__
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if name not in ("mspose", "importlib", "__main__", "_frozen_importlib"):
            module = name
        trace = trace.tb_next
    return module
