"""Figures of studies of attention, written as files and for TensorBoard."""

import logging
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

from mspose.attention.attention_json import Arrays, Study, layers_of, read_study
from mspose.attention.curves import entropy_figure, gap_figure, tokens_figure
from mspose.attention.encoding_figure import encoding_figure
from mspose.attention.knock_out_figure import knock_out_figure
from mspose.attention.maps import FRAMES_ACROSS, decoder_maps_figure, encoder_maps_figure
from mspose.attention.query_key_space import Projection, space_figure
from mspose.attention.verdict_figure import purity_figure, verdict_figure
from mspose.config import BRANCHES
from mspose.errors import MsposeError
from mspose.files import read_arrays
from mspose.plotting import save_figure
from mspose.run import EVENTS, SAMPLES, Run

Figures = Mapping[str, Callable[[], Figure]]
"""Functions that draw a figure, by the name of its file."""

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
    """Draw the studies of runs: each run's own figures into `<run>/attention/`, and for TensorBoard
    beside them.

    With `out`, further figures there, for TensorBoard as well, overlay the runs (entropy, tokens'
    similarity, query-key gap, purity, position encodings) or put them beside each other (verdicts,
    query-key space). Runs that differ in their seed alone count as one variant. A figure without
    data is left out, and the log says why; so are the figures of frames where a run has no
    `samples.npz`.

    Args:
        branch: of the query-key space; both where none is given.
        layer: from 1, of the query-key space (the last where none is given) and of maps of
            attention (the encoder's first, middle and last, the decoder's last).
        head: from 1, of the query-key space (1 where none is given), of maps of attention and of
            purity (all heads).

    Returns:
        The PNG files written, at 300 dots per inch.

    Raises:
        MsposeError: a run has no study, a file of it is broken, or a figure cannot be written.
    """
    studies = [read_study(run) for run in runs]
    samples = [read_samples(run) for run in runs]
    names = labels(studies)
    chosen = (branch, layer, head)
    written: list[Path] = []
    for run, name, study, arrays in zip(runs, names, studies, samples, strict=True):
        folder = Run(run).attention_file.parent
        figures = _of_runs([(name, study)], [arrays], chosen, projection)
        files = _write(folder, figures | _of_frames(arrays, layer=layer, head=head))
        _show_in_tensorboard(folder, files)
        written += files
    if out is not None:
        files = _write(
            out, _of_runs(list(zip(names, studies, strict=True)), samples, chosen, projection)
        )
        _show_in_tensorboard(out, files)
        written += files
    return written


def labels(studies: Sequence[Study]) -> list[str]:
    """Label the studies for legends by variant, after the experiment where there are several; seeds
    of a variant share a label.
    """
    several = len({study["experiment"] for study in studies}) > 1
    found = []
    for study in studies:
        name = f"{study['experiment']}/{study['variant']}" if several else study["variant"]
        found.append(f"{name} (quick)" if study["quick"] else name)
    return found


def read_samples(run: Path) -> dict[str, NDArray[Any]] | None:
    """Read a run's `samples.npz`; None where there is none. Raises MsposeError for a broken one."""
    path = Run(run).samples_file
    if not path.is_file():
        return None
    try:
        arrays = read_arrays(path)
        if lacking := sorted({"image_F", "scenes", "scene_names"} - arrays.keys()):
            raise ValueError(f"without {lacking[0]}")
        return arrays
    except (OSError, ValueError) as error:
        raise MsposeError(
            f"{path} is broken ({error}): run `mspose attention {run}` again"
        ) from error


def _of_runs(
    studies: Sequence[tuple[str, Study]],
    samples: Sequence[Arrays | None],
    chosen: tuple[str | None, int | None, int | None],
    projection: Projection,
) -> dict[str, Callable[[], Figure]]:
    """List the figures that one run or several can share; `chosen` is branch, layer and head."""
    branch, layer, head = chosen
    figures: dict[str, Callable[[], Figure]] = {
        "entropy": partial(entropy_figure, studies),
        "tokens": partial(tokens_figure, studies),
        "query-key-gap": partial(gap_figure, studies),
        "purity": partial(purity_figure, studies, head=head),
        "verdicts": partial(verdict_figure, studies),
        "encoding": partial(encoding_figure, studies, samples),
    }
    if any(study["knock_out"] is not None for _, study in studies):
        figures["knock-out"] = partial(knock_out_figure, studies)
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
            figures["space-{}-layer-{}-head-{}".format(*shown)] = partial(
                space_figure, given, *shown, projection=projection
            )
    return figures


def _of_frames(
    arrays: Arrays | None, *, layer: int | None, head: int | None
) -> dict[str, Callable[[], Figure]]:
    """List the figures of attention over the sample frames of one run."""
    if arrays is None:
        log.info("no figures of attention in frames: the run holds no %s", SAMPLES)
        return {}
    frames = range(len(arrays["image_F"]))
    figures: dict[str, Callable[[], Figure]] = {}
    for frame in frames:
        figures[f"encoder-attention-{frame + 1}"] = partial(
            encoder_maps_figure, arrays, frame=frame, layer=layer, head=head
        )
    for sheet, first in enumerate(frames[::FRAMES_ACROSS]):
        shown = frames[first : first + FRAMES_ACROSS]
        figures[f"decoder-attention-{sheet + 1}"] = partial(
            decoder_maps_figure, arrays, frames=shown, layer=layer, head=head
        )
    return figures


def _write(folder: Path, figures: Figures) -> list[Path]:
    """Write the figures as PNG; the log says which cannot be drawn, and why."""
    files = []
    for name, make in figures.items():
        try:
            figure = make()
        except MsposeError as reason:
            log.info("no %s: %s", folder / f"{name}.png", reason)
            continue
        files.append(save_figure(figure, folder / f"{name}.png"))
    return files


def _show_in_tensorboard(folder: Path, files: Sequence[Path]) -> None:
    """Write the files as images of a TensorBoard run of their own, beside the training's; earlier
    ones are removed.
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
