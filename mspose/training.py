"""The training loop: plain PyTorch, read from top to bottom.

Everything random is drawn from the seed and the step, so a run that continues from its checkpoint
ends bit-identical to one that was never interrupted. Several processes (torchrun) train as one:
each has a part of every batch, and loss and gradients are those of the whole batch. So are the
statistics of batch norms on GPUs (`nn.SyncBatchNorm`); on CPUs, where PyTorch has no such layer,
every process normalises by its own part of the batch, and the main process's running statistics
are the model's.
"""

import logging
import math
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mspose import distributed
from mspose.config import Settings, config_hash, differences, read_settings, write_settings
from mspose.data.augmentation import Augmentation
from mspose.data.batches import Batch, Batches, holdout_rows
from mspose.data.cache import FrameCache, open_split
from mspose.data.cards import Card, data_root, read_card
from mspose.data.image_statistics import describe_images
from mspose.data.preparation import render_if_virtual
from mspose.data.versions import with_version
from mspose.errors import MsposeError, Preempted
from mspose.inference import resolve_device
from mspose.losses import Objective, PoseLoss
from mspose.models.kinds import make_network, network_class
from mspose.models.network import SMALLEST_IMAGE, PoseNetwork
from mspose.models.stored import load_weights, read_construction
from mspose.run import (
    CHECKPOINT,
    CONFIG,
    WEIGHTS,
    load_checkpoint,
    load_model,
    one_training,
    save_checkpoint,
    save_model,
)
from mspose.tensorboard_log import TensorBoardLog, query_key_gradients

log = logging.getLogger("mspose")
CHECK_EVERY = 10  # steps
ANEW = "remove it to train anew, or name this run with --variant"


def train(settings: Settings, *, progress: bool = True) -> Path:
    """Train one run, or continue it where it stopped; returns its folder.

    Raises:
        MsposeError: missing data, a folder that holds a run with other settings, or a loss that is
            not finite.
        Preempted: a signal asked it to stop.
    """
    card = read_card(settings.data.dataset)
    settings = replace(settings, data=with_version(settings.data))
    run = settings.run_folder(card.ground_truths[0])
    network_class(settings.model.kind).check_settings(settings.model)
    check_attention_terms(settings)
    device = resolve_device(settings.device)
    if (
        settings.training.precision == "bfloat16"
        and device.type == "cpu"
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    ):
        log.warning(
            "this CPU has no instructions for bfloat16: training is several times faster with"
            " --training.precision float32"
        )
    with one_training(run) if distributed.is_main() else nullcontext(), distributed.joined(device):
        check_folder(run, settings)
        checkpoint = distributed.from_main(lambda: read_checkpoint(run, settings))
        if checkpoint is not None and checkpoint["epoch"] == settings.training.epochs:
            log.info("%s is trained already (%d epochs)", run, checkpoint["epoch"])
            return run
        frames, cache = open_frames(settings, card, device, progress=progress)
        network = make_initial_network(settings, sorted(frames["scene"].unique()), device)
        parts = split_into_batches(frames, cache, settings, network, device)
        state = TrainState.create(settings, network, parts["train"])
        if checkpoint is not None:
            state.resume(checkpoint, run)
        if distributed.is_main():
            write_settings(run / CONFIG, settings)
        description = describe(network, settings, card, parts["train"])
        train_epochs(state, parts, run, description, card.thresholds, progress=progress)
    return run


@dataclass
class TrainState:
    """Everything that a training step changes, and how far the training is.

    Attributes:
        network: the network; of several processes on GPUs with synchronised batch norms.
        learning: the part of it that learns; the rest stays in evaluation mode.
        objective: network and loss as one module, over all processes.
        epoch: epochs done.
        step: steps done of the epoch that follows.
    """

    settings: Settings
    network: PoseNetwork
    learning: nn.Module
    loss: PoseLoss
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    steps_per_epoch: int
    epoch: int = 0
    step: int = 0

    @classmethod
    def create(cls, settings: Settings, network: PoseNetwork, batches: Batches) -> Self:
        """Make the state in which a training of `network` on `batches` begins."""
        options, device = settings.training, batches.device
        learning = freeze(network, options.trains)
        loss = PoseLoss(settings.loss).to(device)
        weights = [*network.parameters(), *loss.parameters()]
        optimizer = torch.optim.Adam(
            [weight for weight in weights if weight.requires_grad],
            lr=options.learning_rate,
            eps=options.adam_eps,
            weight_decay=options.weight_decay,
            fused=True,
        )
        scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16")
        steps = batches.epoch_length(options.equalize_scenes)
        objective = over_processes(
            Objective(network, loss, options.precision, compile=options.compile)
        )
        return cls(settings, network, learning, loss, objective, optimizer, scaler, steps)

    @property
    def steps_done(self) -> int:
        """Steps done since the training began."""
        return self.epoch * self.steps_per_epoch + self.step

    def state_dict(self) -> dict[str, Any]:
        """Return the content of `checkpoint.pt`: plain values and tensors."""
        parts = {name: getattr(self, name).state_dict() for name in STORED}
        progress = {"epoch": self.epoch, "step": self.step}
        return {**progress, "config_hash": config_hash(self.settings), **parts}

    def resume(self, checkpoint: Mapping[str, Any], run: Path) -> None:
        """Go on from what `state_dict` returned. Raises MsposeError where it does not fit."""
        try:
            load_weights(self.network, checkpoint["network"], run)
            for name in STORED[1:]:
                getattr(self, name).load_state_dict(checkpoint[name])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise MsposeError(
                f"{run / CHECKPOINT} is not a checkpoint of this version: {error}; {ANEW}"
            ) from error
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        if self.steps_done:
            log.info("continuing %s after %s", run, self)

    def __str__(self) -> str:
        """Say how far the training is."""
        epochs = self.settings.training.epochs
        if self.step:
            return f"step {self.step} of epoch {self.epoch + 1}/{epochs}"
        return f"epoch {self.epoch}/{epochs}"


STORED = ("network", "loss", "optimizer", "scaler")
"""Parts of a `TrainState` whose own states are in a checkpoint."""


def train_step(state: TrainState, batch: Batch) -> dict[str, Tensor | float]:
    """Learn from one batch. Returns the values to log by tag: loss terms as means over this
    process's images, gradient norm, learning rate, learned log-variances.
    """
    options, (process, _) = state.settings.training, distributed.rank_and_world_size()
    torch.manual_seed(step_seed(state.settings.seed, state.steps_done, process))  # dropout
    rate = learning_rate(state.steps_done, state.steps_per_epoch, state.settings)
    (group,) = state.optimizer.param_groups
    group["lr"] = rate
    loss, logs = state.objective(batch)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss * share_of_mean(batch)).backward()
    state.scaler.unscale_(state.optimizer)
    of_queries_and_keys = query_key_gradients(state.network)
    norm = nn.utils.clip_grad_norm_(group["params"], options.clip_gradient or math.inf)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.step += 1
    log_variances = {
        f"log_variance/{name}": value for name, value in state.loss.log_variances().items()
    }
    gradients = {"gradient_norm": norm, **of_queries_and_keys}
    return {**logs, **log_variances, **gradients, "learning_rate": rate}


def train_epochs(
    state: TrainState,
    parts: Mapping[str, Batches],
    run: Path,
    description: dict[str, Any],
    recall: Sequence[tuple[float, float]],
    *,
    progress: bool,
) -> None:
    """Train to the last epoch, from wherever `state` is, and keep model and checkpoint in `run`.

    recall: its thresholds, pairs of metres and degrees, which TensorBoard shows.
    """
    options, batches = state.settings.training, parts["train"]
    bar = tqdm(
        total=state.steps_per_epoch * options.epochs,
        initial=state.steps_done,
        desc="training",
        unit="step",
        disable=not progress,
    )
    board = TensorBoardLog(
        run,
        first_step=state.steps_done,
        frames=options.evaluate_frames,
        recall=recall,
        judged_by=state.settings.attention.thresholds,
    )
    board.settings(state.settings)
    # in float16 a step whose gradients overflow is skipped, and the loss scaled down
    check = FiniteCheck(batches, gradients=not state.scaler.is_enabled())
    with distributed.Preemption() as preemption, closing(board), closing(bar):
        if not state.steps_done:
            board.start(state.network, parts)
        for epoch in range(state.epoch, options.epochs):
            state.learning.train()
            speed = Speed()
            for batch in epoch_batches(batches, state.settings, epoch, first=state.step):
                logs = train_step(state, batch)
                check.add(epoch, state.step, batch, logs)
                speed.images += batch.whole
                step = state.steps_done - 1
                if step == board.first_step:
                    board.images(step, batch, batches)
                log_now = step % options.log_every == 0
                if log_now or step % CHECK_EVERY == 0:
                    check.raise_if_not_finite()
                if log_now:
                    mine = {name: float(value) for name, value in logs.items()}
                    values = distributed.average(mine, share_of_mean(batch))
                    board.scalars(step, {**values, "images_per_second": speed.read()})
                    bar.set_postfix(loss=f"{values['loss/total']:.3f}", refresh=False)
                bar.update()
                if number := preemption.asked():
                    check.raise_if_not_finite()
                    save(state, run)
                    raise Preempted(
                        f"{signal.Signals(number).name}: saved in {run} after {state}; the same"
                        " command goes on from there"
                    )
            check.raise_if_not_finite()
            state.epoch, state.step = epoch + 1, 0
            distributed.share_buffers(state.network)
            if state.epoch % options.evaluate_every == 0 or state.epoch == options.epochs:
                print_medians(board.evaluate(state.steps_done - 1, state.network, parts), state)
            save(state, run, {**description, "epochs": state.epoch})


def epoch_batches(
    batches: Batches, settings: Settings, epoch: int, *, first: int
) -> Iterator[Batch]:
    """Yield this process's part of the batches of an epoch, from number `first` on."""
    augmentation = settings.augmentation
    return batches.epoch(
        settings.seed,
        epoch,
        equalize_scenes=settings.training.equalize_scenes,
        augmentation=Augmentation(augmentation) if augmentation.enabled else None,
        first=first,
        rank_and_world_size=distributed.rank_and_world_size(),
    )


def save(state: TrainState, run: Path, description: dict[str, Any] | None = None) -> None:
    """Write the checkpoint and, with its description, the model; return once that is done."""
    if distributed.is_main():
        if description is not None:
            save_model(run, state.network.state_dict(), description)
        save_checkpoint(run, state.state_dict())
    distributed.wait_for_all()  # the first process to end takes the one that writes with it


def print_medians(values: Mapping[str, float], state: TrainState) -> None:
    """Write a line of median errors above the progress bar, in the process that has them."""
    medians = [
        f"{name.replace('_', ' ')} {values[f'median_position_m/{name}']:.3f} m / "
        f"{values[f'median_orientation_deg/{name}']:.2f} deg"
        for name in ("train", "held_out")
        if f"median_position_m/{name}" in values
    ]
    if medians:
        tqdm.write(f"{state}: medians: {'; '.join(medians)}")


def share_of_mean(batch: Batch) -> float:
    """Return the weight of this process's mean over images, by which the mean over processes is
    the mean over the images of the whole batch.
    """
    processes = distributed.processes()
    if batch.whole < processes:
        return 1.0  # every process has the whole batch
    return len(batch.row) * processes / batch.whole


class Speed:
    """Images per second since the last reading."""

    def __init__(self) -> None:
        self.images, self._since = 0, time.perf_counter()

    def read(self) -> float:
        """Return the images per second, and begin again."""
        now = time.perf_counter()
        speed = self.images / (now - self._since)
        self.images, self._since = 0, now
        return speed


class Fault(NamedTuple):
    """A step that was not finite; the smallest is the first, a loss before a gradient."""

    order: int
    gradient_alone: bool
    message: str


class FiniteCheck:
    """Finds steps whose loss or gradient is not finite, several at once: to read one makes a GPU
    wait.
    """

    def __init__(self, batches: Batches, *, gradients: bool) -> None:
        """Take the batches, to name images; with `gradients` these have to be finite too."""
        self.batches, self.gradients = batches, gradients
        self.steps: list[tuple[int, int, Batch, Mapping[str, Tensor | float]]] = []

    def add(self, epoch: int, step: int, batch: Batch, logs: Mapping[str, Tensor | float]) -> None:
        """Note the values of a step; `epoch` counts from 0, `step` of the epoch from 1."""
        self.steps.append((epoch, step, batch, logs))

    def raise_if_not_finite(self) -> None:
        """Raise MsposeError, the same in all processes, for the first step that was not finite,
        with its images.
        """
        mine = next(filter(None, map(self._fault, range(len(self.steps)))), None)
        self.steps.clear()
        if distributed.largest(int(mine is not None)):
            raise MsposeError(min(filter(None, distributed.gather(mine))).message)

    def _fault(self, index: int) -> Fault | None:
        epoch, step, batch, logs = self.steps[index]
        loss, norm = float(logs["loss/total"]), float(logs["gradient_norm"])
        # every process has the gradient of all: the one whose loss is not finite knows the images
        gradient_alone = math.isfinite(loss)
        if gradient_alone and (math.isfinite(norm) or not self.gradients):
            return None
        terms = [
            f"{name.removeprefix('loss/')} {float(value):g}"
            for name, value in logs.items()
            if name.startswith("loss/")
        ]
        message = (
            f"the {'gradient' if gradient_alone else 'loss'} is not finite in epoch {epoch + 1},"
            f" step {step} ({', '.join(terms)}); its images:"
            f" {', '.join(self.batches.frames['image'].iloc[batch.row])}; the last checkpoint is"
            " kept; try a smaller --training.learning_rate or --training.clip_gradient"
        )
        return Fault(index, gradient_alone, message)


def check_folder(run: Path, settings: Settings) -> None:
    """Refuse a folder that holds a trained, begun or converted run with other settings."""
    stored = run / CONFIG
    begun = (run / CHECKPOINT).exists() or (run / WEIGHTS).exists()
    if begun and stored.exists() and (changed := differences(read_settings(stored), settings)):
        raise MsposeError(
            f"{run} holds a run with other settings ({'; '.join(changed)}): "
            "name this one with --variant, or remove that folder"
        )


def check_attention_terms(settings: Settings) -> None:
    """Refuse loss terms of attention where the network has none.

    QKA has a weight by default, so that a line in the log says that it is left out.
    """
    kind, loss = settings.model.kind, settings.loss
    if network_class(kind).has_attention:
        return
    if regularisers := PoseLoss(loss).regularisers:
        raise MsposeError(
            f"loss: a model of kind {kind} has no attention for the terms"
            f" {', '.join(regularisers)}: set their weights to 0"
        )
    if loss.qka_weight:
        log.info(
            "a model of kind %s has no queries and keys: loss.qka_weight %g is no term of its loss",
            kind,
            loss.qka_weight,
        )


def read_checkpoint(run: Path, settings: Settings) -> dict[str, Any] | None:
    """Read the checkpoint of this run; None where there is none."""
    checkpoint = load_checkpoint(run)
    if checkpoint is None:
        return None
    if missing := {"epoch", "step", "config_hash", *STORED} - checkpoint.keys():
        raise MsposeError(
            f"{run / CHECKPOINT} is not a checkpoint of this version: it has no {min(missing)};"
            f" {ANEW}"
        )
    if checkpoint["config_hash"] != config_hash(settings):
        raise MsposeError(f"{run / CHECKPOINT} was made with other settings than these: {ANEW}")
    return checkpoint


def open_frames(
    settings: Settings, card: Card, device: torch.device, *, progress: bool
) -> tuple[pd.DataFrame, FrameCache]:
    """Open the frames of the training split, rendered or decoded where they are not yet."""
    data = settings.data
    if data.crop < SMALLEST_IMAGE:
        raise MsposeError(
            f"data.crop {data.crop} is too small: the network takes {SMALLEST_IMAGE} pixels or more"
        )
    with distributed.one_per_machine_first():
        render_if_virtual(data.dataset, data.root, data.scenes, progress=progress)
        frames, cache, _ = open_split(
            card,
            "train",
            **data.source(),
            short_side=data.resize,
            on_bad_frame=settings.on_bad_frame,
            progress=progress,
        )
    if data.cache_on_device:
        cache.hold_on(device)
    return frames, cache


def split_into_batches(
    frames: pd.DataFrame,
    cache: FrameCache,
    settings: Settings,
    network: PoseNetwork,
    device: torch.device,
) -> dict[str, Batches]:
    """Make the batches of `train` and, where frames are held out, of `held_out`."""
    held = holdout_rows(frames, settings.data.holdout)
    if held.all():
        raise MsposeError(f"data.holdout {settings.data.holdout:g} leaves no frame to train on")
    return {
        name: Batches(
            frames[rows].reset_index(drop=True),
            cache,
            scenes=network.scenes,
            crop=settings.data.crop,
            mean=network.mean,
            std=network.std,
            batch_size=settings.training.batch_size,
            device=device,
        )
        for name, rows in (("train", ~held), ("held_out", held))
        if rows.any()
    }


def make_initial_network(
    settings: Settings, scenes: list[str], device: torch.device
) -> PoseNetwork:
    """Make the network with which a training begins: fresh, or with the weights of another run."""
    torch.manual_seed(settings.seed)
    network = make_network(scenes, settings.model)
    if settings.training.start_from is not None:
        start_from(network, Path(settings.training.start_from))
    network.recompute_backbone = settings.training.recompute_backbone
    if distributed.processes() > 1:
        if device.type == "cuda":
            convert_sync_batchnorm(network)  # as PyTorch's, but it keeps timm's activations
        else:
            log.info("batch norms use each process's own part of a batch: they are on CPUs")
    return network.to(device)


def start_from(network: PoseNetwork, source: Path) -> None:
    """Take the weights of another run's model. Raises MsposeError where its scenes or architecture
    differ.
    """
    weights, description = load_model(source)
    settings, scenes = read_construction(description, source)
    compared = {"scenes": (scenes, list(network.scenes))}
    for name in ("kind", *network.shaping):
        compared[name] = getattr(settings, name), getattr(network.settings, name)
    changed = [
        f"{name} {there} there, {here} here"
        for name, (there, here) in compared.items()
        if there != here
    ]
    if changed:
        raise MsposeError(
            f"training.start_from {source} holds another architecture: {'; '.join(changed)}"
        )
    load_weights(network, weights, source)


def freeze(network: PoseNetwork, trains: str) -> nn.Module:
    """Freeze what is not to learn, in evaluation mode, and return the part that learns."""
    if trains == "all":
        return network
    network.requires_grad_(False)
    network.eval()
    return network.position_head.requires_grad_(True)


def over_processes(objective: Objective) -> nn.Module:
    """Wrap the objective so that gradients are means over all processes."""
    if distributed.processes() == 1:
        return objective
    # channels last, of convolutions: copied at no cost
    warnings.filterwarnings("ignore", message="Grad strides")
    # A static graph: the same weights get a gradient in every step; a loss weight of 0 leaves some
    # without. The warning is about a later name of broadcast_buffers.
    with warnings.catch_warnings(action="ignore"):
        return DistributedDataParallel(objective, broadcast_buffers=False, static_graph=True)


def describe(network: PoseNetwork, settings: Settings, card: Card, batches: Batches) -> dict:
    """Return the content of `model.json`: settings, preprocessing, training data."""
    frames = batches.frames
    return {
        "scenes": list(network.scenes),
        "settings": asdict(network.settings),
        "preprocessing": {
            "resize": settings.data.resize,
            "crop": settings.data.crop,
            "mean": list(network.mean),
            "std": list(network.std),
        },
        "trained_on": {
            "dataset": card.name,
            "ground_truth": frames["ground_truth"].iloc[0],
            "data_version": settings.data.version,
            "frames": len(frames),
            "resized_frame": list(batches.cache.shape(int(frames["cache_row"].iloc[0]))),
            **describe_images(frames, batches.cache, data_root(card, settings.data.root)),
        },
        "config_hash": config_hash(settings),
    }


def step_seed(seed: int, step: int, process: int) -> int:
    """Return a seed for torch's generator, another for every (seed, step, process)."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0] >> 1)


def learning_rate(step: int, steps_per_epoch: int, settings: Settings) -> float:
    """Return the learning rate of a step, counted from 0 over all epochs."""
    options = settings.training
    if options.schedule == "step":
        epoch = step // steps_per_epoch
        return options.learning_rate * options.step_factor ** (epoch // options.step_epochs)
    steps = steps_per_epoch * options.epochs
    warm = round(options.warmup * steps)
    if step < warm:
        return options.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return options.learning_rate * (1 + math.cos(math.pi * done)) / 2
