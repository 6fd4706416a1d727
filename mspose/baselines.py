"""Two baselines that say whether a network learned anything.

`baseline-mean-pose` answers each scene's mean training pose (the scene is given: it looks at no image).
`baseline-retrieval` answers the pose of the most similar training image of any scene, by backbone features.
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
from mspose.data.cards import read_card
from mspose.data.versions import with_version
from mspose.evaluation import evaluate_predictions, store_predictions
from mspose.metrics import PREDICTION_COLUMNS, device_name, with_errors
from mspose.models.backbone import make_backbone
from mspose.poses import mean_quaternion
from mspose.prediction import resolve_device

POSITION, ORIENTATION = ["tx", "ty", "tz"], ["qw", "qx", "qy", "qz"]
ESTIMATE = ["tx_est", "ty_est", "tz_est", "qw_est", "qx_est", "qy_est", "qz_est"]


def mean_pose(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Predictions: for every test frame the mean position and mean orientation of its scene's training frames."""
    means = {
        scene: np.concatenate([part[POSITION].mean().to_numpy(), mean_quaternion(part[ORIENTATION].to_numpy())])
        for scene, part in train.groupby("scene")
    }
    return _predictions(test, np.stack([means[scene] for scene in test["scene"]]), None)


def nearest_image(train: pd.DataFrame, test: pd.DataFrame, train_ND: Tensor, test_MD: Tensor) -> pd.DataFrame:
    """Predictions: for every test frame pose and scene of the training frame whose features are most alike (cosine)."""
    unit_DN = F.normalize(train_ND, dim=1).T
    nearest = torch.cat([(part_BD @ unit_DN).argmax(dim=1) for part_BD in F.normalize(test_MD, dim=1).split(1024)])
    found = train.iloc[nearest.numpy()]
    return _predictions(test, found[POSITION + ORIENTATION].to_numpy(), found["scene"].to_numpy())


def _predictions(test: pd.DataFrame, pose_N7: np.ndarray, scene: np.ndarray | None) -> pd.DataFrame:
    labels = test[["image", "scene", *POSITION, *ORIENTATION]].reset_index(drop=True)
    estimate = pd.DataFrame(pose_N7, columns=ESTIMATE)
    table = pd.concat([labels, estimate], axis=1).assign(predicted_scene=scene, scene_probability=None)
    return with_errors(table)[list(PREDICTION_COLUMNS)]


def image_features(backbone: torch.nn.Module, batches: Batches, *, progress: bool) -> Tensor:
    """(N, D) means over space of the backbone's two feature maps, one row per frame."""
    parts = []
    with torch.inference_mode():
        total = -(-len(batches.frames) // batches.batch_size)
        for batch in tqdm(batches.in_order(), total=total, desc="image features", unit="batch", disable=not progress):
            position_map_BCHW, orientation_map_BCHW = backbone(batch.image_B3HW)
            parts.append(torch.cat([position_map_BCHW.mean((2, 3)), orientation_map_BCHW.mean((2, 3))], dim=1).cpu())
    return torch.cat(parts)


def evaluate_baselines(settings: Settings, *, progress: bool = True) -> dict[str, tuple[dict[str, Any], Path]]:
    """Predict and evaluate both baselines on the test split; returns (metrics, their file) by variant.

    Their folders, `runs/<experiment>/baseline-.../seed-0`, are read by tables like any run's; those of some scenes, or
    of another ground truth than the card's first, carry that variant's name too.
    """
    card = read_card(settings.data.dataset)
    settings = replace(settings, data=with_version(settings.data))
    device = resolve_device(settings.device)
    backbone = make_backbone(settings.model.backbone, pretrained=settings.model.pretrained).to(device).eval()
    own_variant = settings.run_folder(card.ground_truths[0]).parent.name
    suffix = "" if own_variant == "all" else f"-{own_variant}"
    tables, features, bad_frames = {}, {}, {}
    for split in ("train", "test"):
        tables[split], cache, bad_frames[split] = open_split(
            card,
            split,
            **settings.data.source(),
            short_side=settings.data.resize,
            on_bad_frame=settings.on_bad_frame,
            progress=progress,
        )
        batches = Batches(
            tables[split],
            cache,
            scenes=sorted(tables["train"]["scene"].unique()),
            crop=settings.data.crop,
            mean=backbone.mean,
            std=backbone.std,
            batch_size=32,
            device=device,
        )
        features[split] = image_features(backbone, batches, progress=progress)
    predictions = {
        "baseline-mean-pose": mean_pose(tables["train"], tables["test"]),
        "baseline-retrieval": nearest_image(tables["train"], tables["test"], features["train"], features["test"]),
    }
    metrics = {}
    for baseline, table in predictions.items():
        variant = baseline + suffix
        named = replace(settings, variant=variant, seed=0)
        run = named.run_folder(card.ground_truths[0])
        write_settings(run / "config.yaml", named)
        path = store_predictions(
            run,
            "test",
            table,
            dataset=card.name,
            ground_truth=str(tables["test"]["ground_truth"].iloc[0]),
            data_version=settings.data.version,
            split="test",
            scene_selection="given" if baseline == "baseline-mean-pose" else "predicted",
            experiment=settings.experiment,
            variant=variant,
            seed=0,
            quick=settings.quick,
            bad_frames=bad_frames["test"],
            thresholds=list(card.thresholds),
            model={"config_hash": config_hash(named)},
            device=device_name(device),
        )
        metrics[variant] = evaluate_predictions(path)
    return metrics
