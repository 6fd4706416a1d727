"""State on disk: files that appear whole or not at all, checkpoints to resume from, models to use.

A run folder holds `checkpoint.pt` (everything needed to resume) and `model.safetensors` with `model.json` (everything
needed to use the model: weights; scenes, architecture, preprocessing). Nothing here unpickles code.
"""

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mspose.errors import MsposeError

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
MODEL = "model.json"
MODEL_FORMAT = 1


@contextmanager
def whole_file(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write that replaces `path` only when the block ends well; else `path` stays as it was.

    Raises MsposeError where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    new = _new_folders(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        with os.fdopen(handle, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        what = error.strerror or str(error)
        raise MsposeError(f"cannot write {path}: {what}; what was there before is untouched") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        _remove_empty(new)


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """A new folder to fill that gets its name when the block ends well; else nothing is left of it.

    Raises MsposeError where the disk is full, the folder cannot be made, or another one that holds files is there.
    """
    path = Path(path)
    temporary: Path | None = None
    new = _new_folders(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        inner = temporary / path.name
        inner.mkdir()  # with the permissions that folders have here, unlike a temporary one
        yield inner
        inner.rename(path)
    except OSError as error:
        raise MsposeError(f"cannot write {path}: {error.strerror or error}; nothing was written") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(new)


def _new_folders(folder: Path) -> list[Path]:
    """Of a folder and those that it is in, the ones that are not there yet, innermost first."""
    return [missing for missing in (folder, *folder.parents) if not os.path.lexists(missing)]


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders, innermost first, that nothing was put into."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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


def read_tensors(path: Path) -> Any:
    """A file of tensors and plain values: torch.save's, or `.safetensors`. One that holds code is refused, never run.

    Raises MsposeError where the file is missing, damaged, or would need unpickling code.
    """
    if not path.is_file():
        raise MsposeError(f"{path}: there is no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols; what matters is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways: zip, pickle, end of file, safetensors' header
        message = str(error)
        named = re.search(r"GLOBAL ([\w.]*\w)", message)
        if named or any(sign in message for sign in ("TorchScript", "unrecognized function", "Can only build")):
            code = f" ({named[1]})" if named else ""
            raise MsposeError(
                f"{path}: refused, reading it would run code that the file names{code}: "
                "save the state dict alone, torch.save(model.state_dict(), path)"
            ) from error
        reason = message.strip().split("\n")[0][:100] or "it ends too early"
        raise MsposeError(f"{path}: not a checkpoint that can be read, or damaged ({reason})") from error


def save_model(run: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, then `model.json`: architecture, scenes, preprocessing, what it learned from."""
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
            raise MsposeError(f"{run} holds no model ({path.name} is missing): give the folder of a trained run")
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
        raise MsposeError(f"{run / MODEL}: format {found} is not {MODEL_FORMAT}, which this version reads")
    return description
