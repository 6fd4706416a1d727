"""The numbers of a report's diagrams, compact enough for a page: what `page.js` draws.

Arrays that grow with the number of frames travel as base64 of little-endian bytes, the rest as
rounded numbers.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mspose.data.frames import evenly
from mspose.metrics import ERROR_COLUMNS, ESTIMATED_POSITION, TRUE_POSITION
from mspose.models.network import BRANCHES
from mspose.tools.report.results import Result

ALL_SCENES = "all scenes (mean)"
STEPS, BINS, CELLS = 120, 30, 28
"""Points of a recall curve, bins of a histogram, cells of either side of a recall map."""
MEDIANS = 10
"""Where recall curves end at the latest, in times the largest median of a run and scene, unless
thresholds go on.
"""
LOGGED_POINTS = 300
TRAJECTORY_BYTES = 5_000_000
"""What the trajectories of a page may take; beyond it they are thinned out."""
FAR = 1000.0
"""Metres from the origin from which on a scene is drawn relative to a place in it, for the digits
of float32.
"""


def packed(values: Any, kind: str = "f4") -> dict[str, str]:
    """An array for `page.js`: `t` its type (f4, u1, u2), `b` its bytes."""
    array = np.ascontiguousarray(np.asarray(values), dtype=np.dtype(kind).newbyteorder("<"))
    return {"t": kind, "b": base64.b64encode(array.tobytes()).decode("ascii")}


def rounded(values: Any, digits: int = 5) -> list[float]:
    """To so many significant digits."""
    return [
        float(f"{value:.{digits}g}")
        for value in np.asarray(values, dtype=np.float64).ravel().tolist()
    ]


def places_of(results: Sequence[Result]) -> list[str]:
    """The scenes by name; with several, after them the mean over scenes."""
    scenes = sorted({str(scene) for result in results for scene in result.metrics["scenes"]})
    return [*scenes, ALL_SCENES] if len(scenes) > 1 else scenes


def error_diagrams(
    results: Sequence[Result], thresholds: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """Per place of `places_of`: recall curves, histograms and the map of recall over both
    thresholds, of every run.

    Shares are in percent. The last place, of several, is the unweighted mean over a run's scenes,
    as in the tables. A run without the scene has None.
    """
    errors = [
        {
            str(scene): part[list(ERROR_COLUMNS)].to_numpy(np.float64).T
            for scene, part in result.frames.groupby("scene")
        }
        for result in results
    ]
    diagrams = []
    for place in places_of(results):
        inside = [
            (
                list(scenes.values())
                if place == ALL_SCENES
                else [scenes[place]]
                if place in scenes
                else []
            )
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
                    (
                        [
                            float(f"{np.mean([np.median(part[i]) for part in parts]):.5g}")
                            for i in (0, 1)
                        ]
                        if parts
                        else None
                    )
                    for parts in inside
                ],
            }
        )
    return diagrams


class _Axis:
    """Where the curves, bins and cells of one of the two errors lie, shared by all runs."""

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
        """Share of frames within each value of `linear`, in percent."""
        return 100 * np.searchsorted(np.sort(errors_N), self.linear, side="right") / len(errors_N)

    def shares(self, errors_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of frames in each bin, in percent; what is below the first bin counts in it."""
        inside = np.clip(errors_N, self.bins[0], self.bins[-1])
        place = np.clip(np.searchsorted(self.bins, inside, side="right") - 1, 0, BINS - 1)
        return 100 * np.bincount(place, minlength=BINS) / len(errors_N)


def _mean(parts: Sequence[NDArray[np.float64]], which: int, measure: Any) -> list[float] | None:
    if not parts:
        return None
    return [
        round(value, 1)
        for value in np.mean([measure(part[which]) for part in parts], axis=0).tolist()
    ]


def _map(
    parts: Sequence[NDArray[np.float64]], metres_C: NDArray[Any], degrees_C: NDArray[Any]
) -> dict[str, str] | None:
    """Percent of frames with both errors within each pair, rows by degrees."""
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


def trajectories(
    results: Sequence[Result], budget: int = TRAJECTORY_BYTES
) -> tuple[dict[str, Any], str]:
    """(frames and poses of every run and scene, a line that says how they were thinned out, if they
    were).

    `sets`: what runs share of a scene (`scene`, `names`, `truth` (N, 3), `origin`, the axes `plane`
    in which the truth moves most); `runs`: per run and scene its set, `estimate` (N, 3), both
    errors, and the number in `predicted` of the predicted scene.
    """
    parts = {
        (number, str(scene)): part
        for number, result in enumerate(results)
        if result.has_poses
        for scene, part in result.frames.groupby("scene")
    }
    shared: dict[bytes, int] = {}
    sets: list[dict[str, Any]] = []
    predicted = sorted(
        {str(name) for part in parts.values() for name in part["predicted_scene"].dropna()}
    )
    runs: list[dict[str, Any]] = [{} for _ in results]
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
        runs[number][scene] = {
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
    return {"sets": sets, "runs": runs, "predicted": predicted}, remark


def _size(parts: Mapping[Any, pd.DataFrame]) -> float:
    """Bytes in the page, before anything is shared: names once per frame of a scene, arrays in
    base64.
    """
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
    "loss/",
    "median_position_m/",
    "median_orientation_deg/",
    "query_key_gap/",
    "attention_entropy/",
)
RATE = "learning_rate"


def training_curves(
    scalars: Mapping[str, Mapping[int, float]], points: int = LOGGED_POINTS
) -> dict[str, Any]:
    """tag -> [steps, values] of the scalars that a report shows; of more than `points` the means of
    neighbours.

    `attention_entropy/mean` and `query_key_gap/mean` are means over encoder layers, or over the
    branches where the gap is logged at every step, at the steps that all have.
    """
    curves: dict[str, Any] = {}
    chosen = {
        tag: values for tag, values in scalars.items() if tag == RATE or tag.startswith(LOGGED)
    }
    for family in ("attention_entropy/", "query_key_gap/"):
        parts = [chosen[family + branch] for branch in BRANCHES if family + branch in chosen]
        parts = parts or [values for tag, values in chosen.items() if tag.startswith(family)]
        if parts:
            steps = sorted(set.intersection(*(set(values) for values in parts)))
            chosen[family + "mean"] = {
                step: float(np.mean([values[step] for values in parts])) for step in steps
            }
    for tag, values in chosen.items():
        finite = [(step, value) for step, value in values.items() if np.isfinite(value)]
        if finite:
            steps_N, values_N = np.array(finite, dtype=np.float64).T
            every = -(-len(finite) // points)
            starts = np.arange(0, len(finite), every)
            counts = np.diff([*starts, len(finite)])
            curves[tag] = [
                [int(step) for step in np.add.reduceat(steps_N, starts) / counts],
                rounded(np.add.reduceat(values_N, starts) / counts),
            ]
    return curves
