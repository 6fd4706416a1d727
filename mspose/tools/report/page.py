"""The report's page: gathers tables, data and pictures of all runs, and writes one HTML file."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from mspose.attention.attention_json import Study, decoder_grid, study_grid
from mspose.config import PLACES
from mspose.errors import MsposeError
from mspose.evaluation import summary_grid
from mspose.files import whole_file
from mspose.plotting import line
from mspose.provenance import commit_text, provenance
from mspose.run import Run
from mspose.studies.knock_out import knock_out_grid
from mspose.studies.pages import environment
from mspose.studies.rows import PUBLISHED_CSV, Group, published_rows, rows_of
from mspose.studies.tables import make_table
from mspose.tools.report.diagrams import (
    LOGGED_POINTS,
    TRAJECTORY_BYTES,
    error_diagrams,
    scene_choices,
    training_curves,
    trajectories,
)
from mspose.tools.report.evaluations import (
    evaluated_runs,
    faults,
    grouped,
    in_short,
    labels,
    settings_of,
    study_of,
)
from mspose.tools.report.pictures import (
    THUMBNAILS,
    Budget,
    attention_pictures,
    image_root,
    telling_frames,
)

REPORT = "report.html"
GENERATOR = '<meta name="generator" content="mspose report">'
TEMPLATES = Path(__file__).parent
ABSENT = "–"
IN_LABELS = ("experiment", "variant", "seed")
"""Settings that the runs' labels say."""
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PALETTE = [
    {"color": line(index).color, "dash": _DASHES[index % len(_DASHES)]} for index in range(24)
]
"""Colours and plotly's dashes of the lines in a plot; the dashes are for print in grey."""


def make_report(
    runs: list[str],
    *,
    out: Path | None = None,
    split: str | None = None,
    title: str | None = None,
) -> Path:
    """Write one self-contained HTML page about the results of runs.

    It has a table, recall curves, errors, trajectories, frames, training, attention and settings,
    needs no network and can be passed on.

    Args:
        runs: folders of evaluated runs, or folders that hold some.
        out: the page (default: report.html in the run's folder, of several in the current one).
        split: another evaluation than that of the test split, such as train.
        title: title of the page.

    Raises:
        MsposeError: no evaluated run, a broken file of one, or a page that cannot be written or
            whose name another file has.
    """
    evaluated = evaluated_runs(runs, split)
    target = out or (evaluated[0].folder if len(evaluated) == 1 else Path()) / REPORT
    _refuse_to_replace(target)
    words = ["mspose", "report", *map(str, runs), *(["--split", split] if split else [])]
    words += [*(["--title", title] if title else []), *(["--out", str(out)] if out else [])]
    text = _page(evaluated, title or _title(evaluated), shlex.join(words))
    with whole_file(target) as file:
        file.write(text.encode("utf-8", "replace").decode("utf-8"))  # a path need not be text
    return target


def _refuse_to_replace(target: Path) -> None:
    if target.is_dir():
        raise MsposeError(f"{target} is a folder: name a file, such as --out {target / REPORT}")
    try:
        with target.open(encoding="utf-8", errors="replace") as file:
            ours = GENERATOR in file.read(2000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise MsposeError(f"cannot write {target}: {error.strerror or error}") from error
    if not ours:
        raise MsposeError(
            f"{target} is there and is no report of mspose: choose another --out, or remove it"
        )


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return labels(runs)[0] + ("" if runs[0].seed is None else f", seed {runs[0].seed}")
    data = sorted({group.dataset for group in grouped(runs)})
    return f"{len(runs)} runs on {', '.join(data)}"


def _page(runs: Sequence[Run], title: str, command: str) -> str:
    from plotly.offline import get_plotlyjs  # optional

    pictures = Budget()
    points = max(60, min(LOGGED_POINTS, 3000 // len(runs)))
    groups, numbers = [], []
    for group, inside in grouped(runs).items():
        share = TRAJECTORY_BYTES * len(inside) // len(runs)
        told, drawn = _group(group, inside, pictures, share, points)
        groups.append(told)
        numbers.append(drawn)
    values = {
        "title": title,
        "command": command,
        "made": provenance(),
        "generator": Markup(GENERATOR),
        "groups": groups,
        "several": len(runs) > 1,
        "differing": _differing(runs),
        "settings": _settings(runs),
        "origins": _origins(runs),
        "notes": [fault for run in runs for fault in faults(run)],
        "pictures_left_out": pictures.left_out,
        "plotly": _inside_script(get_plotlyjs()),
        "data": Markup(_json(numbers)),
        "script": _inside_script((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        "style": Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
    }
    return environment(TEMPLATES).get_template("page.html").render(values)


def _inside_script(code: str) -> Markup:
    return Markup(code.replace("</script", "<\\/script"))


def _json(value: Any) -> str:
    """Format JSON for a script element, without characters that could end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _group(
    group: Group, runs: Sequence[Run], pictures: Budget, trajectory_bytes: int, points: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Collect the template's values for the runs of a group, and the data of their plots."""
    names = labels(runs)
    named = list(zip(names, runs, strict=True))
    thresholds = sorted({tuple(pair) for run in runs for pair in run.metrics["thresholds"]})
    drawn, thinned = trajectories(runs, trajectory_bytes)
    curves = [training_curves(run.scalars(), points) for run in runs]
    moving = [number for number, run in enumerate(runs) if run.has_poses]
    styles = _styles(runs)
    variants = _variants(names, styles, runs)
    frames, without = _frames(runs, pictures)
    confusions = {name: counts for name, run in named if (counts := _confusion(run)) is not None}
    right = [name for name, counts in confusions.items() if len(runs) > 1 and _all_right(counts)]
    told = {
        "name": str(group),
        "quick": group.quick,
        "tables": _tables(group, runs),
        "runs": [
            {"label": name, "group": variants[style["variant"]]["label"], **style}
            for name, style in zip(names, styles, strict=True)
        ],
        "variants": list(variants.values()),
        "palette": PALETTE,
        "summary": summary_grid(runs[0].metrics) if len(runs) == 1 else None,
        "headline": runs[0].metrics["average"] if len(runs) == 1 else None,
        "places": scene_choices(runs),
        "scenes": sorted({scene for run in runs for scene in run.metrics["scenes"]}),
        "moving": [names[number] for number in moving],
        "records": in_short(name for name, run in named if not run.has_poses),
        "thinned": thinned,
        "thresholds": ", ".join(f"{metres:g} m / {degrees:g}°" for metres, degrees in thresholds),
        "frames": list(zip(names, frames, strict=True)),
        "without_images": without,
        "confusions": [(name, found) for name, found in confusions.items() if name not in right],
        "all_right": in_short(right),
        "logged": any(curves),
        "unlogged": in_short(n for n, logged in zip(names, curves, strict=True) if not logged),
        "verdicts": _of_studies(study_grid, runs),
        "decoders": _of_studies(decoder_grid, runs),
        "worth": _of_studies(knock_out_grid, runs),
        "attention": [
            (name, found) for name, run in named if (found := attention_pictures(run, pictures))
        ],
    }
    numbers = {
        "runs": told["runs"],
        "places": told["places"],
        "scenes": told["scenes"],
        "moving": moving,
        "palette": PALETTE,
        "thresholds": thresholds,
        "errors": error_diagrams(runs, thresholds),
        "trajectories": drawn,
        "training": curves,
    }
    return told, numbers


def _tables(group: Group, runs: Sequence[Run]) -> list[Markup]:
    """Make the table of medians under published rows, and that of recall of several runs."""
    rows = rows_of(runs)
    published = [row for row in published_rows(PUBLISHED_CSV, group.dataset) if row.group == group]
    tables = [make_table(rows, published, digits=3)]
    if len(rows) > 1 and len({row.thresholds for row in rows}) == 1:
        tables.append(make_table(rows, kind="recall"))
    return [Markup(table.to_html()) for table in tables]


def _styles(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Choose colour and dashes of every run's lines.

    Seeds of a variant share them, unless there is one variant alone.
    """
    variants = list(dict.fromkeys(run.name for run in runs))
    numbers = [
        index if len(variants) == 1 else variants.index(run.name) for index, run in enumerate(runs)
    ]
    return [{**PALETTE[n % len(PALETTE)], "variant": n} for n in numbers]


def _variants(
    names: Sequence[str], styles: Sequence[Mapping[str, Any]], runs: Sequence[Run]
) -> dict[int, dict[str, Any]]:
    """Make the legend's entries by number: a variant, or each run of the only variant."""
    entries: dict[int, dict[str, Any]] = {}
    for name, style, run in zip(names, styles, runs, strict=True):
        entry = entries.setdefault(style["variant"], {**style, "label": name, "count": 0})
        entry["count"] += 1
        if entry["count"] > 1:
            quick = " (quick)" if run.quick else ""
            entry["label"] = f"{name.rpartition(', seed ')[0]}{quick} ({entry['count']} seeds)"
    return entries


def _frames(
    runs: Sequence[Run], pictures: Budget
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Select frames per run and scene; with the runs without images by the reason for it."""
    frames: list[dict[str, Any]] = []
    without: dict[str, list[str]] = {}
    size = next(size for most, size in THUMBNAILS.items() if len(runs) <= most)
    for name, run in zip(labels(runs), runs, strict=True):
        root, reason = image_root(run)
        left_out = pictures.left_out
        found = telling_frames(run, root, pictures, size)
        shown = any(frame.picture for of_scene in found.values() for frame in of_scene)
        if root is not None and not shown and pictures.left_out == left_out:
            reason = f"none of these images can be read in {root}"
        if reason:
            without.setdefault(reason, []).append(name)
        frames.append(found)
    return frames, {reason: in_short(names) for reason, names in without.items()}


def _confusion(run: Run) -> pd.DataFrame | None:
    """Count frames by true scene (rows) and predicted scene; None where there is nothing to see."""
    frames = run.frames
    if "predicted_scene" not in frames or frames["predicted_scene"].isna().any():
        return None
    counts = pd.crosstab(frames["scene"], frames["predicted_scene"])
    scenes = sorted({*counts.index, *counts.columns})
    return counts.reindex(index=scenes, columns=scenes, fill_value=0) if len(scenes) > 1 else None


def _all_right(counts: pd.DataFrame) -> bool:
    return int(counts.to_numpy().sum()) == int(counts.to_numpy().trace())


def _of_studies(
    tabulate: Callable[[Sequence[Study]], pd.DataFrame], runs: Sequence[Run]
) -> pd.DataFrame | None:
    """Tabulate something of the runs' studies of attention; None where there is nothing of it."""
    table = tabulate([study for run in runs if (study := study_of(run)) is not None])
    return table if len(table) else None


def _differing(runs: Sequence[Run]) -> pd.DataFrame | None:
    """Tabulate the settings that are not the same in all runs; runs that agree share a line."""
    stated = {name: _stated(run) for name, run in zip(labels(runs), runs, strict=True)}
    table = pd.DataFrame({name: values for name, values in stated.items() if values}, dtype=str)
    table = table.T.fillna(ABSENT).drop(columns=list(IN_LABELS), errors="ignore")
    table = table[[name for name in table if table[name].nunique() > 1]]
    if table.columns.empty:
        return None
    lines = [
        {"run": "; ".join(in_short(map(str, same.index))), **same.iloc[0]}
        for _, same in table.groupby(list(table.columns), sort=False)
    ]
    return pd.DataFrame(lines)


def _settings(runs: Sequence[Run]) -> list[tuple[str, dict[str, str]]]:
    """List all settings of every run; runs whose settings differ in the seed alone share them."""
    shared: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, run in zip(labels(runs), runs, strict=True):
        stated = tuple((key, value) for key, value in _stated(run).items() if key != "seed")
        shared.setdefault(stated, []).append(name)
    return [
        ("; ".join(in_short(names)), dict(stated)) for stated, names in shared.items() if stated
    ]


def _stated(run: Run) -> dict[str, str]:
    """Format a run's settings by dotted name, without folders and devices."""
    return {key: _text(value) for key, value in settings_of(run).items() if key not in PLACES}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "[]"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _origins(runs: Sequence[Run]) -> pd.DataFrame:
    """Tabulate where the results of every run come from, a run per column."""
    columns = {}
    for name, run in zip(labels(runs), runs, strict=True):
        stated = run.provenance
        model = stated.get("model")
        packages = ("mspose", "torch", "torchvision", "numpy", "timm", "python")
        versions = ", ".join(f"{key} {stated[key]}" for key in packages if stated.get(key))
        columns[name] = {
            "evaluated": stated.get("time_utc") or "unknown",
            "commit": commit_text(stated),
            "device": stated.get("device") or "unknown",
            "versions": versions or "unknown",
            "settings hash": run.config_hash or ABSENT,
            "trained on frames": (model.get("frames") if isinstance(model, dict) else 0) or ABSENT,
            "frames": len(run.frames),
            "bad frames left out": run.metrics.get("bad_frames") or 0,
            "data": str(run.metrics["dataset"] or "unknown"),
            "scene": run.metrics["scene_selection"],
            "metrics": str(run.metrics_file),
            "frames from": str(run.frames_file),
        }
    return pd.DataFrame(columns).astype(str)
