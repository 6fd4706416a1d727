"""Worth of the encoders' self-attention to a trained network, in metres and degrees.

Every knock-out of `mspose.attention.knock_out` is evaluated on the same frames as the network as it
is. Differences of the medians (averages over scenes) are paired by frame, with a bootstrap interval
over blocks of frames: they are about this very network, and another seed may differ.

Attention *matters* where none of the three replacements does as well: for each of them, the
interval of the difference of one error at least excludes 0. It *does not matter* where one of them
leaves both errors as they were, within their intervals.

F frames, V variants: the network as it is, and its knock-outs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mspose.attention.attention_json import Study, label, short
from mspose.attention.knock_out import BOTH, KnockOut, answers
from mspose.config import BRANCHES
from mspose.data.batches import Batches
from mspose.errors import MsposeError
from mspose.files import whole_file
from mspose.metrics import csv_number, csv_rows
from mspose.models.attention import REPLACEMENTS
from mspose.models.mstransformer import MSTransformer
from mspose.poses import normalize_quaternion, orientation_error, position_error
from mspose.studies.ablation.bootstrap import (
    LEVEL,
    RESAMPLES,
    SEED,
    bootstrap_medians,
    in_sequences,
    paired_difference,
)
from mspose.verdict import DOES_NOT_MATTER, MATTERS

ERRORS = {"position_m": 3, "orientation_deg": 2}
"""Errors and the decimals that are printed of them."""
SAID = {
    "mean": "mean of all values",
    "own": "own value",
    "nothing": "sublayer removed",
}
"""Replacements in tables and figures."""
INTACT = "intact"


class Errors(NamedTuple):
    """Errors of frames under every variant, None being the network as it is."""

    frames: pd.DataFrame
    """`image` and `scene`."""
    error_VF2: Mapping[KnockOut | None, NDArray[np.float64]]
    """Metres and degrees."""


def evaluate_knock_outs(
    network: MSTransformer, batches: Batches, rows: NDArray[np.int64], *, progress: bool = True
) -> Errors:
    """Predict the frames `rows` under every knock-out; the scene is predicted too.

    Raises MsposeError where an estimate is not finite.
    """
    dtype = next(network.parameters()).dtype
    poses: dict[KnockOut | None, list[torch.Tensor]] = {}
    bar = tqdm(total=len(rows), desc="knocking out", unit="frame", disable=not progress)
    with torch.inference_mode(), bar:
        for batch in batches.in_order(rows):
            for what, output in answers(network, batch.image_B3HW.to(dtype)).items():
                pose_B7 = torch.cat([output.position_B3, output.orientation_B4], dim=1)
                poses.setdefault(what, []).append(pose_B7.double())
            bar.update(len(batch.row))
    frames = batches.frames.iloc[rows]
    errors = {}
    for what, parts in poses.items():
        pose_F7 = torch.cat(parts).cpu().numpy()
        if not np.isfinite(pose_F7).all():
            raise MsposeError(
                f"the model's estimate is not finite ({what or INTACT}): its weights are unusable"
            )
        errors[what] = np.stack(
            [
                position_error(pose_F7[:, :3], frames[["tx", "ty", "tz"]].to_numpy()),
                orientation_error(
                    normalize_quaternion(pose_F7[:, 3:]),
                    frames[["qw", "qx", "qy", "qz"]].to_numpy(),
                ),
            ],
            axis=1,
        )
    return Errors(frames[["image", "scene"]].reset_index(drop=True), errors)


def summarise(errors: Errors) -> dict[str, Any]:
    """Return the object `knock_out` of `attention.json`."""
    variants = list(errors.error_VF2)
    rows_of = errors.frames.groupby("scene", sort=True).indices
    median_2V, median_2BV = [], []
    for column in range(len(ERRORS)):
        error_VF = np.stack([errors.error_VF2[what][:, column] for what in variants])
        measured_SV, resampled_SBV = [], []
        for number, frames in enumerate(rows_of.values()):
            generator = np.random.default_rng([SEED, number])
            measured_SV.append(np.median(error_VF[:, frames], axis=1))
            order, sequence_F = in_sequences(errors.frames["image"].iloc[frames].tolist())
            ordered_VF = error_VF[:, frames[order]]
            resampled_SBV.append(bootstrap_medians(ordered_VF, generator, sequence_F=sequence_F))
        median_2V.append(np.mean(measured_SV, axis=0))
        median_2BV.append(np.mean(resampled_SBV, axis=0))
    intact = variants.index(None)
    rows = []
    for index, what in enumerate(variants):
        if what is None:
            continue
        row: dict[str, Any] = {"branch": what.branch, "layer": what.layer, "by": what.by}
        for error, median_V, median_BV in zip(ERRORS, median_2V, median_2BV, strict=True):
            found = paired_difference(
                (median_V[index] - median_V[intact])[None],
                (median_BV[:, index] - median_BV[:, intact])[:, None],
            )
            row[error] = {
                "median": short(float(median_V[index])),
                "difference": short(found.mean),
                "low": short(found.low),
                "high": short(found.high),
            }
        rows.append(row | {"worth": MATTERS if _changes(row) else DOES_NOT_MATTER})
    return {
        "frames": len(errors.frames),
        "level": LEVEL,
        "resamples": RESAMPLES,
        "intact": {
            error: short(float(median_V[intact]))
            for error, median_V in zip(ERRORS, median_2V, strict=True)
        },
        "rows": rows,
    }


def _changes(row: Mapping[str, Any]) -> bool:
    """True where the interval of the difference of an error excludes 0."""
    return any(not row[error]["low"] <= 0 <= row[error]["high"] for error in ERRORS)


def worth(knock_out: Mapping[str, Any], branch: str, layer: int | None = None) -> str | None:
    """Say whether the attention of a layer, or of a whole branch (or `both`), matters; None where
    it was not knocked out.
    """
    rows = [row for row in knock_out["rows"] if (row["branch"], row["layer"]) == (branch, layer)]
    if not rows:
        return None
    return MATTERS if all(row["worth"] == MATTERS for row in rows) else DOES_NOT_MATTER


def knock_out_grid(studies: Sequence[Study]) -> pd.DataFrame:
    """Tabulate the medians under every knock-out and their differences with intervals, as text."""
    lines = []
    for study in studies:
        if (knock_out := study["knock_out"]) is None:
            continue
        name = label(study)
        intact = [f"{knock_out['intact'][error]:.{digits}f}" for error, digits in ERRORS.items()]
        lines.append([name, "nothing knocked out", "", "", *_beside(intact, ["", ""]), ""])
        for row in knock_out["rows"]:
            medians = [f"{row[error]['median']:.{digits}f}" for error, digits in ERRORS.items()]
            differences = [difference_text(row[error], digits) for error, digits in ERRORS.items()]
            layer = "all" if row["layer"] is None else str(row["layer"])
            cells = [*_beside(medians, differences), row["worth"]]
            lines.append([name, SAID[row["by"]], row["branch"], layer, *cells])
    interval = f"difference [{LEVEL * 100:g} %]"
    header = ["run", "encoders' self-attention", "branch", "layer"]
    header += ["position (m)", interval, "orientation (°)", f"{interval} ", "worth"]
    return pd.DataFrame(lines, columns=header)


def _beside(medians: Sequence[str], differences: Sequence[str]) -> list[str]:
    return [text for pair in zip(medians, differences, strict=True) for text in pair]


def difference_text(found: Mapping[str, float], digits: int) -> str:
    """Format `+0.012 [+0.004, +0.021]`; † where the interval includes 0."""
    mean, low, high = (
        f"{found[name]:+.{digits}f}".replace("-", "−") for name in ("difference", "low", "high")
    )
    mark = " †" if found["low"] <= 0 <= found["high"] else ""
    return f"{mean} [{low}, {high}]{mark}"


# errors per frame, for tables over several seeds


def of_branches() -> list[KnockOut]:
    """List the knock-outs of whole branches."""
    return [KnockOut(by, branch) for branch in (BOTH, *BRANCHES) for by in REPLACEMENTS]


def write_knock_out_errors(path: Path, errors: Errors) -> None:
    """Write the errors of every frame, as the network is and without the attention of whole
    branches, as a CSV; whole or not at all.
    """
    table = errors.frames.copy()
    for what in (None, *of_branches()):
        if what in errors.error_VF2:
            for column, error in enumerate(ERRORS):
                values_F = errors.error_VF2[what][:, column]
                table[_column(what, error)] = [f"{value:.6g}" for value in values_F]
    with whole_file(path) as file:
        table.to_csv(file, index=False, lineterminator="\n")


def read_knock_out_errors(path: Path) -> Errors:
    """Read what `write_knock_out_errors` wrote.

    Raises MsposeError, with file and line, for a file that is missing or broken.
    """
    names = [_column(None, error) for error in ERRORS]
    rows = csv_rows(path, ("image", "scene", *names))
    there = [what for what in of_branches() if _column(what, "position_m") in rows[0][1]]
    error_VF2 = {
        what: np.array(
            [
                [csv_number(path, line, row, _column(what, error)) for error in ERRORS]
                for line, row in rows
            ]
        )
        for what in (None, *there)
    }
    frames = pd.DataFrame([{name: row[name] for name in ("image", "scene")} for _, row in rows])
    return Errors(frames, error_VF2)


def _column(what: KnockOut | None, error: str) -> str:
    return f"{error} {INTACT if what is None else f'{what.branch} {what.by}'}"
