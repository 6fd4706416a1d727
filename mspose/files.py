"""Files that appear whole or not at all, locks, checksums; JSON and tensors, read without trust."""

import fcntl
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from mspose.errors import MsposeError

CHECKSUM = "checksum"
"""Key of a JSON file for the checksum of everything else in it."""
log = logging.getLogger("mspose")


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
        handle, temporary = _make_part(path, folder=False)
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
    temporary, handle = None, None
    new = _new_folders(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _make_part(path, folder=True)
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
        if handle is not None:
            os.close(handle)
        _remove_empty(new)


def _make_part(path: Path, *, folder: bool) -> tuple[int, Path]:
    """Make a hidden file or folder beside `path` to fill in its place; returns its descriptor too,
    which holds a lock on it.

    Those that a killed process left there, which nobody holds a lock on, are removed.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):  # a living process holds it, or has just removed it
            handle = os.open(left, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)
    where: dict[str, Any] = {"dir": path.parent, "prefix": f".{path.name}.", "suffix": ".part"}
    while True:
        if folder:
            name = tempfile.mkdtemp(**where)
            handle = os.open(name, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(**where)
        with suppress(OSError):  # a file system without locks, where nothing is removed either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink and Path(name).exists():
            return handle, Path(name)
        os.close(handle)  # another process took it for one that was left, before it had its lock


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


@contextmanager
def locked(path: Path, *, waiting: str = "", refusal: str = "") -> Iterator[int]:
    """Hold the lock of the file `path` until the block ends; gives the file's descriptor.

    A process that inherits the descriptor holds the lock as well, for as long as it lives. The file
    is made, and removed in the end, with a folder that was made for it and holds nothing else.
    Where another process has the lock, raises MsposeError(`refusal`), or logs `waiting` and waits.
    """
    new = _new_folders(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if refusal:
                raise MsposeError(refusal) from None
            log.info("%s", waiting)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            log.warning(
                "%s: this file system has no locks (%s): start one process at a time",
                path.parent,
                error.strerror,
            )
        if not os.fstat(handle).st_nlink:  # removed by its last holder since it was opened
            with locked(path, waiting=waiting, refusal=refusal) as other:
                yield other
            return
        try:
            yield handle
        finally:
            with suppress(OSError):
                path.unlink()
            _remove_empty(new)
    finally:
        os.close(handle)


def checksum(data: bytes) -> str:
    """Return the SHA-256 of data, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON file with, last, the checksum that `read_json` compares."""
    plain = {name: value for name, value in values.items() if name != CHECKSUM}
    return {**plain, CHECKSUM: _content_checksum(plain)}


def _content_checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True, separators=(",", ":"))
    return checksum(text.encode())


def read_json(path: Path, remedy: str = "") -> Any:
    """Read a JSON file; `remedy` ends the message where it is no good.

    Raises MsposeError where it is missing or no regular file, is not JSON in UTF-8, holds NaN or
    infinity, or is not what its checksum is of. One without a checksum is read as it is.
    """
    then = f"; {remedy}" if remedy else ""
    try:
        values = json.loads(read_bytes(path).decode("utf-8-sig"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MsposeError(f"{path} is not JSON: {error}{then}") from error
    if isinstance(values, dict) and CHECKSUM in values:
        stored = values.pop(CHECKSUM)
        if stored != _content_checksum(values):
            raise MsposeError(
                f"{path} was changed or damaged since mspose wrote it: its checksum is that of"
                f" another content{then}"
            )
    return values


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def read_bytes(path: Path) -> bytes:
    """Read a regular file. Raises MsposeError for one that is missing, a pipe or a device."""
    try:
        with open(path, "rb", opener=_not_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise MsposeError(f"cannot read {path}: it is not a regular file")
            return file.read()
    except OSError as error:
        raise MsposeError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise MsposeError(f"cannot read {str(path)!r}: {error}") from error


def _not_waiting(path: str, flags: int) -> int:
    """Open a file that, should it be a pipe that nobody writes to, is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_limit(variable: str, default: int) -> int:
    """Read a limit on what other people's files may ask for from the environment.

    Raises MsposeError where it is not a positive whole number.
    """
    text = os.environ.get(variable, str(default))
    if not re.fullmatch(r"[0-9]{1,18}", text) or not int(text):
        raise MsposeError(f"{variable}={text}: expected a positive whole number")
    return int(text)


def number(text: str | bytes | float) -> float:
    """Parse a number in plain ASCII digits; ValueError for what else `float` takes, such as digits
    of other scripts and `1_000`. Binary files have numbers already.
    """
    if isinstance(text, str | bytes):
        plain = os.fsdecode(text)
        if not plain.isascii() or "_" in plain:
            raise ValueError(f"{text!r} is not a number in plain digits")
    return float(text)


def read_arrays(path: Path) -> Any:
    """Read the array of an `.npy` file, or the arrays by name of an `.npz` file, without pickles.

    Raises OSError where the file cannot be read, ValueError where it is damaged.
    """
    import numpy as np  # here: the command line's --help reads no arrays

    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in many ways: zip, zlib, Python's parser
        raise ValueError(f"damaged: {error}") from error


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
