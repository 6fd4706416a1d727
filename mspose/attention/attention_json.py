"""`attention.json`, the study of a run's attention: written, read and tabulated.

Its content is described in `mspose.studies.attention_study`. `attention-at-start.json`, which
training writes before its first step, has the same layers, with less of each.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from mspose.attention.measures import AttentionMeasures
from mspose.config import BRANCHES
from mspose.errors import MsposeError
from mspose.files import whole_file
from mspose.run import ATTENTION, Run

Study = Mapping[str, Any]
"""Content of `attention.json`."""
Studies = Sequence[tuple[str, Study]]
"""Studies under the labels that legends show. Those of the same label are seeds of one variant."""
Arrays = Mapping[str, NDArray[Any]]
"""Content of `samples.npz`."""


START_FORMAT = 1
DASH = "–"


def short(value: float) -> float:
    """Round a value to six significant digits, as the file keeps it."""
    return float(f"{value:.6g}")


def short_or_none(value: float) -> float | None:
    """Round as `short`; None for NaN, which JSON has no word for."""
    return None if math.isnan(value) else short(value)


def start_of(measures: AttentionMeasures) -> dict[str, Any]:
    """Return the content of `attention-at-start.json`."""
    return {
        "format": START_FORMAT,
        **{
            part: [
                {
                    "branch": branch,
                    "layer": number,
                    "entropy": short_or_none(layer.mean()["entropy"]),
                    "similarity": short_or_none(layer.mean()["similarity"]),
                }
                for (branch, number), layer in layers.items()
            ]
            for part, layers in (("layers", measures.layers), ("decoder", measures.decoders))
        },
    }


def write_start(run: Path, measures: AttentionMeasures) -> None:
    """Write `attention-at-start.json` of a run, whole or not at all."""
    with whole_file(Run(run).start_file) as file:
        json.dump(start_of(measures), file, allow_nan=False)
        file.write("\n")


def read_start(run: Path) -> dict[str, Any] | None:
    """Read `attention-at-start.json`; None without one. Raises MsposeError for a broken one."""
    path = Run(run).start_file
    try:
        start = json.loads(path.read_text(encoding="utf-8"))
        if start["format"] != START_FORMAT:
            raise ValueError(f"format is {start['format']!r}, expected {START_FORMAT}")
        for layer in (*start["layers"], *start["decoder"]):
            for name in ("branch", "layer", "entropy", "similarity"):
                layer[name]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MsposeError(f"{path} is broken ({error}): remove it") from error
    return start


def write_study(run: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Write `attention.json` of a run, whole or not at all; returns its content."""
    with whole_file(Run(run).attention_file) as file:
        json.dump(study, file, allow_nan=False, separators=(",", ":"))
        file.write("\n")
    return study


def read_study(run: Path) -> dict[str, Any]:
    """Read `attention.json` of a run. Raises MsposeError for a missing or broken file."""
    study = Run(run).attention
    if study is None:
        raise MsposeError(
            f"{run} holds no study of its attention ({ATTENTION} is missing): run `mspose"
            f" attention {run}`"
        )
    return study


def study_table(studies: Sequence[Study]) -> str:
    """Format `study_grid` and `decoder_grid` as Markdown tables, and say what the start is."""
    grids = [grid for grid in (study_grid(studies), decoder_grid(studies)) if len(grid)]
    tables = [grid.to_markdown(index=False, disable_numparse=True) for grid in grids]
    unknown = [
        f"{label(study)}: attention at the start is {study['start']}."
        for study in studies
        if study["start"].startswith("unknown")
    ]
    return "\n\n".join([*tables, *unknown])


def study_grid(studies: Sequence[Study]) -> pd.DataFrame:
    """Tabulate entropy, similarity, gap, purity and words of every encoder layer of studies, as
    text.

    At the start: entropy as a share of its limit, and similarity, of the same layer before the
    first step. Tokens: their similarity before and after the layer. Worth: the word of a knock-out,
    where one was measured.
    """
    rows = [
        {
            "run": label(study),
            "branch": layer["branch"],
            "encoder layer": layer["layer"],
            "entropy / limit (nats)": f"{layer['entropy']:.3f} / {layer['entropy_limit']:.3f}",
            "similarity": f"{layer['similarity']:.3f}",
            "at the start": _start_text(layer),
            "tokens": _tokens_text(layer),
            "query-key gap": f"{layer['query_key_gap']:.3f}",
            "purity": f"{layer['purity']:.3f}",
            "verdict": layer["verdict"],
            "worth": layer["worth"] or DASH,
        }
        for study in studies
        for layer in study["layers"]
    ]
    grid = pd.DataFrame(rows)
    blank = [
        name for name in ("at the start", "tokens", "worth") if rows and set(grid[name]) == {DASH}
    ]
    return grid.drop(columns=blank)


def decoder_grid(studies: Sequence[Study]) -> pd.DataFrame:
    """Tabulate entropy, similarity and words of the scenes' attention in every decoder layer, as
    text; means over scenes, and the words of the scenes' own, counted.
    """
    return pd.DataFrame(
        {
            "run": label(study),
            "branch": layer["branch"],
            "decoder layer": layer["layer"],
            "entropy / limit (nats)": f"{layer['entropy']:.3f} / {layer['entropy_limit']:.3f}",
            "similarity of scenes": _number(layer["similarity"]),
            "at the start": _start_text(layer),
            "verdict": layer["verdict"] or DASH,
            "scenes": counted(scene["verdict"] or DASH for scene in layer["scenes"]),
        }
        for study in studies
        for layer in study["decoder"]
    )


def counted(words: Iterable[str]) -> str:
    """Format `uniform`, or `uniform 4, selective 2`, the most frequent first."""
    counts = Counter(words)
    if len(counts) == 1:
        return next(iter(counts))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)


def _start_text(layer: Mapping[str, Any]) -> str:
    start = layer["start"]
    if start is None:
        return DASH
    share = share_of_limit(start["entropy"], layer["entropy_limit"])
    return f"{share:.2f}, {_number(start['similarity'], 2)}"


def share_of_limit(entropy: float, limit: float) -> float:
    """Compute attention entropy as a share of its limit; 1 where queries see one key."""
    return entropy / limit if limit else 1.0


def _tokens_text(layer: Mapping[str, Any]) -> str:
    tokens = layer["token_similarity"]
    return f"{tokens['before']:.2f} to {tokens['after']:.2f}" if tokens else DASH


def _number(value: float | None, digits: int = 3) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def label(study: Study) -> str:
    """Name a study in tables: experiment, variant and seed, and a mark for a quick try."""
    name = f"{study['experiment']}/{study['variant']}/seed-{study['seed']}"
    return f"{name} (quick)" if study["quick"] else name


def by_label(studies: Iterable[tuple[str, Study]]) -> dict[str, list[Study]]:
    """Group studies by label, labels in the order of their first study.

    Raises MsposeError where there are none.
    """
    groups: dict[str, list[Study]] = {}
    for name, study in studies:
        groups.setdefault(name, []).append(study)
    if not groups:
        raise MsposeError(
            "there is no study of attention to draw: run `mspose attention RUN` first"
        )
    return groups


def encoder_layers(studies: Studies) -> list[tuple[str, int]]:
    """List branch and number of every encoder layer that a study has, in their order."""
    found = {
        (BRANCHES.index(branch), number)
        for _, study in studies
        for branch in BRANCHES
        for number in layers_of(study, branch)
    }
    return [(BRANCHES[branch], number) for branch, number in sorted(found)]


def layers_of(study: Study, branch: str) -> dict[int, Mapping[str, Any]]:
    """Return the encoder layers of a branch by their numbers, counted from 1."""
    return {int(layer["layer"]): layer for layer in study["layers"] if layer["branch"] == branch}


def named(name: str, seeds: int, note: str = "") -> str:
    """Name a label in a legend; a line never breaks between the number of seeds and the word."""
    name = f"{name} ({seeds}\N{NO-BREAK SPACE}seeds)" if seeds > 1 else name
    return f"{name} ({note})" if note else name
