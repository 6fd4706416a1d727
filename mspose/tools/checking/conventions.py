"""Check whether the poses are in the convention that they are read in, by images and by axes.

Images: points matched between frames must move as the poses say. Each other reading of the same
numbers (world-to-camera, OpenGL axes, quaternions with w last, ...) predicts another movement, and
where one of them explains the matches and the labelled one does not, it is named. That needs no
knowledge of the scene. Some paths leave it open: along a straight line with a steady camera several
readings predict the same movement, which is said.

Scale: no image tells metres, but poses that explain the matches give the distance of what is seen,
in units of the labels, and that is plausible or not.

Optical axes: cameras that look at a scene have it in front of them, so the point nearest to all
axes lies in front. Where it lies behind nearly all of them the axes may be reversed; but cameras
that look outward from a centre are like that as well, and axes alone cannot tell. So they are
reported only where the images are undecided.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mspose.data.frames import evenly
from mspose.poses import quaternion_to_rotation, rotation_to_quaternion
from mspose.tools.checking.findings import Finding
from mspose.tools.checking.matching import Matched, Pair
from mspose.tools.checking.trajectories import ORIENTATION, POSITION

Array = NDArray[np.float64]

AS_LABELLED = "as labelled"
INVERTED = "world-to-camera"
TRANSPOSED = "world-to-camera orientations (transposed) beside camera centres"
TRANSLATIONS = "world-to-camera translations beside camera-to-world orientations"
OPENGL = "OpenGL axes (x right, y up, z backward)"
AXES = {
    "": np.eye(3),
    OPENGL: np.diag([1.0, -1.0, -1.0]),
    "axes x forward, y left, z up": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    **{
        f"pictures turned by {degrees} degrees": Rotation.from_euler(
            "z", degrees, degrees=True
        ).as_matrix()
        for degrees in (90, 180, 270)
    },
}
"""Convention -> columns: this project's camera axes x (right), y (down), z (forward) in it."""
ORDERS = {
    "quaternions written x y z w, read as w x y z": [3, 0, 1, 2],
    "quaternions written w x y z, read as x y z w": [1, 2, 3, 0],
}
"""Wrong order -> where w, x, y and z lie in a quaternion that was read as w x y z."""
OFTEN = (AS_LABELLED, INVERTED, OPENGL, *ORDERS)
"""Readings that are named before others that explain the images no better."""
# an unknown focal length is tried as these multiples of the image's long side
FOCAL_GUESSES = (0.6, 0.75, 0.95, 1.2)
# a known one is compared with multiples of it, as of images resized after their calibration
FOCAL_FACTORS = (0.25, 0.33, 0.5, 0.67, 0.8, 1.25, 1.5, 2.0, 3.0, 4.0)
# unexplained movement with a wrong focal length, and the part of it with a right one
FOCAL_REST, FOCAL_BETTER = 0.1, 0.4
WIDEST_PARALLAX = np.radians(60)  # of points that features still match under
MOST_NAMED = 4  # readings in a finding
MATCHES = 100  # of a pair that are compared
FITS, FAILS = 0.3, 0.4  # unexplained movement with a right, with a wrong reading
# another reading explains: it leaves at most this much, this part of the labelled one's rest, and
# less than it in this share of the pairs
EXPLAINS, BETTER, WINS = 0.2, 0.5, 0.75
SMALLEST_PARALLAX = np.radians(1)  # of points whose distance is measured

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
    best: tuple[str, ...] = (AS_LABELLED,)
    """The readings that explain most, or that the images hardly distinguish from it; those first
    that differ least from the labels.
    """
    rivals: tuple[str, ...] = ()
    """Readings other than the labelled one, those that differ least from it."""
    best_rest: float = np.nan
    wins: float = 0.0
    """Share of the pairs that the best reading explains in which it explains more than the labelled
    one. Those that it does not explain may be wrongly matched.
    """
    focal_factor: float = 1.0
    """Multiple of the known focal lengths with which `best` explains so much."""
    depth: float = np.nan
    """Median distance of the matched points from the cameras, in the labels' unit; NaN if unknown.
    """
    reason: str = ""
    """Why the images tell nothing; empty where they do."""

    @property
    def fits(self) -> bool:
        """True where the images confirm the labels."""
        return not self.reason and self.rest < FITS and not self.contradicts

    @property
    def contradicts(self) -> bool:
        """True where the images agree with another reading, and not with the labelled one."""
        return (
            not self.reason
            and AS_LABELLED not in self.best
            and self.best_rest < min(EXPLAINS, BETTER * self.rest)
            and self.wins >= WINS
        )


class Reading(NamedTuple):
    """The poses of N frames, camera-to-world, if their numbers were in some convention."""

    name: str
    differences: int
    """Number of ways in which it differs from the labelled reading."""
    rotation_N33: Array
    position_N3: Array


def readings(rotation_N33: Array, position_N3: Array) -> list[Reading]:
    """The labelled reading first, then those that differ in one way from it, in two, in three."""
    found: list[Reading] = []

    def add(way: str, axes: str, order: str, pose: tuple[Array, Array]) -> None:
        named = [part for part in (way, axes, order) if part]
        name = " and ".join(named) or AS_LABELLED
        found.append(Reading(name, len(named), pose[0] @ AXES[axes], pose[1]))

    labelled = _ways(rotation_N33, position_N3)
    for way, pose in labelled.items():
        for axes in AXES:
            add(way, axes, "", pose)
    for order, columns in ORDERS.items():
        # the order may have been wrong in a file of another convention, from which loaders convert
        for written in ("", INVERTED, TRANSPOSED):
            turn_N33, moved_N3 = labelled[written]
            turned_N33 = quaternion_to_rotation(rotation_to_quaternion(turn_N33)[:, columns])
            reread = _ways(turned_N33, moved_N3)
            for axes in ("", OPENGL):
                add("", axes, order, reread[written])
                if written != TRANSPOSED:
                    add(INVERTED, axes, order, reread["" if written else INVERTED])
    return sorted(
        found, key=lambda reading: (reading.differences, reading.name not in OFTEN, reading.name)
    )


def _ways(rotation_N33: Array, position_N3: Array) -> dict[str, tuple[Array, Array]]:
    """Name -> poses camera-to-world, where the rotations or positions are the inverse pose's."""
    inverse_N33 = rotation_N33.transpose(0, 2, 1)
    moved_N3, turned_N3 = (
        -np.einsum("nij,nj->ni", turn_N33, position_N3) for turn_N33 in (inverse_N33, rotation_N33)
    )
    return {
        "": (rotation_N33, position_N3),
        INVERTED: (inverse_N33, moved_N3),
        TRANSPOSED: (inverse_N33, position_N3),
        TRANSLATIONS: (rotation_N33, turned_N3),
    }


def judge_by_images(matched: Matched, ordered: pd.DataFrame) -> Verdict:
    """The verdict of matched points on the poses, under each reading."""
    pairs = matched.pairs
    if matched.reason:
        return Verdict(len(pairs), np.nan, reason=matched.reason)
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
    focals: tuple[float, ...] = (1.0,) if known else FOCAL_GUESSES
    rests_FRP = np.stack([_rests(numbered, poses, focal) for focal in focals])
    median_FR = np.median(rests_FRP, axis=-1)
    labelled_P = rests_FRP[median_FR[:, 0].argmin(), 0]
    if known and median_FR.min() > FOCAL_REST:
        focals = (1.0, *FOCAL_FACTORS)
        others_FRP = np.stack([_rests(numbered, poses, focal) for focal in FOCAL_FACTORS])
        if np.median(others_FRP, axis=-1).min() < FOCAL_BETTER * median_FR.min():
            rests_FRP = np.concatenate([rests_FRP, others_FRP])
            median_FR = np.median(rests_FRP, axis=-1)
    focal, best = np.unravel_index(median_FR.argmin(), median_FR.shape)
    # of every reading, with that focal length, or, of unknown ones, with the one that suits it best
    focal_R = np.full(len(poses), focal) if known else median_FR.argmin(axis=0)
    rest_RP = rests_FRP[focal_R, np.arange(len(poses))]
    best_P, least = rest_RP[best], float(median_FR[focal, best])
    explained = best_P < FITS
    beaten_R = (best_P < rest_RP)[:, explained].sum(axis=1) >= WINS * max(explained.sum(), 1)
    near_R = (np.median(rest_RP, axis=1) <= least / BETTER) & ~beaten_R
    # readings are sorted by how much they differ from the labelled one
    near = [poses[one] for one in np.flatnonzero(near_R)]
    others = [reading for reading in near if reading.differences]
    simple = [one.name for one in others if one.differences == others[0].differences]
    return Verdict(
        len(pairs),
        float(np.median(labelled_P)),
        tuple(dict.fromkeys(reading.name for reading in near)),
        tuple(dict.fromkeys(simple)),
        least,
        float((best_P < labelled_P)[explained].sum() / max(explained.sum(), 1)),
        focals[focal] if known else 1.0,
        _depth(numbered, poses[best], focals[focal]) if least < EXPLAINS else np.nan,
    )


def _rests(pairs: Sequence[Pair], poses: Sequence[Reading], focal: float) -> Array:
    """`unexplained` (R, P) of every reading and pair.

    focal: the factor of known focal lengths, or unknown ones in long sides of the image.
    """
    turn_RN33 = np.stack([reading.rotation_N33 for reading in poses])
    centre_RN3 = np.stack([reading.position_N3 for reading in poses])
    rests = np.stack(
        [
            unexplained(
                *_pair_rays(pair, focal), *_relative(turn_RN33, centre_RN3, pair.first, pair.second)
            )
            for pair in pairs
        ],
        axis=1,
    )
    return np.nan_to_num(rests, nan=np.inf)  # of impossible numbers in the labels


def _relative(turn_RN33: Array, centre_RN3: Array, one: int, two: int) -> tuple[Array, Array]:
    """Rotation from the axes of camera `one` to those of `two`, and the centre of `one` in them."""
    back_R33 = turn_RN33[:, two].transpose(0, 2, 1)
    shift_R3 = np.einsum("rij,rj->ri", back_R33, centre_RN3[:, one] - centre_RN3[:, two])
    return back_R33 @ turn_RN33[:, one], shift_R3


def _pair_rays(pair: Pair, focal: float) -> tuple[Array, Array]:
    """Rays of at most `MATCHES` matches, evenly spread, in each camera's axes."""
    shown = evenly(len(pair.point1_M2), MATCHES)
    return (
        _rays(pair.point1_M2[shown], focal, pair.focal1_px, pair.long_side1_px),
        _rays(pair.point2_M2[shown], focal, pair.focal2_px, pair.long_side2_px),
    )


def _depth(pairs: Sequence[Pair], reading: Reading, focal: float) -> float:
    """Median over pairs of the median distance of their points from the second camera.

    By the law of sines, of points seen under `SMALLEST_PARALLAX` or more.
    """
    depths = []
    for pair in pairs:
        ray1_M3, ray2_M3 = _pair_rays(pair, focal)
        turn_133, shift_13 = _relative(
            reading.rotation_N33[None], reading.position_N3[None], pair.first, pair.second
        )
        far_M3 = ray1_M3 @ turn_133[0].T
        parallax_M = _angle(far_M3, ray2_M3)
        wide_M = parallax_M > SMALLEST_PARALLAX
        if wide_M.mean() > 0.5:
            base_M = np.linalg.norm(np.cross(shift_13, far_M3[wide_M]), axis=1)
            depths.append(float(np.median(base_M / np.sin(parallax_M[wide_M]))))
    return float(np.median(depths)) if depths else np.nan


def _rays(point_M2: Array, factor: float, focal_px: float, long_side_px: int) -> Array:
    """Unit directions (M, 3) of image points in the camera's axes."""
    focal = factor * (focal_px if np.isfinite(focal_px) else long_side_px)
    ray_M3 = np.concatenate([point_M2 / focal, np.ones((len(point_M2), 1))], axis=1)
    return ray_M3 / np.linalg.norm(ray_M3, axis=1, keepdims=True)


def unexplained(ray1_M3: Array, ray2_M3: Array, turn_R33: Array, shift_R3: Array) -> Array:
    """Median angle between the second rays and the arcs of the first, over that between the rays.

    A point on the first ray lies, seen from the second camera, on the arc from `turn @ ray1`
    (infinitely far away) towards `shift` (at the first camera): an epipolar line without the half
    of it that is behind a camera, and without its end, since points do not match between images
    from such different directions.

    Args:
        turn_R33: from the first camera's axes to the second's, under R readings of the poses.
        shift_R3: the first camera's centre in the second's axes, in any unit.

    Returns:
        The share (R,).
    """
    moved = float(np.median(_angle(ray1_M3, ray2_M3)))
    far_RM3 = ray1_M3 @ turn_R33.transpose(0, 2, 1)
    length_R1 = np.linalg.norm(shift_R3, axis=1, keepdims=True)
    near_R3 = shift_R3 / np.maximum(length_R1, 1e-12)
    ahead_RM = np.einsum("rmi,ri->rm", far_RM3, near_R3)
    towards_RM3 = near_R3[:, None] - ahead_RM[..., None] * far_RM3
    towards_RM3 /= np.maximum(np.linalg.norm(towards_RM3, axis=-1, keepdims=True), 1e-12)
    arc_RM = np.minimum(np.arccos(np.clip(ahead_RM, -1, 1)), WIDEST_PARALLAX)
    arc_RM = np.where(length_R1 < 1e-9, 0.0, arc_RM)  # a camera that does not move
    end_RM3 = np.cos(arc_RM)[..., None] * far_RM3 + np.sin(arc_RM)[..., None] * towards_RM3
    along_RM = np.arctan2((ray2_M3 * towards_RM3).sum(-1), (ray2_M3 * far_RM3).sum(-1))
    across_RM3 = np.cross(far_RM3, towards_RM3)
    aside_RM = np.abs(np.arcsin(np.clip((ray2_M3 * across_RM3).sum(-1), -1, 1)))
    ends_RM = np.minimum(_angle(far_RM3, ray2_M3), _angle(end_RM3, ray2_M3))
    rest_RM = np.where((along_RM >= 0) & (along_RM <= arc_RM), aside_RM, ends_RM)
    return np.median(rest_RM, axis=1) / moved


def _angle(one_M3: Array, two_M3: Array) -> Array:
    """Angles (..., M) in radians between unit vectors, exact for small ones."""
    return 2 * np.arctan2(
        np.linalg.norm(one_M3 - two_M3, axis=-1), np.linalg.norm(one_M3 + two_M3, axis=-1)
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
    explained = f"all but {_percent(verdict.best_rest)} of the movement"
    kind = "suspected-convention"
    if verdict.contradicts:
        reading = ", or ".join(verdict.best[:MOST_NAMED])
        reading += f", with {focal}" if verdict.focal_factor != 1 else ""
        text = (
            f"the poses seem to be in another convention: {reading}. Read so they explain {points}"
            f" ({explained}), as labelled they do not ({_percent(verdict.rest)} is left)"
            + (f"; also, {axes}" if axes else "")
        )
    elif (
        not verdict.reason
        and verdict.focal_factor != 1
        and verdict.wins >= WINS
        and verdict.best_rest < EXPLAINS
    ):
        kind = "suspected-focal-length"
        text = (
            f"{focal} would explain far better {points} ({explained}, with the given one all but"
            f" {_percent(verdict.rest)}): were the images resized after their calibration?"
        )
    elif verdict.fits:
        text = ""
    elif not verdict.reason and verdict.rest > FAILS:
        kind = "poses-against-pictures"
        text = (
            "poses and images disagree, in this and any other convention:"
            f" {_percent(verdict.rest)} of {points} is unexplained; do the poses belong to these"
            " images, and is the focal length right?" + (f" Also, {axes}" if axes else "")
        )
    elif behind:
        text = (
            f"{axes}: poses written world-to-camera, or with OpenGL axes (z backward)? Cameras that"
            " look outward from a centre are like that too, and the images did not tell"
        )
    else:
        text = ""
    if text:
        return [Finding("warning", kind, f"{scene}: {text}")]
    if verdict.fits and verdict.rivals and verdict.best_rest < EXPLAINS:
        text = (
            f"{scene}: {points} suits the labelled poses, but as well other conventions, as on a"
            " straight path without turns; the images cannot tell"
        )
        return [Finding("note", "undecided-convention", text, verdict.rivals)]
    return []


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
