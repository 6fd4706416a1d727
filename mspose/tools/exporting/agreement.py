"""Measure the deviation of an exported file's outputs from those of the model."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mspose.inference import PoseEstimator
from mspose.tools.exporting.formats import Answer

TOLERANCE = 1e-4
"""Metres, components of a unit quaternion, probability."""
FAR = 100.0
"""Metres from the origin, beyond which positions may differ by TOLERANCE / FAR of their distance:
float32 has no more digits."""


@dataclass(frozen=True)
class Deviation:
    """The largest differences over several images; infinite for an output of a wrong shape."""

    images: int
    position: float
    """In metres; that of far positions is scaled to a distance of `FAR`."""
    orientation: float
    """In a component of the quaternion."""
    probability: float

    def __str__(self) -> str:
        return (
            f"position {self.position:.1e} m, quaternion {self.orientation:.1e}, scene probability"
            f" {self.probability:.1e} over {self.images} images"
        )

    @property
    def tolerable(self) -> bool:
        """True where all are within `TOLERANCE`."""
        return max(self.position, self.orientation, self.probability) <= TOLERANCE


def deviation(answer: Answer, estimator: PoseEstimator, scene: str | None = None) -> Deviation:
    """Compare both on noise and smooth images of several sizes, one and several at a time.

    The model gets each image alone, through its own preprocessing, with the scene that the file
    chose, whose probability must be the largest: of equally probable ones, either is right. For a
    turn by 180 degrees both signs of the quaternion are right.
    """
    worst = np.zeros(3)
    images = 0
    for image_BHW3 in probes(estimator.preprocessing.resize):
        found = answer(image_BHW3)
        images += len(image_BHW3)
        for index, image_HW3 in enumerate(image_BHW3):
            chosen = estimator.scenes[int(found["scene"][index])]
            expected = estimator(image_HW3, chosen)
            probability_S = np.array(list(expected.scene_probabilities.values()))
            missed = 0.0 if scene is not None else probability_S.max() - expected.scene_probability
            quaternion_4 = found["orientation"][index]
            wrong = [scene is not None and chosen != scene, quaternion_4[0] < 0]
            scale = max(1, float(np.linalg.norm(expected.position)) / FAR)
            differences = (
                _largest(found["position"][index], expected.position) / scale,
                min(_largest(quaternion_4, sign * expected.orientation) for sign in (1, -1)),
                max(missed, _largest(found["scene_probabilities"][index], probability_S)),
            )
            worst = np.maximum(worst, np.inf if any(wrong) else differences)
    return Deviation(images, *np.where(np.isnan(worst), np.inf, worst).tolist())


def probes(resize: int) -> Iterator[NDArray[np.uint8]]:
    """Images (B, H, W, 3) larger and smaller than the network's, of several shapes."""
    rng = np.random.default_rng(0)
    for images, height, width in (
        (1, 2 * resize - 16, 8 * resize // 3),
        (3, resize // 2 + 1, resize // 2),
        (2, resize, resize),
        (1, resize + resize // 3, resize + 5),
    ):
        yield rng.integers(0, 256, (images, height, width, 3), dtype=np.uint8)
        waves_B13 = rng.uniform(1, 9, (images, 1, 3))
        row_BH3 = np.sin(waves_B13 * np.linspace(0, 1, height)[:, None])
        column_BW3 = np.sin(waves_B13 * np.linspace(1, 0, width)[:, None])
        yield (127 + 63 * (row_BH3[:, :, None] + column_BW3[:, None])).astype(np.uint8)


def _largest(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
