"""`mspose data check`: read all of a data set, report findings, plot the trajectories."""

import json
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from mspose.data.cards import Card, data_root
from mspose.errors import MsposeError
from mspose.files import whole_file
from mspose.resources import CARDS, data_folder, named_files
from mspose.tools.checking import conventions, trajectories
from mspose.tools.checking.findings import Finding, findings_text, summary
from mspose.tools.checking.image_files import focal_text, image_findings, read_images, size_counts
from mspose.tools.checking.labels import open_card, read_labels
from mspose.tools.checking.matching import matched_pairs
from mspose.tools.checking.splits import Nearness, nearness, split_findings

PLOT, RECORD = "trajectories.png", "check.json"


class Checked(NamedTuple):
    """A finished check."""

    text: str
    """The report."""
    findings: list[Finding]
    folder: Path
    """The folder of `check.json` and `trajectories.png`."""

    def __str__(self) -> str:
        return self.text

    @property
    def has_errors(self) -> bool:
        """True where a finding makes training fail or mean nothing."""
        return any(finding.level == "error" for finding in self.findings)


# impossible numbers in the labels overflow; they are reported
@np.errstate(over="ignore", invalid="ignore")
def check_data(
    folder: str,
    *,
    scenes: list[str] | None = None,
    root: str | None = None,
    splits: list[str] | None = None,
    ground_truth: str | None = None,
    labels: list[str] | None = None,
    out: str | None = None,
    progress: bool = True,
) -> Checked:
    """Read everything of a data set, say what is wrong or odd, draw the trajectories.

    Args:
        folder: folder with a card in it, a card, or a data set's name.
        splits: some splits only (default: all).
        out: folder of picture and check.json (default: check/ beside the card).

    Returns:
        The report, which is also written: `check.json` and `trajectories.png`.

    Raises:
        MsposeError: there is no card, nothing at all can be read, or `out` cannot be written.
    """
    card = open_card(folder)
    target = _folder(card, out)
    _refuse_folder(target)
    data = read_labels(
        card,
        root=root,
        scenes=scenes or (),
        splits=splits or (),
        ground_truth=ground_truth,
        labels=labels or (),
    )
    if data.frames.empty:
        return _finished(card, target, data.findings, {}, f"{card.name} ({card.path})")

    ordered = trajectories.in_order(data.frames).reset_index(drop=True)
    images = read_images(ordered, data_root(card, root), progress=progress)
    step = trajectories.steps(ordered)
    near = nearness(ordered, step)
    findings = [
        *data.findings,
        *image_findings(ordered, images),
        *trajectories.jump_findings(ordered, step),
        *trajectories.flip_findings(ordered, step),
        *trajectories.repeated_poses(ordered),
        *split_findings(near),
    ]
    if data.rows is not None:
        line_of = {str(image): str(line) for image, line in data.rows["place"].items()}
        findings = [_with_lines(finding, line_of) for finding in findings]
    verdicts = {}
    names = sorted(ordered["scene"].unique())
    for scene in tqdm(names, desc="poses against images", unit="scene", disable=not progress):
        matched = matched_pairs(ordered, scene, data_root(card, root))
        verdicts[scene] = conventions.judge_by_images(matched, ordered)
        part = ordered[ordered["scene"] == scene]
        behind = conventions.axes_meet_behind(part)
        findings += conventions.convention_findings(scene, verdicts[scene], behind)
        findings += trajectories.unit_findings(part, verdicts[scene].depth)

    _plot(ordered, target / PLOT)
    facts = _facts(ordered, images, step, near, verdicts)
    return _finished(card, target, findings, facts, _facts_text(card, facts, ordered))


def _plot(ordered: pd.DataFrame, path: Path) -> None:
    # here, since matplotlib takes longer to load than all the rest
    from mspose.plotting import save_figure
    from mspose.tools.checking.plot import trajectory_plot

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of missing glyphs
        save_figure(trajectory_plot(ordered), path)


def _folder(card: Card, out: str | None) -> Path:
    if out is not None:
        return Path(out).expanduser()
    if named_files(CARDS).get(card.path.stem) == card.path:
        return data_folder(card.path) / ".check" / card.name
    return card.path.parent / "check"


def _refuse_folder(folder: Path) -> None:
    """Raise MsposeError for a folder that cannot be written or holds files of other programs.

    That is done before the images are read, which may take an hour.
    """
    record = folder / RECORD
    try:
        of_check = record.exists() and "findings" in json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        of_check = False
    if not of_check and any((folder / name).exists() for name in (RECORD, PLOT)):
        raise MsposeError(
            f"{folder} holds a {RECORD} or {PLOT} of something else: choose another folder with"
            " --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MsposeError(
            f"cannot write into {folder}: {error.strerror}; choose another with --out"
        ) from error


def _with_lines(finding: Finding, lines: Mapping[str, str]) -> Finding:
    """The finding with file and line behind each example that begins with an image."""

    def extended(example: str) -> str:
        ends = [found.start() for found in re.finditer(r" -> | = | \(|: |$", example)]
        image = next((example[:end] for end in reversed(ends) if example[:end] in lines), None)
        return example if image is None else f"{example} [{lines[image]}]"

    examples = tuple(map(extended, finding.examples))
    return Finding(finding.level, finding.kind, finding.text, examples)


def _facts(
    ordered: pd.DataFrame,
    images: pd.DataFrame,
    step: pd.DataFrame,
    near: Sequence[Nearness],
    verdicts: Mapping[str, conventions.Verdict],
) -> dict[str, Any]:
    """Numbers of every scene and of the images, as check.json has them."""
    scenes = {}
    for scene, verdict in verdicts.items():
        part, moves = ordered[ordered["scene"] == scene], step[step["scene"] == scene]
        distances = next((found for found in near if found.scene == scene), None)
        scenes[scene] = {
            "frames": {str(split): int(n) for split, n in part.groupby("split").size().items()},
            "sequences": int(part["sequence"].nunique()),
            "extent_m": trajectories.extents(part),
            "median_step_m": _number(moves["metres"].median()),
            "median_step_deg": _number(moves["degrees"].median()),
            "test_to_nearest_train": distances
            and {
                "median_m": distances.median_m,
                "median_deg": distances.median_deg,
                "beside_training_frame": distances.beside,
                "closer_than_neighbour": distances.closer,
                "outside": distances.outside,
            },
            "pictures": {
                "pairs": verdict.pairs,
                "not_judged": verdict.reason,
                "unexplained": _number(verdict.rest),
                "best_readings": verdict.best,
                "best_unexplained": _number(verdict.best_rest),
                "median_distance_m": _number(verdict.depth),
            },
        }
    return {"scenes": scenes, "image_sizes": size_counts(images), "focal_px": focal_text(ordered)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _facts_text(card: Card, facts: dict[str, Any], ordered: pd.DataFrame) -> str:
    splits = list(dict.fromkeys(["train", "test", *sorted(ordered["split"].unique())]))
    rows = []
    for scene, fact in facts["scenes"].items():
        near, seen = fact["test_to_nearest_train"] or {}, fact["pictures"]
        fit = seen["not_judged"] or f"{100 * (1 - min(seen['unexplained'], 1)):.0f} %"
        distance = seen["median_distance_m"]
        rows.append(
            {
                "scene": scene,
                **{split: fact["frames"].get(split, 0) for split in splits},
                "sequences": fact["sequences"],
                "extent x, y, z (m)": " ".join(f"{extent:.3g}" for extent in fact["extent_m"]),
                "median step": _step_text(fact["median_step_m"], fact["median_step_deg"]),
                "test to nearest train": _step_text(near.get("median_m"), near.get("median_deg")),
                "seen at (m)": "-" if distance is None else f"{distance:.3g}",
                "poses fit images": fit,
            }
        )
    sizes = [f"{width}x{height} ({count})" for width, height, count in facts["image_sizes"]]
    more = f" and {len(sizes) - 5} more sizes" if len(sizes) > 5 else ""
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return (
        f"{card.name}: {len(ordered)} frames ({card.path})\n\n{table}\n\nimage sizes:"
        f" {', '.join(sizes[:5]) or 'none'}{more}; focal length: {facts['focal_px']}\n"
    )


def _step_text(metres: float | None, degrees: float | None) -> str:
    return "-" if metres is None or degrees is None else f"{metres:.3g} m, {degrees:.3g} deg"


def _finished(
    card: Card, folder: Path, findings: list[Finding], facts: dict[str, Any], text: str
) -> Checked:
    """Write check.json; returns the report. Without `facts`, nothing was plotted."""
    record = {
        "data_set": card.name,
        "card": str(card.path),
        "summary": summary(findings),
        "findings": [finding.as_json() for finding in findings],
        **facts,
    }
    with whole_file(folder / RECORD) as file:
        # JSON has no infinity: overflows, from impossible numbers in the labels, become null
        json.dump(json.loads(json.dumps(record), parse_constant=lambda _: None), file, indent=2)
        file.write("\n")
    written = ", ".join(str(folder / name) for name in ((RECORD, PLOT) if facts else (RECORD,)))
    return Checked("\n".join([text, findings_text(findings), written]), findings, folder)
