"""`mspose predict`: estimate the poses of images on disk and write them to a file."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mspose.allocator import keep_freed_memory
from mspose.data.batches import ahead
from mspose.errors import MsposeError
from mspose.inference import Preprocessing, load
from mspose.tools.prediction.inputs import Query, Source, Video, find_sources, read_queries
from mspose.tools.prediction.pose_files import (
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
from mspose.tools.prediction.training_images import QueryCheck, training_images

log = logging.getLogger("mspose")


def predict_poses(
    run: str,
    images: list[str],
    *,
    scene: str | None = None,
    format: Literal["csv", "jsonl", "tum", "colmap"] = "csv",
    out: Path | None = None,
    every: PositiveInt | None = None,
    fps: PositiveFloat | None = None,
    focal_px: PositiveFloat | None = None,
    batch_size: PositiveInt = 16,
    device: str = "auto",
    on_bad_frame: Literal["stop", "skip"] = "stop",
    progress: bool = True,
) -> Path | None:
    """Estimate the poses of images, of the images in folders, or of videos.

    A pose is the camera centre in metres and the camera-to-world quaternion w x y z, in the scene
    that the model takes each image for. Poses are written as they are computed. For errors and
    recall run `mspose evaluate RUN`: `evaluate --predictions` takes files that hold the true poses
    as well.

    Args:
        run: folder of a run or of a model, or user/name on the hub.
        images: images; folders, for all images in them and in folders below; videos that OpenCV
            opens.
        scene: the scene of all images (default: predicted for each).
        format: csv; JSON lines; TUM trajectory (timestamp tx ty tz qx qy qz qw); COLMAP's
            images.txt, world-to-camera.
        out: file to write, in place of printing; with colmap, folder of a model without points.
        every: of a video, one frame in so many (default: all).
        fps: images a second, for timestamps of tum (default: the numbers that their names are, else
            1).
        focal_px: focal length of the images in their own pixels, compared with training and used
            for COLMAP's cameras (default: from EXIF; for cameras, else as in training).
        progress: no progress bar.

    Returns:
        `out`.

    Raises:
        MsposeError: images that cannot be read, or a format that needs a scene and none is given.
    """
    keep_freed_memory()
    sources = find_sources(images, every=every or 1)
    _check_options(sources, format, every=every, fps=fps, focal_px=focal_px)
    times = ""
    if format == "tum":
        sources, times = with_times(sources, fps)
    folder = colmap_folder(sources) if format == "colmap" else Path()
    estimator = load(run, device)
    if scene is not None:
        estimator.check_scene(scene)
    elif format in ONE_FRAME and len(estimator.scenes) > 1:
        raise MsposeError(
            f"--format {format} is of one scene; the model knows several, choose with --scene:"
            f" {', '.join(estimator.scenes)}"
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
    batches = read_batches(
        sources, estimator.preprocessing, batch_size, stop=on_bad_frame == "stop"
    )
    done, left_out = 0, 0
    with open_output(out, pose_file) as write, bar, logging_redirect_tqdm([log]):
        write(pose_file.begin())
        for batch in ahead(batches):
            for fault in batch.faults:
                log.warning("left out: %s", fault)
            for query in batch.queries:
                for warning in check.warnings(query):
                    log.warning("%s", warning)
            estimates = estimator.estimates_of(batch.image_B3HW, scene)
            pairs = zip(batch.queries, estimates, strict=True)
            write("".join(pose_file.pose(*pair) for pair in pairs))
            done, left_out = done + len(batch.queries), left_out + len(batch.faults)
            bar.update(len(batch.queries) + len(batch.faults))
        if done == 0:
            raise MsposeError(f"none of {left_out} images could be read")
    if left_out:
        log.warning("left out %d of %d images", left_out, done + left_out)
    if summary := check.summary():
        log.warning("%s", summary)
    return out


def _check_options(
    sources: Sequence[Source],
    format: str,
    *,
    every: int | None,
    fps: float | None,
    focal_px: float | None,
) -> None:
    """Raise MsposeError for an option without effect, and for a number that is not finite."""
    for name, value in (("fps", fps), ("focal-px", focal_px)):
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
class PredictionBatch:
    """Images that are ready for the network."""

    queries: list[Query]
    image_B3HW: Tensor
    faults: list[str]
    """Errors of images that are left out."""


def read_batches(
    sources: Sequence[Source], preprocessing: Preprocessing, batch_size: int, *, stop: bool
) -> Iterator[PredictionBatch]:
    """Batches of at most `batch_size` images; only the network's input is kept in memory.

    Raises MsposeError at an image that cannot be read, if `stop`.
    """
    queries: list[Query] = []
    images: list[Tensor] = []
    faults: list[str] = []

    def batch() -> PredictionBatch:
        image_B3HW = torch.cat(images) if images else torch.zeros(0, 3, 1, 1)
        return PredictionBatch(queries, image_B3HW, faults)

    for found in read_queries(sources):
        if isinstance(found, MsposeError):
            if stop:
                raise MsposeError(
                    f"{found}; mend it, or leave such images out with --on-bad-frame skip"
                ) from found
            faults.append(str(found))
        else:
            query, image_HW3 = found
            queries.append(query)
            images.append(preprocessing(image_HW3))
        if len(queries) + len(faults) == batch_size:
            yield batch()
            queries, images, faults = [], [], []
    if queries or faults:
        yield batch()
