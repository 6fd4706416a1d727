"""The training loop: plain PyTorch, read from top to bottom.

Everything random is drawn from the seed and the epoch, so a run that continues from its checkpoint goes on exactly as
if it had never been interrupted.
"""

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from mspose.checkpoint import CHECKPOINT, WEIGHTS, load_checkpoint, load_model, save_checkpoint, save_model
from mspose.config import Settings, config_hash, differences, read_settings, write_settings
from mspose.data.augmentation import Jitter
from mspose.data.batches import Batches, holdout_rows
from mspose.data.cache import open_split
from mspose.data.cards import Card, read_card
from mspose.errors import MsposeError
from mspose.losses import PoseLoss
from mspose.models.mstransformer import SMALLEST_IMAGE, MSTransformer
from mspose.monitoring import Monitor
from mspose.prediction import load_weights, resolve_device

log = logging.getLogger("mspose")
LOG_EVERY = 10  # steps
PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def train(settings: Settings, *, progress: bool = True) -> Path:
    """Train one run, or continue it where it stopped; returns its folder.

    Raises MsposeError for missing data, a folder that holds a run with other settings, or a loss that is not finite.
    """
    card = read_card(settings.data.dataset)
    run = settings.run_folder(card.ground_truths[0])
    check_folder(run, settings)
    options = settings.training
    device = resolve_device(settings.device)

    torch.manual_seed(settings.seed)
    parts, network = open_data_and_network(settings, card, device, progress=progress)
    loss_of = PoseLoss(**vars(settings.loss)).to(device)
    if options.start_from is not None:
        start_from(network, Path(options.start_from))
    learning = freeze(network, options.trains)
    network.to(device)

    weights = [weight for weight in [*network.parameters(), *loss_of.parameters()] if weight.requires_grad]
    optimizer = torch.optim.Adam(
        weights, lr=options.learning_rate, eps=options.adam_eps, weight_decay=options.weight_decay
    )
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16")
    steps_per_epoch = parts["train"].epoch_length(options.equalize_scenes)
    total_steps = steps_per_epoch * options.epochs
    first_epoch = resume(run, settings, network, loss_of, optimizer, scaler)
    if first_epoch == options.epochs:
        log.info("%s is trained already (%d epochs)", run, first_epoch)
        return run

    write_settings(run / "config.yaml", settings)
    description = describe(network, settings, card, parts["train"])
    augmentation = settings.augmentation
    jitter = Jitter(augmentation.brightness, augmentation.contrast, augmentation.saturation, augmentation.hue)
    monitor = Monitor(run, first_step=first_epoch * steps_per_epoch, frames=options.evaluate_frames)
    bar = tqdm(
        total=total_steps, initial=first_epoch * steps_per_epoch, desc="training", unit="step", disable=not progress
    )
    for epoch in range(first_epoch, options.epochs):
        torch.manual_seed(epoch_seed(settings.seed, epoch))  # dropout
        learning.train()
        clock, images = time.perf_counter(), 0
        batches = parts["train"].epoch(
            settings.seed,
            epoch,
            equalize_scenes=options.equalize_scenes,
            jitter=jitter if augmentation.enabled else None,
            crop_reach=augmentation.crop_reach,
            crop_label=augmentation.crop_label,
        )
        for number, batch in enumerate(batches):
            step = epoch * steps_per_epoch + number
            rate = learning_rate(step, total_steps, steps_per_epoch, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, PRECISION[options.precision], enabled=options.precision != "float32"):
                output = network(batch.image_B3HW, batch.scene_B)
            loss = loss_of(output, batch.position_B3, batch.orientation_B4, batch.scene_B)
            total = loss.total
            if not torch.isfinite(total):
                named = ", ".join(parts["train"].frames["image"].iloc[batch.row])
                terms = ", ".join(f"{name} {float(value.detach()):g}" for name, value in loss.terms.items())
                raise MsposeError(
                    f"the loss is not finite in epoch {epoch + 1}, step {number + 1} ({terms}); its images: {named}; "
                    "the checkpoint of the last whole epoch is kept; try a smaller --training.learning_rate "
                    "or --training.clip_gradient"
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(total).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(weights, options.clip_gradient or math.inf)
            scaler.step(optimizer)
            scaler.update()

            images += len(batch.row)
            if step % LOG_EVERY == 0:
                images_per_second = images / (time.perf_counter() - clock)
                clock, images = time.perf_counter(), 0
                values = {f"loss/{name}": float(value.detach()) for name, value in loss.terms.items()}
                values |= {f"error/{name}": float(value) for name, value in loss.raw.items()}
                values |= {f"loss_weight/{name}": value for name, value in loss_of.weights().items()}
                values |= {
                    f"query_key_gap/{branch}": float(gap_BLH.detach().float().mean())
                    for branch, gap_BLH in output.query_key_gap.items()
                    if gap_BLH.numel()
                }
                values |= {
                    "loss/total": float(total.detach()),
                    "learning_rate": rate,
                    "gradient_norm": float(norm),
                    "images_per_second": images_per_second,
                }
                monitor.step(step, values)
                bar.set_postfix(loss=f"{values['loss/total']:.3f}", refresh=False)
            if number == 0 and epoch in (0, first_epoch):
                monitor.samples(step, batch, parts["train"])
            bar.update()

        done = epoch + 1
        if done % options.evaluate_every == 0 or done == options.epochs:
            report_look(monitor.look(done * steps_per_epoch, network, parts), done, options.epochs)
        save_model(run, network.state_dict(), {**description, "epochs": done})
        save_checkpoint(
            run,
            {
                "epoch": done,
                "config_hash": config_hash(settings),
                "network": network.state_dict(),
                "loss": loss_of.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
            },
        )
    bar.close()
    monitor.close()
    return run


def check_folder(run: Path, settings: Settings) -> None:
    """Refuse a folder that holds a run with other settings: one that learned something, or was converted."""
    stored = run / "config.yaml"
    begun = (run / CHECKPOINT).exists() or (run / WEIGHTS).exists()
    if begun and stored.exists() and (changed := differences(read_settings(stored), settings)):
        raise MsposeError(
            f"{run} holds a run with other settings ({'; '.join(changed)}): "
            "name this one with --variant, or remove that folder"
        )


def open_data_and_network(
    settings: Settings, card: Card, device: torch.device, *, progress: bool
) -> tuple[dict[str, Batches], MSTransformer]:
    """The batches of `train` and, where something is held out, of `held_out`; and a fresh network for their scenes."""
    data = settings.data
    if data.crop < SMALLEST_IMAGE:
        raise MsposeError(f"data.crop {data.crop} is too small: the network takes {SMALLEST_IMAGE} pixels or more")
    frames, cache, _ = open_split(
        card, "train", **data.source(), short_side=data.resize, on_bad_frame=settings.on_bad_frame, progress=progress
    )
    scenes = sorted(frames["scene"].unique())
    network = MSTransformer(scenes=scenes, **vars(settings.model))
    held = holdout_rows(frames, data.holdout)
    if held.all():
        raise MsposeError(f"data.holdout {data.holdout:g} leaves no frame to train on")
    parts = {"train": frames[~held].reset_index(drop=True), "held_out": frames[held].reset_index(drop=True)}
    common = {"scenes": scenes, "crop": data.crop, "mean": network.mean, "std": network.std, "device": device}
    batch_size = settings.training.batch_size
    return (
        {name: Batches(part, cache, batch_size=batch_size, **common) for name, part in parts.items() if len(part)},
        network,
    )


def start_from(network: MSTransformer, source: Path) -> None:
    """Take the weights of another run's model. Raises MsposeError where its scenes or architecture differ."""
    weights, description = load_model(source)
    old, new = description["architecture"], network.architecture
    shaping = [name for name in new if name not in ("dropout", "attention_dropout")]
    changed = [f"{name} {old.get(name)} there, {new[name]} here" for name in shaping if old.get(name) != new[name]]
    if changed:
        raise MsposeError(f"training.start_from {source} holds another architecture: {'; '.join(changed)}")
    load_weights(network, weights, source)


def freeze(network: MSTransformer, trains: str) -> nn.Module:
    """Let only part of the network learn, and return that part: what is switched to training mode each epoch."""
    if trains == "all":
        return network
    network.requires_grad_(False)
    network.eval()
    return network.position_head.requires_grad_(True)


def resume(
    run: Path,
    settings: Settings,
    network: MSTransformer,
    loss_of: PoseLoss,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> int:
    """Restore the checkpoint of this run, if there is one, and return the number of epochs that are done."""
    state = load_checkpoint(run)
    if state is None:
        return 0
    try:
        if state["config_hash"] != config_hash(settings):
            raise MsposeError(
                f"{run}/checkpoint.pt was made with other settings than its config.yaml: remove one of them"
            )
        load_weights(network, state["network"], run)
        loss_of.load_state_dict(state["loss"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        epoch = int(state["epoch"])
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise MsposeError(f"{run}/checkpoint.pt is not a checkpoint of this version: {error}") from error
    if epoch < settings.training.epochs:
        log.info("continuing %s after epoch %d of %d", run, epoch, settings.training.epochs)
    return epoch


def describe(network: MSTransformer, settings: Settings, card: Card, batches: Batches) -> dict:
    """What `model.json` says: how to build the network, how to feed it, and what it learned from."""
    frames = batches.frames
    return {
        "kind": "ms-transformer",
        "architecture": network.architecture,
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
            "focal_px": None if np.isnan(frames["focal_px"].median()) else float(frames["focal_px"].median()),
        },
        "config_hash": config_hash(settings),
    }


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for torch's generator that no other (seed, epoch) shares in practice."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)


def learning_rate(step: int, total_steps: int, steps_per_epoch: int, settings: Settings) -> float:
    """The rate of a step, from the step alone."""
    options = settings.training
    if options.schedule == "step":
        return options.learning_rate * options.step_factor ** (step // steps_per_epoch // options.step_epochs)
    warm = round(options.warmup * total_steps)
    if step < warm:
        return options.learning_rate * (step + 1) / warm
    return options.learning_rate * (1 + math.cos(math.pi * (step - warm) / max(1, total_steps - warm))) / 2


def report_look(values: dict[str, float], epoch: int, epochs: int) -> None:
    """One line of medians above the progress bar."""
    parts = [
        f"{name.replace('_', ' ')} {values[f'median_position_m/{name}']:.3f} m / "
        f"{values[f'median_orientation_deg/{name}']:.2f} deg"
        for name in ("train", "held_out")
        if f"median_position_m/{name}" in values
    ]
    tqdm.write(f"epoch {epoch}/{epochs}: medians: {'; '.join(parts)}")
