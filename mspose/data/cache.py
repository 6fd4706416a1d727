"""The frame cache: every frame decoded and resized once, then read through a memory map or held by
the device.

A cache folder belongs to one list of images and one size. It holds `frames.u8` (the resized RGB
images one after another), `index.npy` (offset, height, width, source's short side and checksum of
each; height 0 where the image was not readable) and `about.json` (what it was made from, with a
stamp of the size and time of every source file, so that a changed source is noticed, and a checksum
of the index).
`index.npy` is written last: a cache without it is unfinished and is continued where it stopped.
Whoever opens a cache checks the stamp, the index, the size of the frames and the checksums of a
sample of them; what fails is built anew.
"""

import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mspose.data.cards import Card, data_root, load_frames
from mspose.data.frames import evenly
from mspose.data.images import find_image, read_image, resize_short_side
from mspose.errors import MsposeError
from mspose.files import whole_file

FORMAT = (  # changes when the same source would give other pixels or another index
    "pillow-bilinear-4"
)
CHECKED = 64  # frames, evenly spread, whose checksums are compared when a cache is opened
COPY_BYTES = 2**28
"""Bytes copied to a device at a time."""
log = logging.getLogger("mspose")


class FrameCache:
    """Resized RGB images by row number: `cache[row] -> image_HW3` (uint8, a view of the memory
    map).
    """

    def __init__(self, folder: Path, problems: dict[int, str]):
        self.folder = folder
        self.problems = problems
        self._index = np.load(folder / "index.npy", allow_pickle=False)
        self._bytes = _map(folder / "frames.u8")
        self._on_device: Tensor | None = None

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, row: int | np.integer) -> NDArray[np.uint8]:
        offset, height, width, _, _ = self._index[row].tolist()
        if height == 0:
            raise MsposeError(
                self.problems.get(int(row), f"frame {row} of {self.folder} could not be read")
            )
        return self._bytes[offset : offset + height * width * 3].reshape(height, width, 3)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,) whether each frame could be read."""
        return self._index[:, 1] > 0

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(N, 2) height and width of each frame."""
        return self._index[:, 1:3]

    @property
    def scales(self) -> NDArray[np.float64]:
        """(N,) pixels of a cached frame per pixel of its source; NaN for one that could not be
        read.
        """
        with np.errstate(invalid="ignore"):
            return self.sizes.min(axis=1) / self._index[:, 3]

    @property
    def device(self) -> torch.device | None:
        """Where all frames are held; None while they are read through the memory map."""
        return None if self._on_device is None else self._on_device.device

    @property
    def nbytes(self) -> int:
        """Size of all frames together."""
        return len(self._bytes)

    def shape(self, row: int | np.integer) -> tuple[int, int]:
        """(height, width) of a frame."""
        return int(self._index[row, 1]), int(self._index[row, 2])

    def hold_on(self, device: torch.device) -> None:
        """Copy all frames into the memory of a device, from where `crops` takes them from then on.

        Raises MsposeError where they do not fit.
        """
        try:
            held = torch.empty(self.nbytes, dtype=torch.uint8, device=device)
        except (
            RuntimeError
        ) as error:  # OutOfMemoryError, or a plain one where it is the CPU's memory
            size = f"{self.nbytes / 1e9:.1f} GB"
            raise MsposeError(
                f"the frames of {self.folder} ({size}) do not fit into the memory of {device}: "
                "leave out --data.cache_on_device"
            ) from error
        for start in range(0, self.nbytes, COPY_BYTES):
            held[start : start + COPY_BYTES] = torch.tensor(self._bytes[start : start + COPY_BYTES])
        self._on_device = held

    def crops(
        self,
        row_B: NDArray[np.int64],
        top_B: NDArray[np.int64],
        left_B: NDArray[np.int64],
        size: int,
        *,
        pin: bool = False,
    ) -> Tensor:
        """Square crops (B, size, size, 3), uint8, where the frames are; `pin` is for the fast way
        to a GPU.
        """
        if self._on_device is None:
            crop_BHW3 = torch.empty((len(row_B), size, size, 3), dtype=torch.uint8, pin_memory=pin)
            places = zip(crop_BHW3.numpy(), row_B, top_B.tolist(), left_B.tolist(), strict=True)
            for crop_HW3, row, top, left in places:
                crop_HW3[:] = self[row][top : top + size, left : left + size]
            return crop_BHW3
        # every line of a crop is `3 * size` bytes in a row, whatever the width of its frame
        offset_B, width_B = self._index[row_B, 0], self._index[row_B, 2]
        start_2B = torch.from_numpy(
            np.stack([offset_B + 3 * (top_B * width_B + left_B), 3 * width_B])
        )
        first_B, step_B = start_2B.to(self._on_device.device, non_blocking=True)
        start_BH = first_B[:, None] + step_B[:, None] * torch.arange(
            size, device=self._on_device.device
        )
        line_NK = self._on_device.unfold(0, 3 * size, 1)
        return line_NK.index_select(0, start_BH.flatten()).view(len(row_B), size, size, 3)


def open_split(
    card: Card,
    split: str,
    *,
    root: str | None,
    scenes: Sequence[str],
    ground_truth: str | None,
    labels: Sequence[str],
    short_side: int,
    folder: str,
    frames_per_scene: int = 0,
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> tuple[pd.DataFrame, FrameCache, int]:
    """One split of a data set with its cache: (frames with `cache_row`, cache, number of frames
    left out as bad).

    Above 0, `frames_per_scene` takes that many of each scene, evenly spread.
    """
    place = data_root(card, root)
    frames = load_frames(
        card,
        root=place,
        split=split,
        scenes=scenes,
        ground_truth=ground_truth,
        labels=labels,
        on_bad_frame=on_bad_frame,
    )
    bad_frames = frames.attrs.get("bad_frames", 0)
    if frames_per_scene:
        chosen = [
            rows[evenly(len(rows), frames_per_scene)]
            for rows in frames.groupby("scene").indices.values()
        ]
        frames = frames.iloc[np.sort(np.concatenate(chosen))].reset_index(drop=True)
    kept, cache = open_cache(
        frames,
        place,
        short_side=short_side,
        folder=Path(folder),
        on_bad_frame=on_bad_frame,
        progress=progress,
    )
    return kept, cache, len(frames) - len(kept) + bad_frames


def open_cache(
    frames: pd.DataFrame,
    root: Path,
    *,
    short_side: int,
    folder: Path,
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> tuple[pd.DataFrame, FrameCache]:
    """The cache of `frames` (built, continued or rebuilt where needed) and the rows of `frames`
    that it holds.

    The rows come back with a column `cache_row`, their number in the cache. Under
    `on_bad_frame="skip"` rows whose image is missing or broken are left out and their number is
    logged; under `"stop"` the first of them is an error.
    Two processes that start at once build it once: the second waits.
    """
    images = frames["image"].tolist()
    identity = "\n".join([str(root.resolve()), str(short_side), FORMAT, *images])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    name = "-".join(
        [
            *dict.fromkeys(frames["dataset"]),
            *dict.fromkeys(frames["split"]),
            str(short_side),
            digest,
        ]
    )
    target = folder / name
    sources, stamp = _locate(root, images)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MsposeError(
            f"cannot make the frame cache {target}: {error.strerror}; choose another with"
            " --data.cache"
        ) from error
    with _alone(target):
        about = _about(target)
        stale = about.get("stamp") != stamp
        if stale or ((target / "index.npy").exists() and not _is_whole(target, len(images))):
            if about:
                reason = "made from files that have changed since" if stale else "damaged"
                log.info("the frame cache %s is %s and is built anew", target, reason)
            for left in ("index.npy", "frames.u8", "frames.part", "facts.part"):
                (target / left).unlink(missing_ok=True)
            about = {
                "stamp": stamp,
                "images": len(images),
                "short_side": short_side,
                "root": str(root.resolve()),
            }
            _write_about(target, about)
        if not (target / "index.npy").exists():
            _build(target, images, sources, short_side, on_bad_frame, progress)
    cache = FrameCache(
        target, {int(row): text for row, text in _about(target).get("problems", {}).items()}
    )
    readable = cache.readable
    if not readable.all():
        first = cache.problems[int(np.flatnonzero(~readable)[0])]
        if on_bad_frame == "stop":
            raise MsposeError(
                f"{first}; mend it, or leave such frames out with --on-bad-frame skip"
            )
        log.warning(
            "%d of %d frames left out; the first: %s", int((~readable).sum()), len(frames), first
        )
    kept = frames.assign(cache_row=np.arange(len(frames)))[readable].reset_index(drop=True)
    if kept.empty:
        raise MsposeError(
            f"none of the {len(frames)} frames under {root} could be read; the first: {first}"
        )
    return kept, cache


def _map(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file as an array, read when they are looked at."""
    return (
        np.asarray(np.memmap(path, np.uint8, mode="r"))
        if path.stat().st_size
        else np.zeros(0, np.uint8)
    )


def _locate(root: Path, images: Sequence[str]) -> tuple[list[str], str]:
    """(source file of every image, stamp): a changed, added or mended source file makes another
    stamp.
    """
    sources, lines = [], []
    for image in images:
        path = f"{root}{os.sep}{image}"
        try:
            # tens of thousands of Path objects would take a second
            status = os.stat(path)  # noqa: PTH116
        except OSError:
            try:
                path = str(find_image(root, image))
                status = Path(path).stat()
            except (MsposeError, OSError):  # reading it says what is wrong
                status = None
        sources.append(path)
        facts = "missing" if status is None else f"{status.st_size} {status.st_mtime_ns}"
        lines.append(f"{path.rpartition(os.sep)[2]} {facts}\n")
    return sources, hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    with (target / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which has the frame cache %s", target)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _about(target: Path) -> dict:
    try:
        return json.loads((target / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_about(target: Path, about: dict) -> None:
    with whole_file(target / "about.json") as file:
        json.dump(about, file, indent=2)


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _is_whole(target: Path, count: int) -> bool:
    """Whether the finished files are there and agree, and a sample of the frames is as it was
    written.
    """
    try:
        index = np.load(target / "index.npy", allow_pickle=False)
        if index.shape != (count, 5) or _checksum(index) != _about(target)["index_checksum"]:
            return False
        data = _map(target / "frames.u8")
        if len(data) != 3 * int((index[:, 1] * index[:, 2]).sum()):
            return False
        sample = np.linspace(0, count - 1, min(count, CHECKED)).astype(np.int64)
        return all(
            _checksum(data[offset : offset + 3 * height * width]) == checksum
            for offset, height, width, _, checksum in index[sample].tolist()
        )
    except (OSError, ValueError, IndexError, KeyError):
        return False


def _build(
    target: Path,
    images: Sequence[str],
    sources: Sequence[str],
    short_side: int,
    on_bad_frame: str,
    progress: bool,
) -> None:
    """Append decoded frames to `frames.part` and their facts to `facts.part`, then give both their
    final names.
    """
    about = _about(target)
    facts = _facts_so_far(target)
    problems: dict[str, str] = about.get("problems", {}) if facts else {}

    def decode(row: int) -> tuple[NDArray[np.uint8], int] | str:
        try:
            path = Path(sources[row])
            image_HW3 = read_image(find_image(path.parent, path.name))
            return resize_short_side(image_HW3, short_side), min(image_HW3.shape[:2])
        except MsposeError as error:
            return str(error)

    rows = range(len(facts), len(images))
    try:
        with (
            (target / "frames.part").open("ab") as data,
            (target / "facts.part").open("ab") as journal,
        ):
            data.truncate(3 * sum(height * width for height, width, _, _ in facts))
            journal.truncate(32 * len(facts))
            with (
                ThreadPoolExecutor(os.cpu_count()) as pool,
                tqdm(
                    total=len(images),
                    initial=len(facts),
                    desc="decoding frames",
                    unit="frame",
                    disable=not progress,
                ) as bar,
            ):
                for row, decoded in zip(rows, _in_order(pool, decode, rows), strict=True):
                    if isinstance(decoded, str):
                        if on_bad_frame == "stop":
                            raise MsposeError(
                                f"{decoded}; mend it, or leave such frames out with --on-bad-frame"
                                " skip"
                            )
                        problems[str(row)] = decoded
                        _write_about(target, {**about, "problems": problems})
                        decoded = np.zeros((0, 0, 3), np.uint8), 0
                    frame, source_side = decoded
                    data.write(frame.tobytes())
                    data.flush()
                    facts.append((frame.shape[0], frame.shape[1], source_side, _checksum(frame)))
                    journal.write(np.array(facts[-1], np.int64).tobytes())
                    journal.flush()
                    bar.update()
            os.fsync(data.fileno())  # before the index, which says that they are there
    except OSError as error:
        raise MsposeError(
            f"cannot write the frame cache {target}: {error.strerror}; free space, or choose"
            " --data.cache"
        ) from error
    fact_N4 = np.array(facts, np.int64).reshape(-1, 4)
    lengths = fact_N4[:, :2].prod(axis=1) * 3
    index = np.column_stack([np.cumsum(lengths) - lengths, fact_N4])
    (target / "frames.part").replace(target / "frames.u8")
    _write_about(target, {**about, "problems": problems, "index_checksum": _checksum(index)})
    with whole_file(target / "index.npy", "wb") as file:
        np.save(file, index, allow_pickle=False)
    (target / "facts.part").unlink()


def _facts_so_far(target: Path) -> list[tuple[int, int, int, int]]:
    """Height, width, source's short side and checksum of the frames that an interrupted build wrote
    whole.
    """
    try:
        data = _map(target / "frames.part")
        journal = np.fromfile(target / "facts.part", np.int64)
    except OSError:
        return []
    facts, offset = [], 0
    for height, width, side, checksum in journal[: len(journal) // 4 * 4].reshape(-1, 4).tolist():
        end = offset + 3 * height * width
        if _checksum(data[offset:end]) != checksum:
            break  # a machine that went down has not written the rest
        facts.append((height, width, side, checksum))
        offset = end
    return facts


def _in_order(pool: ThreadPoolExecutor, work, rows: Sequence[int]) -> Iterator:  # type: ignore[no-untyped-def]
    """Results in order with a bounded number in flight, so that memory stays bounded too."""
    ahead = 4 * (os.cpu_count() or 1)
    waiting = []
    for row in rows:
        waiting.append(pool.submit(work, row))
        if len(waiting) >= ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()
