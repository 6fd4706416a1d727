"""mspose: multi-scene absolute camera pose regression.

import mspose
estimate = mspose.load("runs/virtual/all/seed-0")(image)   # image: RGB uint8 (H, W, 3)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["MSPN", "MSTransformer", "__version__", "load"]

if TYPE_CHECKING:
    from mspose.inference import load
    from mspose.models.mspn import MSPN
    from mspose.models.mstransformer import MSTransformer

RENAMED = {"attention_study": "attention"}  # of earlier versions
MODULES = {"load": "inference", "MSTransformer": "models.mstransformer", "MSPN": "models.mspn"}


def __getattr__(name: str) -> Any:
    """Import `load`, the networks and submodules such as `mspose.poses` when they are first used,
    which keeps `mspose --help` quick.
    """
    if name in MODULES:
        return getattr(importlib.import_module(f"mspose.{MODULES[name]}"), name)
    name = RENAMED.get(name, name)
    try:
        return importlib.import_module(f"mspose.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"mspose.{name}":
            raise
        raise AttributeError(f"module 'mspose' has no attribute {name!r}") from None
