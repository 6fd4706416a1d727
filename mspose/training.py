"""The training loop: plain PyTorch, read from top to bottom.

Everything random is drawn from the seed and the step, so a run that continues from its checkpoint
goes on exactly as if it had never been interrupted. Several processes (torchrun) train as one: each
has a part of every batch, and loss, gradients and batch norm are those of the whole batch.
"""

import logging
import math
import signal
import time
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mspose import distributed
from mspose.config import Settings, config_hash, differences, read_settings, write_settings
from mspose.data.augmentation import Jitter
from mspose.data.batches import Batch, Batches, holdout_rows
from mspose.data.cache import open_split
from mspose.data.cards import Card, data_root, read_card
from mspose.data.image_statistics import describe_images
from mspose.data.preparation import render_if_virtual
from mspose.errors import MsposeError, Preempted
from mspose.inference import resolve_device
from mspose.losses import PoseLoss
from mspose.models.batch_norm import SharedStatistics
from mspose.models.kinds import make_network, network_class
from mspose.models.network import SMALLEST_IMAGE, PoseNetwork
from mspose.models.stored import load_weights, read_construction
from mspose.monitoring import Monitor
from mspose.objective import Objective, check_attention_terms
from mspose.run import CHECKPOINT, WEIGHTS, load_checkpoint, load_model, save_checkpoint, save_model

log = logging.getLogger("mspose")
LOG_EVERY = 10  # steps


def train(settings: Settings, *, progress: bool = True) -> Path:
    """Train one run, or continue it where it stopped; returns its folder.

    Raises MsposeError for missing data, a folder that holds a run with other settings, or a loss
    that is not finite; Preempted where a signal asked it to stop.
    """
    card = read_card(settings.data.dataset)
    run = settings.run_folder(card.ground_truths[0])
    check_folder(run, settings)
    device = resolve_device(settings.device)
    with distributed.joined(device):
        state = distributed.from_main(lambda: read_checkpoint(run, settings))
        if state["epoch"] == settings.training.epochs:
            log.info("%s is trained already (%d epochs)", run, state["epoch"])
        else:
            train_from(state, run, settings, card, device, progress=progress)
    return run


def train_from(
    state: dict[str, Any],
    run: Path,
    settings: Settings,
    card: Card,
    device: torch.device,
    *,
    progress: bool,
) -> None:
    """Train to the end from the state of a checkpoint, or from the beginning where it holds epoch
    0, step 0 alone.
    """
    options, augmentation, weighing = settings.training, settings.augmentation, settings.loss
    check_attention_terms(
        settings.model.kind,
        qka_weight=weighing.qka_weight,
        entropy_weight=weighing.entropy_weight,
        diversity_weight=weighing.diversity_weight,
    )
    network_class(settings.model.kind).check_settings(settings.model)
    torch.manual_seed(settings.seed)
    parts, network = open_data_and_network(settings, card, device, progress=progress)
    loss_of = PoseLoss(**vars(weighing)).to(device)
    if options.start_from is not None:
        start_from(network, Path(options.start_from))
    network.recompute_backbone = options.recompute_backbone
    learning = freeze(network, options.trains)
    network.to(device)
    weights = [
        weight for weight in [*network.parameters(), *loss_of.parameters()] if weight.requires_grad
    ]
    optimizer = torch.optim.Adam(
        weights,
        lr=options.learning_rate,
        eps=options.adam_eps,
        weight_decay=options.weight_decay,
        fused=True,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16")
    kept: dict[str, Any] = {
        "network": network,
        "loss": loss_of,
        "optimizer": optimizer,
        "scaler": scaler,
    }
    restore(state, kept, run)

    process, processes = distributed.share()
    objective: nn.Module = Objective(network, loss_of, options.precision, compile=options.compile)
    statistics = SharedStatistics(network) if processes > 1 else None
    if processes > 1:
        warnings.filterwarnings(
            "ignore", message="Grad strides"
        )  # channels last, of convolutions: copied at no cost
        # A static graph: the same weights get a gradient in every step; a loss weight of 0 leaves
        # some without.
        with warnings.catch_warnings(
            action="ignore"
        ):  # that a later name of broadcast_buffers is to be preferred
            objective = DistributedDataParallel(
                objective, broadcast_buffers=False, static_graph=True
            )

    steps_per_epoch = parts["train"].epoch_length(options.equalize_scenes)
    total_steps = steps_per_epoch * options.epochs
    first_epoch, first_number = state["epoch"], state["step"]
    first_step = first_epoch * steps_per_epoch + first_number
    if first_step:
        log.info("continuing %s after %s", run, place(first_epoch, first_number, options.epochs))
    if distributed.is_main():
        write_settings(run / "config.yaml", settings)
    description = describe(network, settings, card, parts["train"])
    jitter = Jitter(
        augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue
    )
    monitor = Monitor(run, first_step=first_step, frames=options.evaluate_frames)
    unchecked = Unchecked(parts["train"])
    bar = tqdm(
        total=total_steps, initial=first_step, desc="training", unit="step", disable=not progress
    )

    def save(epoch: int, step: int) -> None:
        if distributed.is_main():
            states = {name: part.state_dict() for name, part in kept.items()}
            save_checkpoint(
                run, {"epoch": epoch, "step": step, "config_hash": config_hash(settings), **states}
            )

    with distributed.Preemption() as preemption, closing(monitor), closing(bar):
        for epoch in range(first_epoch, options.epochs):
            learning.train()
            clock, images = time.perf_counter(), 0
            first = first_number if epoch == first_epoch else 0
            batches = parts["train"].epoch(
                settings.seed,
                epoch,
                equalize_scenes=options.equalize_scenes,
                jitter=jitter if augmentation.enabled else None,
                crop_reach=augmentation.crop_reach,
                crop_label=augmentation.crop_label,
                cutout=augmentation.cutout,
                first=first,
                share=(process, processes),
            )
            for number, batch in enumerate(batches, start=first):
                step = epoch * steps_per_epoch + number
                torch.manual_seed(step_seed(settings.seed, step, process))  # dropout
                rate = learning_rate(step, total_steps, steps_per_epoch, settings)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                whole = batch.whole < processes  # every process has the whole batch, not a part
                if statistics is not None:
                    statistics.shared = not whole
                loss, readings = objective(batch)
                # The processes' mean, from which all learn, is then the mean over the images of the
                # whole batch.
                weight = 1.0 if whole else len(batch.row) * processes / batch.whole
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss * weight).backward()
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(weights, options.clip_gradient or math.inf)
                scaler.step(optimizer)
                scaler.update()

                unchecked.add(epoch, number, batch, readings, None if scaler.is_enabled() else norm)
                images += batch.whole
                if step % LOG_EVERY == 0:
                    unchecked.check()
                    images_per_second = images / (time.perf_counter() - clock)
                    clock, images = time.perf_counter(), 0
                    mine = {name: weight * float(value) for name, value in readings.items()}
                    values = distributed.average(mine) | {
                        "learning_rate": rate,
                        "gradient_norm": float(norm),
                        "images_per_second": images_per_second,
                        **{
                            f"loss_weight/{name}": value
                            for name, value in loss_of.weights().items()
                        },
                    }
                    monitor.step(step, values)
                    bar.set_postfix(loss=f"{values['loss/total']:.3f}", refresh=False)
                if number == first and epoch in (0, first_epoch):
                    monitor.samples(step, batch, parts["train"])
                bar.update()
                if asked := preemption.asked():
                    unchecked.check()
                    save(epoch, number + 1)
                    distributed.largest(0)  # a process that ended would end the one that saves
                    raise Preempted(
                        f"{signal.Signals(asked).name}: saved in {run} after"
                        f" {place(epoch, number + 1, options.epochs)}; the same command goes on"
                        " from there"
                    )

            unchecked.check()
            done = epoch + 1
            if done % options.evaluate_every == 0 or done == options.epochs:
                report_look(
                    monitor.look(done * steps_per_epoch, network, parts), done, options.epochs
                )
            if distributed.is_main():
                save_model(run, network.state_dict(), {**description, "epochs": done})
            save(done, 0)


class Unchecked:
    """The steps whose loss has not been looked at; a look makes a GPU wait, so that it is taken at
    several at once.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.steps: list[tuple[int, int, NDArray[np.int64], Mapping[str, Tensor], Tensor]] = []

    def add(
        self,
        epoch: int,
        number: int,
        batch: Batch,
        readings: Mapping[str, Tensor],
        norm: Tensor | None,
    ) -> None:
        """Note a step with its loss, and the norm of its gradient if that has to be finite too."""
        loss = readings["loss/total"]
        self.steps.append(
            (
                epoch,
                number,
                batch.row,
                readings,
                torch.stack((loss, loss if norm is None else norm)),
            )
        )

    def check(self) -> None:
        """Raise MsposeError, the same on all processes, where a step was not finite: the first,
        with its images.
        """
        if not self.steps:
            return
        finite_N2 = torch.stack([noted for *_, noted in self.steps]).isfinite().tolist()
        mine = next(
            (place for place, finite in enumerate(finite_N2) if not all(finite)), len(self.steps)
        )
        if -distributed.largest(-mine) < len(self.steps):
            # a loss that is not finite says more than a gradient, which all the processes have of
            # it
            gradient_alone = mine < len(self.steps) and finite_N2[mine][0]
            raise MsposeError(
                min(distributed.gather((mine, gradient_alone, self._fault(mine, gradient_alone))))[
                    -1
                ]
            )
        self.steps.clear()

    def _fault(self, place: int, gradient_alone: bool) -> str:
        if place == len(self.steps):
            return ""
        epoch, number, row_B, readings, _ = self.steps[place]
        terms = [
            f"{name[5:]} {float(value):g}"
            for name, value in readings.items()
            if name.startswith("loss/")
        ]
        named = ", ".join(self.batches.frames["image"].iloc[row_B])
        return (
            f"the {'gradient' if gradient_alone else 'loss'} is not finite in epoch {epoch + 1},"
            f" step {number + 1} ({', '.join(terms)}); its images: {named}; the last checkpoint is"
            " kept; try a smaller --training.learning_rate or --training.clip_gradient"
        )


def check_folder(run: Path, settings: Settings) -> None:
    """Refuse a folder that holds a run with other settings: one that learned something, or was
    converted.
    """
    stored = run / "config.yaml"
    begun = (run / CHECKPOINT).exists() or (run / WEIGHTS).exists()
    if begun and stored.exists() and (changed := differences(read_settings(stored), settings)):
        raise MsposeError(
            f"{run} holds a run with other settings ({'; '.join(changed)}): "
            "name this one with --variant, or remove that folder"
        )


def open_data_and_network(
    settings: Settings, card: Card, device: torch.device, *, progress: bool
) -> tuple[dict[str, Batches], PoseNetwork]:
    """The batches of `train` and, where something is held out, of `held_out`; and a fresh network
    for their scenes.
    """
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
    scenes = sorted(frames["scene"].unique())
    network = make_network(scenes, settings.model)
    held = holdout_rows(frames, data.holdout)
    if held.all():
        raise MsposeError(f"data.holdout {data.holdout:g} leaves no frame to train on")
    parts = {
        "train": frames[~held].reset_index(drop=True),
        "held_out": frames[held].reset_index(drop=True),
    }
    common = {
        "scenes": scenes,
        "crop": data.crop,
        "mean": network.mean,
        "std": network.std,
        "device": device,
    }
    batch_size = settings.training.batch_size
    return (
        {
            name: Batches(part, cache, batch_size=batch_size, **common)
            for name, part in parts.items()
            if len(part)
        },
        network,
    )


def start_from(network: PoseNetwork, source: Path) -> None:
    """Take the weights of another run's model. Raises MsposeError where its scenes or architecture
    differ.
    """
    weights, description = load_model(source)
    settings, scenes = read_construction(description, source)
    names = ("kind", *network.shaping)
    old = {"scenes": scenes, **{name: getattr(settings, name) for name in names}}
    new = {
        "scenes": list(network.scenes),
        **{name: getattr(network.settings, name) for name in names},
    }
    changed = [
        f"{name} {old[name]} there, {new[name]} here" for name in new if old[name] != new[name]
    ]
    if changed:
        raise MsposeError(
            f"training.start_from {source} holds another architecture: {'; '.join(changed)}"
        )
    load_weights(network, weights, source)


def freeze(network: PoseNetwork, trains: str) -> nn.Module:
    """Let only part of the network learn, and return that part: what is switched to training mode
    each epoch.
    """
    if trains == "all":
        return network
    network.requires_grad_(False)
    network.eval()
    return network.position_head.requires_grad_(True)


def read_checkpoint(run: Path, settings: Settings) -> dict[str, Any]:
    """The state of this run's checkpoint; of a run that has none, the epoch and the step to begin
    with.
    """
    state = load_checkpoint(run)
    if state is None:
        return {"epoch": 0, "step": 0}
    if (
        missing := {"epoch", "step", "config_hash", "network", "loss", "optimizer", "scaler"}
        - state.keys()
    ):
        raise MsposeError(
            f"{run}/checkpoint.pt is not a checkpoint of this version: it has no {min(missing)}"
        )
    if state["config_hash"] != config_hash(settings):
        raise MsposeError(
            f"{run}/checkpoint.pt was made with other settings than its config.yaml: remove one of"
            " them"
        )
    return state


def restore(state: Mapping[str, Any], kept: Mapping[str, Any], run: Path) -> None:
    """Fill network, loss, optimizer and scaler from a checkpoint's state, if that has them."""
    if "network" not in state:
        return
    try:
        load_weights(kept["network"], state["network"], run)
        for name in ("loss", "optimizer", "scaler"):
            kept[name].load_state_dict(state[name])
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise MsposeError(
            f"{run}/checkpoint.pt is not a checkpoint of this version: {error}"
        ) from error


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
            "frames": len(frames),
            "resized_frame": list(batches.cache.shape(int(frames["cache_row"].iloc[0]))),
            **describe_images(frames, batches.cache, data_root(card, settings.data.root)),
        },
        "config_hash": config_hash(settings),
    }


def step_seed(seed: int, step: int, process: int) -> int:
    """A seed for torch's generator that no other (seed, step, process) shares in practice."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0] >> 1)


def learning_rate(step: int, total_steps: int, steps_per_epoch: int, settings: Settings) -> float:
    """The rate of a step, from the step alone."""
    options = settings.training
    if options.schedule == "step":
        return options.learning_rate * options.step_factor ** (
            step // steps_per_epoch // options.step_epochs
        )
    warm = round(options.warmup * total_steps)
    if step < warm:
        return options.learning_rate * (step + 1) / warm
    return (
        options.learning_rate
        * (1 + math.cos(math.pi * (step - warm) / max(1, total_steps - warm)))
        / 2
    )


def place(epochs_done: int, steps_done: int, epochs: int) -> str:
    """How far a run is, in words."""
    return (
        f"step {steps_done} of epoch {epochs_done + 1}/{epochs}"
        if steps_done
        else f"epoch {epochs_done}/{epochs}"
    )


def report_look(values: dict[str, float], epoch: int, epochs: int) -> None:
    """One line of medians above the progress bar, from the process that has them."""
    parts = [
        f"{name.replace('_', ' ')} {values[f'median_position_m/{name}']:.3f} m / "
        f"{values[f'median_orientation_deg/{name}']:.2f} deg"
        for name in ("train", "held_out")
        if f"median_position_m/{name}" in values
    ]
    if parts:
        tqdm.write(f"epoch {epoch}/{epochs}: medians: {'; '.join(parts)}")
