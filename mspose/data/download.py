"""Published archives: downloaded (resumable), checked, and unpacked whole or not at all.

A scene's archive `<scene>.zip` holds the scene's folder, in which sequences may again be zips, as
7Scenes has them.
"""

import errno
import hashlib
import logging
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath

import requests
from tqdm import tqdm

from mspose.data.cards import FORMATS, Card, data_root
from mspose.errors import MsposeError
from mspose.files import locked, read_limit, whole_file

logger = logging.getLogger("mspose")

CHUNK = 1 << 15
"""Bytes. A connection that breaks off loses the chunk that it was in, so chunks are small."""
TIMEOUT_S = (15, 60)
"""To connect, and between two chunks of data."""
LIMIT_VARIABLE = "MSPOSE_MOST_UNPACKED_BYTES"
MOST_BYTES = read_limit(LIMIT_VARIABLE, 64 * 10**9)
"""Bytes that an archive may unpack to; a scene of 7Scenes takes up to 6e9."""
ATTEMPTS = 5
"""Times in a row that a transfer may break off without a byte of progress."""


def download_scenes(
    card: Card,
    scenes: Sequence[str] = (),
    root: str | Path | None = None,
    archive: str | Path | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Path]:
    """Put `scenes` (default: the card's) under the data root; returns scene -> folder.

    A scene that is already whole is left alone. An interrupted download continues where it stopped.
    Where the card knows no checksum, the computed one is written to `<root>/<scene>.sha256`. A
    downloaded archive is deleted once it is unpacked; one that was there before,
    `<root>/<scene>.zip` or `archive`, is used and kept.

    Args:
        root: folder that will hold the scenes, by default the card's.
        archive: a zip file for the one scene, or a folder of files `<scene>.zip`, to read in place
            of the addresses.
        progress: show a progress bar.
        report: takes a line per step.

    Raises MsposeError where a scene is unknown, has no address, cannot be downloaded, does not have
    the card's checksum or is not an archive of that scene; then nothing of that scene is left
    behind but the part of a download that can be continued.
    """
    if card.format == "virtual" or FORMATS[card.format].read is None:
        raise MsposeError(card.how_to_get or f"{card.name} is not a data set to download")
    for scene in scenes:
        if scene not in card.known_scenes:
            raise MsposeError(
                f"{card.name} has no scene {scene!r}; its scenes: {', '.join(card.known_scenes)}"
            )
    folder = data_root(card, root)
    wanted = list(dict.fromkeys(scenes or card.scenes))
    given = None if archive is None else Path(archive).expanduser().absolute()
    if given is not None and given.is_file() and len(wanted) != 1:
        raise MsposeError(
            f"{archive} is one archive: name its one scene, or give a folder of archives"
            " <scene>.zip"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for scene in wanted:
            _get_scene(card, scene, folder, given, progress, report)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"the disk is full ({reason}); free space and run this again"
        raise MsposeError(f"cannot write {error.filename or folder}: {reason}") from error
    return {scene: folder / scene for scene in wanted}


def _get_scene(
    card: Card,
    scene: str,
    root: Path,
    archive: Path | None,
    progress: bool,
    report: Callable[[str], None],
) -> None:
    if _is_there(card, scene, root, report):
        return
    waiting = f"waiting for another process, which gets scene {scene} into {root}"
    with locked(root / f".{scene}.lock", waiting=waiting):
        if not _is_there(card, scene, root, report):  # nor was it the one that was waited for
            _get_missing_scene(card, scene, root, archive, progress, report)


def _is_there(card: Card, scene: str, root: Path, report: Callable[[str], None]) -> bool:
    """True where a scene's folder is there. Raises MsposeError where it is not whole."""
    target = root / scene
    if target.is_dir() and any(target.iterdir()):
        try:
            found = _count_frames(card, scene, root)
        except MsposeError as error:
            raise MsposeError(
                f"{target} is there but not whole ({error}); move it away, then run this again"
            ) from error
        report(f"{scene}: already in {target} ({found}); left alone")
        return True
    return False


def _get_missing_scene(
    card: Card,
    scene: str,
    root: Path,
    archive: Path | None,
    progress: bool,
    report: Callable[[str], None],
) -> None:
    target = root / scene
    path = root / f"{scene}.zip" if archive is None else archive
    path = path / f"{scene}.zip" if path.is_dir() else path
    downloaded = not path.is_file()
    if downloaded:
        if archive is not None:
            raise MsposeError(f"{scene}: no such archive: {path}")
        _download_archive(card, scene, path, progress, report)
    try:
        _check_checksum(card, scene, path, downloaded, report)
        report(f"{scene}: unpacking {path}")
        found = unpack_scene(path, card, scene, root)
    except MsposeError:  # after a full disk, an OSError, the archive stays for the next run
        if downloaded:
            path.unlink()
        raise
    if downloaded:
        path.unlink()
    report(f"{scene}: in {target} ({found})")


def _count_frames(card: Card, scene: str, root: Path) -> str:
    """Count the frames of each split in a scene's folder; returns `4000 train, 2000 test frames`.

    Raises MsposeError where the scene is not whole.
    """
    published = card.scene_facts[scene].frames
    counts = {}
    layout = FORMATS[card.format]
    assert layout.read is not None  # as `download_scenes` checks
    for split in layout.split_files:
        frames = layout.read(root, [scene], split, on_bad_frame="skip")
        counts[split] = len(frames) + frames.attrs["bad_frames"]
        if published.get(split, counts[split]) != counts[split]:
            logger.warning(
                "%s has %d %s frames, published are %d",
                scene,
                counts[split],
                split,
                published[split],
            )
    return ", ".join(f"{count} {split}" for split, count in counts.items()) + " frames"


def _download_archive(
    card: Card, scene: str, path: Path, progress: bool, report: Callable[[str], None]
) -> None:
    url = card.scene_facts[scene].url
    if url is None:
        raise MsposeError(
            card.how_to_get
            or f"{card.name} knows no address of scene {scene}: get it from its source"
            f" ({card.source}) and put it into {path.with_suffix('')}, or give its archive with"
            " --archive"
        )
    report(f"{scene}: {url}")
    part = path.with_name(f"{path.name}.part")
    download_file(url, part, progress)
    part.replace(path)


def download_file(url: str, path: Path, progress: bool = True) -> None:
    """Download `url` into `path`, which may hold its beginning from before.

    Raises MsposeError where the server refuses, cannot be reached, or breaks off for good.
    """
    attempts = 0
    while True:
        have = _size(path)
        reason = "the data ended early"
        try:
            if _transfer(url, path, progress):
                return
        except requests.HTTPError as error:
            answer = error.response
            raise MsposeError(
                f"the server refuses {url}: {answer.status_code} {answer.reason}"
            ) from error
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            reason = type(error).__name__
            if _size(path) == 0:
                raise MsposeError(
                    f"cannot reach {url} ({reason}): is there a network? An archive that you have"
                    " can be given with --archive"
                ) from error
        except requests.RequestException as error:
            raise MsposeError(f"cannot download {url}: {error}") from error
        attempts = 0 if _size(path) > have else attempts + 1
        if attempts == ATTEMPTS:
            raise MsposeError(
                f"{url} broke off after {_size(path):,} bytes and {ATTEMPTS} attempts to go on"
                f" ({reason}); run this again to continue ({path} is kept)"
            )
        time.sleep(min(attempts, 3))


def _transfer(url: str, path: Path, progress: bool) -> bool:
    """Make one request for the rest of a file; returns True when the file is whole after it."""
    have = _size(path)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return True  # nothing follows what is here; whether that is the file, its check tells
        response.raise_for_status()
        resumes = response.status_code == requests.codes.partial_content
        have = have if resumes else 0  # a server that knows no ranges sends the whole again
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with (
            path.open("ab" if resumes else "wb") as file,
            tqdm(
                total=total,
                initial=have,
                desc=path.stem,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                disable=not progress,
            ) as bar,
        ):
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(path) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_checksum(
    card: Card, scene: str, path: Path, downloaded: bool, report: Callable[[str], None]
) -> None:
    """Compare an archive with the card's checksum, or keep that of a download for the next one.

    Raises MsposeError where it is no zip archive or has another checksum than the card's.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(40)
        raise MsposeError(f"{path} is not a zip archive, or is cut off: it begins with {start!r}")
    published = card.scene_facts[scene].sha256
    if published is None and not downloaded:
        return
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if published is not None:
        if checksum != published:
            raise MsposeError(
                f"{path} does not have the checksum of the published archive (sha256 {published})"
            )
        return
    record = path.with_suffix(".sha256")
    if record.is_file() and record.read_text(encoding="utf-8").split()[:1] != [checksum]:
        logger.warning("%s is another file than the one downloaded before (%s)", path.name, record)
    with whole_file(record) as file:
        file.write(f"{checksum}  {path.name}\n")
    report(f"{scene}: no checksum is published; that of this download is kept in {record}")


def unpack_scene(archive: Path, card: Card, scene: str, root: Path) -> str:
    """Unpack the archive of a scene to `<root>/<scene>`, zips inside it too; all of it or nothing.

    Returns the number of frames of each split, as text. Raises MsposeError for an archive that is
    broken, not of that scene, not whole, or has members that lead outside of it.
    """
    beside = root / f".{scene}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
    beside.mkdir()
    try:
        _unpack_zip(archive, beside / "archive", archive.name)
        split_file = FORMATS[card.format].split_files["train"]
        folders = (beside / "archive" / scene, beside / "archive")
        folder = next((folder for folder in folders if (folder / split_file).is_file()), None)
        if folder is None:
            raise MsposeError(
                f"{archive} is not an archive of scene {scene}: there is no {scene}/{split_file}"
                " in it"
            )
        folder.rename(beside / scene)
        for inner in sorted(filter(Path.is_file, (beside / scene).rglob("*.zip"))):
            name = f"{archive.name}/{inner.relative_to(beside).as_posix()}"
            _unpack_zip(inner, inner.parent, name)
            inner.unlink()
        try:
            found = _count_frames(card, scene, beside)
        except MsposeError as error:
            raise MsposeError(
                f"{archive} is refused, scene {scene} is not whole in it: {error}"
            ) from error
        (beside / scene).replace(root / scene)
        return found
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _unpack_zip(archive: Path, target: Path, name: str) -> None:
    """Unpack a zip, called `name` in messages.

    Raises MsposeError before anything is written where a member is a link or leads outside of
    `target`, OSError where the disk has not the space.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                path = PureWindowsPath(member.filename)  # knows both separators
                if path.anchor or ".." in path.parts:
                    raise MsposeError(
                        f"{name} is refused: its member {member.filename!r} would land outside of"
                        " the scene's folder"
                    )
                if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise MsposeError(
                        f"{name} is refused: its member {member.filename!r} is a link or a special"
                        " file"
                    )
            needed = sum(member.file_size for member in content.infolist())
            if needed > MOST_BYTES:
                raise MsposeError(
                    f"{name} is refused: it unpacks to {needed:,} bytes, more than {MOST_BYTES:,},"
                    f" a limit that {LIMIT_VARIABLE} in the environment changes"
                )
            free = shutil.disk_usage(target.parent).free
            if needed > free:
                reason = f"{name} needs {needed:,} bytes, {free:,} are free"
                raise OSError(errno.ENOSPC, reason, str(target))
            content.extractall(target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise MsposeError(f"{name} is not a zip archive, or is broken: {error}") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
        raise MsposeError(f"{name} cannot be unpacked: {error}") from error
