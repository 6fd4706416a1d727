"""Check whether the poses are in the convention that they are read in, by images and by axes.

Images: points matched between neighbouring frames must move as the poses say. Each other reading of
the same numbers (world-to-camera, OpenGL axes, ...) predicts another movement, and where one of
them explains the matches and the labelled one does not, it is named. That needs no knowledge of the
scene and holds for any motion.

Optical axes: cameras that look at a scene have it in front of them, so the point nearest to all
axes lies in front. Where it lies behind nearly all of them the axes may be reversed; but cameras
that look outward from a centre are like that as well, and axes alone cannot tell. So they are
reported only where the images are undecided.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mspose.poses import quaternion_to_rotation
from mspose.tools.checking.findings import Finding
from mspose.tools.checking.matching import Pair
from mspose.tools.checking.trajectories import ORIENTATION, POSITION

Array = NDArray[np.float64]

AS_LABELLED = "as labelled"
AXES = {
    "": np.eye(3),
    "OpenGL axes (x right, y up, z backward)": np.diag([1.0, -1.0, -1.0]),
    "axes x forward, y left, z up": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    **{
        f"pictures turned by {degrees} degrees": Rotation.from_euler(
            "z", degrees, degrees=True
        ).as_matrix()
        for degrees in (90, 180, 270)
    },
}
"""Convention -> columns: this project's camera axes x (right), y (down), z (forward) in it."""
# an unknown focal length is tried as these multiples of the image's long side
FOCAL_GUESSES = (0.6, 0.75, 0.95, 1.2)
# a known one is compared with multiples of it, as of images resized after their calibration
FOCAL_FACTORS = (0.25, 0.33, 0.5, 0.67, 0.8, 1.25, 1.5, 2.0, 3.0, 4.0)
# unexplained movement with a wrong focal length, and the part of it with a right one
FOCAL_REST, FOCAL_BETTER = 0.1, 0.4
WIDEST_PARALLAX = np.radians(40)  # of points that features still match under
FEWEST_PAIRS = 6
FITS, FAILS = 0.3, 0.4  # unexplained movement with a right, with a wrong reading
# another reading leaves this part of the labelled one's rest, in this share of the pairs
BETTER, WINS = 0.5, 0.75

FEWEST_FRAMES = 8
PARALLEL = 0.08  # mean squared sine of the angle between axes (16 degrees) that do not meet
NEAR_MISS = 0.2  # median distance of the axes from the meeting point, over that of the cameras
BEHIND = 0.9  # share of the cameras that have the point behind them
ARMS_LENGTH_M = 1.0  # a camera turned about a body is no farther from the centre


class Verdict(NamedTuple):
    """Agreement of a scene's matched points with its poses."""

    pairs: int
    rest: float
    """Median over pairs of the share of the movement that the labelled poses do not explain."""
    best: str
    """The reading that explains most, `AS_LABELLED` or another."""
    best_rest: float
    wins: float
    """Share of the pairs in which `best` explains more than the labelled reading."""
    focal_factor: float = 1.0
    """Multiple of the known focal lengths with which `best` explains so much."""

    @property
    def fits(self) -> bool:
        """True where the images confirm the labels."""
        return self.pairs >= FEWEST_PAIRS and self.rest < FITS

    @property
    def contradicts(self) -> bool:
        """True where the images agree with another reading, and not with the labelled one."""
        return (
            self.pairs >= FEWEST_PAIRS
            and self.best != AS_LABELLED
            and self.best_rest < min(FITS, BETTER * self.rest)
            and self.wins >= WINS
        )


def readings(rotation_N33: Array, position_N3: Array) -> dict[str, tuple[Array, Array]]:
    """Name -> (rotation_N33, position_N3) camera-to-world, for each convention of the numbers."""
    inverse_N33 = rotation_N33.transpose(0, 2, 1)
    moved_N3 = -np.einsum("nij,nj->ni", inverse_N33, position_N3)
    found = {}
    for axes, turn_33 in AXES.items():
        ways = {
            "": (rotation_N33, position_N3),
            "world-to-camera": (inverse_N33, moved_N3),
            "world-to-camera orientations beside camera centres": (inverse_N33, position_N3),
        }
        for way, (turn_N33, centre_N3) in ways.items():
            name = " and ".join(filter(None, (way, axes))) or AS_LABELLED
            found[name] = (turn_N33 @ turn_33, centre_N3)
    return found


def judge_by_images(pairs: Sequence[Pair], ordered: pd.DataFrame) -> Verdict:
    """The verdict of matched points on the poses, under each reading."""
    if not pairs:
        return Verdict(0, np.nan, AS_LABELLED, np.nan, 0.0)
    rows = sorted({row for pair in pairs for row in (pair.first, pair.second)})
    part = ordered.iloc[rows]
    numbered = [
        pair._replace(first=rows.index(pair.first), second=rows.index(pair.second))
        for pair in pairs
    ]
    poses = readings(
        quaternion_to_rotation(part[ORIENTATION].to_numpy()), part[POSITION].to_numpy()
    )
    known = all(np.isfinite([pair.focal1_px, pair.focal2_px]).all() for pair in pairs)

    def rests_with(focals: Sequence[float]) -> dict[tuple[str, float], Array]:
        return {
            (name, focal): _rests(numbered, *pose, focal)
            for name, pose in poses.items()
            for focal in focals
        }

    rests = rests_with((1.0,) if known else FOCAL_GUESSES)
    labelled = _least({key: rest for key, rest in rests.items() if key[0] == AS_LABELLED})
    best = _least(rests)
    if known and np.median(rests[best]) > FOCAL_REST:
        rests |= rests_with(FOCAL_FACTORS)
        other = _least(rests)
        if np.median(rests[other]) < FOCAL_BETTER * np.median(rests[best]):
            best = other
    return Verdict(
        len(pairs),
        float(np.median(rests[labelled])),
        best[0],
        float(np.median(rests[best])),
        float((rests[best] < rests[labelled]).mean()),
        best[1] if known else 1.0,
    )


def _least(rests: Mapping[tuple[str, float], Array]) -> tuple[str, float]:
    return min(rests, key=lambda key: float(np.median(rests[key])))


def _rests(pairs: Sequence[Pair], turn_N33: Array, centre_N3: Array, focal: float) -> Array:
    """`unexplained` of every pair.

    focal: the factor of known focal lengths, or unknown ones in long sides of the image.
    """
    rests = []
    for pair in pairs:
        one, two = pair.first, pair.second
        ray1_M3 = _rays(pair.point1_M2, focal, pair.focal1_px, pair.long_side1_px)
        ray2_M3 = _rays(pair.point2_M2, focal, pair.focal2_px, pair.long_side2_px)
        shift_3 = turn_N33[two].T @ (centre_N3[one] - centre_N3[two])
        rests.append(unexplained(ray1_M3, ray2_M3, turn_N33[two].T @ turn_N33[one], shift_3))
    return np.array(rests)


def _rays(point_M2: Array, factor: float, focal_px: float, long_side_px: int) -> Array:
    """Unit directions (M, 3) of image points in the camera's axes."""
    focal = factor * (focal_px if np.isfinite(focal_px) else long_side_px)
    ray_M3 = np.concatenate([point_M2 / focal, np.ones((len(point_M2), 1))], axis=1)
    return ray_M3 / np.linalg.norm(ray_M3, axis=1, keepdims=True)


def unexplained(ray1_M3: Array, ray2_M3: Array, turn_33: Array, shift_3: Array) -> float:
    """Median angle between the second rays and the arcs of the first, over that between the rays.

    A point on the first ray lies, seen from the second camera, on the arc from `turn_33 @ ray1`
    (infinitely far away) towards `shift_3` (at the first camera): an epipolar line without the half
    of it that is behind a camera, and without its end, since points do not match between images
    from such different directions.

    Args:
        turn_33: from the first camera's axes to the second's.
        shift_3: the first camera's centre in the second's axes, in any unit.
    """
    moved = float(np.median(_angle(ray1_M3, ray2_M3)))
    far_M3 = ray1_M3 @ turn_33.T
    length = float(np.linalg.norm(shift_3))
    if length < 1e-9:
        return float(np.median(_angle(far_M3, ray2_M3))) / moved
    near_3 = shift_3 / length
    ahead_M = far_M3 @ near_3
    towards_M3 = near_3 - ahead_M[:, None] * far_M3
    towards_M3 /= np.maximum(np.linalg.norm(towards_M3, axis=1, keepdims=True), 1e-12)
    arc_M = np.minimum(np.arccos(np.clip(ahead_M, -1, 1)), WIDEST_PARALLAX)
    end_M3 = np.cos(arc_M)[:, None] * far_M3 + np.sin(arc_M)[:, None] * towards_M3
    along_M = np.arctan2((ray2_M3 * towards_M3).sum(axis=1), (ray2_M3 * far_M3).sum(axis=1))
    aside_M = np.arcsin(np.clip((ray2_M3 * np.cross(far_M3, towards_M3)).sum(axis=1), -1, 1))
    ends_M = np.minimum(_angle(far_M3, ray2_M3), _angle(end_M3, ray2_M3))
    rest_M = np.where((along_M >= 0) & (along_M <= arc_M), np.abs(aside_M), ends_M)
    return float(np.median(rest_M)) / moved


def _angle(one_M3: Array, two_M3: Array) -> Array:
    """Angles (M,) in radians between unit vectors, exact for small ones."""
    return 2 * np.arctan2(
        np.linalg.norm(one_M3 - two_M3, axis=1), np.linalg.norm(one_M3 + two_M3, axis=1)
    )


class Meeting(NamedTuple):
    """Least-squares intersection of the optical axes of a scene's cameras."""

    behind: float
    """Share of the cameras that have the point behind them."""
    miss: float
    """Median distance of the axes from the point, over the cameras' median distance from it."""
    depth_m: float
    """Median distance of the cameras from the point, along their axes."""


def meeting_point(axis_N3: Array, position_N3: Array) -> Meeting | None:
    """The point nearest to all axes, then to the better half of them; None for parallel axes."""
    used = np.ones(len(axis_N3), dtype=bool)
    for _ in range(2):
        across_N33 = np.eye(3) - axis_N3[used, :, None] * axis_N3[used, None, :]
        total_33 = across_N33.mean(axis=0)
        if len(axis_N3) < FEWEST_FRAMES or np.linalg.eigvalsh(total_33)[0] < PARALLEL:
            return None
        origin_3 = position_N3.mean(axis=0)  # far from the world's origin small numbers stay exact
        meets_3 = np.linalg.solve(
            total_33, np.einsum("nij,nj->i", across_N33, position_N3[used] - origin_3) / used.sum()
        )
        towards_N3 = meets_3 - (position_N3 - origin_3)
        depth_N = (towards_N3 * axis_N3).sum(axis=1)
        miss_N = np.linalg.norm(towards_N3 - depth_N[:, None] * axis_N3, axis=1)
        used = miss_N <= np.median(miss_N)
    depth = float(np.median(np.abs(depth_N)))
    return Meeting(float((depth_N < 0).mean()), float(np.median(miss_N)) / max(depth, 1e-12), depth)


def axes_meet_behind(part: pd.DataFrame) -> Meeting | None:
    """The meeting point of a scene's optical axes if it is, clearly, behind nearly all cameras."""
    rotation_N33 = quaternion_to_rotation(part[ORIENTATION].to_numpy())
    meeting = meeting_point(rotation_N33[:, :, 2], part[POSITION].to_numpy())
    if meeting is None or meeting.behind < BEHIND:
        return None
    return meeting if meeting.miss <= NEAR_MISS and meeting.depth_m >= ARMS_LENGTH_M else None


def convention_findings(scene: str, verdict: Verdict, behind: Meeting | None) -> list[Finding]:
    """Findings about one scene from its images and its optical axes."""
    axes = ""
    if behind:
        axes = (
            f"the optical axes meet behind {100 * behind.behind:.0f} % of the cameras,"
            f" {behind.depth_m:.2g} m away"
        )
    focal = f"a focal length about {verdict.focal_factor:g} times the given one"
    points = f"how points move between {verdict.pairs} pairs of frames"
    explained = f"all but {100 * verdict.best_rest:.0f} % of the movement"
    kind = "suspected-convention"
    if verdict.contradicts:
        reading = verdict.best + (f", with {focal}" if verdict.focal_factor != 1 else "")
        text = (
            f"the poses seem to be in another convention: {reading}. Read so they explain {points}"
            f" ({explained}), as labelled they do not ({100 * verdict.rest:.0f} % is left)"
            + (f"; also, {axes}" if axes else "")
        )
    elif verdict.pairs >= FEWEST_PAIRS and verdict.focal_factor != 1 and verdict.wins >= WINS:
        kind = "suspected-focal-length"
        text = (
            f"{focal} would explain far better {points} ({explained}, with the given one all but"
            f" {100 * verdict.rest:.0f} %): were the images resized after their calibration?"
        )
    elif verdict.fits:
        return []
    elif verdict.pairs >= FEWEST_PAIRS and verdict.rest > FAILS:
        kind = "poses-against-pictures"
        text = (
            "poses and images disagree, in this and any other convention:"
            f" {100 * verdict.rest:.0f} % of {points} is unexplained; do the poses belong to these"
            " images, and is the focal length right?" + (f" Also, {axes}" if axes else "")
        )
    elif behind:
        text = (
            f"{axes}: poses written world-to-camera, or with OpenGL axes (z backward)? Cameras that"
            " look outward from a centre are like that too, and the images did not tell"
        )
    else:
        return []
    return [Finding("warning", kind, f"{scene}: {text}")]
