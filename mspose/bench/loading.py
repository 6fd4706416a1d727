"""Loading: from PNG files by PIL, one image at a time, against the frame cache; pictures are drawn for it."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from mspose.bench.sides import Workload, reference_module
from mspose.bench.timing import interleaved
from mspose.data.augmentation import Jitter
from mspose.data.batches import Batches
from mspose.data.cache import open_cache
from mspose.data.frames import CAMERA_TO_WORLD, frame_table
from mspose.data.virtual.rendering import Camera
from mspose.data.virtual.sequences import Sequence
from mspose.models.backbone import IMAGENET_MEAN, IMAGENET_STD

BATCH = {"cpu": 8, "cuda": 64}
JITTER = Jitter(0.5, 0.5, 0.5, 0.2)
NOISE = 1.0  # grey levels: as a camera's sensor adds it; rendered frames without it would be small, fast files


def write_frames(folder: Path, width: int, height: int, *, pictures: int, frames: int) -> pd.DataFrame:
    """PNG files of a rendered room with sensor noise, and their frame table; pictures repeat under other names."""
    camera = Camera(width, height, focal_px=0.9 * width)
    shown = Sequence("library", "train", 1, 0, pictures, 0, camera, "jpg").render()
    rng = np.random.default_rng(0)
    for number, (image_HW3, _) in enumerate(shown):
        noisy_HW3 = image_HW3 + rng.normal(0.0, NOISE, image_HW3.shape)
        Image.fromarray(noisy_HW3.round().clip(0, 255).astype(np.uint8)).save(folder / f"{number:06d}.png")
    for number in range(pictures, frames):
        (folder / f"{number:06d}.png").hardlink_to(folder / f"{number % pictures:06d}.png")
    return frame_table(
        dataset=f"bench-{width}x{height}",
        ground_truth="none",
        split="train",
        scene=["library"] * frames,
        sequence=["seq-01"] * frames,
        image=[f"{number:06d}.png" for number in range(frames)],
        position_B3=np.zeros((frames, 3)),
        orientation=np.tile([1.0, 0.0, 0.0, 0.0], (frames, 1)),
        convention=CAMERA_TO_WORLD,
        where=str,
        source=str(folder),
    )


def measure_loading(
    workload: Workload, width: int, height: int, *, device: torch.device, repeat: int
) -> dict[str, list[float]]:
    """Seconds per image on one core of `reference_load_640x480` and `ours_load_640x480`, of both with `_jitter`, and on
    a GPU of `ours_load_640x480_held`, the GPU holding all frames.

    All end with normalised batches on the device. The reference decodes the PNG, resizes and crops; ours takes the crop
    from the warm frame cache. With jitter, crops are random and colours change on all sides.
    """
    kind = f"load_{width}x{height}"
    pictures, frames, loaded = workload.frames[f"{width}x{height}"]
    shape: dict[str, Any] = {"crop": workload.image, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    with tempfile.TemporaryDirectory(prefix="mspose-bench-") as place:
        folder = Path(place)
        table = write_frames(folder, width, height, pictures=pictures, frames=frames)
        files = [folder / image for image in table["image"][:loaded]]
        calls: dict[str, Callable[[], int]] = {}
        for held in (False, True) if device.type == "cuda" else (False,):
            kept, cache = open_cache(table, folder, short_side=workload.resize, folder=folder / "cache", progress=False)
            if held:
                cache.hold_on(device)
            batches = Batches(kept, cache, scenes=["library"], batch_size=BATCH[device.type], device=device, **shape)
            name = f"ours_{kind}_held" if held else f"ours_{kind}"
            calls |= {name: partial(_load, batches, None), f"{name}_jitter": partial(_load, batches, JITTER)}
        reference = reference_module()
        for jitter in (False, True):
            transform = reference.reference_transform(
                resize=workload.resize, random_crop=jitter, jitter=jitter, **shape
            )
            name = f"reference_{kind}_jitter" if jitter else f"reference_{kind}"
            calls[name] = partial(_load_as_reference, files, transform, device)
        with _one_core():
            samples = interleaved(calls, device=device, repeat=repeat, warm_up=1)
    images = {name: len(files) if name.startswith("reference") else frames for name in calls}
    return {name: [second / images[name] for second in seconds] for name, seconds in samples.items()}


def _load(batches: Batches, jitter: Jitter | None) -> int:
    drawn = batches.epoch(0, 0, equalize_scenes=False, jitter=jitter)
    return sum(len(batch.image_B3HW) for batch in drawn)


def _load_as_reference(files: list[Path], transform: Callable[..., Tensor], device: torch.device) -> int:
    batches = reference_module().reference_batches(files, transform, BATCH[device.type])
    return sum(len(image_B3HW.to(device)) for image_B3HW in batches)


@contextmanager
def _one_core() -> Iterator[None]:
    """PIL takes one core per process; ours, which takes what it gets, is not to win by taking more."""
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
