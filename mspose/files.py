"""Files that appear whole or not at all; files of tensors, read without running code."""

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mspose.errors import MsposeError


@contextmanager
def whole_file(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file to write that replaces `path` when the block ends without an error.

    Otherwise `path` stays as it was. Raises MsposeError where the disk is full or the folder cannot
    be written.
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
        raise MsposeError(
            f"cannot write {path}: {what}; what was there before is untouched"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        _remove_empty(new)


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """Make a folder to fill that gets its name when the block ends without an error.

    Otherwise nothing is left of it. Raises MsposeError where the disk is full, the folder cannot be
    made, or another one that holds files is there.
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
        raise MsposeError(
            f"cannot write {path}: {error.strerror or error}; nothing was written"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(new)


def _new_folders(folder: Path) -> list[Path]:
    """List those of a folder and its parents that do not exist yet, innermost first."""
    return [missing for missing in (folder, *folder.parents) if not os.path.lexists(missing)]


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders, innermost first, as long as they are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_tensors(path: Path) -> Any:
    """Read tensors and plain values from a file of torch.save, or `.safetensors`.

    Raises MsposeError where the file is missing, damaged, or would run code when it is unpickled.
    """
    import torch  # here: the command line's --help reads no tensors
    from safetensors.torch import load_file

    if not path.is_file():
        raise MsposeError(f"{path}: there is no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways: zip, pickle, end of file
        message = str(error)
        named = re.search(r"GLOBAL ([\w.]*\w)", message)
        if named or any(
            sign in message for sign in ("TorchScript", "unrecognized function", "Can only build")
        ):
            code = f" ({named[1]})" if named else ""
            raise MsposeError(
                f"{path}: refused, reading it would run code that the file names{code}: "
                "save the state dict alone, torch.save(model.state_dict(), path)"
            ) from error
        reason = message.strip().split("\n")[0][:100] or "it ends too early"
        raise MsposeError(
            f"{path}: not a checkpoint that can be read, or damaged ({reason})"
        ) from error
