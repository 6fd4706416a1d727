"""Records of ablations: what tables and plots are made from, without models, to keep in git."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mspose.config import Settings
from mspose.files import CHECKSUM, read_json, whole_file, with_checksum
from mspose.metrics import write_errors
from mspose.run import Run
from mspose.studies.ablation.single_run import is_complete, run_of, title


def record_runs(planned: Sequence[Settings], folder: Path) -> str:
    """Copy the record of every finished run to `folder/<experiment>/<label>/seed-<n>`.

    Of predictions it keeps the errors: the poses of a data set are not ours to pass on. Paths of
    this machine are shortened: those in the run's or the current folder to the rest, others to
    their last part. Returns a sentence about what was left out.
    """
    finished = [settings for settings in planned if is_complete(settings)]
    unfinished = [title(settings) for settings in planned if settings not in finished]
    left_out = 0
    for settings in finished:
        run = run_of(settings)
        record = Run(folder / run.folder.relative_to(settings.runs))
        kept = [
            file
            for file in (run.config_file, run.metrics_file, run.attention_file)
            if file.exists()
        ]
        for file in kept:
            _copy(file, record.folder / file.relative_to(run.folder), run.folder)
        write_errors(record.errors_file, run.errors())
        if run.knock_out_file.exists():  # errors alone, as well
            with whole_file(record.knock_out_file) as copy:
                copy.write(run.knock_out_file.read_text(encoding="utf-8"))
            kept.append(run.knock_out_file)
        every = [path for path in run.folder.rglob("*") if path.is_file()]
        left_out += sum(path.stat().st_size for path in every if path not in kept)
    text = (
        f"runs recorded in {folder}: {len(finished)}; left out: models, checkpoints, logs,"
        f" pictures, poses ({left_out / 1e6:.0f} MB)"
    )
    return text + (f"; without result: {', '.join(unfinished)}" if unfinished else "")


def _copy(source: Path, target: Path, run: Path) -> None:
    """Copy a JSON or YAML file without paths of this machine."""
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".json":
        values = _portable(read_json(source), run)
        if CHECKSUM in json.loads(text):
            values = with_checksum(values)
        indented = text.startswith("{\n")
        text = json.dumps(
            values, indent=2 if indented else None, separators=None if indented else (",", ":")
        )
        text += "\n"
    else:
        text = yaml.safe_dump(_portable(yaml.safe_load(text), run), sort_keys=False)
    with whole_file(target) as file:
        file.write(text)


def _portable(value: Any, run: Path) -> Any:
    """Return the same values without paths of this machine."""
    if isinstance(value, dict):
        return {name: _portable(item, run) for name, item in value.items()}
    if isinstance(value, list):
        return [_portable(item, run) for item in value]
    if not isinstance(value, str):
        return value
    own = "/".join(run.parts[-3:]) + "/"  # <experiment>/<label>/seed-<n>/, wherever the run was
    if own in value:
        return value.partition(own)[2]
    path = Path(value).expanduser()
    if path.is_relative_to(Path.cwd()) and path != Path.cwd():
        return str(path.relative_to(Path.cwd()))
    return path.name if path.is_absolute() else value
