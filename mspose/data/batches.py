"""Batches: from the frame cache to normalised images on the device.

Everything random is drawn from (seed, epoch, frame) or (seed, epoch, batch), so an epoch is the
same whatever came before it and however many processes share it. While a batch is in use a thread
reads the next one.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mspose.data.cache import FrameCache
from mspose.data.images import centre_crop, normalize
from mspose.errors import MsposeError
from mspose.poses import turn_towards

if TYPE_CHECKING:  # kornia takes most of a second to import, which prediction need not wait for
    from mspose.data.augmentation import Augmentation

T = TypeVar("T")


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
    """A batch as the reading thread prepares it: everything that needs no device."""

    row: NDArray[np.int64]
    whole: int
    top_B: NDArray[np.int64]
    left_B: NDArray[np.int64]
    crop_BHW3: Tensor | None
    """The crops, uint8; None where the frames are held by the device."""
    orientation_B4: Tensor
    uniform_BK: NDArray[np.float64] | None = None
    """Random numbers of `Augmentation.draw`; None without augmentation."""
    colour_order: Sequence[int] = ()


class Batches:
    """Batches over a frame table (with `cache_row`) for a network with the given scenes, crop size
    and normalisation.

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
        self.frames, self.cache, self.crop = frames, cache, crop
        self.mean, self.std = tuple(mean), tuple(std)
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
        """Iterate over centre crops of the given rows (default: all), in their order."""
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
        augmentation: "Augmentation | None",
        first: int = 0,
        rank_and_world_size: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Iterate over the batches of one training epoch from number `first` on.

        Args:
            equalize_scenes: draw every scene as often as the largest, see `epoch_order`.
            augmentation: random changes of the images; None: centre crops, in random order.
            rank_and_world_size: number of this process and of all: each has its `share_of` every
                batch.

        Raises MsposeError for `crop_label` `turned` where a focal length is unknown.
        """
        order = epoch_order(self.scene, seed=seed, epoch=epoch, equalize_scenes=equalize_scenes)

        def drafts() -> Iterator[_Draft]:
            if augmentation is not None:
                uniform_MK = augmentation.draw(seed, epoch, len(order))
            for number in range(first, -(-len(order) // self.batch_size)):
                batch = slice(number * self.batch_size, (number + 1) * self.batch_size)
                row = order[batch]
                mine = share_of(len(row), *rank_and_world_size)
                if augmentation is None:
                    yield self._centred(row[mine], len(row))
                else:
                    yield self._augmented(
                        row[mine],
                        len(row),
                        augmentation,
                        uniform_MK[batch][mine],
                        augmentation.colour_order(seed, epoch, number),
                    )

        for draft in ahead(drafts()):
            yield self._batch(draft, augmentation)

    def epoch_length(self, equalize_scenes: bool) -> int:
        """Batches in an epoch."""
        counts = np.bincount(self.scene)
        frames = int((counts > 0).sum() * counts.max()) if equalize_scenes else len(self.scene)
        return -(-frames // self.batch_size)

    def _centred(self, row: NDArray[np.int64], whole: int) -> _Draft:
        top_B, left_B = centre_crop(self._height[row], self._width[row], self.crop)
        crop_BHW3 = self._read_crops(row, top_B, left_B)
        return _Draft(row, whole, top_B, left_B, crop_BHW3, self.orientation[row])

    def _augmented(
        self,
        row: NDArray[np.int64],
        whole: int,
        augmentation: "Augmentation",
        uniform_BK: NDArray[np.float64],
        colour_order: Sequence[int],
    ) -> _Draft:
        height_B, width_B = self._height[row], self._width[row]
        top_B, left_B = augmentation.crop(height_B, width_B, self.crop, uniform_BK)
        orientation_B4 = self.orientation[row]
        if augmentation.settings.crop_label == "turned":  # towards the crop's centre
            right_B = left_B + (self.crop - width_B) / 2
            down_B = top_B + (self.crop - height_B) / 2
            turned_B4 = turn_towards(orientation_B4, right_B, down_B, self._focal_lengths()[row])
            orientation_B4 = torch.from_numpy(turned_B4).float()
        crop_BHW3 = self._read_crops(row, top_B, left_B)
        return _Draft(
            row, whole, top_B, left_B, crop_BHW3, orientation_B4, uniform_BK, colour_order
        )

    def _read_crops(
        self, row: NDArray[np.int64], top_B: NDArray[np.int64], left_B: NDArray[np.int64]
    ) -> Tensor | None:
        if self.cache.device is not None:
            return None  # only the main thread gives the device work, which it does in order
        pin = self.device.type == "cuda"
        return self.cache.crops(self._cache_row[row], top_B, left_B, self.crop, pin=pin)

    def _focal_lengths(self) -> NDArray[np.float64]:
        """Focal lengths (N,) in pixels of the cached frames."""
        focal_N = self.frames["focal_px"].to_numpy(np.float64)
        if not np.isfinite(focal_N).all():
            image = self.frames["image"].iloc[int(np.flatnonzero(~np.isfinite(focal_N))[0])]
            raise MsposeError(
                f"augmentation.crop_label turned needs the focal length of {image}: "
                "give focal_px in the data set's card"
            )
        return focal_N * self.cache.scales[self._cache_row]

    def _batch(self, draft: _Draft, augmentation: "Augmentation | None" = None) -> Batch:
        """Finish the batch on the device, without waiting for what it still has to do."""
        crop_BHW3 = draft.crop_BHW3
        if crop_BHW3 is None:
            cache_row = self._cache_row[draft.row]
            crop_BHW3 = self.cache.crops(cache_row, draft.top_B, draft.left_B, self.crop)
        crop_B3HW = self._moved(crop_BHW3).permute(0, 3, 1, 2)
        image_B3HW = crop_B3HW.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if augmentation is not None and draft.uniform_BK is not None:
            image_B3HW = augmentation.change(image_B3HW, draft.uniform_BK, draft.colour_order)
        image_B3HW = normalize(image_B3HW, *self._normalization)
        if augmentation is not None and draft.uniform_BK is not None:
            image_B3HW = augmentation.erase(image_B3HW, draft.uniform_BK)
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
    """Iterate over the same pieces, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = thread.submit(next, pieces, None)
            yield piece


def share_of(count: int, process: int, processes: int) -> slice:
    """Return the part of a batch of `count` images that process number `process` (from 0) has.

    Parts are consecutive and differ by one image at most. Where there are fewer images than
    processes, every process has them all.
    """
    if count < processes:
        return slice(0, count)
    return slice(count * process // processes, count * (process + 1) // processes)


def epoch_order(
    scene_N: NDArray[np.int64], *, seed: int, epoch: int, equalize_scenes: bool
) -> NDArray[np.int64]:
    """Draw the row numbers of one epoch, in random order.

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
    """Mask (N,) of the rows held out: the middle `share` of each sequence of each scene.

    A block, not every n-th frame: neighbouring frames lie millimetres apart and would leak.
    """
    held = np.zeros(len(frames), bool)
    for rows in frames.groupby(["scene", "sequence"], sort=False).indices.values():
        count = round(share * len(rows))
        start = (len(rows) - count) // 2
        held[rows[start : start + count]] = True
    return held
