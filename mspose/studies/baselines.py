"""Three baselines that tell what a network's errors are worth.

`baseline-mean-pose` answers each scene's mean training pose (the scene is given: it uses no image).
`baseline-retrieval` answers the pose of the most similar training image of any scene, by backbone
features. `baseline-structure` answers the pose that keypoints give, matched with those of the most
similar training images (`mspose.studies.structure`); it needs the focal length.
"""

import logging
import time
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
from mspose.data.cards import data_root, read_card, stated_frames
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
from mspose.studies.structure import structure_poses

log = logging.getLogger("mspose")
CANDIDATES = 60
"""Most similar training images that the structure baseline chooses from."""
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


def most_similar(train_ND: Tensor, test_MD: Tensor, count: int) -> np.ndarray:
    """Rows (M, count) of the training frames with the largest cosine similarity to each test frame.

    train_ND, test_MD: features of the N training and M test frames.
    """
    unit_DN = F.normalize(train_ND, dim=1).T
    count = min(count, len(train_ND))
    nearest = [
        (part_BD @ unit_DN).topk(count, dim=1).indices
        for part_BD in F.normalize(test_MD, dim=1).split(1024)
    ]
    return torch.cat(nearest).numpy()


def nearest_image(train: pd.DataFrame, test: pd.DataFrame, nearest_M: np.ndarray) -> pd.DataFrame:
    """Predict pose and scene of the most similar training frame, whose rows are given."""
    found = train.iloc[nearest_M]
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
    """Predict and evaluate the baselines on the test split; that of structure where focal lengths
    are known.

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
    own_variant = settings.run_folder(card.ground_truths[0]).parent.name
    suffix = "" if own_variant == "all" else f"-{own_variant}"
    metrics = {}

    def store(baseline: str, table: pd.DataFrame, **about: Any) -> None:
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
            model={"config_hash": config_hash(named), **about.pop("model", {})},
            device=device_name(device),
            **about,
        )
        metrics[run.folder.parent.name] = evaluate_predictions(path)

    nearest_MK = most_similar(features["train"], features["test"], CANDIDATES)
    retrieved = nearest_image(train, test, nearest_MK[:, 0])
    store("baseline-mean-pose", mean_pose(train, test))
    store("baseline-retrieval", retrieved)
    if train["focal_px"].isna().all() or test["focal_px"].isna().all():
        log.info("no structure baseline: the focal length of %s is not known", card.name)
        return metrics
    began = time.perf_counter()
    root = data_root(card, settings.data.root)
    pose_M7, localised_M = structure_poses(train, test, nearest_MK, root, progress=progress)
    seconds = time.perf_counter() - began
    lost = int((~localised_M).sum())
    log.info("%d of %d frames not localised: they have the retrieved pose", lost, len(test))
    store(
        "baseline-structure",
        _predictions(test, pose_M7, retrieved["predicted_scene"].to_numpy()),
        not_localised=lost,
        model={"milliseconds_per_image": 1000 * seconds / len(test)},
    )
    return metrics
