"""The camera's path through a scene."""

import math

import numpy as np
from numpy.typing import NDArray

from mspose.data.virtual.exact import cosine_sine, length, matrix_product, rotation_matrix, uniform
from mspose.data.virtual.scene import Scene

WAYPOINTS = 10  # per sequence
SECONDS_PER_SEQUENCE = 33.0  # what a sequence lasts, however many frames are taken of it
TREMORS = 5  # sines that make up a hand's tremor


def trajectory(scene: Scene, rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """Camera-to-world poses (frames, 4, 4) along a smooth path with a hand's tremor.

    Position, point looked at and roll are uniform cubic B-splines. Their control points are a Latin
    hypercube of the scene's boxes, which covers each coordinate evenly; a B-spline never leaves the
    box of its control points.
    """
    count = WAYPOINTS + 3
    strata = np.stack([rng.permutation(count) for _ in range(7)], axis=1)
    unit = (strata + rng.random((count, 7))) / count
    low = np.concatenate([scene.view_low_3, scene.target_low_3, [-0.14]])
    high = np.concatenate([scene.view_high_3, scene.target_high_3, [0.14]])
    controls = low + unit * (high - low)

    share = (np.arange(frames) + 0.5) / frames
    segment = np.minimum((share * WAYPOINTS).astype(int), WAYPOINTS - 1)
    t = (share * WAYPOINTS - segment)[:, None]
    weights = (
        (1 - t) * (1 - t) * (1 - t) / 6.0,
        ((3 * t - 6) * t * t + 4) / 6.0,
        (((-3 * t + 3) * t + 3) * t + 1) / 6.0,
        t * t * t / 6.0,
    )
    path = np.zeros((frames, 7))
    for k, weight in enumerate(weights):
        path = path + weight * controls[segment + k]

    seconds = share[:, None] * SECONDS_PER_SEQUENCE
    frequency, phase = (
        uniform(rng, 0.4, 3.0, (TREMORS, 6)),
        uniform(rng, 0.0, 2.0 * math.pi, (TREMORS, 6)),
    )
    tremor = np.zeros((frames, 6))
    for i in range(TREMORS):
        tremor = tremor + cosine_sine(2.0 * math.pi * frequency[i] * seconds + phase[i])[1]
    tremor = tremor / math.sqrt(TREMORS)
    position_F3 = path[:, :3] + 0.004 * tremor[:, :3]

    forward_F3 = path[:, 3:6] - position_F3
    forward_F3 = forward_F3 / length(forward_F3)[:, None]
    right_F3 = np.cross(forward_F3, [0.0, 0.0, 1.0])
    right_F3 = right_F3 / length(right_F3)[:, None]
    down_F3 = np.cross(forward_F3, right_F3)
    steady_F33 = np.stack([right_F3, down_F3, forward_F3], axis=-1)
    shake_F3 = 0.007 * tremor[:, 3:] + path[:, 6:7] * np.array([0.0, 0.0, 1.0])

    pose_F44 = np.tile(np.eye(4), (frames, 1, 1))
    pose_F44[:, :3, :3] = matrix_product(steady_F33, rotation_matrix(shake_F3))
    pose_F44[:, :3, 3] = position_F3
    return pose_F44
