"""`mspose data check`: read everything of a data set, say what was found, draw the trajectories."""

import json
import re
import tempfile
import warnings
from collections.abc import Sequence
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

PICTURE, RECORD = "trajectories.png", "check.json"


class Checked(NamedTuple):
    """A finished check."""

    text: str
    """What a person reads."""
    findings: list[Finding]
    folder: Path
    """Where `check.json` and `trajectories.png` lie."""

    @property
    def has_errors(self) -> bool:
        """Whether something was found with which training fails or means nothing."""
        return any(finding.level == "error" for finding in self.findings)


@np.errstate(
    over="ignore", invalid="ignore"
)  # of impossible numbers in the labels, which are reported
def check_data(
    place: str,
    *,
    root: str | None = None,
    scenes: Sequence[str] = (),
    splits: Sequence[str] = (),
    ground_truth: str | None = None,
    labels: Sequence[str] = (),
    out: str | None = None,
    progress: bool = True,
) -> Checked:
    """Check a data set and write `check.json` and `trajectories.png`.

    Args:
        place: a folder with one card in it, a card, or the name of a data set in `datasets/`.
        root, scenes, ground_truth, labels: as for `mspose.data.cards.load_frames`.
        splits: by default train, test, and any further one that label CSVs name.
        out: folder of the results; by default `check/` beside a card of one's own, and
            `datasets/.check/<name>` for the data sets in `datasets/`.

    Raises MsposeError where there is no card or nothing at all can be read, and where `out` cannot
    be written.
    """
    card = open_card(place)
    folder = _folder(card, out)
    _refuse_folder(folder)
    data = read_labels(
        card, root=root, scenes=scenes, splits=splits, ground_truth=ground_truth, labels=labels
    )
    if data.frames.empty:
        return _finished(
            card, folder, data.findings, {}, [f"{card.name} ({card.path})"], pictured=False
        )

    ordered = trajectories.in_order(data.frames).reset_index(drop=True)
    images = read_images(ordered, data_root(card, root), progress=progress)
    step = trajectories.steps(ordered)
    near = nearness(ordered, step)
    findings = [
        *data.findings,
        *image_findings(ordered, images),
        *trajectories.extent_findings(ordered),
        *trajectories.jump_findings(ordered, step),
        *trajectories.flip_findings(ordered, step),
        *trajectories.repeated_poses(ordered),
        *split_findings(near),
    ]
    if data.rows is not None:
        places = dict(zip(data.rows.index, data.rows["place"], strict=True))
        findings = [_with_places(finding, places) for finding in findings]
    verdicts = {}
    names = sorted(ordered["scene"].unique())
    for scene in tqdm(names, desc="poses against pictures", unit="scene", disable=not progress):
        verdicts[scene] = conventions.judge_by_pictures(
            matched_pairs(ordered, scene, data_root(card, root)), ordered
        )
        behind = conventions.axes_meet_behind(ordered[ordered["scene"] == scene])
        findings += conventions.convention_findings(scene, verdicts[scene], behind)

    _draw(ordered, folder / PICTURE)
    facts = _facts(ordered, images, step, near, verdicts)
    return _finished(
        card, folder, findings, facts, _facts_text(card, facts, ordered), pictured=True
    )


def _draw(ordered: pd.DataFrame, path: Path) -> None:
    from mspose.plotting import (
        save_figure,
    )  # here: matplotlib takes longer to load than all the rest
    from mspose.tools.checking.picture import trajectory_picture

    with warnings.catch_warnings(
        action="ignore", category=UserWarning
    ):  # of letters that the font has not
        save_figure(trajectory_picture(ordered), path)


def _folder(card: Card, out: str | None) -> Path:
    if out is not None:
        return Path(out).expanduser()
    if named_files(CARDS).get(card.path.stem) == card.path:
        return data_folder(card.path) / ".check" / card.name
    return card.path.parent / "check"


def _refuse_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written or holds others' files, now and not after an hour of
    reading images.
    """
    try:
        ours = not (folder / RECORD).exists() or "findings" in json.loads(
            (folder / RECORD).read_text(encoding="utf-8")
        )
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours or ((folder / PICTURE).exists() and not (folder / RECORD).exists()):
        raise MsposeError(
            f"{folder} holds a {RECORD} or {PICTURE} of something else: choose another folder with"
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


def _with_places(finding: Finding, places: dict[str, str]) -> Finding:
    """The finding with file and line behind each example that begins with an image."""

    def placed(example: str) -> str:
        ends = [found.start() for found in re.finditer(r" -> | = | \(|: |$", example)]
        image = next((example[:end] for end in reversed(ends) if example[:end] in places), None)
        return example if image is None else f"{example} [{places[image]}]"

    return Finding(finding.level, finding.kind, finding.text, tuple(map(placed, finding.examples)))


def _facts(
    ordered: pd.DataFrame,
    images: pd.DataFrame,
    step: pd.DataFrame,
    near: Sequence[Nearness],
    verdicts: dict[str, conventions.Verdict],
) -> dict[str, Any]:
    """Figures of every scene and of the images, as they stand in check.json."""
    nearest = {scene.scene: scene for scene in near}
    scenes = {}
    for scene in sorted(verdicts):
        part, moves = ordered[ordered["scene"] == scene], step[step["scene"] == scene]
        scenes[scene] = {
            "frames": {
                str(split): int(count) for split, count in part.groupby("split").size().items()
            },
            "sequences": int(part["sequence"].nunique()),
            "extent_m": trajectories.extents(part),
            "median_step_m": _number(moves["metres"].median()),
            "median_step_deg": _number(moves["degrees"].median()),
            "test_to_nearest_train": (
                {
                    "median_m": nearest[scene].median_m,
                    "median_deg": nearest[scene].median_deg,
                    "beside_training_frame": nearest[scene].beside,
                    "closer_than_neighbour": nearest[scene].closer,
                    "outside": nearest[scene].outside,
                }
                if scene in nearest
                else None
            ),
            "pictures": {
                "pairs": verdicts[scene].pairs,
                "unexplained": _number(verdicts[scene].rest),
                "best_reading": verdicts[scene].best,
                "best_unexplained": _number(verdicts[scene].best_rest),
            },
        }
    return {"scenes": scenes, "image_sizes": size_counts(images), "focal_px": focal_text(ordered)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _facts_text(card: Card, facts: dict[str, Any], ordered: pd.DataFrame) -> list[str]:
    splits = list(dict.fromkeys(["train", "test", *sorted(ordered["split"].unique())]))
    rows = []
    for scene, fact in facts["scenes"].items():
        near, seen = fact["test_to_nearest_train"], fact["pictures"]
        rows.append(
            {
                "scene": scene,
                **{split: fact["frames"].get(split, 0) for split in splits},
                "sequences": fact["sequences"],
                "extent x, y, z (m)": " ".join(f"{extent:.3g}" for extent in fact["extent_m"]),
                "median step": _metres_degrees(fact["median_step_m"], fact["median_step_deg"]),
                "test to nearest train": (
                    _metres_degrees(near["median_m"], near["median_deg"]) if near else "-"
                ),
                "poses fit pictures": (
                    f"{100 * (1 - min(seen['unexplained'], 1)):.0f} %" if seen["pairs"] else "-"
                ),
            }
        )
    sizes = facts["image_sizes"]
    listed = ", ".join(f"{width}x{height} ({count})" for width, height, count in sizes[:5])
    more = f" and {len(sizes) - 5} more sizes" if len(sizes) > 5 else ""
    return [
        f"{card.name}: {len(ordered)} frames ({card.path})",
        "",
        pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True),
        "",
        f"image sizes: {listed or 'none'}{more}; focal length: {facts['focal_px']}",
        "",
    ]


def _metres_degrees(metres: float | None, degrees: float | None) -> str:
    return "-" if metres is None or degrees is None else f"{metres:.3g} m, {degrees:.3g} deg"


def _finished(
    card: Card,
    folder: Path,
    findings: list[Finding],
    facts: dict[str, Any],
    lines: list[str],
    *,
    pictured: bool,
) -> Checked:
    record = {
        "data_set": card.name,
        "card": str(card.path),
        "summary": summary(findings),
        "findings": [finding.as_json() for finding in findings],
        **facts,
    }
    with whole_file(folder / RECORD) as file:
        # what overflowed, from impossible numbers in the labels, is null: JSON has no infinity
        json.dump(json.loads(json.dumps(record), parse_constant=lambda _: None), file, indent=2)
        file.write("\n")
    written = f"{folder / RECORD}" + (f", {folder / PICTURE}" if pictured else "")
    return Checked("\n".join([*lines, findings_text(findings), written]), findings, folder)
