"""From images on disk to a file of estimated poses: what `mspose predict` does."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mspose.data.batches import ahead
from mspose.errors import MsposeError
from mspose.inference import Preprocessing, load
from mspose.tools.prediction.image_sources import Source, Video, View, find_sources, read_views
from mspose.tools.prediction.query_check import QueryCheck, training_images
from mspose.tools.prediction.trajectory_files import (
    ONE_FRAME,
    ColmapFile,
    CsvFile,
    JsonLines,
    PoseFile,
    TumFile,
    colmap_folder,
    open_output,
    with_times,
)

log = logging.getLogger("mspose")


def predict_poses(
    run: Path | str,
    inputs: Sequence[Path | str],
    *,
    out: Path | None = None,
    format: str = "csv",
    scene: str | None = None,
    every: int | None = None,
    fps: float | None = None,
    focal_px: float | None = None,
    batch_size: int = 16,
    device: str = "auto",
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> None:
    """Write the poses that a run's model estimates of images, folders of images and videos, as they
    are computed.

    Args:
        run: whatever `mspose.load` takes.
        inputs: paths, see `find_sources`.
        out: a file, or for `colmap` a folder that is not there; by default standard output.
        format: `csv`, `jsonl`, `tum` or `colmap`, see `trajectory_files`.
        scene: the scene of all images; by default that of each is predicted.
        every: of videos, one frame in so many.
        fps: of images, how many a second, for the timestamps of `tum`; see `with_times`.
        focal_px: focal length of all images in their own pixels, to compare with training and for
            COLMAP's cameras.
        on_bad_frame: `stop`, or `skip` to leave out images that cannot be read, which are named.

    Raises MsposeError for inputs that cannot be read, and where the format needs a scene and none
    is given.
    """
    sources = find_sources(inputs, every=every or 1)
    check_options(sources, format, every=every, fps=fps, focal_px=focal_px)
    times = ""
    if format == "tum":
        sources, times = with_times(sources, fps)
    folder = colmap_folder(sources) if format == "colmap" else Path()
    estimator = load(run, device)
    if scene is not None:
        estimator.check_scene(scene)
    elif format in ONE_FRAME and len(estimator.scenes) > 1:
        known = ", ".join(estimator.scenes)
        raise MsposeError(
            f"--format {format} is of one scene; the model knows several, choose with --scene:"
            f" {known}"
        )

    check = QueryCheck(training_images(estimator.description.get("trained_on") or {}), focal_px)
    formats: dict[str, PoseFile] = {
        "csv": CsvFile(estimator.scenes),
        "jsonl": JsonLines(),
        "tum": TumFile(times),
        "colmap": ColmapFile(folder, None if out is None else check.camera),
    }
    pose_file = formats[format]
    counts = [source.images for source in sources]
    total = None if None in counts else sum(count or 0 for count in counts)
    bar = tqdm(total=total, desc="predicting", unit="image", disable=not progress)
    prepared = prepare(sources, estimator.preprocessing, batch_size, stop=on_bad_frame == "stop")
    done, left_out = 0, 0
    with open_output(out, pose_file) as write, bar, logging_redirect_tqdm([log]):
        write(pose_file.begin())
        for batch in ahead(prepared):
            for fault in batch.faults:
                log.warning("left out: %s", fault)
            for view in batch.views:
                for words in check.findings(view):
                    log.warning("%s", words)
            estimates = estimator.estimates_of(batch.image_B3HW, scene)
            write(
                "".join(pose_file.pose(*pair) for pair in zip(batch.views, estimates, strict=True))
            )
            done, left_out = done + len(batch.views), left_out + len(batch.faults)
            bar.update(len(batch.views) + len(batch.faults))
        if done == 0:
            raise MsposeError(f"none of {left_out} images could be read")
    if left_out:
        log.warning("left out %d of %d images", left_out, done + left_out)
    if summary := check.summary():
        log.warning("%s", summary)


def check_options(
    sources: Sequence[Source],
    format: str,
    *,
    every: int | None,
    fps: float | None,
    focal_px: float | None,
) -> None:
    """Raise MsposeError for an option that would change nothing, and for an endless number."""
    for name, value in (("fps", fps), ("focal_px", focal_px)):
        if value is not None and not 0 < value < math.inf:
            raise MsposeError(f"--{name} {value:g}: expected a positive, finite number")
    if every is not None and not any(isinstance(source, Video) for source in sources):
        raise MsposeError("--every: without effect on images, it is for videos: leave it out")
    if fps is not None and format != "tum":
        raise MsposeError(
            f"--fps: without effect on --format {format}, it is for the timestamps of tum: leave"
            " it out"
        )


@dataclass(frozen=True)
class Prepared:
    """A batch of images, ready for the network."""

    views: list[View]
    image_B3HW: Tensor
    faults: list[str]
    """What is wrong with images that are left out."""


def prepare(
    sources: Sequence[Source], preprocessing: Preprocessing, batch_size: int, *, stop: bool
) -> Iterator[Prepared]:
    """Batches of at most `batch_size` images; of an image no more is kept in memory than the
    network's input.

    Raises MsposeError at an image that cannot be read, if `stop`.
    """
    views: list[View] = []
    images: list[Tensor] = []
    faults: list[str] = []
    for found in read_views(sources):
        if isinstance(found, MsposeError):
            if stop:
                raise MsposeError(
                    f"{found}; mend it, or leave such images out with --on-bad-frame skip"
                ) from found
            faults.append(str(found))
        else:
            view, image_HW3 = found
            views.append(view)
            images.append(preprocessing(image_HW3))
        if len(views) + len(faults) == batch_size:
            yield Prepared(views, _batch_of(images), faults)
            views, images, faults = [], [], []
    if views or faults:
        yield Prepared(views, _batch_of(images), faults)


def _batch_of(images: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(images)) if images else torch.zeros(0, 3, 1, 1)
