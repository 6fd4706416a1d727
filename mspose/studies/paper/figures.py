"""The figures of the paper: what attention does in the runs of one data set, the variants of an
ablation overlaid.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mspose.attention.attention_json import SAMPLES
from mspose.models.network import BRANCHES
from mspose.run import WEIGHTS
from mspose.studies.attention_figures import (
    decoder_maps_figure,
    encoder_maps_figure,
    encoding_figure,
    entropy_figure,
    gap_figure,
    purity_figure,
    read_samples,
    space_figure,
    verdict_figure,
)
from mspose.studies.paper.piece import NOT_IN_PAPER, Missing, Piece, Run

Labelled = Sequence[tuple[str, Run]]
"""Runs under the label of their variant; those of one label are its seeds."""


def figures(
    group: str,
    of: str,
    runs: Labelled,
    pair: Sequence[str],
    command: str,
    missing: Sequence[Missing] = (),
) -> list[Piece]:
    """The figures of runs that belong together.

    Args:
        group: what their files are named after.
        of: what titles call them.
        runs: runs that have self-attention in their encoders, all overlaid in the figures of
            numbers.
        pair: two labels, the reference and a remedy: for purity before and after, and for pictures
            of frames.
        command: what makes the figures.
        missing: what the figures of numbers lack beside `runs`.

    Pictures of frames need `attention/samples.npz`, which lies beside a run's model and in no
    record.
    """
    studied = [(label, run) for label, run in runs if run.study is not None]
    unstudied = [run for _, run in runs if run.study is None]
    lacking = [
        *missing,
        *([Missing("attention figures of some runs", _attention(unstudied))] if unstudied else []),
    ]
    if not studied:
        return [
            Piece(f"figures-{group}", f"Attention: {of}", "all figures", command, missing=lacking)
        ]
    of_pair = [(label, run) for label, run in studied if label in pair]
    pieces = []
    for name, title, stands_for, used, draw in (
        (
            "entropy",
            "Attention entropy per encoder layer",
            "F, attention entropy",
            studied,
            partial(_numbers, entropy_figure, studied),
        ),
        (
            "query-key-gap",
            "Query-key gap over training",
            "F, query-key gap",
            studied,
            partial(_numbers, gap_figure, studied),
        ),
        (
            "purity",
            "Purity of the query regions",
            "F, purity",
            of_pair,
            partial(_numbers, purity_figure, of_pair),
        ),
        (
            "encoding",
            "Token distances under position encodings",
            "F, token distances",
            studied,
            partial(_encodings, studied),
        ),
        (
            "verdicts",
            "Verdict on every encoder layer",
            NOT_IN_PAPER,
            studied,
            partial(_numbers, verdict_figure, studied),
        ),
    ):
        made_from = [run for _, run in used]
        title = f"{title}: {of}"
        pieces.append(
            Piece(
                f"figure-{name}-{group}",
                title,
                stands_for,
                command,
                made_from,
                [*lacking],
                draw=draw,
            )
        )
    first = dict(reversed(of_pair))  # of several seeds
    return [
        *pieces,
        *_of_frames(
            group, of, [(label, first[label]) for label in pair if label in first], command
        ),
    ]


def _numbers(draw: Callable[..., Figure], runs: Labelled) -> Figure:
    return draw([(label, run.study) for label, run in runs])


def _encodings(runs: Labelled) -> Figure:
    """Matrices are of the runs that have samples, profiles of all."""
    arrays = [
        _encoding_arrays(run) if (run.folder / SAMPLES).is_file() else None for _, run in runs
    ]
    return encoding_figure([(label, run.study or {}) for label, run in runs], arrays)


def _encoding_arrays(run: Run) -> Mapping[str, Any]:
    """Without the rest, which is large."""
    return {
        name: values
        for name, values in (read_samples(run.folder) or {}).items()
        if name.startswith("encoding/")
    }


def _of_frames(group: str, of: str, runs: Labelled, command: str) -> list[Piece]:
    """Query-key space and attention over frames, of the runs that have samples."""
    sampled = [(label, run) for label, run in runs if (run.folder / SAMPLES).is_file()]
    blank = [run for label, run in runs if (label, run) not in sampled]
    records = any(not (run.folder / WEIGHTS).is_file() for run in blank)
    what = (
        "sample frames"
        + ", for which the trained runs are needed, not their records alone" * records
    )
    lacking = [Missing(what, _attention(blank))] if blank else []
    if not sampled:
        title = f"Query-key space and attention over frames: {of}"
        return [
            Piece(
                f"figures-of-frames-{group}", title, "F, query-key space", command, missing=lacking
            )
        ]
    pieces = []
    for branch in BRANCHES:
        layers = [
            layer["layer"]
            for _, run in sampled
            for layer in (run.study or {})["layers"]
            if layer["branch"] == branch
        ]
        if layers:
            title = (
                f"Query-key space and the keys that most queries attend to, {branch} branch: {of}"
            )
            draw = partial(_space, sampled, branch, max(layers))
            made_from = [run for _, run in sampled]
            name = f"figure-space-{branch}-{group}"
            pieces.append(
                Piece(name, title, "F, query-key space", command, made_from, [*lacking], draw=draw)
            )
    for label, run in sampled:
        for part, what, maps in (
            ("encoder", "Attention of encoder queries over a frame", encoder_maps_figure),
            (
                "decoder",
                "Attention of the scenes' decoder queries over frames",
                decoder_maps_figure,
            ),
        ):
            name = f"figure-{part}-attention-{label.replace('/', '-')}-{group}"
            draw = partial(_maps, maps, run)
            pieces.append(
                Piece(name, f"{what}, {label}: {of}", NOT_IN_PAPER, command, [run], draw=draw)
            )
    return pieces


def _space(runs: Labelled, branch: str, layer: int) -> Figure:
    """Of the last layer's first head."""
    return space_figure(
        [(label, read_samples(run.folder) or {}) for label, run in runs], branch, layer, 1
    )


def _maps(draw: Callable[..., Figure], run: Run) -> Figure:
    return draw(read_samples(run.folder) or {})


def _attention(runs: Sequence[Run]) -> str:
    """The command that studies runs; of a record, without its model, the run where it was made."""
    folders = []
    for run in runs:
        there = (run.folder / WEIGHTS).is_file()
        folders.append(
            run.folder if there else Path("runs", *run.name, f"seed-{run.metrics['seed']}")
        )
    return f"mspose attention {' '.join(map(str, folders))}"
