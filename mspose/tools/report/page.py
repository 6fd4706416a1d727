"""The report's page: gathers tables, numbers and pictures of all runs, and writes them as one HTML
file.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from mspose.attention.attention_json import study_grid
from mspose.config import PLACES
from mspose.errors import MsposeError
from mspose.evaluation import summary_grid
from mspose.files import whole_file
from mspose.pages import environment
from mspose.plotting import line
from mspose.provenance import provenance
from mspose.studies.rows import PUBLISHED_CSV, Group, collect_runs, published_rows
from mspose.studies.tables import make_table
from mspose.tools.report.diagrams import (
    LOGGED_POINTS,
    TRAJECTORY_BYTES,
    error_diagrams,
    places_of,
    training_curves,
    trajectories,
)
from mspose.tools.report.pictures import (
    THUMBNAILS,
    Budget,
    attention_pictures,
    image_root,
    telling_frames,
)
from mspose.tools.report.results import Result, grouped, in_short, labels, read_results

REPORT = "report.html"
GENERATOR = '<meta name="generator" content="mspose report">'
TEMPLATES = Path(__file__).parent
ABSENT = "–"
NAMES = ("experiment", "variant", "seed")
"""Settings that the runs' labels say."""
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PALETTE = [
    {"color": line(index).color, "dash": _DASHES[index % len(_DASHES)]} for index in range(24)
]
"""Colours and plotly's dashes of the lines in a diagram; the dashes are for print in grey."""


def make_report(
    runs: Sequence[Path | str],
    *,
    out: Path | str | None = None,
    split: str | None = None,
    title: str | None = None,
) -> Path:
    """Write the page about the runs in or below `runs`; returns its path.

    Args:
        runs: folders of runs, or folders that hold some.
        out: by default `report.html` in the run's folder, or of several runs in the current one.
        split: an evaluation on another split than the run's own test split, `metrics-<split>.json`.
        title: of the page.

    Raises MsposeError where there is no evaluated run, a file of one is broken, or `out` cannot be
    written or holds something that is no report.
    """
    results = read_results(runs, split)
    target = Path(out) if out else (results[0].folder if len(results) == 1 else Path()) / REPORT
    _refuse_to_replace(target)
    words = ["mspose", "report", *map(str, runs), *(["--split", split] if split else [])]
    words += [*(["--title", title] if title else []), *(["--out", str(out)] if out else [])]
    text = _page(results, title or _title(results), shlex.join(words))
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


def _title(results: Sequence[Result]) -> str:
    if len(results) == 1:
        seed = results[0].metrics["seed"]
        return labels(results)[0] + ("" if seed is None else f", seed {seed}")
    data = sorted({group.dataset for group in grouped(results)})
    return f"{len(results)} runs on {', '.join(data)}"


def _page(results: Sequence[Result], title: str, command: str) -> str:
    from plotly.offline import get_plotlyjs

    pictures = Budget()
    points = max(60, min(LOGGED_POINTS, 3000 // len(results)))
    groups, numbers = [], []
    for group, inside in grouped(results).items():
        share = TRAJECTORY_BYTES * len(inside) // len(results)
        told, drawn = _group(group, inside, pictures, share, points)
        groups.append(told)
        numbers.append(drawn)
    values = {
        "title": title,
        "command": command,
        "made": provenance(),
        "generator": Markup(GENERATOR),
        "groups": groups,
        "several": len(results) > 1,
        "differing": _differing(results),
        "settings": _settings(results),
        "origins": _origins(results),
        "notes": [note for result in results for note in result.notes],
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
    """For a script element: no character of it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _group(
    group: Group, results: Sequence[Result], pictures: Budget, trajectory_bytes: int, points: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the template shows of runs that were measured alike, the numbers of their diagrams)."""
    names = labels(results)
    thresholds = sorted(
        {tuple(pair) for result in results for pair in result.metrics["thresholds"]}
    )
    drawn, thinned = trajectories(results, trajectory_bytes)
    curves = [training_curves(result.scalars, points) for result in results]
    moving = [number for number, result in enumerate(results) if result.has_poses]
    looks = _looks(results)
    variants = _variants(names, looks, results)
    frames, without = _frames(results, pictures)
    confusions = [
        (name, counts)
        for name, result in zip(names, results, strict=True)
        if (counts := _confusion(result)) is not None
    ]
    told = {
        "name": str(group),
        "quick": group.quick,
        "tables": _tables(group, results),
        "runs": [
            {"label": name, "group": variants[look["variant"]]["label"], **look}
            for name, look in zip(names, looks, strict=True)
        ],
        "variants": list(variants.values()),
        "palette": PALETTE,
        "summary": summary_grid(results[0].metrics) if len(results) == 1 else None,
        "headline": results[0].metrics["average"] if len(results) == 1 else None,
        "places": places_of(results),
        "scenes": sorted({str(scene) for result in results for scene in result.metrics["scenes"]}),
        "moving": [names[number] for number in moving],
        "records": in_short(
            name for name, result in zip(names, results, strict=True) if not result.has_poses
        ),
        "thinned": thinned,
        "thresholds": ", ".join(f"{metres:g} m / {degrees:g}°" for metres, degrees in thresholds),
        "frames": list(zip(names, frames, strict=True)),
        "without_images": without,
        "confusions": [
            (name, counts)
            for name, counts in confusions
            if len(results) == 1 or not _all_right(counts)
        ],
        "all_right": in_short(
            name for name, counts in confusions if len(results) > 1 and _all_right(counts)
        ),
        "logged": any(curves),
        "unlogged": in_short(
            name for name, logged in zip(names, curves, strict=True) if not logged
        ),
        "verdicts": _verdicts(results),
        "attention": [
            (name, found)
            for name, result in zip(names, results, strict=True)
            if (found := attention_pictures(result.folder, pictures))
        ],
    }
    numbers = {
        "runs": told["runs"],
        "places": told["places"],
        "scenes": told["scenes"],
        "moving": moving,
        "palette": PALETTE,
        "thresholds": thresholds,
        "errors": error_diagrams(results, thresholds),
        "trajectories": drawn,
        "training": curves,
    }
    return told, numbers


def _tables(group: Group, results: Sequence[Result]) -> list[Markup]:
    """The paper's table, with published rows of the same data; of several runs recall at the
    thresholds too.
    """
    rows = collect_runs([result.file for result in results])
    published = [row for row in published_rows(PUBLISHED_CSV, group.dataset) if row.group == group]
    tables = [make_table(rows, published, digits=3)]
    if len(rows) > 1 and len({row.thresholds for row in rows}) == 1:
        tables.append(make_table(rows, kind="recall"))
    return [Markup(table.to_html()) for table in tables]


def _looks(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Colour and dashes of every run's lines: seeds of a variant share them, unless there is one
    variant alone.
    """
    variants = list(dict.fromkeys(result.variant for result in results))
    numbers = [
        index if len(variants) == 1 else variants.index(result.variant)
        for index, result in enumerate(results)
    ]
    return [{**PALETTE[n % len(PALETTE)], "variant": n} for n in numbers]


def _variants(
    names: Sequence[str], looks: Sequence[Mapping[str, Any]], results: Sequence[Result]
) -> dict[int, dict[str, Any]]:
    """The legend's entries by number: a variant, or each run where there is one variant alone."""
    entries: dict[int, dict[str, Any]] = {}
    for name, look, result in zip(names, looks, results, strict=True):
        entry = entries.setdefault(look["variant"], {**look, "label": name, "count": 0})
        entry["count"] += 1
        if entry["count"] > 1:
            quick = " (quick)" if result.metrics.get("quick") else ""
            entry["label"] = f"{name.rpartition(', seed ')[0]}{quick} ({entry['count']} seeds)"
    return entries


def _frames(
    results: Sequence[Result], pictures: Budget
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """(telling frames per run and scene, the reason for missing images -> the runs without)."""
    frames: list[dict[str, Any]] = []
    without: dict[str, list[str]] = {}
    size = next(size for most, size in THUMBNAILS.items() if len(results) <= most)
    for name, result in zip(labels(results), results, strict=True):
        root, reason = image_root(result)
        left_out = pictures.left_out
        found = telling_frames(result, root, pictures, size)
        shown = any(frame.picture for of_scene in found.values() for frame in of_scene)
        if root is not None and not shown and pictures.left_out == left_out:
            reason = f"none of these images can be read in {root}"
        if reason:
            without.setdefault(reason, []).append(name)
        frames.append(found)
    return frames, {reason: in_short(names) for reason, names in without.items()}


def _confusion(result: Result) -> pd.DataFrame | None:
    """Frames by true scene (rows) and predicted scene; None of one scene, or where none was
    predicted.
    """
    frames = result.frames
    if "predicted_scene" not in frames or frames["predicted_scene"].isna().any():
        return None
    counts = pd.crosstab(frames["scene"], frames["predicted_scene"])
    scenes = sorted({*counts.index, *counts.columns})
    return counts.reindex(index=scenes, columns=scenes, fill_value=0) if len(scenes) > 1 else None


def _all_right(counts: pd.DataFrame) -> bool:
    return int(counts.to_numpy().sum()) == int(counts.to_numpy().trace())


def _verdicts(results: Sequence[Result]) -> pd.DataFrame | None:
    studies = [result.study for result in results if result.study is not None]
    return study_grid(studies) if studies else None


def _differing(results: Sequence[Result]) -> pd.DataFrame | None:
    """Runs times the settings that are not the same in all, runs that agree in one line; None where
    there are none.
    """
    stated = [
        (name, result.settings)
        for name, result in zip(labels(results), results, strict=True)
        if result.settings
    ]
    names = dict.fromkeys(setting for _, settings in stated for setting in settings)
    values = {
        setting: [_text(settings.get(setting, ABSENT)) for _, settings in stated]
        for setting in names
        if setting not in (*PLACES, *NAMES)
    }
    columns = {setting: texts for setting, texts in values.items() if len(set(texts)) > 1}
    lines: dict[tuple[str, ...], list[str]] = {}
    for (name, _), *texts in zip(stated, *columns.values(), strict=True):
        lines.setdefault(tuple(texts), []).append(name)
    rows = [["; ".join(in_short(agreeing)), *texts] for texts, agreeing in lines.items()]
    return pd.DataFrame(rows, columns=["run", *columns]) if columns else None


def _settings(results: Sequence[Result]) -> list[tuple[str, dict[str, str]]]:
    """All settings of every run; runs whose settings differ in seed and places alone share them."""
    shared: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, result in zip(labels(results), results, strict=True):
        stated = {key: _text(value) for key, value in result.settings.items()}
        key = tuple(
            (setting, value)
            for setting, value in stated.items()
            if setting not in (*PLACES, "seed")
        )
        shared.setdefault(key, []).append(name)
    return [("; ".join(in_short(names)), dict(key)) for key, names in shared.items() if key]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "[]"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _origins(results: Sequence[Result]) -> pd.DataFrame:
    """Where the figures of every run come from, a run per column."""
    columns = {}
    for name, result in zip(labels(results), results, strict=True):
        stated, model = result.provenance, result.provenance["model"]
        commit = str(stated.get("commit") or "unknown")[:12] + (
            " + changes" if stated.get("dirty") else ""
        )
        versions = ("mspose", "torch", "torchvision", "numpy", "timm", "python")
        columns[name] = {
            "evaluated": stated.get("time_utc") or "unknown",
            "commit": commit,
            "device": stated.get("device") or "unknown",
            "versions": (
                ", ".join(f"{key} {stated[key]}" for key in versions if stated.get(key))
                or "unknown"
            ),
            "settings hash": model.get("config_hash") or ABSENT,
            "trained on frames": model.get("frames") or ABSENT,
            "frames": len(result.frames),
            "bad frames left out": result.metrics.get("bad_frames") or 0,
            "data": str(result.metrics["dataset"] or "unknown"),
            "scene": result.metrics["scene_selection"],
            "metrics": str(result.file),
            "frames from": str(result.source),
        }
    return pd.DataFrame(columns).astype(str)
