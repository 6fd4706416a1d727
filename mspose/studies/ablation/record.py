"""The record of an ablation: what its tables and figures are made from, without models and
pictures, to keep in git.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mspose.attention.attention_json import STUDY
from mspose.files import whole_file
from mspose.studies.ablation.cell import CONFIG, METRICS, is_finished
from mspose.studies.ablation.errors import RECORDED, record_errors
from mspose.studies.ablation.plan import Cell

FILES = (CONFIG, METRICS, STUDY)


def record_cells(cells: Sequence[Cell], folder: Path) -> str:
    """Copy the record of every finished cell to `folder/<experiment>/<label>/seed-<n>`; says what
    was left out.

    Of predictions it keeps the errors.
    Paths of this machine do not go along: of a path in the run's folder, or in the current one, the
    rest is kept, of any other its last part.
    """
    finished = [cell for cell in cells if is_finished(cell.settings)]
    unfinished = [str(cell) for cell in cells if cell not in finished]
    left_out = 0
    for cell in finished:
        target = folder / cell.folder.relative_to(cell.settings.runs)
        for name in FILES:
            source = cell.folder / name
            if source.exists():
                _copy(source, target / name, cell.folder)
        record_errors(cell.folder, target)
        left_out += sum(path.stat().st_size for path in cell.folder.rglob("*") if path.is_file())
        left_out -= sum(
            (cell.folder / name).stat().st_size
            for name in (*FILES, RECORDED)
            if (cell.folder / name).exists()
        )
    text = (
        f"cells recorded in {folder}: {len(finished)}; left out: models, checkpoints, logs,"
        " pictures, poses"
    )
    text += f" ({left_out / 1e6:.0f} MB)"
    return text + (f"; without result: {', '.join(unfinished)}" if unfinished else "")


def _copy(source: Path, target: Path, run: Path) -> None:
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".json":
        indent = 2 if text.startswith("{\n") else None
        text = (
            json.dumps(
                _neutral(json.loads(text), run),
                indent=indent,
                separators=None if indent else (",", ":"),
            )
            + "\n"
        )
    elif source.suffix == ".yaml":
        text = yaml.safe_dump(_neutral(yaml.safe_load(text), run), sort_keys=False)
    with whole_file(target) as file:
        file.write(text)


def _neutral(value: Any, run: Path) -> Any:
    """The same values without paths of this machine."""
    if isinstance(value, dict):
        return {name: _neutral(item, run) for name, item in value.items()}
    if isinstance(value, list):
        return [_neutral(item, run) for item in value]
    if not isinstance(value, str):
        return value
    own = (
        "/".join(run.parts[-3:]) + "/"
    )  # <experiment>/<label>/seed-<n>/, wherever the run was before
    if own in value:
        return value.partition(own)[2]
    path = Path(value).expanduser()
    if path.is_relative_to(Path.cwd()) and path != Path.cwd():
        return str(path.relative_to(Path.cwd()))
    return path.name if path.is_absolute() else value
