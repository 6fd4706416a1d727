"""Check the poses by themselves: extents, jumps, sign changes of quaternions, repeated poses."""

import re
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from mspose.data.frames import natural_order
from mspose.poses import orientation_error
from mspose.tools.checking.findings import Finding, equal_images, share

POSITION, ORIENTATION = ["tx", "ty", "tz"], ["qw", "qx", "qy", "qz"]
LARGE_M, SMALL_M = 1000.0, 0.05  # a scene's longest side beyond which the unit is hardly metres
# distances of what cameras see: a thing close to the lens, the far side of a valley
NEAREST_M, FARTHEST_M = 0.05, 300.0
LONGEST = 1000.0  # extent of a trajectory over that distance
FAR_OFF = 100.0  # extents from the origin at which float32 and a network's head lose precision
# a step is a jump when it is this many times the sequence's median, and its upper quartile
OVER_MEDIAN, OVER_QUARTILE = 10.0, 5.0
SMALLEST_TURN_DEG = 5.0
USUAL = 0.1  # where more of the steps than this are "jumps", the frames are no video
FEWEST_STEPS = 8  # of a sequence whose own steps define its usual step


def in_order(frames: pd.DataFrame) -> pd.DataFrame:
    """The frames by scene, sequence and file name (frame-2 before frame-10), in any split."""
    sequences, images = (frames[name].map(natural_order) for name in ("sequence", "image"))
    keys = list(zip(frames["scene"], sequences, images, strict=True))
    return frames.iloc[sorted(range(len(keys)), key=keys.__getitem__)]


def steps(ordered: pd.DataFrame) -> pd.DataFrame:
    """A row per pair of neighbouring frames of a sequence, in the order of `in_order`.

    Columns: first, second (row numbers in `ordered`), scene, sequence, metres, degrees, dot (of the
    quaternions as they are learned, w >= 0), interval: difference of the numbers in the file names,
    1 for the usual one.
    """
    names = ordered[["scene", "sequence"]].to_numpy()
    first = np.flatnonzero((names[1:] == names[:-1]).all(axis=1))
    second = first + 1
    position_N3, quaternion_N4 = ordered[POSITION].to_numpy(), ordered[ORIENTATION].to_numpy()
    number_N = np.array([_last_number(image) for image in ordered["image"]])
    degrees = np.zeros(0)
    if first.size:
        degrees = orientation_error(quaternion_N4[second], quaternion_N4[first])
    table = pd.DataFrame(
        {
            "first": first,
            "second": second,
            "scene": names[first, 0],
            "sequence": names[first, 1],
            "metres": np.linalg.norm(position_N3[second] - position_N3[first], axis=1),
            "degrees": degrees,
            "dot": (quaternion_N4[second] * quaternion_N4[first]).sum(axis=1),
            "interval": number_N[second] - number_N[first],
        }
    )
    usual = table.groupby(["scene", "sequence"])["interval"].transform("median")
    ratio = (table["interval"] / usual.where(usual > 0)).fillna(1.0)
    return table.assign(interval=ratio.clip(lower=1.0))


def _last_number(image: str) -> float:
    """The last number in a file's name (a counter, a timestamp); 0 where there is none."""
    found = re.findall(r"\d+(?:\.\d+)?", PurePosixPath(image).stem.removesuffix(".color"))
    return float(found[-1]) if found and len(found[-1]) < 300 else 0.0


def unit_findings(part: pd.DataFrame, depth: float) -> list[Finding]:
    """A size of a scene, or distance from the origin, that is hardly in metres.

    Args:
        part: the frames of one scene.
        depth: median distance between the cameras and what they see; NaN where that is unknown, and
            the size of the trajectory has to tell.
    """
    scene = part["scene"].iloc[0]
    findings = []
    position_N3 = part[POSITION].to_numpy()
    longest = max(extents(part))
    offset = float(np.linalg.norm(np.median(position_N3, axis=0)))
    if not NEAREST_M <= depth <= FARTHEST_M and not np.isnan(depth):
        unit = "millimetres" if depth > FARTHEST_M else "kilometres, or of a normalised scene"
        kind = "large-extent" if depth > FARTHEST_M else "small-extent"
        text = (
            f"{scene}: what the images show is {depth:.3g} m away from the cameras, in the median:"
            f" are positions in metres, or in {unit}?"
        )
        findings.append(Finding("warning", kind, text))
    elif longest > np.fmax(LARGE_M, LONGEST * depth):
        text = (
            f"{scene}: positions span {longest / 1000:.3g} km: are they in metres, not millimetres,"
            " and is no frame an outlier?"
        )
        findings.append(Finding("warning", "large-extent", text))
    elif longest < SMALL_M and np.isnan(depth) and len(part) > 1:
        text = f"{scene}: positions span {longest * 100:.2g} cm only: are they in metres?"
        text = text if longest else f"{scene}: all positions are the same"
        findings.append(Finding("warning", "small-extent", text))
    if offset > max(FAR_OFF * longest, LARGE_M):
        text = (
            f"{scene}: positions lie {offset / 1000:.3g} km away from the origin: subtract the"
            " centre of the scene"
        )
        findings.append(Finding("warning", "far-from-origin", text))
    return findings


def extents(part: pd.DataFrame) -> list[float]:
    """Metres between the outermost positions along x, y, z."""
    return [float(value) for value in np.ptp(part[POSITION].to_numpy(), axis=0)]


def jump_findings(ordered: pd.DataFrame, step: pd.DataFrame) -> list[Finding]:
    """Steps far beyond the usual of their sequence, one finding per scene."""
    findings = []
    for scene, part in step.groupby("scene"):
        found = []
        for _, sequence in part.groupby("sequence", sort=False):
            usual = sequence if len(sequence) >= FEWEST_STEPS else part
            if len(usual) < FEWEST_STEPS:
                continue
            far = sequence["metres"] / sequence["interval"] > _limit(usual, "metres")
            limit = max(_limit(usual, "degrees"), SMALLEST_TURN_DEG)
            turned = sequence["degrees"] / sequence["interval"] > limit
            jumps = sequence[far | turned]
            if len(jumps) <= max(2, USUAL * len(sequence)):
                found.append(jumps)
        jumps = pd.concat(found) if found else part.iloc[:0]
        if len(jumps):
            usual_m, usual_deg = part["metres"].median(), part["degrees"].median()
            text = (
                f"{scene}: {share(len(jumps), len(part))} steps between neighbouring frames are"
                f" jumps (the median step is {usual_m:.2g} m, {usual_deg:.2g} deg)"
            )
            jumps = jumps.sort_values("metres", ascending=False, kind="stable")
            findings.append(Finding("warning", "jump", text, _step_texts(ordered, jumps)))
    return findings


def _limit(usual: pd.DataFrame, column: str) -> float:
    """The size of a jump: robust against jumps, and a camera that stands still half of the time."""
    sizes = usual[column] / usual["interval"]
    median, quartile = sizes.quantile([0.5, 0.75]).tolist()
    return max(OVER_MEDIAN * median, OVER_QUARTILE * quartile, 1e-9)


def flip_findings(ordered: pd.DataFrame, step: pd.DataFrame) -> list[Finding]:
    """Neighbours whose quaternions (w >= 0) are nearly opposite: the learned target jumps."""
    findings = []
    for scene, part in step.groupby("scene"):
        flips = part[(part["dot"] < 0) & (part["degrees"] < 90)]
        if len(flips):
            text = (
                f"{scene}: the quaternion changes its sign in {share(len(flips), len(part))} steps"
                " between neighbouring frames, where w passes 0: there the learned target jumps"
                " though the camera hardly turns; a world frame turned about the vertical may"
                " avoid it"
            )
            findings.append(
                Finding("warning", "quaternion-flip", text, _step_texts(ordered, flips))
            )
    return findings


def _step_texts(ordered: pd.DataFrame, part: pd.DataFrame) -> tuple[str, ...]:
    """`frame-1.jpg -> frame-2.jpg: 0.5 m, 3 deg` for each step in `part`."""
    images = ordered["image"].to_numpy()
    rows = zip(part["first"], part["second"], part["metres"], part["degrees"], strict=True)
    return tuple(
        f"{images[first]} -> {images[second]}: {metres:.3g} m, {degrees:.3g} deg"
        for first, second, metres, degrees in rows
    )


def repeated_poses(frames: pd.DataFrame) -> list[Finding]:
    """Different images of a scene with exactly the same pose."""
    key = frames[["scene", *POSITION, *ORIENTATION]].round(9)
    repeated = key.duplicated(keep=False)
    if not repeated.any():
        return []
    pose = key[repeated].groupby(list(key), sort=False).ngroup()
    groups = [images.tolist() for _, images in frames["image"][repeated].groupby(pose, sort=False)]
    superfluous = sum(len(images) - 1 for images in groups)
    text = (
        f"the same pose for different images: {superfluous} of {len(frames)} frames repeat another"
        " one's pose"
    )
    return [Finding("warning", "repeated-pose", text, tuple(map(equal_images, groups)))]
