"""The structure baseline: the pose of an image from known poses of training images, not learned.

Keypoints of a query (SIFT, Lowe 2004; RootSIFT, Arandjelovic and Zisserman, CVPR 2012) are matched
with those of the most similar training images of the retrieved scene. A keypoint that several of
them show is triangulated from their poses, and the query's pose follows from its points and pixels
(PnP in RANSAC), as in structure-based localisation (Irschara et al., CVPR 2009; Sattler et al.,
CVPR 2011), but with points of each query's own in place of a stored model.

Images are read in their own resolution. Keypoints are held as rays: pixels from the image's middle,
divided by the focal length, so that neither size nor focal length need be the same.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from mspose.data.images import find_image, read_image
from mspose.metrics import TRUE_ORIENTATION, TRUE_POSITION
from mspose.poses import camera_to_world, quaternion_to_rotation, rotation_to_quaternion

REFERENCES = 10
"""Training images that a query is matched with. This and what follows was chosen on blocks of 25
frames held out of the training frames of redkitchen-blocks."""
EVERY = 3
"""Distance of references in the order of similarity: neighbours in a video show a point from nearly
the same position, so two of three are passed over."""
KEYPOINTS = 1500
"""Keypoints of an image, the strongest."""
LONGEST_PX = 1024
"""Images with a longer side are made smaller before keypoints are searched."""
CONTRAST = 0.02
"""Contrast that a keypoint needs, half of OpenCV's default: indoor walls have little."""
RATIO = 0.85
"""Largest ratio of the distances to the nearest and second nearest descriptor (Lowe 2004)."""
ERROR_PX = 3.0
"""Largest distance of a projected point from its keypoint."""
LEAST_ANGLE_DEG = 1.0
"""Least angle between two rays that a point is triangulated from."""
LEAST_INLIERS = 12
"""Points that a pose must agree with."""
KEPT = 2048
"""Training images whose keypoints are held in memory: 0.5 GB."""

Array = NDArray[np.float64]


class View(NamedTuple):
    """Keypoints of an image."""

    ray_N2: Array
    """Where the rays to the keypoints cross the plane at distance 1."""
    descriptor_ND: NDArray[np.uint8]
    pixel: float
    """Size of a pixel in that plane."""


def structure_poses(
    train: pd.DataFrame,
    test: pd.DataFrame,
    nearest_MK: NDArray[np.int64],
    root: Path,
    *,
    progress: bool,
) -> tuple[Array, NDArray[np.bool_]]:
    """Estimate the poses of M test frames from training frames, both frame tables.

    nearest_MK: rows of `train` by similarity to each test frame, the most similar first; REFERENCES
    of those that are of the first one's scene and have a focal length are matched.

    Returns poses (M, 7) of position and orientation, and a mask (M,) of the frames that were
    localised; the others have the pose of the most similar training frame. The same frames give the
    same poses.
    """
    cameras = [
        np.column_stack([rotation_33.T, -rotation_33.T @ centre_3])
        for rotation_33, centre_3 in zip(
            quaternion_to_rotation(train[TRUE_ORIENTATION].to_numpy()),
            train[TRUE_POSITION].to_numpy(),
            strict=True,
        )
    ]
    scene_N, focal_N = train["scene"].to_numpy(), train["focal_px"].to_numpy()
    pose_N7 = train[[*TRUE_POSITION, *TRUE_ORIENTATION]].to_numpy(np.float64)

    @lru_cache(maxsize=KEPT)
    def reference(row: int) -> View:
        return keypoints(find_image(root, train["image"].iloc[row]), focal_N[row])

    def pose_of(number: int) -> Array | None:
        focal = test["focal_px"].iloc[number]
        near = nearest_MK[number]
        usable = (scene_N[near] == scene_N[near[0]]) & np.isfinite(focal_N[near])
        rows = near[usable][::EVERY][:REFERENCES].tolist()
        if not np.isfinite(focal) or len(rows) < 2:
            return None
        query = keypoints(find_image(root, test["image"].iloc[number]), focal)
        return localise(query, [reference(row) for row in rows], [cameras[row] for row in rows])

    # a thread per frame: more of them for each matrix product would be in each other's way
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(
            tqdm(
                pool.map(pose_of, range(len(test))),
                total=len(test),
                desc="structure",
                unit="frame",
                disable=not progress,
            )
        )
    poses = [
        pose_N7[nearest_MK[number, 0]] if pose_7 is None else pose_7
        for number, pose_7 in enumerate(found)
    ]
    return np.stack(poses), np.array([pose_7 is not None for pose_7 in found])


def keypoints(path: Path, focal_px: float) -> View:
    """Find SIFT keypoints of an image whose principal point is its middle.

    focal_px: focal length in pixels of the file. Raises MsposeError where the image cannot be read.
    """
    grey_HW = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY)
    height, width = grey_HW.shape
    scale = min(1.0, LONGEST_PX / max(height, width))
    if scale < 1:
        size = round(width * scale), round(height * scale)
        grey_HW = cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA)
    sift = cv2.SIFT.create(KEYPOINTS, contrastThreshold=CONTRAST)
    found, descriptor_ND = sift.detectAndCompute(grey_HW, None)
    if descriptor_ND is None:
        return View(np.zeros((0, 2)), np.zeros((0, 128), np.uint8), 1 / (focal_px * scale))
    pixel_N2 = np.array([keypoint.pt for keypoint in found], np.float64)
    # (0, 0) is the centre of a pixel; each side is rounded to whole pixels by itself
    middle_2 = (np.array(grey_HW.shape[::-1]) - 1) / 2
    scale_2 = np.array(grey_HW.shape[::-1]) / (width, height)
    ray_N2 = (pixel_N2 - middle_2) / (focal_px * scale_2)
    return View(ray_N2, descriptor_ND.astype(np.uint8), 1 / (focal_px * scale))


def localise(query: View, references: list[View], cameras: list[Array]) -> Array | None:
    """Estimate the pose (7,) of a query from references with known cameras (3, 4), world to camera.

    None where fewer than LEAST_INLIERS points agree with a pose.
    """
    ray_RN2 = np.full((len(references), len(query.ray_N2), 2), np.nan)
    for seen_N2, reference in zip(ray_RN2, references, strict=True):
        of_query, of_reference = match(query.descriptor_ND, reference.descriptor_ND)
        seen_N2[of_query] = reference.ray_N2[of_reference]
    camera_R34 = np.stack(cameras)
    # from the first one's centre, so that far-off world coordinates lose no digits
    origin_3 = -camera_R34[0, :, :3].T @ camera_R34[0, :, 3]
    camera_R34[:, :, 3] += camera_R34[:, :, :3] @ origin_3
    error_R = np.array([ERROR_PX * reference.pixel for reference in references])
    point_N3, good_N = triangulate(ray_RN2, camera_R34, error_R)
    if good_N.sum() < LEAST_INLIERS:
        return None
    cv2.setRNGSeed(0)
    points_N3, rays_N2 = point_N3[good_N], query.ray_N2[good_N]
    identity_33 = np.eye(3)
    done, turn_3, shift_3, inliers = cv2.solvePnPRansac(
        points_N3,
        rays_N2,
        identity_33,
        None,
        iterationsCount=2000,
        reprojectionError=ERROR_PX * query.pixel,
        confidence=0.9999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not done or inliers is None or len(inliers) < LEAST_INLIERS:
        return None
    inlier = inliers[:, 0]
    turn_3, shift_3 = cv2.solvePnPRefineLM(
        points_N3[inlier], rays_N2[inlier], identity_33, None, turn_3, shift_3
    )
    quaternion_14 = rotation_to_quaternion(cv2.Rodrigues(turn_3)[0])
    orientation_14, position_13 = camera_to_world(quaternion_14, shift_3[:, 0])
    pose_7 = np.concatenate([position_13[0] + origin_3, orientation_14[0]])
    return pose_7 if np.isfinite(pose_7).all() else None


def match(
    first_ND: NDArray[np.uint8], second_MD: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Match descriptors that are each other's nearest and clearly nearer than the second nearest.

    Returns rows of the first and, of as many, of the second.
    """
    if len(first_ND) < 2 or len(second_MD) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    likeness_NM = root_sift(first_ND) @ root_sift(second_MD).T
    rows_N = np.arange(len(first_ND))
    nearest_N, back_M = likeness_NM.argmax(axis=1), likeness_NM.argmax(axis=0)
    best_N = likeness_NM[rows_N, nearest_N]
    likeness_NM[rows_N, nearest_N] = -1
    second_N = likeness_NM.max(axis=1)
    # of unit vectors: the squared distance is 2 - 2 likeness
    clear_N = 1 - best_N < RATIO**2 * (1 - second_N)
    matched = np.flatnonzero(clear_N & (back_M[nearest_N] == rows_N))
    return matched, nearest_N[matched]


def root_sift(descriptor_ND: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Root of each descriptor of sum 1: unit vectors."""
    values_ND = descriptor_ND.astype(np.float32)
    return np.sqrt(values_ND / np.maximum(values_ND.sum(axis=1, keepdims=True), 1))


def triangulate(
    ray_RN2: Array, camera_R34: Array, error_R: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Triangulate N points from the rays of R cameras (NaN where a camera does not see a point).

    Every two cameras that see a point propose it; the proposal counts with which most cameras agree
    to within `error_R` (R,), and is computed again from all of these. Returns the points (N, 3) and
    the mask of those that two cameras agree on, whose rays meet at LEAST_ANGLE_DEG or more.
    """
    seen_RN = ~np.isnan(ray_RN2[:, :, 0])
    cameras, count = seen_RN.shape
    agree_RN, score_N = np.zeros((cameras, count), bool), np.zeros(count)
    for a in range(cameras):
        for b in range(a):
            both = np.flatnonzero(seen_RN[a] & seen_RN[b])
            if not len(both):
                continue
            point_4P = cv2.triangulatePoints(
                camera_R34[a], camera_R34[b], ray_RN2[a, both].T, ray_RN2[b, both].T
            )
            with np.errstate(divide="ignore", invalid="ignore"):
                point_P3 = (point_4P[:3] / point_4P[3]).T
            within_RP = _agree(point_P3, ray_RN2[:, both], camera_R34, error_R)
            wide_P = _angle_deg(point_P3, camera_R34[[a, b]]) >= LEAST_ANGLE_DEG
            votes_P = np.where(wide_P & within_RP[a] & within_RP[b], within_RP.sum(axis=0), 0)
            better = votes_P > score_N[both]
            score_N[both[better]] = votes_P[better]
            agree_RN[:, both[better]] = within_RP[:, better]
    # linear triangulation: ray x (camera point) = 0
    weight_RN1 = agree_RN[:, :, None].astype(float)
    rays_RN2 = np.where(agree_RN[:, :, None], ray_RN2, 0)
    row_RN24 = weight_RN1[..., None] * (
        rays_RN2[..., None] * camera_R34[:, None, 2:3] - camera_R34[:, None, :2]
    )
    matrix_N44 = np.einsum("rnki,rnkj->nij", row_RN24, row_RN24)
    point_N4 = np.linalg.eigh(matrix_N44)[1][:, :, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        point_N3 = point_N4[:, :3] / point_N4[:, 3:]
    good_N = (score_N >= 2) & np.isfinite(point_N3).all(axis=1)
    within_RN = _agree(point_N3, ray_RN2, camera_R34, error_R)
    return point_N3, good_N & ((within_RN & agree_RN).sum(axis=0) >= 2)


def _agree(point_N3: Array, ray_RN2: Array, camera_R34: Array, error_R: Array) -> Any:
    """Mask (R, N) of the cameras that see a point where it projects to, in front of them."""
    seen_RN3 = np.einsum("rij,nj->rni", camera_R34[:, :, :3], point_N3) + camera_R34[:, None, :, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        off_RN = np.linalg.norm(seen_RN3[..., :2] / seen_RN3[..., 2:] - ray_RN2, axis=2)
        return (seen_RN3[..., 2] > 0) & (off_RN <= error_R[:, None])


def _angle_deg(point_N3: Array, camera_234: Array) -> Array:
    """Angles (N,) in degrees between the rays of two cameras to points."""
    centre_23 = -np.einsum("rji,rj->ri", camera_234[:, :, :3], camera_234[:, :, 3])
    ray_2N3 = point_N3 - centre_23[:, None]
    ray_2N3 /= np.linalg.norm(ray_2N3, axis=2, keepdims=True)
    return np.degrees(np.arccos(np.clip((ray_2N3[0] * ray_2N3[1]).sum(axis=1), -1, 1)))
