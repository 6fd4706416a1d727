"""Batches: from the frame cache to normalised images on the device.

Everything random is drawn from (seed, epoch, frame), so an epoch is the same whatever came before it.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mspose.data.augmentation import Jitter, centre_crop, jitter_batch, normalize, random_crop
from mspose.data.cache import FrameCache
from mspose.errors import MsposeError
from mspose.poses import turn_towards


@dataclass(frozen=True)
class Batch:
    """Images with their labels. `row` numbers the rows of the frame table."""

    image_B3HW: Tensor
    position_B3: Tensor
    orientation_B4: Tensor
    scene_B: Tensor
    row: NDArray[np.int64]


class Batches:
    """Batches over a frame table (with `cache_row`) for a network with the given scenes, size and normalisation.

    Raises MsposeError where the crop is larger than a frame or a frame's scene is unknown to the network.
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
            raise MsposeError(f"scene {', '.join(unknown)} is unknown to the model, which knows: {', '.join(scenes)}")
        self.frames, self.cache, self.crop, self.mean, self.std = frames, cache, crop, tuple(mean), tuple(std)
        self.batch_size, self.device = batch_size, torch.device(device)
        number = {name: index for index, name in enumerate(scenes)}
        self.scene = np.array([number[name] for name in frames["scene"]], np.int64)
        self.position = torch.tensor(frames[["tx", "ty", "tz"]].to_numpy(), dtype=torch.float32)
        self.orientation = torch.tensor(frames[["qw", "qx", "qy", "qz"]].to_numpy(), dtype=torch.float32)
        self._cache_row = frames["cache_row"].to_numpy(np.int64)
        self._name = np.array([zlib.crc32(name.encode()) for name in frames["image"]], np.uint32)
        height, width = min((cache.shape(row) for row in self._cache_row), key=min)
        if min(height, width) < crop:
            raise MsposeError(
                f"data.crop {crop} does not fit into a frame of {width}x{height} pixels: set data.resize >= data.crop"
            )

    def in_order(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """Centre crops of the given rows (default: all), in their order."""
        chosen = np.arange(len(self.frames)) if rows is None else np.asarray(rows, np.int64)
        for start in range(0, len(chosen), self.batch_size):
            part = chosen[start : start + self.batch_size]
            yield self._batch(part, np.stack([self._crop(row)[0] for row in part]))

    def epoch(
        self,
        seed: int,
        epoch: int,
        *,
        equalize_scenes: bool,
        jitter: Jitter | None,
        crop_reach: float = 1.0,
        crop_label: str = "kept",
    ) -> Iterator[Batch]:
        """The batches of one training epoch; without `jitter`, centre crops without any random change.

        `crop_reach` is the share of the crop's places, around the centre, that random crops are drawn from. The label
        of such a crop is `kept` (MS-Transformer, ActMST) or `turned`: its orientation is then that of a camera which
        looks at the crop's centre. Raises MsposeError for `turned` where a focal length is unknown.
        """
        order = epoch_order(self.scene, seed=seed, epoch=epoch, equalize_scenes=equalize_scenes)
        copy = occurrence(order)
        focal_N = self._focal_lengths() if jitter is not None and crop_label == "turned" else None
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            if jitter is None:
                yield self._batch(part, np.stack([self._crop(row)[0] for row in part]))
                continue
            generators = [
                np.random.default_rng((seed, epoch, int(self._name[row]), int(again)))
                for row, again in zip(part, copy[start : start + self.batch_size], strict=True)
            ]
            crops = [self._crop(row, generator, crop_reach) for row, generator in zip(part, generators, strict=True)]
            batch = self._batch(
                part, np.stack([crop for crop, _ in crops]), [jitter.draw(generator) for generator in generators]
            )
            if focal_N is not None:
                right, down = np.array([offset for _, offset in crops]).T
                turned_B4 = torch.from_numpy(turn_towards(batch.orientation_B4, right, down, focal_N[part]))
                batch = replace(batch, orientation_B4=turned_B4.to(batch.orientation_B4))
            yield batch

    def epoch_length(self, equalize_scenes: bool) -> int:
        """Batches in an epoch."""
        counts = np.bincount(self.scene)
        frames = int((counts > 0).sum() * counts.max()) if equalize_scenes else len(self.scene)
        return -(-frames // self.batch_size)

    def _crop(
        self, row: int, generator: np.random.Generator | None = None, reach: float = 1.0
    ) -> tuple[NDArray[np.uint8], tuple[float, float]]:
        """A crop, and how far (right, down) its centre lies from the frame's, in pixels."""
        image_HW3 = self.cache[self._cache_row[row]]
        height, width = image_HW3.shape[:2]
        if generator is None:
            top, left = centre_crop(height, width, self.crop)
        else:
            top, left = random_crop(height, width, self.crop, generator, reach)
        offset = (left + (self.crop - width) / 2, top + (self.crop - height) / 2)
        return image_HW3[top : top + self.crop, left : left + self.crop], offset

    def _focal_lengths(self) -> NDArray[np.float64]:
        """(N,) in pixels of the cached frames."""
        focal_N = self.frames["focal_px"].to_numpy(np.float64)
        if not np.isfinite(focal_N).all():
            image = self.frames["image"].iloc[int(np.flatnonzero(~np.isfinite(focal_N))[0])]
            raise MsposeError(
                f"augmentation.crop_label turned needs the focal length of {image}: "
                "give focal_px in the data set's card"
            )
        return focal_N * np.array([self.cache.scale(row) for row in self._cache_row])

    def _batch(self, rows: NDArray[np.int64], crop_BHW3: NDArray[np.uint8], draws: list | None = None) -> Batch:
        image_B3HW = torch.from_numpy(crop_BHW3).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        if draws is not None:
            image_B3HW = jitter_batch(
                image_B3HW, np.stack([draw[0] for draw in draws]), np.stack([draw[1] for draw in draws])
            )
        index = torch.from_numpy(rows)
        return Batch(
            image_B3HW=normalize(image_B3HW, self.mean, self.std),
            position_B3=self.position[index].to(self.device),
            orientation_B4=self.orientation[index].to(self.device),
            scene_B=torch.from_numpy(self.scene[rows]).to(self.device),
            row=rows,
        )


def epoch_order(scene_N: NDArray[np.int64], *, seed: int, epoch: int, equalize_scenes: bool) -> NDArray[np.int64]:
    """Row numbers of one epoch in random order.

    With `equalize_scenes` every scene is drawn until all have as many samples as the largest: each frame of a smaller
    scene appears equally often, but for a random remainder.
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


def occurrence(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each place of `order`, how often its row has appeared before."""
    return np.asarray(pd.Series(order).groupby(order).cumcount(), np.int64)


def holdout_rows(frames: pd.DataFrame, share: float) -> NDArray[np.bool_]:
    """(N,) which rows are held out: one block of `share` from the middle of each sequence of each scene.

    A block, not every n-th frame: neighbouring frames lie millimetres apart and would leak.
    """
    held = np.zeros(len(frames), bool)
    for rows in frames.groupby(["scene", "sequence"], sort=False).indices.values():
        count = round(share * len(rows))
        start = (len(rows) - count) // 2
        held[rows[start : start + count]] = True
    return held


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers 0 .. count-1, evenly spread."""
    return (
        np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
        if count
        else np.zeros(0, np.int64)
    )
