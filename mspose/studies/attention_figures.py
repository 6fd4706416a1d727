"""Pictures of studies of attention: `draw` writes them as files and for TensorBoard, the others
return figures.
"""

import logging
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from mspose.attention.curves import entropy_figure, gap_figure
from mspose.attention.encodings import encoding_figure
from mspose.attention.labelled import Arrays, Study, layers_of
from mspose.attention.maps import FRAMES_ACROSS, decoder_maps_figure, encoder_maps_figure
from mspose.attention.record import SAMPLES, read_study
from mspose.attention.space import Projection, space_figure
from mspose.attention.training_log import EVENTS
from mspose.attention.verdicts import purity_figure, verdict_figure
from mspose.errors import MsposeError
from mspose.models.network import BRANCHES
from mspose.plotting import save_figure

__all__ = [
    "decoder_maps_figure",
    "draw",
    "encoder_maps_figure",
    "encoding_figure",
    "entropy_figure",
    "gap_figure",
    "labels",
    "purity_figure",
    "read_samples",
    "save_figure",
    "space_figure",
    "verdict_figure",
]

Pictures = Mapping[str, Callable[[], Figure]]
"""What draws a figure, by the name of its file."""

log = logging.getLogger("mspose")


def draw(
    runs: Sequence[Path],
    *,
    out: Path | None = None,
    branch: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    projection: Projection = "tsne",
) -> list[Path]:
    """Draw the studies of runs: each run's own pictures into `<run>/attention/`, and for
    TensorBoard beside them.

    With `out`, further pictures there, for TensorBoard as well, lay the runs over each other
    (entropy, query-key distance, purity, position encodings) or beside each other (verdicts,
    query-key space). Runs that differ in their seed alone count as one variant. A picture that
    there is nothing to draw in is left out, and the log says why; so are the pictures of frames
    where a run has no `samples.npz`.

    Args:
        branch: of the query-key space; both where none is given.
        layer: from 1, of the query-key space (the last where none is given) and of maps of
            attention (the encoder's first, middle and last, the decoder's last).
        head: from 1, of the query-key space (1 where none is given), of maps of attention and of
            purity (all heads).

    Returns:
        The PNG files written, at 300 dots per inch.

    Raises:
        MsposeError: a run has no study, a file of it is broken, or a picture cannot be written.
    """
    studies = [read_study(run) for run in runs]
    samples = [read_samples(run) for run in runs]
    names = labels(studies)
    place = (branch, layer, head)
    written: list[Path] = []
    for run, name, study, arrays in zip(runs, names, studies, samples, strict=True):
        pictures = _of_runs([(name, study)], [arrays], place, projection)
        files = _write(run / "attention", pictures | _of_frames(arrays, layer=layer, head=head))
        _show_in_tensorboard(run / "attention", files)
        written += files
    if out is not None:
        files = _write(
            out, _of_runs(list(zip(names, studies, strict=True)), samples, place, projection)
        )
        _show_in_tensorboard(out, files)
        written += files
    return written


def labels(studies: Sequence[Study]) -> list[str]:
    """What legends call the studies: their variant, after the experiment where there are several;
    seeds share one.
    """
    several = len({study["experiment"] for study in studies}) > 1
    return [
        (f"{study['experiment']}/" if several else "")
        + study["variant"]
        + (" (quick)" if study["quick"] else "")
        for study in studies
    ]


def read_samples(run: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of a run's `samples.npz`; None where there is none. Raises MsposeError where it is
    broken.
    """
    path = run / SAMPLES
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        if lacking := sorted({"image_F", "scenes", "scene_names"} - arrays.keys()):
            raise ValueError(f"without {lacking[0]}")
        return arrays
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MsposeError(
            f"{path} is broken ({error}): run `mspose attention {run}` again"
        ) from error


def _of_runs(
    studies: Sequence[tuple[str, Study]],
    samples: Sequence[Arrays | None],
    place: tuple[str | None, int | None, int | None],
    projection: Projection,
) -> dict[str, Callable[[], Figure]]:
    """The pictures that one run or several can share; `place`: branch, layer and head."""
    branch, layer, head = place
    pictures: dict[str, Callable[[], Figure]] = {
        "entropy": partial(entropy_figure, studies),
        "query-key-distance": partial(gap_figure, studies),
        "purity": partial(purity_figure, studies, head=head),
        "verdicts": partial(verdict_figure, studies),
        "encoding": partial(encoding_figure, studies, samples),
    }
    count = Counter(label for label, _ in studies)
    given = [
        (label if count[label] == 1 else f"{label}, seed {study['seed']}", arrays)
        for (label, study), arrays in zip(studies, samples, strict=True)
        if arrays is not None
    ]
    for name in BRANCHES if branch is None else (branch,):
        last = max((number for _, study in studies for number in layers_of(study, name)), default=0)
        if given and last:
            shown = (name, layer or last, head or 1)
            pictures["space-{}-layer-{}-head-{}".format(*shown)] = partial(
                space_figure, given, *shown, projection=projection
            )
    return pictures


def _of_frames(
    arrays: Arrays | None, *, layer: int | None, head: int | None
) -> dict[str, Callable[[], Figure]]:
    """Attention over the sample frames of one run."""
    if arrays is None:
        log.info("no pictures of attention in frames: the run holds no %s", SAMPLES)
        return {}
    layers = None if layer is None else [layer]
    frames = range(len(arrays["image_F"]))
    pictures: dict[str, Callable[[], Figure]] = {}
    for frame in frames:
        pictures[f"encoder-attention-{frame + 1}"] = partial(
            encoder_maps_figure, arrays, frame=frame, layers=layers, head=head
        )
    for sheet, first in enumerate(frames[::FRAMES_ACROSS]):
        shown = frames[first : first + FRAMES_ACROSS]
        pictures[f"decoder-attention-{sheet + 1}"] = partial(
            decoder_maps_figure, arrays, frames=shown, layer=layer, head=head
        )
    return pictures


def _write(folder: Path, pictures: Pictures) -> list[Path]:
    """The pictures' files, whole; what cannot be drawn is said."""
    files = []
    for name, make in pictures.items():
        try:
            figure = make()
        except MsposeError as reason:
            log.info("no %s: %s", folder / f"{name}.png", reason)
            continue
        files.append(save_figure(figure, folder / f"{name}.png"))
    return files


def _show_in_tensorboard(folder: Path, files: Sequence[Path]) -> None:
    """The pictures as images of a TensorBoard run of their own, beside the training's; earlier ones
    go.
    """
    earlier = list(folder.glob(EVENTS))
    try:
        with SummaryWriter(str(folder)) as writer:
            for file in files:
                with Image.open(file) as picture:
                    pixels_HW3 = np.asarray(picture.convert("RGB").reduce(2))
                writer.add_image(f"attention/{file.stem}", pixels_HW3, dataformats="HWC")
        for path in earlier:
            path.unlink()
    except OSError as error:
        raise MsposeError(
            f"cannot write TensorBoard events to {folder}: {error.strerror or error}"
        ) from error
