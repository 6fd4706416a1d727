"""Data of a report's plots, compact enough for a page: what `page.js` draws.

Arrays that grow with the number of frames are base64 of little-endian bytes, the rest rounded
numbers.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mspose.config import BRANCHES
from mspose.data.frames import evenly
from mspose.metrics import ERROR_COLUMNS, ESTIMATED_POSITION, TRUE_POSITION
from mspose.run import Run

ALL_SCENES = "all scenes (mean)"
STEPS, BINS, CELLS = 120, 30, 28
"""Points of a recall curve, bins of a histogram, cells of either side of a recall map."""
MEDIANS = 10
"""End of recall curves in multiples of the largest median, unless thresholds are larger."""
LOGGED_POINTS = 300
"""Largest number of points of a training curve."""
TRAJECTORY_BYTES = 5_000_000
"""Limit of a page's trajectories; larger ones are thinned out."""
FAR = 1000.0
"""Metres from the origin beyond which a scene is drawn relative to its centre, for float32."""


def packed(values: Any, kind: str = "f4") -> dict[str, str]:
    """Pack an array for `page.js`: `t` its type (f4, u1, u2), `b` its bytes."""
    array = np.ascontiguousarray(np.asarray(values), dtype=np.dtype(kind).newbyteorder("<"))
    return {"t": kind, "b": base64.b64encode(array.tobytes()).decode("ascii")}


def rounded(values: Any, digits: int = 5) -> list[float]:
    """Round to so many significant digits."""
    return [
        float(f"{value:.{digits}g}")
        for value in np.asarray(values, dtype=np.float64).ravel().tolist()
    ]


def scene_choices(runs: Sequence[Run]) -> list[str]:
    """List the scenes by name; with several, the mean over scenes last."""
    scenes = sorted({scene for run in runs for scene in run.metrics["scenes"]})
    return [*scenes, ALL_SCENES] if len(scenes) > 1 else scenes


def error_diagrams(
    runs: Sequence[Run], thresholds: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """Compute recall curves, histograms and the recall map of every run, by `scene_choices`.

    Shares are in percent. The mean over scenes is unweighted, as in tables. A run without the scene
    has None.
    """
    errors = [
        {
            str(scene): part[list(ERROR_COLUMNS)].to_numpy(np.float64).T
            for scene, part in run.frames.groupby("scene")
        }
        for run in runs
    ]
    diagrams = []
    for choice in scene_choices(runs):
        inside = [
            [part for scene, part in scenes.items() if choice in (scene, ALL_SCENES)]
            for scenes in errors
        ]
        pooled = [part for parts in inside for part in parts]
        axes = [
            _Axis([part[i] for part in pooled], [pair[i] for pair in thresholds]) for i in (0, 1)
        ]
        diagrams.append(
            {
                "curves": [
                    {
                        "x": rounded(axis.linear),
                        "y": [_mean(parts, i, axis.recall) for parts in inside],
                    }
                    for i, axis in enumerate(axes)
                ],
                "histograms": [
                    {
                        "edges": rounded(axis.bins),
                        "y": [_mean(parts, i, axis.shares) for parts in inside],
                    }
                    for i, axis in enumerate(axes)
                ],
                "map": {
                    "x": rounded(axes[0].cells),
                    "y": rounded(axes[1].cells),
                    "z": [_map(parts, axes[0].cells, axes[1].cells) for parts in inside],
                },
                "medians": [
                    rounded(np.mean([np.median(part, axis=1) for part in parts], axis=0))
                    if parts
                    else None
                    for parts in inside
                ],
            }
        )
    return diagrams


class _Axis:
    """Curve points, bins and cells along one of the two errors, for all runs."""

    def __init__(self, parts: Sequence[NDArray[np.float64]], thresholds: Sequence[float]):
        errors_N = np.concatenate(parts)
        largest = max(thresholds, default=0.0)
        usual = MEDIANS * max(
            float(np.median(part)) for part in parts
        )  # a few gross errors must not hide the rest
        top = max(min(float(np.quantile(errors_N, 0.97)), usual), 1.1 * largest) or 1.0
        self.linear = np.linspace(0, top, STEPS + 1)
        positive = errors_N[errors_N > 0]
        low, high = (np.quantile(positive, 0.003), positive.max()) if positive.size else (1e-3, 1.0)
        if high < 1.01 * low:
            low, high = low / 1.5, high * 1.5
        self.bins = np.geomspace(low, high, BINS + 1)
        self.cells = np.geomspace(min([2 * low, *thresholds]) / 1.2, max(top, 4 * low), CELLS)

    def recall(self, errors_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the share of frames within each value of `linear`, in percent."""
        return 100 * np.searchsorted(np.sort(errors_N), self.linear, side="right") / len(errors_N)

    def shares(self, errors_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the share of frames in each bin, in percent; the first has all smaller errors."""
        inside = np.clip(errors_N, self.bins[0], self.bins[-1])
        bin_N = np.clip(np.searchsorted(self.bins, inside, side="right") - 1, 0, BINS - 1)
        return 100 * np.bincount(bin_N, minlength=BINS) / len(errors_N)


def _mean(parts: Sequence[NDArray[np.float64]], which: int, measure: Any) -> list[float] | None:
    if not parts:
        return None
    return np.mean([measure(part[which]) for part in parts], axis=0).round(1).tolist()


def _map(
    parts: Sequence[NDArray[np.float64]], metres_C: NDArray[Any], degrees_C: NDArray[Any]
) -> dict[str, str] | None:
    """Compute the percentage of frames with both errors within each pair, rows by degrees."""
    if not parts:
        return None
    shares = []
    for position_N, orientation_N in parts:
        count_CC = np.zeros((CELLS + 1, CELLS + 1))
        np.add.at(
            count_CC,
            (np.searchsorted(degrees_C, orientation_N), np.searchsorted(metres_C, position_N)),
            1,
        )
        shares.append(100 * count_CC.cumsum(0).cumsum(1)[:CELLS, :CELLS] / len(position_N))
    return packed(np.mean(shares, axis=0).round(), "u1")


def trajectories(runs: Sequence[Run], budget: int = TRAJECTORY_BYTES) -> tuple[dict[str, Any], str]:
    """Collect the poses of every run and scene; with a sentence if they were thinned out.

    `sets`: what runs share of a scene (`scene`, `names`, `truth` (N, 3), `origin`, the axes `plane`
    in which the truth moves most); `runs`: per run and scene its set, `estimate` (N, 3), both
    errors, and the number in `predicted` of the predicted scene.
    """
    parts = {
        (number, str(scene)): part
        for number, run in enumerate(runs)
        if run.has_poses
        for scene, part in run.frames.groupby("scene")
    }
    shared: dict[bytes, int] = {}
    sets: list[dict[str, Any]] = []
    predicted = sorted(
        {str(name) for part in parts.values() for name in part["predicted_scene"].dropna()}
    )
    drawn: list[dict[str, Any]] = [{} for _ in runs]
    share = min(1.0, budget / max(_size(parts), 1))
    for (number, scene), part in parts.items():
        kept = part.iloc[evenly(len(part), max(int(share * len(part)), 2))]
        truth_N3 = kept[TRUE_POSITION].to_numpy(np.float64)
        key = (
            "\n".join([scene, *kept["image"]]).encode("utf-8", "surrogatepass") + truth_N3.tobytes()
        )
        if key not in shared:
            shared[key] = len(sets)
            sets.append({"scene": scene, "names": list(kept["image"]), **_truth(truth_N3)})
        of_set = sets[shared[key]]
        estimate_N3 = kept[ESTIMATED_POSITION].to_numpy(np.float64) - of_set["origin"]
        drawn[number][scene] = {
            "set": shared[key],
            "estimate": packed(estimate_N3),
            "errors": [packed(kept[column]) for column in ERROR_COLUMNS],
            "predicted": packed(
                [
                    predicted.index(str(name)) if isinstance(name, str) else len(predicted)
                    for name in kept["predicted_scene"]
                ],
                "u2",
            ),
        }
    remark = (
        f"Of the frames of each scene, {100 * share:.2g} % are drawn, evenly spread, to keep the"
        " page small."
        if share < 1
        else ""
    )
    return {"sets": sets, "runs": drawn, "predicted": predicted}, remark


def _size(parts: Mapping[Any, pd.DataFrame]) -> float:
    """Estimate the bytes in the page: names once per frame of a scene, arrays in base64."""
    names = {
        scene: len(json.dumps(list(part["image"]))) + 20 * len(part)
        for (_, scene), part in parts.items()
    }
    return sum(names.values()) + sum(30 * len(part) for part in parts.values())


def _truth(truth_N3: NDArray[np.float64]) -> dict[str, Any]:
    centre = np.median(truth_N3, axis=0)
    origin = np.where(np.abs(centre) > FAR, np.round(centre), 0.0)
    first, second = sorted(np.argsort(truth_N3.std(axis=0), kind="stable")[1:].tolist())
    return {"truth": packed(truth_N3 - origin), "origin": origin.tolist(), "plane": [first, second]}


LOGGED = (
    *("learning_rate", "loss/", "median_position_m/", "median_orientation_deg/"),
    *("query_key_gap/", "attention_entropy/"),
)


def training_curves(scalars: pd.DataFrame, points: int = LOGGED_POINTS) -> dict[str, Any]:
    """Collect tag -> [steps, values] of the scalars that a report shows.

    Curves of more than `points` steps are means of neighbours. `attention_entropy/mean` and
    `query_key_gap/mean` are means over encoder layers, or over the branches where the gap is logged
    at every step, at the steps that all have.
    """
    shown = scalars[[tag for tag in scalars if str(tag).startswith(LOGGED)]]
    for family in ("attention_entropy/", "query_key_gap/"):
        tags = [family + branch for branch in BRANCHES if family + branch in shown]
        tags = tags or [str(tag) for tag in shown if str(tag).startswith(family)]
        if tags:
            shown = shown.assign(**{family + "mean": shown[tags].mean(axis=1, skipna=False)})
    curves: dict[str, Any] = {}
    for tag, column in shown.replace([np.inf, -np.inf], np.nan).items():
        values = column.dropna()
        if len(values):
            groups = np.arange(len(values)) // -(-len(values) // points)
            steps = values.index.to_series().groupby(groups).mean().astype(int)
            curves[str(tag)] = [steps.tolist(), rounded(values.groupby(groups).mean())]
    return curves
