"""The frame cache: every frame decoded and resized once, then read through a memory map.

A cache folder belongs to one list of images and one size. It holds `frames.u8` (the resized RGB images one after
another), `index.npy` (offset, height, width and source's short side of each; height 0 where the image was not readable)
and `about.json` (what it was made from, with a stamp of the size and time of every source file, so that a changed
source is noticed).
`index.npy` is written last: a cache without it is unfinished and is continued where it stopped.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from mspose.checkpoint import whole_file
from mspose.data.cards import Card, data_root, load_frames
from mspose.data.images import find_image, read_image, resize_short_side
from mspose.errors import MsposeError

FORMAT = "pillow-bilinear-2"  # changes when the same source would give other pixels or another index
log = logging.getLogger("mspose")


class FrameCache:
    """Resized RGB images by row number: `cache[row] -> image_HW3` (uint8, a view of the memory map)."""

    def __init__(self, folder: Path, problems: dict[int, str]):
        self.folder = folder
        self.problems = problems
        self._index = np.load(folder / "index.npy", allow_pickle=False)
        size = (folder / "frames.u8").stat().st_size
        self._bytes = np.memmap(folder / "frames.u8", np.uint8, mode="r") if size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, row: int | np.integer) -> NDArray[np.uint8]:
        offset, height, width, _ = self._index[row]
        if height == 0:
            raise MsposeError(self.problems.get(int(row), f"frame {row} of {self.folder} could not be read"))
        return self._bytes[offset : offset + height * width * 3].reshape(height, width, 3)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,) whether each frame could be read."""
        return self._index[:, 1] > 0

    def scale(self, row: int | np.integer) -> float:
        """Pixels of a cached frame per pixel of its source."""
        return float(min(self.shape(row)) / self._index[row, 3])

    def shape(self, row: int | np.integer) -> tuple[int, int]:
        """(height, width) of a frame."""
        return int(self._index[row, 1]), int(self._index[row, 2])


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
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> tuple[pd.DataFrame, FrameCache, int]:
    """One split of a data set with its cache: (frames with `cache_row`, cache, number of frames left out as bad)."""
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
    kept, cache = open_cache(
        frames, place, short_side=short_side, folder=Path(folder), on_bad_frame=on_bad_frame, progress=progress
    )
    return kept, cache, len(frames) - len(kept) + frames.attrs.get("bad_frames", 0)


def open_cache(
    frames: pd.DataFrame,
    root: Path,
    *,
    short_side: int,
    folder: Path,
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> tuple[pd.DataFrame, FrameCache]:
    """The cache of `frames` (built, continued or rebuilt where needed) and the rows of `frames` that it holds.

    The rows come back with a column `cache_row`, their number in the cache. Under `on_bad_frame="skip"` rows whose
    image is missing or broken are left out and their number is logged; under `"stop"` the first of them is an error.
    Two processes that start at once build it once: the second waits.
    """
    images = frames["image"].tolist()
    identity = hashlib.sha256("\n".join([str(root.resolve()), str(short_side), FORMAT, *images]).encode()).hexdigest()[
        :12
    ]
    name = "-".join([*dict.fromkeys(frames["dataset"]), *dict.fromkeys(frames["split"]), str(short_side), identity])
    target = folder / name
    sources = [_locate(root, image) for image in images]
    stamp = _stamp(sources)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MsposeError(
            f"cannot make the frame cache {target}: {error.strerror}; choose another with --data.cache"
        ) from error
    with _alone(target):
        about = _about(target)
        if about.get("stamp") != stamp:
            for left in ("index.npy", "frames.u8", "frames.part", "sizes.part"):
                (target / left).unlink(missing_ok=True)
            about = {"stamp": stamp, "images": len(images), "short_side": short_side, "root": str(root.resolve())}
            _write_about(target, about)
        if not _is_whole(target, len(images)):
            _build(target, images, sources, short_side, on_bad_frame, progress)
    cache = FrameCache(target, {int(row): text for row, text in _about(target).get("problems", {}).items()})
    readable = cache.readable
    if not readable.all():
        first = cache.problems[int(np.flatnonzero(~readable)[0])]
        if on_bad_frame == "stop":
            raise MsposeError(f"{first}; mend it, or leave such frames out with --on-bad-frame skip")
        log.warning("%d of %d frames left out; the first: %s", int((~readable).sum()), len(frames), first)
    kept = frames.assign(cache_row=np.arange(len(frames)))[readable].reset_index(drop=True)
    if kept.empty:
        raise MsposeError(f"none of the {len(frames)} frames under {root} could be read; the first: {first}")
    return kept, cache


def _locate(root: Path, image: str) -> Path:
    path = root / image
    try:
        return path if path.exists() else find_image(root, image)
    except MsposeError:
        return path  # reading it says what is wrong


def _stamp(sources: Sequence[Path]) -> str:
    """A hash of size and time of every source file: a changed, added or mended file makes another."""
    digest = hashlib.sha256()
    for path in sources:
        try:
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path.name} missing\n".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    with (target / "lock").open("w") as lock:
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


def _is_whole(target: Path, count: int) -> bool:
    """Whether the finished files are there and agree with each other."""
    try:
        index = np.load(target / "index.npy", allow_pickle=False)
        expected = int((index[:, 1] * index[:, 2]).sum()) * 3
        return index.shape == (count, 4) and (target / "frames.u8").stat().st_size == expected
    except (OSError, ValueError, IndexError):
        return False


def _build(
    target: Path, images: Sequence[str], sources: Sequence[Path], short_side: int, on_bad_frame: str, progress: bool
) -> None:
    """Append decoded frames to `frames.part` and their sizes to `sizes.part`, then give both their final names."""
    sizes = _sizes_so_far(target)
    done = int(sum(height * width for height, width, _ in sizes)) * 3
    about = _about(target)
    problems: dict[str, str] = about.get("problems", {}) if sizes else {}

    def decode(row: int) -> tuple[NDArray[np.uint8], int] | str:
        try:
            find_image(sources[row].parent, sources[row].name)
            image_HW3 = read_image(sources[row])
            return resize_short_side(image_HW3, short_side), min(image_HW3.shape[:2])
        except MsposeError as error:
            return str(error)

    rows = range(len(sizes), len(images))
    try:
        with (target / "frames.part").open("ab") as data, (target / "sizes.part").open("a") as journal:
            data.truncate(done)
            data.seek(done)
            with (
                ThreadPoolExecutor(os.cpu_count()) as pool,
                tqdm(
                    total=len(images), initial=len(sizes), desc="decoding frames", unit="frame", disable=not progress
                ) as bar,
            ):
                for row, decoded in zip(rows, _in_order(pool, decode, rows), strict=True):
                    if isinstance(decoded, str):
                        if on_bad_frame == "stop":
                            raise MsposeError(f"{decoded}; mend it, or leave such frames out with --on-bad-frame skip")
                        problems[str(row)] = decoded
                        _write_about(target, {**about, "problems": problems})
                        decoded = np.zeros((0, 0, 3), np.uint8), 0
                    frame, source_side = decoded
                    data.write(frame.tobytes())
                    data.flush()
                    sizes.append((frame.shape[0], frame.shape[1], source_side))
                    journal.write(" ".join(map(str, sizes[-1])) + "\n")
                    journal.flush()
                    bar.update()
    except OSError as error:
        raise MsposeError(
            f"cannot write the frame cache {target}: {error.strerror}; free space, or choose --data.cache"
        ) from error
    size_N3 = np.array(sizes, np.int64).reshape(-1, 3)
    lengths = size_N3[:, :2].prod(axis=1) * 3
    (target / "frames.part").replace(target / "frames.u8")
    with whole_file(target / "index.npy", "wb") as file:
        np.save(file, np.column_stack([np.cumsum(lengths) - lengths, size_N3]), allow_pickle=False)
    (target / "sizes.part").unlink()


def _sizes_so_far(target: Path) -> list[tuple[int, int, int]]:
    """Height, width and source's short side of the frames that an interrupted build wrote whole."""
    try:
        lines = (target / "sizes.part").read_text().split("\n")[:-1]
        sizes = [(int(height), int(width), int(side)) for height, width, side in (line.split() for line in lines)]
        if (target / "frames.part").stat().st_size >= sum(height * width for height, width, _ in sizes) * 3:
            return sizes
    except (OSError, ValueError):
        pass
    for left in ("frames.part", "sizes.part"):
        (target / left).unlink(missing_ok=True)
    return []


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
