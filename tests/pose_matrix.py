"""Poses as 4x4 matrices, in which some formats have them."""

import numpy as np

from mspose.poses import quaternion_to_rotation


def pose_matrix(position_B3, quaternion_B4) -> np.ndarray:
    """Camera-to-world matrices (B, 4, 4)."""
    position = np.atleast_2d(position_B3)
    pose_B44 = np.tile(np.eye(4), (len(position), 1, 1))
    pose_B44[:, :3, :3] = quaternion_to_rotation(quaternion_B4)
    pose_B44[:, :3, 3] = position
    return pose_B44
