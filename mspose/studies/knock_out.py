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
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mspose.attention.attention_json import Study, label, short
from mspose.attention.knock_out import BOTH, SAID, KnockOut, answers
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
    Difference,
    average,
    medians_by_scene,
)
from mspose.studies.rows import ERRORS
from mspose.verdict import DOES_NOT_MATTER, MATTERS

DIGITS = {"position_m": 3, "orientation_deg": 2}
SECTIONS = {"position_m": "Position (m)", "orientation_deg": "Orientation (°)"}
"""Decimals of the errors, and titles of the parts of tables."""
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
    medians = {}
    for column, error in enumerate(ERRORS):
        error_VF = np.stack([errors.error_VF2[what][:, column] for what in variants])
        medians[error] = average(medians_by_scene(errors.frames, error_VF).values())
    intact = variants.index(None)
    rows = []
    for index, what in enumerate(variants):
        if what is None:
            continue
        row: dict[str, Any] = {"branch": what.branch, "layer": what.layer, "by": what.by}
        for error, found in medians.items():
            difference = found.difference([index], [intact])
            row[error] = {
                "median": short(float(found.measured_R[index])),
                "difference": short(difference.mean),
                "low": short(difference.low),
                "high": short(difference.high),
            }
        changes = any(not _difference(row[error]).includes_zero for error in ERRORS)
        rows.append(row | {"worth": MATTERS if changes else DOES_NOT_MATTER})
    return {
        "frames": len(errors.frames),
        "level": LEVEL,
        "resamples": RESAMPLES,
        "intact": {
            error: short(float(found.measured_R[intact])) for error, found in medians.items()
        },
        "rows": rows,
    }


def _difference(found: Mapping[str, float]) -> Difference:
    """Read a difference from `attention.json`, of one network."""
    return Difference(found["difference"], found["low"], found["high"], seeds=1)


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
        cells = [(f"{knock_out['intact'][error]:.{n}f}", "") for error, n in DIGITS.items()]
        lines.append([name, "nothing knocked out", "", "", *chain(*cells), ""])
        for row in knock_out["rows"]:
            cells = [
                (
                    f"{row[error]['median']:.{digits}f}",
                    marked_difference(_difference(row[error]), digits),
                )
                for error, digits in DIGITS.items()
            ]
            layer = "all" if row["layer"] is None else str(row["layer"])
            lines.append(
                [name, SAID[row["by"]], row["branch"], layer, *chain(*cells), row["worth"]]
            )
    interval = f"difference [{LEVEL * 100:g} %]"
    header = ["run", "encoders' self-attention", "branch", "layer"]
    header += ["position (m)", interval, "orientation (°)", f"{interval} ", "worth"]
    return pd.DataFrame(lines, columns=header)


def marked_difference(difference: Difference, digits: int) -> str:
    """Format `+0.012 [+0.004, +0.021]`; † where the interval includes 0."""
    return difference.text(digits) + (" †" if difference.includes_zero else "")


# errors per frame, for tables over several seeds


def of_branches() -> list[KnockOut]:
    """List the knock-outs of whole branches."""
    return [KnockOut(by, branch) for branch in (BOTH, *BRANCHES) for by in REPLACEMENTS]


def write_knock_out_errors(path: Path, errors: Errors) -> None:
    """Write the errors of every frame, as the network is and without the attention of whole
    branches, as a CSV; whole or not at all.
    """
    columns = {
        _column(what, error): errors.error_VF2[what][:, column]
        for what in (None, *of_branches())
        if what in errors.error_VF2
        for column, error in enumerate(ERRORS)
    }
    with whole_file(path) as file:
        errors.frames.assign(**columns).to_csv(
            file, index=False, float_format="%.6g", lineterminator="\n"
        )


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
