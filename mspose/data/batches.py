"""Batches: from the frame cache to normalised images on the device.

Everything random is drawn from (seed, epoch, frame), so an epoch is the same whatever came before
it, whatever the size of a batch and however many processes share it. While a batch is in use a
thread reads the next one.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mspose.data.augmentation import (
    Jitter,
    centre_crop,
    cut_out,
    jitter_batch,
    normalize,
    random_crop,
    random_hole,
)
from mspose.data.cache import FrameCache
from mspose.errors import MsposeError
from mspose.poses import turn_towards

T = TypeVar("T")
Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Top and left of the crops of a batch, or of the squares cut out of them, (B,) each."""


@dataclass(frozen=True)
class Batch:
    """Images with their labels. `row` numbers the rows of the frame table."""

    image_B3HW: Tensor
    position_B3: Tensor
    orientation_B4: Tensor
    scene_B: Tensor
    row: NDArray[np.int64]
    whole: int
    """Images of the whole batch, of which another process may have a part."""


@dataclass(frozen=True)
class _Draft:
    """What the thread makes of a batch: everything that needs no device."""

    row: NDArray[np.int64]
    whole: int
    place_2B: Places
    crop_BHW3: Tensor | None
    """The crops, uint8; None where the frames are on the device."""
    orientation_B4: Tensor
    jitter: tuple[NDArray[np.float64], NDArray[np.int64]] | None
    """Values and order of the operations."""
    hole: tuple[NDArray[np.int64], NDArray[np.int64], int] | None = None
    """Top, left and side of the squares that are cut out."""


class Batches:
    """Batches over a frame table (with `cache_row`) for a network with the given scenes, size and
    normalisation.

    Raises MsposeError where the crop is larger than a frame or a frame's scene is unknown to the
    network.
    """

    def __init__(
        self,
        frames: pd.DataFrame,
        cache: FrameCache,
        *,
        scenes: Sequence[str],
        crop: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        device: torch.device | str = "cpu",
    ):
        unknown = sorted(set(frames["scene"]) - set(scenes))
        if unknown:
            raise MsposeError(
                f"scene {', '.join(unknown)} is unknown to the model, which knows:"
                f" {', '.join(scenes)}"
            )
        self.frames, self.cache, self.crop, self.mean, self.std = (
            frames,
            cache,
            crop,
            tuple(mean),
            tuple(std),
        )
        self.batch_size, self.device = batch_size, torch.device(device)
        number = {name: index for index, name in enumerate(scenes)}
        self.scene = np.array([number[name] for name in frames["scene"]], np.int64)
        self.position = torch.tensor(frames[["tx", "ty", "tz"]].to_numpy(), dtype=torch.float32)
        self.orientation = torch.tensor(
            frames[["qw", "qx", "qy", "qz"]].to_numpy(), dtype=torch.float32
        )
        self._cache_row = frames["cache_row"].to_numpy(np.int64)
        self._height, self._width = cache.sizes[self._cache_row].T
        self._normalization = tuple(
            torch.tensor(values, device=self.device) for values in (self.mean, self.std)
        )
        smallest = int(np.minimum(self._height, self._width).argmin())
        height, width = self._height[smallest], self._width[smallest]
        if min(height, width) < crop:
            raise MsposeError(
                f"data.crop {crop} does not fit into a frame of {width}x{height} pixels: set"
                " data.resize >= data.crop"
            )

    def in_order(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """Centre crops of the given rows (default: all), in their order."""
        chosen = np.arange(len(self.frames)) if rows is None else np.asarray(rows, np.int64)
        parts = (
            chosen[start : start + self.batch_size]
            for start in range(0, len(chosen), self.batch_size)
        )
        for draft in ahead(self._centred(part, len(part)) for part in parts):
            yield self._batch(draft)

    def epoch(
        self,
        seed: int,
        epoch: int,
        *,
        equalize_scenes: bool,
        jitter: Jitter | None,
        crop_reach: float = 1.0,
        crop_label: str = "kept",
        cutout: float = 0.0,
        first: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """The batches of one training epoch from number `first` on; without `jitter`, centre crops,
        nothing random.

        `share` is (process, processes): of every batch, process number 0, 1, ... has its
        `share_of`.

        `crop_reach` is the share of the crop's places, around the centre, that random crops are
        drawn from. The label of such a crop is `kept` (MS-Transformer, ActMST) or `turned`: its
        orientation is then that of a camera which looks at the crop's centre. `cutout` is the side,
        as a share of the crop's, of a square that is set to the mean colour at a random place.
        Raises MsposeError for `turned` where a focal length is unknown.
        """
        order = epoch_order(self.scene, seed=seed, epoch=epoch, equalize_scenes=equalize_scenes)
        uniform_M7 = np.random.default_rng((seed, epoch, 0xC105)).random((len(order), 7))
        side = round(cutout * self.crop) if jitter is not None else 0
        # from numbers of its own: crops and jitter are the same with it and without
        hole_M2 = (
            np.random.default_rng((seed, epoch, 0xC070)).random((len(order), 2)) if side else None
        )
        focal_N = self._focal_lengths() if jitter is not None and crop_label == "turned" else None

        def drafts() -> Iterator[_Draft]:
            for start in range(first * self.batch_size, len(order), self.batch_size):
                whole = min(self.batch_size, len(order) - start)
                mine = share_of(whole, share)
                row = order[start : start + whole][mine]
                if jitter is None:
                    yield self._centred(row, whole)
                    continue
                uniform_B7 = uniform_M7[start : start + whole][mine]
                place_2B = random_crop(
                    self._height[row], self._width[row], self.crop, uniform_B7[:, :2], crop_reach
                )
                orientation_B4 = self.orientation[row]
                if focal_N is not None:
                    orientation_B4 = self._turned(row, place_2B, focal_N[row])
                hole = None
                if hole_M2 is not None:
                    hole = (
                        *random_hole(self.crop, side, hole_M2[start : start + whole][mine]),
                        side,
                    )
                crop_BHW3 = self._crops_ahead(row, place_2B)
                colours = jitter.parameters(uniform_B7[:, 2:])
                yield _Draft(row, whole, place_2B, crop_BHW3, orientation_B4, colours, hole)

        for draft in ahead(drafts()):
            yield self._batch(draft)

    def epoch_length(self, equalize_scenes: bool) -> int:
        """Batches in an epoch."""
        counts = np.bincount(self.scene)
        frames = int((counts > 0).sum() * counts.max()) if equalize_scenes else len(self.scene)
        return -(-frames // self.batch_size)

    def _centred(self, row: NDArray[np.int64], whole: int) -> _Draft:
        place_2B = centre_crop(self._height[row], self._width[row], self.crop)
        return _Draft(
            row, whole, place_2B, self._crops_ahead(row, place_2B), self.orientation[row], None
        )

    def _crops_ahead(self, row: NDArray[np.int64], place_2B: Places) -> Tensor | None:
        if self.cache.device is not None:
            return None  # the device has its own work in order: only the main thread gives it more
        return self.cache.crops(
            self._cache_row[row], *place_2B, self.crop, pin=self.device.type == "cuda"
        )

    def _turned(
        self, row: NDArray[np.int64], place_2B: Places, focal_B: NDArray[np.float64]
    ) -> Tensor:
        """Orientations of cameras that look at the crops' centres."""
        top_B, left_B = place_2B
        right_B, down_B = (
            left_B + (self.crop - self._width[row]) / 2,
            top_B + (self.crop - self._height[row]) / 2,
        )
        return torch.from_numpy(
            turn_towards(self.orientation[row], right_B, down_B, focal_B)
        ).float()

    def _focal_lengths(self) -> NDArray[np.float64]:
        """(N,) in pixels of the cached frames."""
        focal_N = self.frames["focal_px"].to_numpy(np.float64)
        if not np.isfinite(focal_N).all():
            image = self.frames["image"].iloc[int(np.flatnonzero(~np.isfinite(focal_N))[0])]
            raise MsposeError(
                f"augmentation.crop_label turned needs the focal length of {image}: "
                "give focal_px in the data set's card"
            )
        return focal_N * self.cache.scales[self._cache_row]

    def _batch(self, draft: _Draft) -> Batch:
        """The batch on the device; nothing here waits for what the device still has to do."""
        crop_BHW3 = draft.crop_BHW3
        if crop_BHW3 is None:
            crop_BHW3 = self.cache.crops(self._cache_row[draft.row], *draft.place_2B, self.crop)
        crop_B3HW = self._moved(crop_BHW3).permute(0, 3, 1, 2)
        image_B3HW = crop_B3HW.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if draft.jitter is not None:
            image_B3HW = jitter_batch(image_B3HW, *draft.jitter)
        image_B3HW = normalize(image_B3HW, *self._normalization)
        if draft.hole is not None:
            image_B3HW = cut_out(image_B3HW, *draft.hole)
        return Batch(
            image_B3HW=image_B3HW,
            position_B3=self._moved(self.position[draft.row]),
            orientation_B4=self._moved(draft.orientation_B4),
            scene_B=self._moved(torch.from_numpy(self.scene[draft.row])),
            row=draft.row,
            whole=draft.whole,
        )

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def ahead(pieces: Iterator[T]) -> Iterator[T]:
    """The same pieces, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = thread.submit(next, pieces, None)
            yield piece


def share_of(count: int, share: tuple[int, int]) -> slice:
    """The part of `count` things of process number `share[0]` of `share[1]`: consecutive, equal but
    for one.

    Where there are fewer things than processes, every process has them all.
    """
    number, processes = share
    if count < processes:
        return slice(0, count)
    return slice(count * number // processes, count * (number + 1) // processes)


def epoch_order(
    scene_N: NDArray[np.int64], *, seed: int, epoch: int, equalize_scenes: bool
) -> NDArray[np.int64]:
    """Row numbers of one epoch in random order.

    With `equalize_scenes` every scene is drawn until all have as many samples as the largest: each
    frame of a smaller scene appears equally often, but for a random remainder.
    """
    generator = np.random.default_rng((seed, epoch, 0x0ADE))
    if not equalize_scenes:
        return generator.permutation(len(scene_N)).astype(np.int64)
    most = np.bincount(scene_N).max()
    parts = []
    for scene in np.unique(scene_N):
        rows = np.flatnonzero(scene_N == scene)
        whole, rest = divmod(int(most), len(rows))
        parts += [np.tile(rows, whole), generator.permutation(rows)[:rest]]
    return generator.permutation(np.concatenate(parts)).astype(np.int64)


def holdout_rows(frames: pd.DataFrame, share: float) -> NDArray[np.bool_]:
    """(N,) which rows are held out: one block of `share` from the middle of each sequence of each
    scene.

    A block, not every n-th frame: neighbouring frames lie millimetres apart and would leak.
    """
    held = np.zeros(len(frames), bool)
    for rows in frames.groupby(["scene", "sequence"], sort=False).indices.values():
        count = round(share * len(rows))
        start = (len(rows) - count) // 2
        held[rows[start : start + count]] = True
    return held
