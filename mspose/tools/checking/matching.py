"""Match points between frames whose images overlap (OpenCV's SIFT)."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations
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
STARTS = 20  # frames per scene from which pairs are searched
FEWEST_PAIRS = 4  # that tell anything
PIXELS = 640 * 480  # most of the images that features are detected in, of any proportions
FEATURES = 1500
# matches that one fundamental matrix explains: so many, and this share of them, are no chance
FEWEST_MATCHES, LEAST_SHARE = 16, 0.3
DISTINCT = 0.8  # the best match's distance over the second best's
TOLERANCE = 1.5  # pixels, in those images, between a point and its epipolar line
MOVED = 0.02  # median movement of the matches, in long sides of the image, far above their errors
UNORDERED = 12  # frames of which all pairs are tried where neighbours do not overlap


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


class Matched(NamedTuple):
    """The pairs of a scene."""

    pairs: list[Pair]
    reason: str = ""
    """Why there are too few of them to tell anything; empty where there are enough."""


class _Features(NamedTuple):
    point_K2: Array
    descriptor_KD: NDArray[np.float32]
    long_side_px: int
    scale: float
    """Pixels of the image that features were detected in, per pixel of the frame."""


def matched_pairs(ordered: pd.DataFrame, scene: str, root: Path) -> Matched:
    """Pairs of frames of one scene that share enough points, between which the image moved.

    From frames that are evenly spread, the step to the second frame is doubled as long as enough
    points match, and halved until they do. Where neighbouring frames do not overlap, as in a
    collection of photographs, all pairs of a few frames are tried.

    ordered: frames of all scenes as `trajectories.in_order` sorts them. The poses are not used.
    """
    rows = np.flatnonzero((ordered["scene"] == scene).to_numpy())
    images, focal = ordered["image"].to_numpy(), ordered["focal_px"].to_numpy()

    @lru_cache(maxsize=2 * UNORDERED)
    def features(row: int) -> _Features | None:
        return _features(root, images[row])

    found: Counter[str] = Counter()
    pairs: dict[tuple[int, int], Pair] = {}

    def overlaps(first: int, second: int) -> bool:
        """Match two frames; notes the pair, and returns True where enough points match."""
        one, two = features(first), features(second)
        if one is None or two is None:
            found["no points"] += 1
            return False
        matched = _match(one, two)
        if matched is None:
            found["no overlap"] += 1
            return False
        moved_M2 = matched[0] / one.long_side_px - matched[1] / two.long_side_px
        if np.median(np.linalg.norm(moved_M2, axis=1)) < MOVED:
            found["no movement"] += 1
            return True
        pairs[first, second] = Pair(
            first, second, *matched, focal[first], focal[second], one.long_side_px, two.long_side_px
        )
        return True

    step = 1
    for start, ends in _starts(ordered, rows):
        step = min(step, ends)
        while not (matches := overlaps(start, start + step)) and step > 1:
            step //= 2
        while matches and 2 * step <= ends and overlaps(start, start + 2 * step):
            step *= 2
    if len(pairs) < FEWEST_PAIRS:
        few = rows[evenly(len(rows), UNORDERED)].tolist()
        for first, second in combinations(few, 2):
            if (first, second) not in pairs:
                overlaps(first, second)
    return Matched(list(pairs.values()), _reason(len(rows), len(pairs), found))


def _starts(ordered: pd.DataFrame, rows: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """(row, number of rows that follow in its sequence) of the frames to begin pairs with."""
    sequence = ordered["sequence"].to_numpy()[rows]
    last = np.append(np.flatnonzero(sequence[1:] != sequence[:-1]), len(rows) - 1)
    follow = last[np.searchsorted(last, np.arange(len(rows)))] - np.arange(len(rows))
    usable = np.flatnonzero(follow > 0)
    for number in usable[evenly(len(usable), STARTS)]:
        yield int(rows[number]), int(follow[number])


def _reason(frames: int, pairs: int, found: Counter[str]) -> str:
    if pairs >= FEWEST_PAIRS:
        return ""
    if frames < 2:
        return "one frame only"
    ((most, _),) = found.most_common(1) or [("no overlap", 0)]
    return {
        "no points": "the images show too few points",
        "no overlap": f"fewer than {FEWEST_PAIRS} pairs of frames share enough points",
        "no movement": "the camera hardly moves",
    }[most]


def _features(root: Path, image: str) -> _Features | None:
    try:
        grey_HW = cv2.cvtColor(read_image(find_image(root, image)), cv2.COLOR_RGB2GRAY)
    except MsposeError:  # reported with the images
        return None
    long_side = max(grey_HW.shape)
    scale = min(1.0, (PIXELS / grey_HW.size) ** 0.5)
    if scale < 1:
        grey_HW = cv2.resize(grey_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    keypoints, descriptor_KD = cv2.SIFT.create(FEATURES).detectAndCompute(grey_HW, None)
    if descriptor_KD is None or len(keypoints) < FEWEST_MATCHES:
        return None
    centre = (np.array(grey_HW.shape[::-1], dtype=np.float64) - 1) / 2
    point_K2 = (np.asarray(cv2.KeyPoint.convert(keypoints), np.float64) - centre) / scale
    # RootSIFT (Arandjelovic and Zisserman, CVPR 2012)
    share_KD = descriptor_KD / np.maximum(descriptor_KD.sum(axis=1, keepdims=True), 1e-9)
    return _Features(point_K2, np.sqrt(share_KD).astype(np.float32), long_side, scale)


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
    tolerance = TOLERANCE / min(one.scale, two.scale)
    try:
        cv2.setRNGSeed(0)
        _, mask = cv2.findFundamentalMat(
            point1_M2, point2_M2, cv2.FM_RANSAC, tolerance, 0.999, 2000
        )
    except cv2.error:  # all points on a line, or the like
        return None
    if mask is None or mask.sum() < max(FEWEST_MATCHES, LEAST_SHARE * len(good)):
        return None
    inliers = mask.ravel() > 0
    return point1_M2[inliers], point2_M2[inliers]
