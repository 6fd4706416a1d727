"""Match points between neighbouring frames whose images overlap (OpenCV's SIFT)."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mspose.data.frames import evenly
from mspose.data.images import find_image, read_image
from mspose.errors import MsposeError

Array = NDArray[np.float64]
PAIRS = 20  # per scene
LONG_SIDE = 480  # pixels of the images that features are detected in
FEATURES = 800
FEWEST_MATCHES = 30
DISTINCT = 0.75  # the best match's distance over the second best's
GAPS = (1, 2, 4, 8, 16, 32, 64)
MOVED = 0.05  # median movement of the matches, in long sides of the image, that is telling


class Pair(NamedTuple):
    """Two frames, and points seen in both."""

    first: int
    """Row number in the ordered frames."""
    second: int
    point1_M2: Array
    """Pixels right of and below the first image's centre."""
    point2_M2: Array
    """In the second image, whose size may be another."""
    focal1_px: float
    """NaN where unknown."""
    focal2_px: float
    long_side1_px: int
    long_side2_px: int


class _Features(NamedTuple):
    point_K2: Array
    descriptor_KD: NDArray[np.float32]
    long_side_px: int


def matched_pairs(ordered: pd.DataFrame, scene: str, root: Path) -> list[Pair]:
    """Up to `PAIRS` pairs of one scene, evenly spread, between which the image moved enough.

    ordered: frames of all scenes as `trajectories.in_order` sorts them. The poses are not used.
    """
    rows = np.flatnonzero((ordered["scene"] == scene).to_numpy())
    images, sequences = ordered["image"].to_numpy(), ordered["sequence"].to_numpy()
    focal = ordered["focal_px"].to_numpy()

    @lru_cache(maxsize=16)
    def features(row: int) -> _Features | None:
        return _features(root, images[row])

    pairs, gap = [], 2
    for start in rows[evenly(len(rows) - 1, PAIRS)]:
        candidates = [
            int(start) + step
            for step in GAPS
            if start + step <= rows[-1] and sequences[start + step] == sequences[start]
        ]
        if found := _moved_match(int(start), candidates, gap, features):
            gap, second, (point1_M2, point2_M2) = found
            one, two = features(int(start)), features(second)
            assert one is not None and two is not None
            pairs.append(
                Pair(
                    int(start),
                    second,
                    point1_M2,
                    point2_M2,
                    focal[start],
                    focal[second],
                    one.long_side_px,
                    two.long_side_px,
                )
            )
    return pairs


def _moved_match(
    start: int, candidates: list[int], gap: int, features: Callable[[int], _Features | None]
) -> tuple[int, int, tuple[Array, Array]] | None:
    """(index in `candidates`, frame, points) of a frame whose points match and have moved.

    candidates: from the nearest to the farthest, tried from index `gap` on: nearer ones where the
    overlap is too small, farther ones where nothing has moved. None where that finds none.
    """
    one = features(start)
    gap, before = min(gap, len(candidates) - 1), 0
    while one is not None and 0 <= gap < len(candidates):
        two = features(candidates[gap])
        matched = None if two is None else _match(one, two)
        if two is not None and matched is not None:
            moved_M2 = matched[0] / one.long_side_px - matched[1] / two.long_side_px
            if np.median(np.linalg.norm(moved_M2, axis=1)) > MOVED:
                return gap, candidates[gap], matched
        direction = -1 if matched is None else 1
        if direction == -before:
            return None
        gap, before = gap + direction, direction
    return None


def _features(root: Path, image: str) -> _Features | None:
    try:
        grey_HW = cv2.cvtColor(read_image(find_image(root, image)), cv2.COLOR_RGB2GRAY)
    except MsposeError:  # reported with the images
        return None
    long_side = max(grey_HW.shape)
    scale = min(1.0, LONG_SIDE / long_side)
    if scale < 1:
        grey_HW = cv2.resize(grey_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    keypoints, descriptor_KD = cv2.SIFT.create(FEATURES).detectAndCompute(grey_HW, None)
    if descriptor_KD is None or len(keypoints) < FEWEST_MATCHES:
        return None
    centre = (np.array(grey_HW.shape[::-1], dtype=np.float64) - 1) / 2
    point_K2 = (np.asarray(cv2.KeyPoint.convert(keypoints), np.float64) - centre) / scale
    return _Features(point_K2, np.asarray(descriptor_KD, np.float32), long_side)


def _match(one: _Features, two: _Features) -> tuple[Array, Array] | None:
    """Points seen in both, as far as one fundamental matrix explains them; None where too few."""
    found = cv2.BFMatcher(cv2.NORM_L2).knnMatch(one.descriptor_KD, two.descriptor_KD, k=2)
    good = [
        best for best, *others in found if others and best.distance < DISTINCT * others[0].distance
    ]
    if len(good) < FEWEST_MATCHES:
        return None
    point1_M2 = one.point_K2[[match.queryIdx for match in good]]
    point2_M2 = two.point_K2[[match.trainIdx for match in good]]
    tolerance = 1.5 * max(1.0, one.long_side_px / LONG_SIDE, two.long_side_px / LONG_SIDE)
    try:
        cv2.setRNGSeed(0)
        _, mask = cv2.findFundamentalMat(
            point1_M2, point2_M2, cv2.FM_RANSAC, tolerance, 0.999, 2000
        )
    except cv2.error:  # all points on a line, or the like
        return None
    if mask is None or int(mask.sum()) < FEWEST_MATCHES:
        return None
    inliers = mask.ravel() > 0
    return point1_M2[inliers], point2_M2[inliers]
