"""From a run folder to poses: `mspose.load(run)(image)`, and whole tables of predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mspose import distributed
from mspose.config import Pixels
from mspose.data.batches import Batches
from mspose.data.images import (
    centre_crop,
    normalize,
    read_image,
    resize_short_side,
    to_rgb8,
)
from mspose.errors import MsposeError
from mspose.metrics import (
    ESTIMATED_ORIENTATION,
    ESTIMATED_POSITION,
    PREDICTION_COLUMNS,
    TRUE_ORIENTATION,
    TRUE_POSITION,
    with_errors,
)
from mspose.models.compilation import Compiled
from mspose.models.kinds import build_network
from mspose.models.network import PoseNetwork
from mspose.models.stored import model_folder, unfit_description
from mspose.poses import normalize_quaternion
from mspose.run import load_model

Image = NDArray[np.uint8] | Path | str
"""RGB uint8 (H, W, 3), or the path of an image file."""
SMALL_BATCH = 8  # images; a GPU computes them faster than the next batch's kernels are launched


@dataclass(frozen=True)
class Preprocessing:
    """Preparation of an image for the network; it travels with the model."""

    resize: int
    """Short side in pixels after resizing."""
    crop: int
    """Side in pixels of the centre crop."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image_HW3: NDArray[np.uint8]) -> torch.Tensor:
        """Turn RGB uint8 (H, W, 3) of any size into the network's input (1, 3, crop, crop)."""
        resized = resize_short_side(to_rgb8(image_HW3), self.resize)
        top, left = centre_crop(resized.shape[0], resized.shape[1], self.crop)
        crop_HW3 = np.ascontiguousarray(resized[top : top + self.crop, left : left + self.crop])
        image_13HW = torch.from_numpy(crop_HW3).permute(2, 0, 1)[None].float().div_(255)
        return normalize(image_13HW, self.mean, self.std)


@dataclass(frozen=True, eq=False)
class Estimate:
    """Pose and scene of one image."""

    position: NDArray[np.float64]
    """Camera centre (3,) in metres, in the frame of `scene`."""
    orientation: NDArray[np.float64]
    """Unit quaternion (4,) w x y z, w >= 0, camera-to-world."""
    scene: str
    """The most probable scene, or the one that was given."""
    scene_probabilities: Mapping[str, float]
    """Probability, 0 to 1, of every scene that the model knows."""

    @property
    def scene_probability(self) -> float:
        """Probability of `scene`."""
        return self.scene_probabilities[self.scene]


@dataclass(frozen=True, eq=False, repr=False)
class PoseEstimator:
    """A trained network with its preprocessing: `estimator(image) -> Estimate`."""

    network: PoseNetwork
    """The network, in evaluation mode."""
    preprocessing: Preprocessing
    """Preparation of an image for `network`."""
    description: dict[str, Any]
    """`model.json` of the network."""

    @property
    def scenes(self) -> tuple[str, ...]:
        """Names of the scenes that the network knows."""
        return self.network.scenes

    def __call__(self, image: Image, scene: str | None = None) -> Estimate:
        """Estimate the pose of an image: RGB uint8 (H, W, 3) of any size, or a file's path; `scene`
        is predicted unless given.

        Raises ValueError for an array of another shape or type, MsposeError for a scene that the
        network does not know and for a file that cannot be read. Pixels of a file are taken as they
        are stored (`data.images.read_image`).
        """
        return self.estimates([image], scene)[0]

    def estimates(self, images: Sequence[Image], scene: str | None = None) -> list[Estimate]:
        """Estimate the poses of several images of any sizes in one pass; as for a single one."""
        if len(images) == 0:
            return []
        arrays = (
            read_image(Path(image)) if isinstance(image, str | Path) else image for image in images
        )
        return self.estimates_of(
            torch.cat([self.preprocessing(image_HW3) for image_HW3 in arrays]), scene
        )

    def estimates_of(self, image_B3HW: torch.Tensor, scene: str | None = None) -> list[Estimate]:
        """Estimate the poses of images that `preprocessing` has prepared, on any device.

        Raises MsposeError for an unknown scene, and where an estimate is not finite.
        """
        parameter, scene_B = next(self.network.parameters()), None
        if scene is not None:
            self.check_scene(scene)
            index = self.scenes.index(scene)
            scene_B = torch.full((len(image_B3HW),), index, device=parameter.device)
        if len(image_B3HW) == 0:
            return []
        with torch.inference_mode():
            output = self.network(image_B3HW.to(parameter.device, parameter.dtype), scene_B)
        position_B3 = output.position_B3.double().cpu().numpy()
        orientation_B4 = output.orientation_B4.double().cpu().numpy()
        if not _are_poses(np.hstack([position_B3, orientation_B4])).all():
            raise MsposeError("the model's estimate is no pose: its weights are unusable")
        probability_BS = output.scene_log_probability_BS.double().exp().tolist()
        return [
            Estimate(
                position,
                orientation,
                self.scenes[index],
                dict(zip(self.scenes, probability, strict=True)),
            )
            for position, orientation, index, probability in zip(
                position_B3,
                normalize_quaternion(orientation_B4),
                output.scene_B.tolist(),
                probability_BS,
                strict=True,
            )
        ]

    def check_scene(self, scene: str) -> None:
        """Raise MsposeError for a scene that the network does not know."""
        if scene not in self.scenes:
            raise MsposeError(
                f"scene {scene} is unknown to the model, which knows: {', '.join(self.scenes)}"
            )


def load(run: Path | str, device: str = "auto") -> PoseEstimator:
    """Load the trained model of a run folder or of the Hugging Face hub (`user/name`).

    Raises MsposeError where there is no model, or a broken one.
    """
    run = model_folder(run)
    weights, description = load_model(run)
    network = build_network(description, weights, run)
    try:
        stored = description["preprocessing"]
        mean, std = (tuple(map(float, stored[name])) for name in ("mean", "std"))
        trained_on = description.get("trained_on", {})
        if (len(mean), len(std)) != (3, 3) or not isinstance(trained_on, dict):
            raise ValueError("mean and std have three values, trained_on is a mapping")
        if not (np.isfinite([mean, std]).all() and min(std) > 0):
            raise ValueError(f"mean {mean} and std {std} prepare no image")
        resize, crop = (int(Pixels(stored[name])) for name in ("resize", "crop"))
        preprocessing = Preprocessing(resize, crop, mean, std)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise unfit_description(run, error) from error
    return PoseEstimator(network.to(resolve_device(device)).eval(), preprocessing, description)


def resolve_device(name: str) -> torch.device:
    """Resolve a device name; `auto` is a GPU where there is one, for each process its own.

    Raises MsposeError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(distributed.own_device(name))
        torch.empty(1, device=device).cpu()  # fails on `meta` too, where nothing could be computed
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise MsposeError(
            f"device {name} cannot be used here ({reason}): choose --device cpu or auto"
        ) from error
    return device


def predict_frames(
    network: PoseNetwork,
    batches: Batches,
    rows: NDArray[np.int64] | None = None,
    *,
    given_scene: bool = False,
    compile: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Predict the centre crops of the given rows (default: all) of a frame table; a table with the
    columns of a predictions file.

    Several processes share the batches out, and all get the whole table. `compile` compiles the
    network first.
    """
    chosen = np.arange(len(batches.frames)) if rows is None else rows
    process, processes = distributed.rank_and_world_size()
    starts = range(0, len(chosen), batches.batch_size)[process::processes]
    mine = [chosen[start : start + batches.batch_size] for start in starts]
    bar = tqdm(
        batches.in_order(np.concatenate(mine) if mine else chosen[:0]),
        total=len(mine),
        desc="predicting",
        unit="batch",
        disable=not progress,
    )
    small = batches.device.type == "cuda" and batches.batch_size <= SMALL_BATCH
    forward = Compiled(network.forward, small=small) if compile else network
    # scene, its probability, position, orientation; on the device until the end, as reading one
    # makes a GPU wait
    answers_B9: list[torch.Tensor] = []
    dtype = next(network.parameters()).dtype
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            for batch in bar:
                output = forward(batch.image_B3HW.to(dtype), batch.scene_B if given_scene else None)
                chosen_B, best_B = output.scene_log_probability_BS.max(dim=1)
                columns = (
                    best_B[:, None],
                    chosen_B.exp()[:, None],
                    output.position_B3,
                    output.orientation_B4,
                )
                answers_B9.append(torch.cat([column.double() for column in columns], dim=1))
    finally:
        network.train(training)
    answers = torch.cat(answers_B9).cpu().split([len(row_B) for row_B in mine]) if mine else ()
    rounds = zip_longest(*distributed.gather(list(zip(mine, answers, strict=True))))
    parts = [part for of_a_round in rounds for part in of_a_round if part is not None]
    row_N = np.concatenate([row_B for row_B, _ in parts])
    answer_N9 = torch.cat([answer_B9 for _, answer_B9 in parts]).numpy()
    if not (good_N := _are_poses(answer_N9[:, 2:])).all():
        image = batches.frames["image"].iloc[row_N[int(good_N.argmin())]]
        raise MsposeError(f"the model's estimate for {image} is no pose: its weights are unusable")
    labels = ["image", "scene", *TRUE_POSITION, *TRUE_ORIENTATION]
    table = batches.frames.iloc[row_N][labels].reset_index(drop=True)
    table["predicted_scene"] = np.array(network.scenes, dtype=object)[answer_N9[:, 0].astype(int)]
    table["scene_probability"] = answer_N9[:, 1]
    table[ESTIMATED_POSITION] = answer_N9[:, 2:5]
    table[ESTIMATED_ORIENTATION] = normalize_quaternion(answer_N9[:, 5:])
    return with_errors(table)[list(PREDICTION_COLUMNS)]


def _are_poses(pose_N7: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mask (N,) of the finite positions with quaternions that are not zero."""
    return np.isfinite(pose_N7).all(axis=1) & (np.abs(pose_N7[:, 3:]).max(axis=1) > 1e-12)
