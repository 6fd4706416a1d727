"""TensorBoard events of a training run: scalars of steps, and an evaluation after an epoch.

An evaluation logs, for a fixed choice of training frames and of held-out frames, median errors,
recall, scene accuracy and a plot of the trajectory, and for a few of them the attention entropy
(Zhai et al., ICML 2023), the similarity of different queries' attention and the query-key gap of
every encoder layer, the similarity of tokens behind it (Gong et al., arXiv 2104.12753), and entropy
and similarity of the scenes' attention in every decoder layer. Attention is measured before the
first step as well. A layer whose attention collapsed is named in the log.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import yaml
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, Summary, SummaryMetadata
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mspose import distributed
from mspose.attention.attention_json import write_start
from mspose.attention.measures import AttentionMeasures
from mspose.attention.sample_frames import denormalized
from mspose.config import Settings
from mspose.data.batches import Batch, Batches
from mspose.data.frames import evenly
from mspose.errors import MsposeError
from mspose.inference import predict_frames
from mspose.metrics import ESTIMATED_POSITION, TRUE_POSITION, compute_metrics
from mspose.models.network import PoseNetwork
from mspose.models.transformer import EncoderLayer
from mspose.poses import widest_axes
from mspose.run import EVENTS, Run
from mspose.verdict import COLLAPSED, DEFAULT, UNIFORM, Thresholds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("mspose")
ATTENTION_FRAMES = 8
SHOWN_IMAGES = 8
DESCRIPTIONS = {
    "loss/total": (
        "Under learned weights each pose term is L exp(-s) + s, so that the total goes below zero"
        " as the errors shrink; under fixed weights it stays above."
    )
}
"""Text that TensorBoard shows beside a scalar, by tag."""
HYPER_PARAMETERS = "hparams"
"""Folder, in a run's, of the events for TensorBoard's page of hyper-parameters."""


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
        recall: Sequence[tuple[float, float]] = (),
        judged_by: Thresholds = DEFAULT,
    ):
        """Open the event file.

        Args:
            frames: how many an evaluation uses of each part at most.
            recall: its thresholds, pairs of metres and degrees.
            judged_by: thresholds of the words for attention.
        """
        self.folder, self.first_step, self.frames = folder, first_step, frames
        self.recall = recall
        self.collapse = CollapseLog(judged_by)
        self.writer: SummaryWriter | None = None
        if distributed.is_main():
            with _one_line(folder):
                self.writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=30)

    def settings(self, settings: Settings) -> None:
        """Write the settings as text."""
        text = yaml.safe_dump(asdict(settings), sort_keys=False)
        verbatim = indent(text, "    ")  # in Markdown
        self._write(lambda writer: writer.add_text("settings", verbatim, self.first_step))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of one step, by tag."""

        def add(writer: SummaryWriter) -> None:
            for tag, value in values.items():
                if tag in DESCRIPTIONS:
                    writer._get_file_writer().add_summary(_described(tag, value), step)
                else:
                    writer.add_scalar(tag, value, step)

        self._write(add)

    def images(self, step: int, batch: Batch, batches: Batches) -> None:
        """Write the first images of a batch as the network gets them, without the normalisation."""
        image_B3HW = denormalized(batch, batches)[:SHOWN_IMAGES]
        self._write(lambda writer: writer.add_images("inputs/after_augmentation", image_B3HW, step))

    def start(self, network: PoseNetwork, parts: Mapping[str, Batches]) -> None:
        """Measure attention before the first step, which later is compared with it: as scalars of
        step 0, and in the run's folder.
        """
        if self.writer is None or not network.has_attention:
            return
        measures = measure_attention(network, list(parts.values())[-1])
        self.scalars(0, attention_scalars(measures))
        write_start(self.folder, measures)

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
            average = compute_metrics(table, thresholds=self.recall)["average"]
            values[f"median_position_m/{name}"] = average["median_position_error_m"]
            values[f"median_orientation_deg/{name}"] = average["median_orientation_error_deg"]
            values[f"scene_accuracy/{name}"] = average["scene_accuracy"]
            for (metres, degrees), share in zip(self.recall, average["recall"], strict=True):
                values[f"recall_{metres:g}m_{degrees:g}deg/{name}"] = share
            figure = trajectory_figure(table)
            with _one_line(self.folder):
                self.writer.add_figure(f"trajectory/{name}", figure, step)
        if self.writer is None:
            return {}
        measures = measure_attention(network, list(parts.values())[-1])
        self.collapse.report(measures)
        values |= attention_scalars(measures)
        self.scalars(step, values)
        self._write(SummaryWriter.flush)
        return values

    def close(self) -> None:
        """Flush and close the event file."""
        self._write(SummaryWriter.close)

    def _write(self, write: Callable[[SummaryWriter], object]) -> None:
        """Call `write` with the writer, in the process that has one."""
        if self.writer is not None:
            with _one_line(self.folder):
                write(self.writer)


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Raise MsposeError where events cannot be written."""
    try:
        yield
    except OSError as error:
        raise MsposeError(
            f"cannot write TensorBoard events to {folder}: {error.strerror or error}; the last"
            " checkpoint is kept"
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
    with _one_line(folder):
        for file in folder.glob(EVENTS):
            file.unlink()
        with SummaryWriter(str(folder)) as writer:
            for summary in hparams(plain, medians):
                writer.file_writer.add_summary(summary)
            for tag, value in medians.items():
                writer.add_scalar(tag, value)


def measure_attention(network: PoseNetwork, batches: Batches) -> AttentionMeasures:
    """Measure the attention on a few frames; nothing of a network without any."""
    measures = AttentionMeasures()
    if not network.has_attention:
        return measures
    training = network.training
    network.eval()
    with torch.inference_mode():
        for batch in batches.in_order(evenly(len(batches.frames), ATTENTION_FRAMES)):
            network(batch.image_B3HW, observer=measures)
    network.train(training)
    return measures


def attention_scalars(measures: AttentionMeasures) -> dict[str, float]:
    """Return the scalars of every layer by tag, `<metric>/<branch>_layer_<n>`.

    `attention_entropy`, `attention_similarity`, `query_key_gap` and `token_similarity` are of
    encoder layers (tokens of layer 0: before the first), `decoder_entropy` and `decoder_similarity`
    of decoder layers, means over the scenes' queries.
    """
    tags = {"entropy": "attention_entropy", "similarity": "attention_similarity"}
    tags["query_key_gap"] = "query_key_gap"
    values = {
        f"{tag}/{branch}_layer_{number}": layer.mean()[name]
        for (branch, number), layer in measures.layers.items()
        for name, tag in tags.items()
    }
    for (branch, number), tokens in measures.tokens_of.items():
        similarity = tokens.mean()
        values[f"token_similarity/{branch}_layer_{number}"] = similarity["after"]
        if number == 1:
            values[f"token_similarity/{branch}_layer_0"] = similarity["before"]
    for (branch, number), scenes in measures.decoders.items():
        mean = scenes.mean()
        values[f"decoder_entropy/{branch}_layer_{number}"] = mean["entropy"]
        if not math.isnan(mean["similarity"]):  # of a single scene
            values[f"decoder_similarity/{branch}_layer_{number}"] = mean["similarity"]
    return values


def query_key_gradients(network: PoseNetwork) -> dict[str, Tensor]:
    """Compute the norm of the gradient of the query and key weights of every encoder layer that
    learns, by tag, `query_key_gradient_norm/<branch>_layer_<n>`.

    It vanishes where attention no longer learns what to attend to.
    """
    norms = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, EncoderLayer):
            continue
        attention = layer.self_attention
        if attention.in_proj_weight.grad is not None:
            branch, *_, number = name.split(".")  # position.encoder.layers.0
            gradient_2CC = attention.in_proj_weight.grad[: 2 * attention.dim]
            tag = f"query_key_gradient_norm/{branch}_layer_{int(number) + 1}"
            norms[tag] = torch.linalg.vector_norm(gradient_2CC)
    return norms


class CollapseLog:
    """Logs when a layer's attention collapses (a warning) and when it becomes uniform.

    A state is logged once, until the layer has been in another. Uniform attention is not logged
    where the layer has had no other: a fresh network starts with it.
    """

    def __init__(self, thresholds: Thresholds = DEFAULT) -> None:
        self.thresholds = thresholds
        self._before: dict[tuple[str, str, int], str | None] = {}

    def report(self, measures: AttentionMeasures) -> None:
        """Log what changed since the last report."""
        found = {
            (part, *key): (layer.verdict(self.thresholds), layer.mean())
            for part, layers in (("encoder", measures.layers), ("decoder", measures.decoders))
            for key, layer in layers.items()
        }
        for key, (word, mean) in found.items():
            part, branch, number = key
            before = self._before.get(key, UNIFORM)
            if word != before and word in (COLLAPSED, UNIFORM):
                log.log(
                    logging.WARNING if word == COLLAPSED else logging.INFO,
                    "attention of %s %s layer %d is %s: entropy %.2f of at most %.2f nats,"
                    " similarity %.2f",
                    branch,
                    part,
                    number,
                    word,
                    mean["entropy"],
                    mean["entropy_limit"],
                    mean["similarity"],
                )
        self._before = {key: word for key, (word, _) in found.items()}


def trajectory_figure(table: pd.DataFrame) -> "Figure":
    """Plot true and estimated camera positions of every scene, along the axis in which the true
    ones vary least.
    """
    # here, since it takes longer to load than the whole frame table and no first step needs it
    import matplotlib
    from matplotlib.figure import Figure

    from mspose.plotting import BLUE, VERMILLION

    matplotlib.use("Agg")
    scenes = sorted(table["scene"].unique())
    columns = min(len(scenes), 4)
    rows = -(-len(scenes) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
    for index, scene in enumerate(scenes):
        part = table[table["scene"] == scene]
        axes = figure.add_subplot(rows, columns, index + 1)
        truth_N3 = part[TRUE_POSITION].to_numpy()
        first, second = widest_axes(truth_N3)
        truth_N2 = truth_N3[:, [first, second]]
        estimate_N2 = part[ESTIMATED_POSITION].to_numpy()[:, [first, second]]
        # each pair is joined by a thin line, as long as the error
        pairs_N32 = np.stack([truth_N2, estimate_N2, np.full_like(truth_N2, np.nan)], axis=1)
        axes.plot(*pairs_N32.reshape(-1, 2).T, color="0.75", linewidth=0.6, zorder=1)
        axes.scatter(truth_N2[:, 0], truth_N2[:, 1], s=7, color=BLUE, label="true", zorder=3)
        crosses: Any = {"marker": "x", "linewidths": 0.8, "color": VERMILLION, "zorder": 2}
        axes.scatter(estimate_N2[:, 0], estimate_N2[:, 1], s=7, label="estimated", **crosses)
        axes.set_title(str(scene))
        axes.set_xlabel(f"{'xyz'[first]} (m)")
        axes.set_ylabel(f"{'xyz'[second]} (m)")
        axes.set_aspect("equal", adjustable="datalim")
    figure.axes[0].legend(loc="best", fontsize="small")
    return figure
