"""What TensorBoard shows of a training run: loss terms step by step, and a closer look after an epoch.

A look reports, on a fixed choice of training frames and of held-out frames, median errors and scene accuracy, and on a
few of them the attention entropy (Zhai et al., ICML 2023) and the query-key gap of every encoder layer.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from mspose.metrics import compute_metrics
from mspose.models.attention_map import AttentionMap, attention_entropy
from mspose.models.mstransformer import MSTransformer, Observer
from mspose.prediction import predict_frames

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTENTION_FRAMES = 8
SAMPLE_IMAGES = 8
BLUE, ORANGE = "#0072B2", "#D55E00"  # from the colour-blind safe palette of Okabe and Ito


class Monitor:
    """Writes one run's TensorBoard events; they supersede what an interrupted process wrote from `first_step` on.

    Of several processes the main one writes; all look, sharing the frames out.
    """

    def __init__(self, folder: Path, *, first_step: int, frames: int):
        self.folder, self.frames = folder, frames
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

    def look(self, step: int, network: MSTransformer, parts: Mapping[str, Batches]) -> dict[str, float]:
        """Medians, scene accuracy, attention and a trajectory plot of each part (`train`, `held_out`), as logged.

        `step` counts the steps done. The look stands beside the last of them, so that a run that continues with step
        number `step`, and purges from there on, keeps it. A process that does not write gets no values.
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
        values |= attention_figures(network, list(parts.values())[-1])
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


class _Entropy(Observer):
    """The attention entropy of every encoder layer, per image."""

    def __init__(self) -> None:
        self.entropy: dict[str, list[Tensor]] = defaultdict(list)

    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        entropy_B = attention_entropy(attention).mean(dim=1)
        self.entropy[f"attention_entropy/{branch}_layer_{layer + 1}"].append(entropy_B)


def attention_figures(network: MSTransformer, batches: Batches) -> dict[str, float]:
    """`attention_entropy/<branch>_layer_<n>` (nats) and `query_key_gap/<branch>_layer_<n>`, means over a few frames."""
    watch = _Entropy()
    gap: dict[str, list[Tensor]] = defaultdict(list)
    training = network.training
    network.eval()
    with torch.inference_mode():
        for batch in batches.in_order(evenly(len(batches.frames), ATTENTION_FRAMES)):
            output = network(batch.image_B3HW, observer=watch)
            for branch, gap_BLH in output.query_key_gap.items():
                for layer, gap_B in enumerate(gap_BLH.float().mean(dim=2).T):
                    gap[f"query_key_gap/{branch}_layer_{layer + 1}"].append(gap_B)
    network.train(training)
    return {name: float(torch.cat(values).mean()) for name, values in (watch.entropy | gap).items()}


def trajectory_figure(table: pd.DataFrame) -> "Figure":
    """True and estimated camera positions of every scene, seen along the axis in which the truth varies least."""
    import matplotlib  # here, since it takes longer to load than the whole frame table and no first step needs it
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
        first, second = np.sort(np.argsort(truth_N3.std(axis=0))[1:])
        _segments(axes, truth_N3[:, [first, second]], estimate_N3[:, [first, second]])
        axes.set_title(str(scene))
        axes.set_xlabel(f"{'xyz'[first]} (m)")
        axes.set_ylabel(f"{'xyz'[second]} (m)")
        axes.set_aspect("equal", adjustable="datalim")
    figure.axes[0].legend(loc="best", fontsize="small")
    return figure


def _segments(axes, truth_N2: NDArray[np.float64], estimate_N2: NDArray[np.float64]) -> None:  # type: ignore[no-untyped-def]
    """Truth and estimate as points, each pair joined by a thin line whose length is the error seen from above."""
    pairs = np.stack([truth_N2, estimate_N2, np.full_like(truth_N2, np.nan)], axis=1).reshape(-1, 2)
    axes.plot(*pairs.T, color="0.75", linewidth=0.6, zorder=1)
    axes.scatter(*truth_N2.T, s=7, color=BLUE, label="true", zorder=3)
    axes.scatter(*estimate_N2.T, s=7, color=ORANGE, marker="x", linewidths=0.8, label="estimated", zorder=2)
