"""TensorBoard events of a training run: scalars of steps, and an evaluation after an epoch.

An evaluation logs, for a fixed choice of training frames and of held-out frames, median errors,
recall, scene accuracy and a plot of the trajectory, and for a few of them the attention entropy
(Zhai et al., ICML 2023), the similarity of different queries' attention and the query-key gap of
every encoder layer. A layer whose attention collapsed is named in the log.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, Summary, SummaryMetadata
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mspose import distributed
from mspose.attention.measures import AttentionMeasures, LayerMeasures
from mspose.attention.sample_frames import denormalized
from mspose.config import Settings
from mspose.data.batches import Batch, Batches
from mspose.data.frames import evenly
from mspose.errors import MsposeError
from mspose.inference import predict_frames
from mspose.metrics import compute_metrics
from mspose.models.attention_map import COLLAPSED, HEALTHY, UNIFORM
from mspose.models.network import PoseNetwork
from mspose.poses import widest_axes
from mspose.run import EVENTS, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("mspose")
ATTENTION_FRAMES = 8
SHOWN_IMAGES = 8
BLUE, ORANGE = "#0072B2", "#D55E00"  # from the colour-blind safe palette of Okabe and Ito
DESCRIPTIONS = {
    "loss/total": (
        "Under learned weights each pose term is L exp(-s) + s, so that the total goes below zero"
        " as the errors shrink; under fixed weights it stays above."
    )
}
"""Text that TensorBoard shows beside a scalar, by tag."""
HYPER_PARAMETERS = "hparams"
"""Folder, in a run's, of the events for TensorBoard's page of hyper-parameters."""
Layers = Mapping[tuple[str, int], LayerMeasures]
"""Measures of encoder layers, by (branch, layer counted from 1)."""


class TensorBoardLog:
    """Writes one run's events; they replace what an interrupted process wrote from `first_step` on.

    Of several processes the main one writes; all evaluate, each a part of the frames.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int,
        frames: int,
        thresholds: Sequence[tuple[float, float]] = (),
    ):
        """Open the event file.

        Args:
            frames: how many an evaluation uses of each part at most.
            thresholds: pairs of metres and degrees for recall.
        """
        self.folder, self.first_step, self.frames = folder, first_step, frames
        self.thresholds = thresholds
        self.collapse = CollapseLog()
        self.writer: SummaryWriter | None = None
        if distributed.is_main():
            with self._writing():
                self.writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=30)

    def settings(self, settings: Settings) -> None:
        """Write the settings as text."""
        if self.writer is None:
            return
        text = yaml.safe_dump(asdict(settings), sort_keys=False)
        with self._writing():
            # four blanks before each line: Markdown's verbatim text
            self.writer.add_text("settings", indent(text, "    "), self.first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of one step, by tag."""
        if self.writer is None:
            return
        with self._writing():
            for tag, value in values.items():
                if tag in DESCRIPTIONS:
                    self.writer._get_file_writer().add_summary(_described(tag, value), step)
                else:
                    self.writer.add_scalar(tag, value, step)

    def images(self, step: int, batch: Batch, batches: Batches) -> None:
        """Write the first images of a batch as the network gets them, without the normalisation."""
        if self.writer is None:
            return
        image_B3HW = denormalized(batch, batches)[:SHOWN_IMAGES]
        with self._writing():
            self.writer.add_images("inputs/after_augmentation", image_B3HW, step)

    def evaluate(
        self, step: int, network: PoseNetwork, parts: Mapping[str, Batches]
    ) -> dict[str, float]:
        """Evaluate the network on each part (`train`, `held_out`); write and return the scalars.

        `step` is the last one done, so that a run that goes on with the next one, and purges from
        there, keeps the evaluation. A process that does not write gets no values.
        """
        values: dict[str, float] = {}
        for name, batches in parts.items():
            table = predict_frames(network, batches, evenly(len(batches.frames), self.frames))
            if self.writer is None:
                continue
            average = compute_metrics(table, thresholds=self.thresholds)["average"]
            values[f"median_position_m/{name}"] = average["median_position_error_m"]
            values[f"median_orientation_deg/{name}"] = average["median_orientation_error_deg"]
            values[f"scene_accuracy/{name}"] = average["scene_accuracy"]
            for (metres, degrees), share in zip(self.thresholds, average["recall"], strict=True):
                values[f"recall_{metres:g}m_{degrees:g}deg/{name}"] = share
            with self._writing():
                self.writer.add_figure(f"trajectory/{name}", trajectory_figure(table), step)
        if self.writer is None:
            return {}
        layers = measure_attention(network, list(parts.values())[-1])
        self.collapse.report(layers)
        values |= attention_scalars(layers)
        self.scalars(step, values)
        with self._writing():
            self.writer.flush()
        return values

    def close(self) -> None:
        """Flush and close the event file."""
        if self.writer is not None:
            with self._writing():
                self.writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MsposeError(
                f"cannot write TensorBoard events to {self.folder}: {error.strerror or error}; "
                "the last checkpoint is kept"
            ) from error


def _described(tag: str, value: float) -> Summary:
    """Make the summary of a scalar with its description, which `add_scalar` cannot write."""
    metadata = SummaryMetadata(
        summary_description=DESCRIPTIONS[tag],
        plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"),
        data_class=DATA_CLASS_SCALAR,
    )
    return Summary(value=[Summary.Value(tag=tag, simple_value=value, metadata=metadata)])


def log_hyper_parameters(run: Run, values: Mapping[str, Any]) -> None:
    """Write settings of an evaluated run, and its medians, for TensorBoard's HParams page.

    They replace what was written before. Raises MsposeError where they cannot be written.
    """
    folder, average = run.folder / HYPER_PARAMETERS, run.metrics["average"]
    medians = {
        "test/median_position_m": average["median_position_error_m"],
        "test/median_orientation_deg": average["median_orientation_error_deg"],
    }
    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in values.items()
    }
    try:
        for file in folder.glob(EVENTS):
            file.unlink()
        with SummaryWriter(str(folder)) as writer:
            for summary in hparams(plain, medians):
                writer.file_writer.add_summary(summary)
            for tag, value in medians.items():
                writer.add_scalar(tag, value)
    except OSError as error:
        raise MsposeError(
            f"cannot write TensorBoard events to {folder}: {error.strerror or error}"
        ) from error


def measure_attention(network: PoseNetwork, batches: Batches) -> Layers:
    """Measure the encoders' self-attention on a few frames; empty for a network without any."""
    measures = AttentionMeasures()
    if not network.has_attention:
        return measures.layers
    training = network.training
    network.eval()
    with torch.inference_mode():
        for batch in batches.in_order(evenly(len(batches.frames), ATTENTION_FRAMES)):
            network(batch.image_B3HW, observer=measures)
    network.train(training)
    return measures.layers


def attention_scalars(layers: Layers) -> dict[str, float]:
    """Return `attention_entropy/<branch>_layer_<n>`, `attention_similarity/...` and
    `query_key_gap/...`.
    """
    tags = {"entropy": "attention_entropy", "similarity": "attention_similarity"}
    tags["query_key_gap"] = "query_key_gap"
    return {
        f"{tag}/{branch}_layer_{number}": layer.mean()[name]
        for (branch, number), layer in layers.items()
        for name, tag in tags.items()
    }


class CollapseLog:
    """Logs when a layer's attention collapses (a warning) and when it becomes uniform.

    A state is logged once, until the layer has been in another. Uniform attention is not logged at
    the first evaluation: a fresh network starts with it.
    """

    def __init__(self) -> None:
        self._logged: dict[tuple[str, int], str] | None = None

    def report(self, layers: Layers) -> None:
        """Log what changed since the last evaluation."""
        before = self._logged
        self._logged = {}
        for (branch, number), layer in layers.items():
            found = layer.verdict
            if found == UNIFORM and before is None:
                found = HEALTHY
            if found not in (HEALTHY, (before or {}).get((branch, number))):
                mean = layer.mean()
                log.log(
                    logging.WARNING if found == COLLAPSED else logging.INFO,
                    "attention of %s encoder layer %d is %s: entropy %.2f of at most %.2f nats,"
                    " similarity %.2f",
                    branch,
                    number,
                    found,
                    mean["entropy"],
                    mean["entropy_limit"],
                    mean["similarity"],
                )
            self._logged[branch, number] = found


def trajectory_figure(table: pd.DataFrame) -> "Figure":
    """Plot true and estimated camera positions of every scene, along the axis in which the true
    ones vary least.
    """
    # here, since it takes longer to load than the whole frame table and no first step needs it
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    scenes = sorted(table["scene"].unique())
    columns = min(len(scenes), 4)
    rows = -(-len(scenes) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
    for index, scene in enumerate(scenes):
        part = table[table["scene"] == scene]
        axes = figure.add_subplot(rows, columns, index + 1)
        truth_N3 = part[["tx", "ty", "tz"]].to_numpy()
        estimate_N3 = part[["tx_est", "ty_est", "tz_est"]].to_numpy()
        first, second = widest_axes(truth_N3)
        _draw_pairs(axes, truth_N3[:, [first, second]], estimate_N3[:, [first, second]])
        axes.set_title(str(scene))
        axes.set_xlabel(f"{'xyz'[first]} (m)")
        axes.set_ylabel(f"{'xyz'[second]} (m)")
        axes.set_aspect("equal", adjustable="datalim")
    figure.axes[0].legend(loc="best", fontsize="small")
    return figure


def _draw_pairs(axes, truth_N2: NDArray[np.float64], estimate_N2: NDArray[np.float64]) -> None:  # type: ignore[no-untyped-def]
    """Draw truth and estimate as points, each pair joined by a thin line, as long as the error."""
    pairs = np.stack([truth_N2, estimate_N2, np.full_like(truth_N2, np.nan)], axis=1).reshape(-1, 2)
    axes.plot(*pairs.T, color="0.75", linewidth=0.6, zorder=1)
    axes.scatter(*truth_N2.T, s=7, color=BLUE, label="true", zorder=3)
    axes.scatter(
        *estimate_N2.T, s=7, color=ORANGE, marker="x", linewidths=0.8, label="estimated", zorder=2
    )
