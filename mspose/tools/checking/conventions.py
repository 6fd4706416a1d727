"""Are the poses written in the convention that they are read in? Two witnesses.

The pictures: points matched between neighbouring frames must move as the poses say. Each other
reading of the same numbers (world-to-camera, OpenGL axes, ...) predicts another movement, and where
one of them fits and the labelled one does not, that is said. This needs no knowledge of the scene;
it works for any way of looking and moving.

The optical axes: cameras that look at a scene have it before them, so the point nearest to all axes
lies in front. Where it lies behind nearly all of them the axes may be turned round; but cameras
that look outward from a middle are like that as well, and axes alone cannot tell. So this witness
speaks only where the pictures are silent.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mspose.poses import quaternion_to_rotation
from mspose.tools.checking.findings import Finding
from mspose.tools.checking.matching import Pair
from mspose.tools.checking.trajectories import ORIENTATION, POSITION

Array = NDArray[np.float64]

AS_LABELLED = "as labelled"
# columns: the camera's x (right), y (down), z (forward) in the axes of another convention
_AXES = {
    "": np.eye(3),
    "OpenGL axes (x right, y up, z backward)": np.diag([1.0, -1.0, -1.0]),
    "axes x forward, y left, z up": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "pictures turned by 90 degrees": np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    "pictures turned by 180 degrees": np.diag([-1.0, -1.0, 1.0]),
    "pictures turned by 270 degrees": np.array(
        [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    ),
}
# with a focal length that nobody knows: these many long sides of the image, whichever suits a
# reading best
FOCAL_GUESSES = (0.6, 0.75, 0.95, 1.2)
# a known focal length is compared with these multiples of it, as of images resized after their
# calibration
FOCAL_FACTORS = (0.25, 0.33, 0.5, 0.67, 0.8, 1.25, 1.5, 2.0, 3.0, 4.0)
FOCAL_REST, FOCAL_BETTER = (
    0.1,
    0.4,
)  # what is left over with a wrong focal length; with a right one this part of it
WIDEST_PARALLAX = np.radians(40)  # of points that features still match under
FEWEST_PAIRS = 6
FITS, FAILS = (
    0.3,
    0.4,
)  # remaining over observed movement of the matches: of a right, of a wrong reading
BETTER, WINS = (
    0.5,
    0.75,
)  # another reading has this part of the labelled one's rest, in this share of the pairs

FEWEST_FRAMES = 8
# mean squared sine of the angle between axes (about 16 degrees), below which they meet nowhere
PARALLEL = 0.08
NEAR_MISS = 0.2  # median distance of the axes from the meeting point, over that of the cameras
BEHIND = 0.9  # share of the cameras that have it behind them
ARMS_LENGTH_M = 1.0  # a camera turned about a body is no farther from the middle


class Verdict(NamedTuple):
    """What the pictures say of a scene's poses."""

    pairs: int
    rest: float
    """Median over pairs of the movement that the labelled poses leave unexplained, over all
    movement; 0 is perfect.
    """
    best: str
    """The reading that explains most, `AS_LABELLED` or another."""
    best_rest: float
    wins: float
    """Share of the pairs in which `best` explains more than the labelled reading."""
    focal_factor: float = 1.0
    """What known focal lengths must be multiplied with so that `best` explains so much."""

    @property
    def fits(self) -> bool:
        """The pictures bear the labels out."""
        return self.pairs >= FEWEST_PAIRS and self.rest < FITS

    @property
    def contradicts(self) -> bool:
        """The pictures agree with another reading, and not with the labelled one."""
        return (
            self.pairs >= FEWEST_PAIRS
            and self.best != AS_LABELLED
            and self.best_rest < min(FITS, BETTER * self.rest)
            and self.wins >= WINS
        )


def readings(rotation_N33: Array, position_N3: Array) -> dict[str, tuple[Array, Array]]:
    """Name -> (rotation_N33, position_N3) camera-to-world, for each way in which the same numbers
    could be meant.
    """
    inverse_N33 = rotation_N33.transpose(0, 2, 1)
    moved_N3 = -np.einsum("nij,nj->ni", inverse_N33, position_N3)
    found = {}
    for axes, turn_33 in _AXES.items():
        ways = {
            "": (rotation_N33, position_N3),
            "world-to-camera": (inverse_N33, moved_N3),
            "world-to-camera orientations beside camera centres": (inverse_N33, position_N3),
        }
        for way, (turn_N33, centre_N3) in ways.items():
            name = " and ".join(filter(None, (way, axes))) or AS_LABELLED
            found[name] = (turn_N33 @ turn_33, centre_N3)
    return found


def judge_by_pictures(pairs: Sequence[Pair], ordered: pd.DataFrame) -> Verdict:
    """How well the movement of matched points goes with the poses, under each reading."""
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
    rests = {
        (name, focal): _rests(numbered, *pose, focal)
        for name, pose in poses.items()
        for focal in ((1.0,) if known else FOCAL_GUESSES)
    }
    labelled = _least({key: rest for key, rest in rests.items() if key[0] == AS_LABELLED})
    best = _least(rests)
    if known and np.median(rests[best]) > FOCAL_REST:
        rests |= {
            (name, factor): _rests(numbered, *pose, factor)
            for name, pose in poses.items()
            for factor in FOCAL_FACTORS
        }
        other = _least(rests)
        best = other if np.median(rests[other]) < FOCAL_BETTER * np.median(rests[best]) else best
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
    """`unexplained` of every pair. focal: what known focal lengths are multiplied with; long sides
    for unknown ones.
    """
    rests = []
    for pair in pairs:
        one, two = pair.first, pair.second
        shift_3 = turn_N33[two].T @ (centre_N3[one] - centre_N3[two])
        rests.append(unexplained(*_rays(pair, focal), turn_N33[two].T @ turn_N33[one], shift_3))
    return np.array(rests)


def _rays(pair: Pair, factor: float) -> tuple[Array, Array]:
    """Unit directions (M, 3) of the matched points in either camera."""
    rays = []
    for point_M2, given, long_side in (
        (pair.point1_M2, pair.focal1_px, pair.long_side1_px),
        (pair.point2_M2, pair.focal2_px, pair.long_side2_px),
    ):
        focal = factor * (given if np.isfinite(given) else long_side)
        ray_M3 = np.concatenate([point_M2 / focal, np.ones((len(point_M2), 1))], axis=1)
        rays.append(ray_M3 / np.linalg.norm(ray_M3, axis=1, keepdims=True))
    return rays[0], rays[1]


def unexplained(ray1_M3: Array, ray2_M3: Array, turn_33: Array, shift_3: Array) -> float:
    """Median angle between the second rays and where the first ones can go, over the median angle
    that they moved.

    A point on the first ray lies, seen from the second camera, on the arc from `turn_33 @ ray1`
    (infinitely far away) towards `shift_3` (at the first camera): an epipolar line without the half
    of it that is behind a camera, and without its end, since pictures whose points still match are
    not taken from so different directions.

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
    return (
        float(np.median(np.where((along_M >= 0) & (along_M <= arc_M), np.abs(aside_M), ends_M)))
        / moved
    )


def _angle(one_M3: Array, two_M3: Array) -> Array:
    return 2 * np.arctan2(
        np.linalg.norm(one_M3 - two_M3, axis=1), np.linalg.norm(one_M3 + two_M3, axis=1)
    )


class Meeting(NamedTuple):
    """Where the optical axes of a scene's cameras meet, in the least squares sense."""

    behind: float
    """Share of the cameras that have the point behind them."""
    miss: float
    """Median distance of the axes from the point, over the cameras' median distance from it."""
    depth_m: float
    """Median distance of the cameras from the point, along their axes."""


def meeting_point(axis_N3: Array, position_N3: Array) -> Meeting | None:
    """Where axes meet, found a second time without the half of them that miss most; None where they
    are parallel.
    """
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
    """The meeting point of a scene's optical axes where it lies, clearly, behind nearly all
    cameras; else None.
    """
    rotation_N33 = quaternion_to_rotation(part[ORIENTATION].to_numpy())
    meeting = meeting_point(rotation_N33[:, :, 2], part[POSITION].to_numpy())
    if (
        meeting is None
        or meeting.behind < BEHIND
        or meeting.miss > NEAR_MISS
        or meeting.depth_m < ARMS_LENGTH_M
    ):
        return None
    return meeting


def convention_findings(scene: str, verdict: Verdict, behind: Meeting | None) -> list[Finding]:
    """What both witnesses have to say about one scene."""
    axes = (
        f"the optical axes meet behind {100 * behind.behind:.0f} % of the cameras,"
        f" {behind.depth_m:.2g} m away"
        if behind
        else ""
    )
    focal = f"a focal length about {verdict.focal_factor:g} times the given one"
    if verdict.contradicts:
        reading = verdict.best + (f", with {focal}" if verdict.focal_factor != 1 else "")
        text = (
            f"{scene}: the poses seem to be in another convention: {reading}. Read so they explain"
            f" how points move between {verdict.pairs} pairs of frames (all but"
            f" {100 * verdict.best_rest:.0f} % of the movement), as labelled they do not"
            f" ({100 * verdict.rest:.0f} % is left)" + (f"; also, {axes}" if axes else "")
        )
        return [Finding("warning", "suspected-convention", text)]
    if verdict.pairs >= FEWEST_PAIRS and verdict.focal_factor != 1 and verdict.wins >= WINS:
        text = (
            f"{scene}: {focal} would explain far better how points move between {verdict.pairs}"
            f" pairs of frames (all but {100 * verdict.best_rest:.0f} % of the movement, with the"
            f" given one all but {100 * verdict.rest:.0f} %): were the images resized after their"
            " calibration?"
        )
        return [Finding("warning", "suspected-focal-length", text)]
    if verdict.fits:
        return []
    if verdict.pairs >= FEWEST_PAIRS and verdict.rest > FAILS:
        text = (
            f"{scene}: poses and pictures disagree, in this and any other convention: between"
            f" {verdict.pairs} pairs of frames {100 * verdict.rest:.0f} % of the movement of points"
            " is unexplained; do the poses belong to these images, and is the focal length right?"
            + (f" Also, {axes}" if axes else "")
        )
        return [Finding("warning", "poses-against-pictures", text)]
    if behind:
        text = (
            f"{scene}: {axes}: poses written world-to-camera, or with OpenGL axes (z backward)?"
            " Cameras that look outward from a middle are like that too, and the pictures did not"
            " tell"
        )
        return [Finding("warning", "suspected-convention", text)]
    return []
