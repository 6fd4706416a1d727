"""Published archives: fetched (resumable), checked, and unpacked whole or not at all.

A scene's archive `<scene>.zip` holds the scene's folder, in which sequences may again be zips, as
7Scenes has them.
"""

import errno
import logging
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pooch
import requests
from tqdm import tqdm

from mspose.data import cambridge, seven_scenes
from mspose.data.cards import Card, data_root
from mspose.errors import MsposeError
from mspose.files import whole_file

logger = logging.getLogger("mspose")

READERS = {"7scenes": seven_scenes.read_seven_scenes, "cambridge": cambridge.read_cambridge}
SPLIT_FILES = {"7scenes": seven_scenes.SPLIT_FILES, "cambridge": cambridge.SPLIT_FILES}
CHUNK = 1 << 15
"""Bytes. A connection that breaks off loses the piece that it was in, so the pieces are small."""
TIMEOUT_S = (15, 60)
"""To connect, and between two pieces of data."""
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

    Raises MsposeError where a scene is unknown, has no address, cannot be fetched, does not have
    the card's checksum, is not a safe archive (a path out of its folder, a link) or not of that
    scene; then nothing of that scene is left behind but the part of a download that can be
    continued.
    """
    if card.format not in READERS:
        raise MsposeError(card.how_to_get or f"{card.name} is not a data set to download")
    for scene in scenes:
        if scene not in card.known_scenes:
            raise MsposeError(
                f"{card.name} has no scene {scene!r}; its scenes: {', '.join(card.known_scenes)}"
            )
    folder = data_root(card, root)
    wanted = list(dict.fromkeys(scenes or card.scenes))
    if archive is not None and Path(archive).is_file() and len(wanted) != 1:
        raise MsposeError(
            f"{archive} is one archive: name its one scene, or give a folder of archives"
            " <scene>.zip"
        )
    with _full_disk_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for scene in wanted:
            _download_scene(card, scene, folder, archive, progress, report)
    return {scene: folder / scene for scene in wanted}


def _download_scene(
    card: Card,
    scene: str,
    root: Path,
    archive: str | Path | None,
    progress: bool,
    report: Callable[[str], None],
) -> None:
    target = root / scene
    if target.is_dir() and any(target.iterdir()):
        try:
            found = _count_frames(card, scene, root)
        except MsposeError as error:
            raise MsposeError(
                f"{target} is there but not whole ({error}); move it away, then run this again"
            ) from error
        report(f"{scene}: already in {target} ({found}); left alone")
        return
    path = _local_archive(scene, root, archive)
    if path is not None:
        _check_is_zip(path)
        known = card.scene_facts[scene].sha256
        if known and pooch.file_hash(str(path)) != known:
            raise MsposeError(
                f"{path} does not have the checksum of the published archive (sha256 {known})"
            )
        report(f"{scene}: unpacking {path}")
        found = unpack_scene(path, card, scene, root)
    else:
        path = _fetch_archive(card, scene, root, progress, report)
        report(f"{scene}: unpacking")
        try:
            found = unpack_scene(path, card, scene, root)
        except MsposeError:  # but after a full disk it stays, to be unpacked next time
            path.unlink()
            raise
        path.unlink()
    report(f"{scene}: in {target} ({found})")


def _local_archive(scene: str, root: Path, archive: str | Path | None) -> Path | None:
    """The archive of a scene that is there already: in `archive`, or in the root."""
    if archive is None:
        path = root / f"{scene}.zip"
        return path if path.is_file() else None
    path = Path(archive).expanduser().absolute()
    path = path / f"{scene}.zip" if path.is_dir() else path
    if not path.is_file():
        raise MsposeError(f"{scene}: no such archive: {path}")
    return path


def _count_frames(card: Card, scene: str, root: Path) -> str:
    """How many frames of each split a scene's folder holds, in words. Raises MsposeError where it
    is not whole.
    """
    counts = {}
    for split in SPLIT_FILES[card.format]:
        frames = READERS[card.format](root, [scene], split, on_bad_frame="skip")
        counts[split] = len(frames) + frames.attrs["bad_frames"]
    published = card.scene_facts[scene].frames
    for split, count in counts.items():
        if published.get(split, count) != count:
            logger.warning(
                "%s has %d %s frames, published are %d", scene, count, split, published[split]
            )
    return ", ".join(f"{count} {split}" for split, count in counts.items()) + " frames"


def _fetch_archive(
    card: Card, scene: str, root: Path, progress: bool, report: Callable[[str], None]
) -> Path:
    """`<root>/<scene>.zip`, downloaded and checked."""
    facts = card.scene_facts[scene]
    if facts.url is None:
        raise MsposeError(
            card.how_to_get
            or f"{card.name} knows no address of scene {scene}: get it from its source ({card.source}) and put it into {root / scene}, or give its archive with --archive"
        )
    report(f"{scene}: {facts.url}")
    pooch.get_logger().setLevel("WARNING")  # its advice is for people who write pooch registries
    try:
        path = Path(
            pooch.retrieve(
                facts.url,
                known_hash=facts.sha256,
                fname=f"{scene}.zip",
                path=root,
                downloader=ResumingDownloader(root / f"{scene}.zip.part", progress),
            )
        )
    except ValueError as error:  # pooch's word for a checksum that differs
        if facts.sha256 and facts.sha256 in str(error):
            raise MsposeError(
                f"{facts.url} does not have the checksum that the card knows (sha256"
                f" {facts.sha256}): broken on the way, or replaced; the download was deleted"
            ) from error
        raise MsposeError(f"cannot download {facts.url}: {error}") from error
    try:
        _check_is_zip(path)
    except MsposeError:
        path.unlink()
        raise
    if facts.sha256 is None:
        _record_checksum(path, root / f"{scene}.sha256", report)
    return path


def _record_checksum(path: Path, record: Path, report: Callable[[str], None]) -> None:
    checksum = pooch.file_hash(str(path))
    if record.is_file() and record.read_text(encoding="utf-8").split()[:1] not in ([], [checksum]):
        logger.warning("%s is another file than the one downloaded before (%s)", path.name, record)
    with whole_file(record) as file:
        file.write(f"{checksum}  {path.name}\n")
    report(f"{path.stem}: no checksum is published; that of this download is kept in {record}")


def _check_is_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(40)
        raise MsposeError(f"{path} is not a zip archive, or is cut off: it begins with {start!r}")


@dataclass
class ResumingDownloader:
    """A pooch downloader that keeps what has arrived in `part` and asks the server for the rest.

    A server that does not know HTTP ranges, or whose file has changed since, sends the whole again.
    Raises MsposeError where the server refuses, cannot be reached, or breaks off for good.
    """

    part: Path
    progress: bool

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        stalled, reason = 0, "the data ended early"
        while True:
            before = self._size()
            try:
                if self._transfer(url):
                    break
            except requests.exceptions.HTTPError as error:
                status = error.response.status_code
                raise MsposeError(
                    f"the server refuses {url}: {status} {error.response.reason}"
                ) from error
            except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
                if self._size() == 0:
                    raise MsposeError(
                        f"cannot reach {url} ({type(error).__name__}): is there a network? An"
                        " archive that you have can be given with --archive"
                    ) from error
                reason = type(error).__name__
            except requests.exceptions.ChunkedEncodingError:
                pass  # broke off; what arrived is in the part
            except requests.exceptions.RequestException as error:
                raise MsposeError(f"cannot download {url}: {error}") from error
            stalled = 0 if self._size() > before else stalled + 1
            if stalled == ATTEMPTS:
                raise MsposeError(
                    f"{url} broke off after {self._size():,} bytes and {ATTEMPTS} attempts to go on"
                    f" ({reason}); run this again to continue ({self.part} is kept)"
                )
            time.sleep(min(stalled, 3))
        self.part.replace(output_file)
        self._tag.unlink(missing_ok=True)

    @property
    def _tag(self) -> Path:
        """Which version of the file the part is of: the server's ETag or date."""
        return self.part.with_name(self.part.name + ".tag")

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _transfer(self, url: str) -> bool:
        """One request; whether the file is whole after it."""
        have = self._size()
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self._tag.is_file():
                headers["If-Range"] = self._tag.read_text(encoding="utf-8")
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            if response.status_code == 416:  # nothing follows what is there, or the file is another
                whole = response.headers.get("Content-Range", "").rpartition("/")[2] == str(have)
                if not whole:
                    self.part.unlink()
                return whole
            response.raise_for_status()
            resumes = response.status_code == 206
            if resumes and not response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            ):
                self.part.unlink()
                return False
            have = have if resumes else 0
            length = response.headers.get("Content-Length")
            total = (
                have + int(length)
                if length and "Content-Encoding" not in response.headers
                else None
            )
            tag = response.headers.get("ETag", "")
            tag = (
                response.headers.get("Last-Modified", "")
                if tag.startswith("W/") or not tag
                else tag
            )
            with self.part.open("ab" if resumes else "wb") as file:
                if tag:
                    self._tag.write_text(tag, encoding="utf-8")
                else:
                    self._tag.unlink(missing_ok=True)
                self._receive(response, file, have, total)
        return total is None or self._size() == total

    def _receive(
        self, response: requests.Response, file: IO[bytes], have: int, total: int | None
    ) -> None:
        name = self.part.name.removesuffix(".part")
        with tqdm(
            total=total,
            initial=have,
            desc=name,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=not self.progress,
        ) as bar:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def unpack_scene(archive: Path, card: Card, scene: str, root: Path) -> str:
    """Unpack the archive of a scene to `<root>/<scene>`, zips inside it too; all of it or nothing.

    Returns how many frames it holds, in words. Raises MsposeError for an archive that is broken,
    not of that scene, not whole, or has members that would land elsewhere.
    """
    beside = root / f".{scene}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
    beside.mkdir()
    try:
        _unpack_zip(archive, beside / "archive", archive.name)
        _scene_folder(beside / "archive", card, scene, archive).rename(beside / scene)
        for inner in sorted((beside / scene).rglob("*.zip")):
            _unpack_zip(
                inner,
                inner.parent,
                f"{archive.name}/{inner.relative_to(beside).as_posix()}",
                inner.stem,
            )
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


def _scene_folder(unpacked: Path, card: Card, scene: str, archive: Path) -> Path:
    """The folder of an unpacked archive that holds the scene: by its name, the whole, or the first
    that has frames.
    """
    split_file = SPLIT_FILES[card.format]["train"]
    for folder in (
        unpacked / scene,
        unpacked,
        *sorted(path for path in unpacked.iterdir() if path.is_dir()),
    ):
        if (folder / split_file).is_file():
            if folder.name != scene and folder.name in card.known_scenes:
                raise MsposeError(f"{archive} holds scene {folder.name}, not {scene}")
            return folder
    raise MsposeError(
        f"{archive} is not an archive of scene {scene}: there is no {scene}/{split_file} in it"
    )


def _unpack_zip(archive: Path, target: Path, name: str, own_folder: str = "") -> None:
    """Unpack a zip into `target`, or into its `own_folder` there where the zip itself holds no such
    folder.

    `name` is what messages call the zip. Nothing is written where any member is unsafe.
    """
    with _broken_zip_in_one_line(name), zipfile.ZipFile(archive) as content:
        members = [(info, _member_path(info, name)) for info in content.infolist()]
        members = [
            (info, path) for info, path in members if path and path.split("/")[0] != "__MACOSX"
        ]
        if own_folder and {path.split("/")[0] for _, path in members} != {own_folder}:
            target = target / own_folder
        target.mkdir(exist_ok=True)
        needed, free = sum(info.file_size for info, _ in members), shutil.disk_usage(target).free
        if needed > free:
            raise OSError(
                errno.ENOSPC, f"{name} needs {needed:,} bytes, {free:,} are free", str(target)
            )
        for info, path in members:
            place = target / path
            if info.filename.endswith(("/", "\\")):
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with content.open(info) as source, place.open("xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)


def _member_path(info: zipfile.ZipInfo, name: str) -> str:
    """The relative path of a zip's member, with `/`. Raises MsposeError for one that must not be
    unpacked.
    """
    path = info.filename.replace("\\", "/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise MsposeError(
            f"{name} is refused: its member {info.filename!r} is a link or a special file"
        )
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in path.split("/"):
        raise MsposeError(
            f"{name} is refused: its member {info.filename!r} would land outside of the scene's"
            " folder"
        )
    return "/".join(part for part in path.split("/") if part not in ("", "."))


@contextmanager
def _broken_zip_in_one_line(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise MsposeError(f"{name} is not a zip archive, or is broken: {error}") from error
    except (
        RuntimeError,
        NotImplementedError,
    ) as error:  # encrypted, or packed in a way that zipfile does not know
        raise MsposeError(f"{name} cannot be unpacked: {error}") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise MsposeError(
            f"{name} is broken: it holds {Path(error.filename).name} more than once"
        ) from error


@contextmanager
def _full_disk_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, requests.exceptions.RequestException):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = (
            f"the disk is full ({error.strerror}); free space and run this again"
            if full
            else error.strerror
        )
        raise MsposeError(f"cannot write {error.filename or folder}: {what or error}") from error
