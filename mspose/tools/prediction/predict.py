"""`mspose predict`: estimate the poses of images on disk and write them to a file."""

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
    """Write the poses that a model estimates of images and videos, as they are computed.

    Args:
        run: as for `mspose.load`.
        inputs: paths, see `find_sources`.
        out: a file, or for `colmap` a folder that does not exist; by default standard output.
        format: `csv`, `jsonl`, `tum` or `colmap`, see `pose_files`.
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


def _check_options(
    sources: Sequence[Source],
    format: str,
    *,
    every: int | None,
    fps: float | None,
    focal_px: float | None,
) -> None:
    """Raise MsposeError for an option without effect, and for a number that is not finite."""
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
