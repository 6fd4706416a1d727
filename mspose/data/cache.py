"""The frame cache: every frame decoded and resized once, then read through a memory map or held by
the device.

A cache folder belongs to one list of images and one size. It holds

    frames.u8     the resized RGB images one after another
    index.npy     offset, height, width, the source's short side and a checksum of each; height 0
                  for an image that could not be read
    about.json    a stamp of the size and time of every source file, the images that could not be
                  read, and a checksum of the index

The last two are written anew after every `CHUNK` frames, so that an interrupted build continues
with the next chunk. Opening a cache compares the stamp, the checksum of the index, the size of the
frames and the checksums of `CHECKED` of them; where one differs, the cache is built anew. The
others are compared when a process first reads them.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mspose.data.cards import Card, data_root, frame_count_faults, load_frames
from mspose.data.frames import evenly
from mspose.data.images import find_image, read_image, resize_short_side
from mspose.errors import MsposeError
from mspose.files import locked, read_arrays, read_json, whole_file

FORMAT = "pillow-bilinear-4"
"""Changes when the same source gives other pixels."""
COPY_BYTES = 2**28
"""Bytes copied to a device at a time."""
CHUNK = 256
"""Frames decoded before they are written: bounds the memory, and what an interruption loses."""
CHECKED = 64
"""Frames, evenly spread, whose checksums are compared when a cache is opened."""
log = logging.getLogger("mspose")


class FrameCache:
    """Resized RGB images by row number: `cache[row] -> image_HW3`, uint8, a view of the file."""

    def __init__(self, folder: Path, problems: dict[int, str]):
        self.folder = folder
        self.problems = problems
        self._index = read_arrays(folder / "index.npy")
        self._bytes = _map(folder / "frames.u8")
        self._on_device: Tensor | None = None
        self._compared = np.zeros(len(self._index), bool)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, row: int | np.integer) -> NDArray[np.uint8]:
        offset, height, width, _, checksum = self._index[row].tolist()
        if height == 0:
            raise MsposeError(
                self.problems.get(int(row), f"frame {row} of {self.folder} could not be read")
            )
        data = self._bytes[offset : offset + height * width * 3]
        if not self._compared[row]:
            if zlib.crc32(data.data) != checksum:
                (self.folder / "about.json").unlink(missing_ok=True)  # so that it is built anew
                raise MsposeError(
                    f"frame {row} of the frame cache {self.folder} is damaged: the same command"
                    " decodes the frames anew; is the disk sound?"
                )
            self._compared[row] = True
        return data.reshape(height, width, 3)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Mask (N,) of the frames that could be read."""
        return self._index[:, 1] > 0

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Height and width (N, 2) of each frame."""
        return self._index[:, 1:3]

    @property
    def scales(self) -> NDArray[np.float64]:
        """Pixels of each cached frame (N,) per pixel of its source; NaN where not readable."""
        with np.errstate(invalid="ignore"):
            return self.sizes.min(axis=1) / self._index[:, 3]

    @property
    def device(self) -> torch.device | None:
        """Device that holds all frames; None while they are read through the memory map."""
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
        except RuntimeError as error:  # torch.OutOfMemoryError, or its base for the CPU's memory
            raise MsposeError(
                f"the frames of {self.folder} ({self.nbytes / 1e9:.1f} GB) do not fit into the"
                f" memory of {device}: leave out --data.cache_on_device"
            ) from error
        for row in np.flatnonzero(self.readable).tolist():
            self[row]  # compares its checksum
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
        """Square crops (B, size, size, 3), uint8, on the device that holds the frames.

        `pin` puts crops of the memory map into pinned memory, which is copied faster to a GPU.
        """
        if self._on_device is None:
            crop_BHW3 = torch.empty((len(row_B), size, size, 3), dtype=torch.uint8, pin_memory=pin)
            starts = zip(crop_BHW3.numpy(), row_B, top_B.tolist(), left_B.tolist(), strict=True)
            for crop_HW3, row, top, left in starts:
                crop_HW3[:] = self[row][top : top + size, left : left + size]
            return crop_BHW3
        # every line of a crop is `3 * size` bytes in a row, whatever the width of its frame
        device = self._on_device.device
        offset_B, width_B = self._index[row_B, 0], self._index[row_B, 2]
        start_2B = np.stack([offset_B + 3 * (top_B * width_B + left_B), 3 * width_B])
        first_B, step_B = torch.from_numpy(start_2B).to(device, non_blocking=True)
        start_BH = first_B[:, None] + step_B[:, None] * torch.arange(size, device=device)
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
    """Load one split of a data set with its cache.

    Returns (frames with `cache_row`, cache, number of frames left out as bad). Above 0,
    `frames_per_scene` takes that many of each scene, evenly spread. Warns where the number of
    frames is not the one that the card states.
    """
    images = data_root(card, root)
    frames = load_frames(
        card,
        root=images,
        split=split,
        scenes=scenes,
        ground_truth=ground_truth,
        labels=labels,
        on_bad_frame=on_bad_frame,
    )
    bad_frames = frames.attrs.get("bad_frames", 0)
    if faults := frame_count_faults(card, frames):
        log.warning(
            "%s: the number of frames is not the one that the card states: %s",
            card.name,
            "; ".join(faults),
        )
    if frames_per_scene:
        chosen = [
            rows[evenly(len(rows), frames_per_scene)]
            for rows in frames.groupby("scene").indices.values()
        ]
        frames = frames.iloc[np.sort(np.concatenate(chosen))].reset_index(drop=True)
    kept, cache = open_cache(
        frames,
        images,
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
    """Open the cache of `frames`, after building it, or the rest of it, where needed.

    Returns the rows of `frames` that it holds, with a column `cache_row`, their number in it, and
    the cache. Under `on_bad_frame="skip"` rows whose image is missing or broken are left out and
    their number is logged; under `"stop"` the first of them is an error. Of two processes that
    start at once one builds, the other waits.
    """
    images = frames["image"].tolist()
    identity = "\n".join([str(root.resolve()), str(short_side), FORMAT, *images])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    names = [*frames["dataset"].unique(), *frames["split"].unique()]
    target = folder / "-".join([*names, str(short_side), digest])
    sources, stamp = _locate(root, images)
    try:
        target.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for another process, which has the frame cache {target}"
        with locked(target / "lock", waiting=waiting):
            about = _read_about(target)
            index = _read_index(target, about, stamp)
            if not len(index):
                if about:
                    log.info(
                        "the frame cache %s is damaged or its source files have changed: it is"
                        " built anew",
                        target,
                    )
                (target / "about.json").unlink(missing_ok=True)
                about = {"stamp": stamp, "problems": {}}
                about |= {"short_side": short_side, "root": str(root.resolve())}
            if len(index) < len(images):
                _build(target, index, about, sources, short_side, on_bad_frame, progress)
    except OSError as error:
        raise MsposeError(
            f"cannot write the frame cache {target}: {error.strerror}; free space, or choose"
            " another folder with --data.cache"
        ) from error
    cache = FrameCache(target, {int(row): text for row, text in about["problems"].items()})
    readable = cache.readable
    if not readable.all():
        first = cache.problems[int(np.flatnonzero(~readable)[0])]
        if on_bad_frame == "stop":
            raise _unreadable(first)
        log.warning(
            "%d of %d frames left out; the first: %s", int((~readable).sum()), len(frames), first
        )
    kept = frames.assign(cache_row=np.arange(len(frames)))[readable].reset_index(drop=True)
    if kept.empty:
        raise MsposeError(
            f"none of the {len(frames)} frames under {root} could be read; the first: {first}"
        )
    return kept, cache


def _unreadable(problem: str) -> MsposeError:
    return MsposeError(f"{problem}; mend it, or leave such frames out with --on-bad-frame skip")


def _locate(root: Path, images: Sequence[str]) -> tuple[list[str], str]:
    """Find the source file of every image.

    Returns the files and a stamp that changes when one of them is changed, added or removed.
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


def _read_about(target: Path) -> dict:
    try:
        about = read_json(target / "about.json")
    except MsposeError:
        return {}
    return about if isinstance(about, dict) else {}


def _map(path: Path) -> NDArray[np.uint8]:
    if not path.stat().st_size:
        return np.zeros(0, np.uint8)  # an empty file cannot be mapped
    return np.asarray(np.memmap(path, np.uint8, mode="r"))


def _read_index(target: Path, about: dict, stamp: str) -> NDArray[np.int64]:
    """Index (N, 5) of the frames written so far; empty where the cache is damaged or outdated."""
    nothing = np.zeros((0, 5), np.int64)
    try:
        index = read_arrays(target / "index.npy")
        data = _map(target / "frames.u8")
    except (OSError, ValueError):
        return nothing
    if index.ndim != 2 or index.shape[1] != nothing.shape[1] or index.dtype != nothing.dtype:
        return nothing
    if about.get("stamp") != stamp or about.get("index_checksum") != zlib.crc32(index.tobytes()):
        return nothing
    for offset, height, width, _, checksum in index[evenly(len(index), CHECKED)].tolist():
        if zlib.crc32(data[offset : offset + height * width * 3].data) != checksum:
            return nothing
    return index if len(data) >= _end(index) else nothing


def _end(index_N5: NDArray[np.int64]) -> int:
    """Number of bytes of the frames in an index."""
    return 3 * int(index_N5[:, 1:3].prod(axis=1).sum())


def _build(
    target: Path,
    done_N5: NDArray[np.int64],
    about: dict,
    sources: Sequence[str],
    short_side: int,
    on_bad_frame: str,
    progress: bool,
) -> None:
    """Append the frames that follow those of the index `done_N5`, and complete `about`."""

    def decode(source: str) -> tuple[NDArray[np.uint8], int] | str:
        path = Path(source)
        try:
            image_HW3 = read_image(find_image(path.parent, path.name))
        except MsposeError as error:
            return str(error)
        return resize_short_side(image_HW3, short_side), min(image_HW3.shape[:2])

    index_N5 = np.zeros((len(sources), 5), np.int64)
    index_N5[: len(done_N5)] = done_N5
    offset = _end(done_N5)
    with (
        (target / "frames.u8").open("ab") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(
            total=len(sources),
            initial=len(done_N5),
            desc="decoding frames",
            unit="frame",
            disable=not progress,
        ) as bar,
    ):
        file.truncate(offset)
        for start in range(len(done_N5), len(sources), CHUNK):
            decoded = pool.map(decode, sources[start : start + CHUNK])
            for row, frame in enumerate(decoded, start=start):
                if not isinstance(frame, str):
                    image_HW3, source_side = frame
                    data = image_HW3.tobytes()
                    index_N5[row] = (offset, *image_HW3.shape[:2], source_side, zlib.crc32(data))
                    file.write(data)
                    offset += len(data)
                elif on_bad_frame == "stop":
                    raise _unreadable(frame)
                else:
                    about["problems"][str(row)] = frame
                bar.update()
            file.flush()
            os.fsync(file.fileno())  # before the index, which says that they are there
            index = index_N5[: start + CHUNK]
            with whole_file(target / "index.npy", "wb") as index_file:
                np.save(index_file, index, allow_pickle=False)
            about["index_checksum"] = zlib.crc32(index.tobytes())
            with whole_file(target / "about.json") as about_file:
                json.dump(about, about_file, indent=2)
