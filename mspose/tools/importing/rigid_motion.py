"""Rigid motions as files state them, chained along rigs, and compared where two files state one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from mspose.data.frames import SMALLEST_QUATERNION_NORM, parse_numbers
from mspose.poses import camera_to_world, orientation_error, position_error

POSE = "qw, qx, qy, qz, tx, ty, tz"
SAME_UNITS, SAME_DEGREES = 1e-3, 0.05  # between two statements of one pose, as rounding makes it


@dataclass(frozen=True)
class RigidMotion:
    """p_to = R p_from + t, with the file and line that state it and what is wrong with it."""

    rotation: Rotation
    translation_3: np.ndarray
    where: str
    fault: str = ""

    @property
    def quaternion(self) -> list[float]:
        """w x y z of the rotation."""
        x, y, z, w = self.rotation.as_quat().tolist()
        return [w, x, y, z]

    def then(self, outer: "RigidMotion") -> "RigidMotion":
        """This motion followed by `outer`; it is stated where the first faulty one is."""
        stated = outer if outer.fault and not self.fault else self
        return RigidMotion(
            outer.rotation * self.rotation,
            outer.rotation.apply(self.translation_3) + outer.translation_3,
            stated.where,
            stated.fault,
        )


def parse_motion(cells: Sequence[Any], where: str) -> RigidMotion:
    """The motion of the cells `POSE`; a faulty one has the unit rotation."""
    numbers, fault = parse_numbers(cells)
    w, x, y, z = (float(number) for number in numbers[:4])
    norm = float(np.linalg.norm([w, x, y, z]))
    if not fault and not np.isfinite([norm, *numbers]).all():
        fault = "the pose holds NaN or infinity"
    elif not fault and norm < SMALLEST_QUATERNION_NORM:
        fault = "the quaternion is zero"
    rotation = Rotation.identity() if fault else Rotation.from_quat([x, y, z, w])
    return RigidMotion(rotation, np.array(numbers[4:]), where, fault)


def difference(one: RigidMotion, other: RigidMotion) -> tuple[float, float] | None:
    """Distance of the camera centres and angle in degrees between two world-to-camera poses.

    None where they are the same but for rounding, or one is faulty.
    """
    if one.fault or other.fault:
        return None
    (quaternion1, centre1), (quaternion2, centre2) = (
        camera_to_world(motion.quaternion, motion.translation_3) for motion in (one, other)
    )
    offset = float(position_error(centre1, centre2)[0])
    degrees = float(orientation_error(quaternion1, quaternion2)[0])
    return (offset, degrees) if offset > SAME_UNITS or degrees > SAME_DEGREES else None
