"""A run's folder: `checkpoint.pt` (to resume), `model.safetensors` and `model.json` (to use the
model: weights; scenes, architecture, preprocessing).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mspose.errors import MsposeError
from mspose.files import read_tensors, whole_file

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
MODEL = "model.json"
MODEL_FORMAT = 1


def save_checkpoint(run: Path, state: Mapping[str, Any]) -> None:
    """Write `checkpoint.pt` of plain values and tensors; the one before survives any failure."""
    with whole_file(run / CHECKPOINT, "wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # torch's zip writer reports a full disk so
            raise OSError(getattr(error, "errno", None), str(error).splitlines()[0]) from error


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, on the CPU; None where there is none."""
    path = run / CHECKPOINT
    return dict(read_tensors(path)) if path.exists() else None


def save_model(run: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, then `model.json`: architecture, scenes, preprocessing, what it
    learned from.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    text = json.dumps({"format": MODEL_FORMAT, **description}, indent=2)
    with whole_file(run / WEIGHTS, "wb") as file:
        file.write(save(plain))
    with whole_file(run / MODEL) as file:
        file.write(text + "\n")


def load_model(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, description) of a run folder. Raises MsposeError naming what is missing or broken."""
    for path in (run / MODEL, run / WEIGHTS):
        if not path.is_file():
            raise MsposeError(
                f"{run} holds no model ({path.name} is missing): give the folder of a trained run"
            )
    description = read_description(run)
    try:
        return load_file(run / WEIGHTS), description
    except (SafetensorError, OSError) as error:
        raise MsposeError(f"{run / WEIGHTS} is broken: {error}") from error


def read_description(run: Path) -> dict[str, Any]:
    """What `model.json` of a run folder says. Raises MsposeError where it is missing or broken."""
    try:
        description = json.loads((run / MODEL).read_text(encoding="utf-8"))
        found = description["format"]
    except OSError as error:
        raise MsposeError(f"cannot read {run / MODEL}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MsposeError(f"{run / MODEL} is not a model description written by mspose") from error
    if found != MODEL_FORMAT:
        raise MsposeError(
            f"{run / MODEL}: format {found} is not {MODEL_FORMAT}, which this version reads"
        )
    return description
