"""Convert a checkpoint of the released MS-Transformer or ActMST code to a run."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mspose.config import (
    DataSettings,
    LossSettings,
    Settings,
    config_hash,
    write_settings,
)
from mspose.data.cards import read_card
from mspose.errors import MsposeError
from mspose.models.mstransformer import MSTransformer
from mspose.models.released import convert_released, read_released
from mspose.run import CONFIG, MODEL, WEIGHTS, save_model

PAPER_RESIZE, PAPER_CROP = 256, 224  # pixels, in both papers


def convert_checkpoint(
    checkpoint: Path, *, out: Path, scenes: list[str] | None = None, dataset: str | None = None
) -> str:
    """Turn a checkpoint of the released MS-Transformer or ActMST code into a run.

    Args:
        checkpoint: a .pth or .safetensors file of tensors.
        out: folder of the run to write.
        scenes: scene names in the order of the checkpoint's indices.
        dataset: data set it was trained on (default: by the number of scenes).

    Returns:
        Lines about what the checkpoint holds, and the folder.

    Raises:
        MsposeError: a file that is no such checkpoint, or a folder that is not empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise MsposeError(f"{out} is not an empty folder: convert into a new one")
    converted = convert_released(read_released(checkpoint), scenes=scenes)
    scenes, model = converted.scenes, converted.settings
    card = read_card(dataset or _data_set_of(scenes))
    if strange := sorted(set(scenes) - set(card.known_scenes or scenes)):
        raise MsposeError(
            f"{card.name} has no scene {strange[0]!r}; its scenes: {', '.join(card.known_scenes)}"
        )
    network = MSTransformer(scenes, model, pretrained=False)
    network.load_state_dict(converted.state_dict)
    experiment, variant, seed = _names(out.resolve())
    settings = Settings(
        experiment=experiment,
        variant=variant,
        seed=seed,
        data=DataSettings(dataset=dataset or card.name),
        model=model,
        loss=LossSettings(qka_weight=0.0 if model.position_encoding == "learned" else 0.1),
    )
    description = {
        "scenes": scenes,
        "settings": asdict(model),
        "preprocessing": {
            "resize": PAPER_RESIZE,
            "crop": PAPER_CROP,
            "mean": network.mean,
            "std": network.std,
        },
        "trained_on": {
            "dataset": card.name,
            "ground_truth": card.ground_truths[0],
            "converted_from": checkpoint.name,
        },
        "config_hash": config_hash(settings),
    }
    try:
        write_settings(out / CONFIG, settings)
        save_model(out, converted.state_dict, description)
    except MsposeError:  # a full disk: the next attempt is to find the folder empty again
        for name in (CONFIG, WEIGHTS, MODEL):
            (out / name).unlink(missing_ok=True)
        raise
    dropped = converted.dropped
    shown = ", ".join(dropped[:8]) + (", ..." if len(dropped) > 8 else "")
    layers = {name: count for name, count in asdict(model).items() if name.endswith("_layers")}
    return "\n".join(
        [
            (
                f"{len(converted.state_dict)} tensors kept, {len(dropped)} that nothing reads"
                f" dropped: {shown}"
            ),
            f"position encoding: {model.position_encoding}; "
            + ", ".join(f"{name} {count}" for name, count in layers.items()),
            f"scenes: {', '.join(scenes)} ({card.name})",
            str(out),
        ]
    )


def _names(out: Path) -> tuple[str, str, int]:
    """Experiment, variant and seed of `released/actmst` or `released/actmst/seed-2`."""
    seed = re.fullmatch(r"seed-(\d{1,9})", out.name)
    folder = out.parent if seed else out
    experiment = folder.parent.name
    return (
        "released" if experiment in ("", "runs") else experiment,
        folder.name,
        int(seed[1]) if seed else 0,
    )


def _data_set_of(scenes: Sequence[str]) -> str:
    """The published data set whose scenes these are."""
    for name in ("7scenes", "cambridge"):
        if set(scenes) <= set(read_card(name).known_scenes):
            return name
    raise MsposeError(
        f"no published data set has the scenes {', '.join(scenes)}: name one with --dataset"
    )
