"""What TensorBoard shows of a training run: loss terms step by step, and a closer look after an
epoch.

A look reports, on a fixed choice of training frames and of held-out frames, median errors and scene
accuracy, and on a few of them the attention entropy (Zhai et al., ICML 2023), the similarity of
different queries' attention and the query-key gap of every encoder layer. A layer whose attention
collapsed raises a line in the log.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mspose import distributed
from mspose.data.batches import Batch, Batches
from mspose.data.frames import evenly
from mspose.errors import MsposeError
from mspose.inference import predict_frames
from mspose.metrics import compute_metrics
from mspose.models.attention_map import (
    COLLAPSED,
    HEALTHY,
    UNIFORM,
    AttentionMap,
    attention_entropy,
    attention_similarity,
    query_key_gap,
    verdict,
)
from mspose.models.network import Observer, PoseNetwork
from mspose.poses import widest_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("mspose")
ATTENTION_FRAMES = 8
SAMPLE_IMAGES = 8
BLUE, ORANGE = "#0072B2", "#D55E00"  # from the colour-blind safe palette of Okabe and Ito


class Monitor:
    """Writes one run's TensorBoard events; they supersede what an interrupted process wrote from
    `first_step` on.

    Of several processes the main one writes; all look, sharing the frames out.
    """

    def __init__(self, folder: Path, *, first_step: int, frames: int):
        self.folder, self.frames = folder, frames
        self.alarm = Alarm()
        self.writer: SummaryWriter | None = None
        if distributed.is_main():
            with self._writing():
                self.writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=30)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of one optimisation step."""
        if self.writer is None:
            return
        with self._writing():
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def samples(self, step: int, batch: Batch, batches: Batches) -> None:
        """The first images of a batch as the network sees them, with the normalisation undone."""
        if self.writer is None:
            return
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (batches.mean, batches.std))
        image_B3HW = batch.image_B3HW[:SAMPLE_IMAGES].float().cpu() * std + mean
        with self._writing():
            self.writer.add_images("inputs/after_augmentation", image_B3HW.clamp(0, 1), step)

    def look(
        self, step: int, network: PoseNetwork, parts: Mapping[str, Batches]
    ) -> dict[str, float]:
        """Medians, scene accuracy, attention and a trajectory plot of each part (`train`,
        `held_out`), as logged.

        `step` counts the steps done. The look stands beside the last of them, so that a run that
        continues with step number `step`, and purges from there on, keeps it. A process that does
        not write gets no values.
        """
        step -= 1
        values: dict[str, float] = {}
        for name, batches in parts.items():
            table = predict_frames(network, batches, evenly(len(batches.frames), self.frames))
            if self.writer is None:
                continue
            average = compute_metrics(table, thresholds=[])["average"]
            values[f"median_position_m/{name}"] = average["median_position_error_m"]
            values[f"median_orientation_deg/{name}"] = average["median_orientation_error_deg"]
            values[f"scene_accuracy/{name}"] = average["scene_accuracy"]
            with self._writing():
                self.writer.add_figure(f"trajectory/{name}", trajectory_figure(table), step)
        if self.writer is None:
            return {}
        layers = attention_of_layers(network, list(parts.values())[-1])
        self.alarm.hear(layers)
        for layer in layers:
            values |= layer.figures()
        self.step(step, values)
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


@dataclass(frozen=True)
class LayerAttention:
    """The self-attention of one encoder layer in figures: means over images and heads."""

    branch: str
    layer: int
    """Counts from 1."""
    tokens: int
    entropy: float
    """In nats; at most log(tokens)."""
    similarity: float
    """Mean cosine of different queries' attention, 0 to 1."""
    gap: float
    """Distance between mean query and mean key."""

    @property
    def name(self) -> str:
        """`<branch>_layer_<n>`."""
        return f"{self.branch}_layer_{self.layer}"

    @property
    def verdict(self) -> str:
        """`healthy`, `uniform` or `collapsed`, see `mspose.models.attention_map.verdict`."""
        return verdict(self.entropy, self.similarity, self.tokens)

    def figures(self) -> dict[str, float]:
        """As they are logged: `attention_entropy/<name>`, `attention_similarity/<name>`,
        `query_key_gap/<name>`.
        """
        return {
            f"attention_entropy/{self.name}": self.entropy,
            f"attention_similarity/{self.name}": self.similarity,
            f"query_key_gap/{self.name}": self.gap,
        }


class _Figures(Observer):
    """Entropy, similarity and gap of every encoder layer, figure_B3 of one batch after the other;
    and the tokens.
    """

    def __init__(self) -> None:
        self.figures: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
        self.tokens: dict[tuple[str, int], int] = {}

    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        gap_BH = query_key_gap(attention.query_BHQD, attention.key_BHKD)
        figures = (attention_entropy(attention), attention_similarity(attention), gap_BH)
        self.figures[branch, layer].append(
            torch.stack([figure_BH.mean(dim=1) for figure_BH in figures], dim=1)
        )
        self.tokens[branch, layer] = attention.key_BHKD.shape[2]


def attention_of_layers(network: PoseNetwork, batches: Batches) -> list[LayerAttention]:
    """What the encoders' self-attention is on a few frames, layer by layer; of a network that has
    none, nothing.
    """
    if not network.has_attention:
        return []
    watch = _Figures()
    training = network.training
    network.eval()
    with torch.inference_mode():
        for batch in batches.in_order(evenly(len(batches.frames), ATTENTION_FRAMES)):
            network(batch.image_B3HW, observer=watch)
    network.train(training)
    return [
        LayerAttention(
            branch,
            layer + 1,
            watch.tokens[branch, layer],
            *torch.cat(figures_B3).mean(dim=0).tolist(),
        )
        for (branch, layer), figures_B3 in watch.figures.items()
    ]


class Alarm:
    """Says in the log when a layer's attention collapses, and when it is uniform.

    A layer is said once, until it has been something else: a collapse as a warning, uniform
    attention as information, and that not at the first look, since attention starts out spread over
    everything. A run that was continued begins anew.
    """

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._looks = 0

    def hear(self, layers: Sequence[LayerAttention]) -> None:
        """Take note of one look."""
        self._looks += 1
        for layer in layers:
            found = HEALTHY if layer.verdict == UNIFORM and self._looks == 1 else layer.verdict
            if found not in (HEALTHY, self._said.get(layer.name)):
                log.log(
                    logging.WARNING if found == COLLAPSED else logging.INFO,
                    "attention of %s encoder layer %d is %s: entropy %.2f of at most %.2f nats,"
                    " similarity %.2f",
                    *(
                        layer.branch,
                        layer.layer,
                        found,
                        layer.entropy,
                        math.log(layer.tokens),
                        layer.similarity,
                    ),
                )
            self._said[layer.name] = found


def trajectory_figure(table: pd.DataFrame) -> "Figure":
    """True and estimated camera positions of every scene, seen along the axis in which the truth
    varies least.
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
        _segments(axes, truth_N3[:, [first, second]], estimate_N3[:, [first, second]])
        axes.set_title(str(scene))
        axes.set_xlabel(f"{'xyz'[first]} (m)")
        axes.set_ylabel(f"{'xyz'[second]} (m)")
        axes.set_aspect("equal", adjustable="datalim")
    figure.axes[0].legend(loc="best", fontsize="small")
    return figure


def _segments(axes, truth_N2: NDArray[np.float64], estimate_N2: NDArray[np.float64]) -> None:  # type: ignore[no-untyped-def]
    """Truth and estimate as points, each pair joined by a thin line whose length is the error seen
    from above.
    """
    pairs = np.stack([truth_N2, estimate_N2, np.full_like(truth_N2, np.nan)], axis=1).reshape(-1, 2)
    axes.plot(*pairs.T, color="0.75", linewidth=0.6, zorder=1)
    axes.scatter(*truth_N2.T, s=7, color=BLUE, label="true", zorder=3)
    axes.scatter(
        *estimate_N2.T, s=7, color=ORANGE, marker="x", linewidths=0.8, label="estimated", zorder=2
    )
