"""Two baselines that tell whether a network learned anything.

`baseline-mean-pose` answers each scene's mean training pose (the scene is given: it uses no image).
`baseline-retrieval` answers the pose of the most similar training image of any scene, by backbone
features.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mspose.config import Settings, config_hash, write_settings
from mspose.data.batches import Batches
from mspose.data.cache import open_split
from mspose.data.cards import read_card, stated_frames
from mspose.data.versions import with_version
from mspose.evaluation import evaluate_predictions, store_predictions
from mspose.inference import resolve_device
from mspose.metrics import (
    ESTIMATED_ORIENTATION,
    ESTIMATED_POSITION,
    PREDICTION_COLUMNS,
    TRUE_ORIENTATION,
    TRUE_POSITION,
    with_errors,
)
from mspose.models.backbone import make_backbone
from mspose.poses import mean_quaternion
from mspose.provenance import device_name
from mspose.run import Run

POSE = [*TRUE_POSITION, *TRUE_ORIENTATION]


def mean_pose(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Predict the mean position and mean orientation of the training frames of the same scene."""
    means = {
        scene: np.concatenate(
            [
                frames[TRUE_POSITION].mean().to_numpy(),
                mean_quaternion(frames[TRUE_ORIENTATION].to_numpy()),
            ]
        )
        for scene, frames in train.groupby("scene")
    }
    return _predictions(test, np.stack([means[scene] for scene in test["scene"]]), None)


def nearest_image(
    train: pd.DataFrame, test: pd.DataFrame, train_ND: Tensor, test_MD: Tensor
) -> pd.DataFrame:
    """Predict pose and scene of the training frame with the largest cosine similarity of features.

    train_ND, test_MD: features of the N training and M test frames.
    """
    unit_DN = F.normalize(train_ND, dim=1).T
    nearest = torch.cat(
        [(part_BD @ unit_DN).argmax(dim=1) for part_BD in F.normalize(test_MD, dim=1).split(1024)]
    )
    found = train.iloc[nearest.numpy()]
    return _predictions(test, found[POSE].to_numpy(), found["scene"].to_numpy())


def _predictions(test: pd.DataFrame, pose_N7: np.ndarray, scene: np.ndarray | None) -> pd.DataFrame:
    labels = test[["image", "scene", *POSE]].reset_index(drop=True)
    estimate = pd.DataFrame(pose_N7, columns=[*ESTIMATED_POSITION, *ESTIMATED_ORIENTATION])
    table = labels.join(estimate).assign(predicted_scene=scene, scene_probability=None)
    return with_errors(table)[list(PREDICTION_COLUMNS)]


def image_features(backbone: torch.nn.Module, batches: Batches, *, progress: bool) -> Tensor:
    """Compute (N, D) means over space of the backbone's two feature maps, one row per frame."""
    feature_BD = []
    total = -(-len(batches.frames) // batches.batch_size)
    bar = tqdm(
        batches.in_order(), total=total, desc="image features", unit="batch", disable=not progress
    )
    with torch.inference_mode():
        for batch in bar:
            maps = backbone(batch.image_B3HW)
            feature_BD.append(torch.cat([m_BCHW.mean((2, 3)) for m_BCHW in maps], dim=1).cpu())
    return torch.cat(feature_BD)


def evaluate_baselines(
    settings: Settings, *, progress: bool = True
) -> dict[str, tuple[dict[str, Any], Path]]:
    """Predict and evaluate both baselines on the test split.

    Their folders, `runs/<experiment>/baseline-.../seed-0`, are runs for tables; those of some
    scenes, or of another ground truth than the card's first, carry that variant's name too.

    Returns (metrics, their file) by variant.
    """
    card = read_card(settings.data.dataset)
    settings = replace(settings, data=with_version(settings.data))
    device = resolve_device(settings.device)
    backbone = make_backbone(settings.model.backbone, pretrained=settings.model.pretrained)
    backbone = backbone.to(device).eval()
    frames, features, bad_frames = {}, {}, 0
    for split in ("train", "test"):
        frames[split], cache, bad_frames = open_split(
            card,
            split,
            **settings.data.source(),
            short_side=settings.data.resize,
            on_bad_frame=settings.on_bad_frame,
            progress=progress,
        )
        batches = Batches(
            frames[split],
            cache,
            scenes=sorted(frames["train"]["scene"].unique()),
            crop=settings.data.crop,
            mean=backbone.mean,
            std=backbone.std,
            batch_size=32,
            device=device,
        )
        features[split] = image_features(backbone, batches, progress=progress)
    train, test = frames["train"], frames["test"]
    predictions = {
        "baseline-mean-pose": mean_pose(train, test),
        "baseline-retrieval": nearest_image(train, test, features["train"], features["test"]),
    }
    own_variant = settings.run_folder(card.ground_truths[0]).parent.name
    suffix = "" if own_variant == "all" else f"-{own_variant}"
    metrics = {}
    for baseline, table in predictions.items():
        named = replace(settings, variant=baseline + suffix, seed=0)
        run = Run(named.run_folder(card.ground_truths[0]))
        write_settings(run.config_file, named)
        path = store_predictions(
            run,
            table,
            dataset=card.name,
            ground_truth=str(test["ground_truth"].iloc[0]),
            data_version=settings.data.version,
            split="test",
            scene_selection="given" if baseline == "baseline-mean-pose" else "predicted",
            experiment=named.experiment,
            variant=named.variant,
            seed=named.seed,
            quick=named.quick,
            bad_frames=bad_frames,
            frames_expected=stated_frames(card, "test"),
            thresholds=list(card.thresholds),
            model={"config_hash": config_hash(named)},
            device=device_name(device),
        )
        metrics[run.folder.parent.name] = evaluate_predictions(path)
    return metrics
