"""The poses by themselves: extents, jumps between neighbouring frames, sign changes of quaternions,
repeated poses.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from mspose.data.frames import natural_order
from mspose.poses import orientation_error
from mspose.tools.checking.findings import Finding, share

POSITION, ORIENTATION = ["tx", "ty", "tz"], ["qw", "qx", "qy", "qz"]
LARGE_M, SMALL_M = 1000.0, 0.05  # a scene's longest side beyond which the unit is hardly metres
FAR_OFF = 100.0  # how many extents away from the origin float32 and a network's head lose precision
# a step is a jump when it is this many times the sequence's median, and its upper quartile
OVER_MEDIAN, OVER_QUARTILE = 10.0, 5.0
SMALLEST_TURN_DEG = 5.0
USUAL = 0.1  # where more of the steps than this are "jumps", the frames are no video
FEWEST_STEPS = 8  # of a sequence whose own steps say what is usual


def in_order(frames: pd.DataFrame) -> pd.DataFrame:
    """The frames by scene, sequence and file name (frame-2 before frame-10), whatever their split."""
    columns = (
        frames["scene"],
        frames["sequence"].map(natural_order),
        frames["image"].map(natural_order),
    )
    keys = list(zip(*columns, strict=True))
    return frames.iloc[sorted(range(len(keys)), key=keys.__getitem__)]


def steps(ordered: pd.DataFrame) -> pd.DataFrame:
    """A row per pair of neighbouring frames of a sequence, in the order of `in_order`.

    Columns: first, second (row numbers in `ordered`), scene, sequence, metres, degrees, dot (of the
    quaternions as they are learned, w >= 0), interval: how far apart the numbers in the file names
    are, 1 for the usual distance.
    """
    names = ordered[["scene", "sequence"]].to_numpy()
    first = np.flatnonzero((names[1:] == names[:-1]).all(axis=1))
    second = first + 1
    position_N3, quaternion_N4 = ordered[POSITION].to_numpy(), ordered[ORIENTATION].to_numpy()
    number_N = np.array([_number(image) for image in ordered["image"]])
    table = pd.DataFrame(
        {
            "first": first,
            "second": second,
            "scene": names[first, 0],
            "sequence": names[first, 1],
            "metres": np.linalg.norm(position_N3[second] - position_N3[first], axis=1),
            "degrees": (
                orientation_error(quaternion_N4[second], quaternion_N4[first]) if first.size else []
            ),
            "dot": (quaternion_N4[second] * quaternion_N4[first]).sum(axis=1),
            "interval": number_N[second] - number_N[first],
        }
    )
    usual = table.groupby(["scene", "sequence"])["interval"].transform("median")
    ratio = (table["interval"] / usual.where(usual > 0)).fillna(1.0)
    return table.assign(interval=ratio.clip(lower=1.0))


def _number(image: str) -> float:
    """The last number in a file's name (a counter, a timestamp); 0 where there is none."""
    found = re.findall(r"\d+(?:\.\d+)?", PurePosixPath(image).stem.removesuffix(".color"))
    return float(found[-1]) if found and len(found[-1]) < 300 else 0.0


def extent_findings(frames: pd.DataFrame) -> list[Finding]:
    """Scenes whose size, or whose distance from the origin, hardly is in metres."""
    findings = []
    for scene, part in frames.groupby("scene"):
        position_N3 = part[POSITION].to_numpy()
        longest = float(np.ptp(position_N3, axis=0).max())
        offset = float(np.linalg.norm(np.median(position_N3, axis=0)))
        if longest > LARGE_M:
            text = (
                f"{scene}: positions span {longest / 1000:.3g} km: are they in metres, and is no"
                " frame an outlier?"
            )
            findings.append(Finding("warning", "large-extent", text))
        elif longest < SMALL_M and len(part) > 1:
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


def jump_findings(ordered: pd.DataFrame, step: pd.DataFrame) -> list[Finding]:
    """Steps far beyond the usual of their sequence, one finding per scene."""
    findings = []
    for scene, part in step.groupby("scene"):
        found = []
        for _, sequence in part.groupby("sequence", sort=False):
            usual = sequence if len(sequence) >= FEWEST_STEPS else part
            if len(usual) < FEWEST_STEPS:
                continue
            metres, degrees = (
                sequence[name] / sequence["interval"] for name in ("metres", "degrees")
            )
            far = metres > _limit(usual["metres"] / usual["interval"])
            turned = degrees > max(_limit(usual["degrees"] / usual["interval"]), SMALLEST_TURN_DEG)
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
            findings.append(Finding("warning", "jump", text, _pairs(ordered, jumps)))
    return findings


def _limit(values: pd.Series) -> float:
    """What is a jump: robust against the jumps themselves, and against a camera that stands still
    for half the time.
    """
    return max(
        OVER_MEDIAN * float(values.median()), OVER_QUARTILE * float(values.quantile(0.75)), 1e-9
    )


def flip_findings(ordered: pd.DataFrame, step: pd.DataFrame) -> list[Finding]:
    """Neighbours whose quaternions, w >= 0, are nearly opposite: the target jumps while the camera
    hardly turns.
    """
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
            findings.append(Finding("warning", "quaternion-flip", text, _pairs(ordered, flips)))
    return findings


def _pairs(ordered: pd.DataFrame, part: pd.DataFrame) -> tuple[str, ...]:
    """`frame-1.jpg -> frame-2.jpg: 0.5 m, 3 deg` for each step in `part`."""
    first, second = (
        ordered["image"].to_numpy()[part[name].to_numpy()] for name in ("first", "second")
    )
    sizes = zip(first, second, part["metres"], part["degrees"], strict=True)
    return tuple(
        f"{one} -> {two}: {metres:.3g} m, {degrees:.3g} deg" for one, two, metres, degrees in sizes
    )


def repeated_poses(frames: pd.DataFrame) -> list[Finding]:
    """Different images of a scene with exactly the same pose."""
    key = frames[["scene", *POSITION, *ORIENTATION]].round(9)
    repeated = key.duplicated(keep=False)
    if not repeated.any():
        return []
    lines, superfluous = [], 0
    pose = key[repeated].groupby(list(key), sort=False).ngroup()
    for _, group in frames.loc[repeated, "image"].groupby(pose, sort=False):
        images = group.tolist()
        lines.append(
            " = ".join(images[:3]) + (f" = {len(images) - 3} more" if len(images) > 3 else "")
        )
        superfluous += len(images) - 1
    text = (
        f"the same pose for different images: {superfluous} of {len(frames)} frames repeat another"
        " one's pose"
    )
    return [Finding("warning", "repeated-pose", text, tuple(lines))]


def extents(part: pd.DataFrame) -> Sequence[float]:
    """Metres between the outermost positions along x, y, z."""
    return [float(value) for value in np.ptp(part[POSITION].to_numpy(), axis=0)]
