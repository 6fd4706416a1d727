"""mspose: multi-scene absolute camera pose regression.

import mspose
estimate = mspose.load("runs/virtual/all/seed-0")(image)   # image: RGB uint8 (H, W, 3)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from mspose.prediction import load


def __getattr__(name: str) -> Any:
    """`mspose.load` and submodules such as `mspose.poses` load when first used, so that `mspose --help` stays quick."""
    if name == "load":
        return importlib.import_module("mspose.prediction").load
    try:
        return importlib.import_module(f"mspose.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"mspose.{name}":
            raise
        raise AttributeError(f"module 'mspose' has no attribute {name!r}") from None
