"""Figures of the paper: attention in the runs of one data set, variants overlaid."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mspose.config import BRANCHES
from mspose.run import Run
from mspose.studies.attention_figures import (
    decoder_maps_figure,
    encoder_maps_figure,
    encoding_figure,
    entropy_figure,
    gap_figure,
    knock_out_figure,
    purity_figure,
    read_samples,
    space_figure,
    verdict_figure,
)
from mspose.studies.paper.piece import NOT_IN_PAPER, Missing, Piece

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
    """Make the figures of runs that belong together.

    Args:
        group: ending of their files' names.
        of: ending of their titles.
        runs: runs with self-attention in their encoders.
        pair: two labels, the reference and a remedy: for purity before and after, and for plots of
            single frames.
        command: the one that makes the figures.
        missing: further inputs that the figures of metrics lack.

    Plots of single frames need the study's samples, which lie beside a run's model and in no
    record.
    """
    studied = [(label, run) for label, run in runs if run.attention_of_metrics is not None]
    unstudied = [run for _, run in runs if run.attention_of_metrics is None]
    lacking = [*missing]
    if unstudied:
        lacking.append(Missing("attention metrics of some runs", _attention(unstudied)))
    if not studied:
        title = f"Attention: {of}"
        return [Piece(f"figures-{group}", title, "all figures", command, missing=lacking)]
    of_pair = [(label, run) for label, run in studied if label in pair]
    knocked_out = [
        (label, run) for label, run in studied if (run.attention_of_metrics or {})["knock_out"]
    ]
    first = dict(reversed(of_pair))  # of several seeds
    pieces = []
    shown_of = {"purity": of_pair, "knock-out": knocked_out}  # purity before and after
    for name, (title, stands_for, draw) in FIGURES.items():
        shown = shown_of.get(name, studied)
        if not shown:
            continue
        pieces.append(
            Piece(
                f"figure-{name}-{group}",
                f"{title}: {of}",
                stands_for,
                command,
                [run for _, run in shown],
                [*lacking],
                draw=partial(draw, shown),
            )
        )
    chosen = [(label, first[label]) for label in pair if label in first]
    return [*pieces, *_of_frames(group, of, chosen, command)]


def _of_frames(group: str, of: str, runs: Labelled, command: str) -> list[Piece]:
    """Make the plots of query-key space and of attention over frames, of runs with samples."""
    sampled = [(label, run) for label, run in runs if run.samples_file.is_file()]
    blank = [run for _, run in runs if not run.samples_file.is_file()]
    lacking = []
    if blank:
        what = "sample frames"
        if not all(run.weights_file.is_file() for run in blank):
            what += ", for which the trained runs are needed, not their records alone"
        lacking.append(Missing(what, _attention(blank)))
    stands_for = "F, query-key space"
    if not sampled:
        title = f"Query-key space and attention over frames: {of}"
        return [Piece(f"figures-of-frames-{group}", title, stands_for, command, missing=lacking)]
    pieces = []
    for branch in BRANCHES:
        layers = [
            layer["layer"]
            for _, run in sampled
            for layer in (run.attention_of_metrics or {})["layers"]
            if layer["branch"] == branch
        ]
        if layers:
            pieces.append(
                Piece(
                    f"figure-space-{branch}-{group}",
                    f"Query-key space and the keys that most queries attend to, {branch} branch:"
                    f" {of}",
                    stands_for,
                    command,
                    [run for _, run in sampled],
                    [*lacking],
                    draw=partial(_space, sampled, branch, max(layers)),
                )
            )
    for label, run in sampled:
        for part, title, draw in (
            ("encoder", "Attention of encoder queries over a frame", encoder_maps_figure),
            (
                "decoder",
                "Attention of the scenes' decoder queries over frames",
                decoder_maps_figure,
            ),
        ):
            pieces.append(
                Piece(
                    f"figure-{part}-attention-{label.replace('/', '-')}-{group}",
                    f"{title}, {label}: {of}",
                    NOT_IN_PAPER,
                    command,
                    [run],
                    draw=partial(_maps, draw, run),
                )
            )
    return pieces


def _metrics(draw: Callable[..., Figure], runs: Labelled) -> Figure:
    return draw([(label, run.attention_of_metrics) for label, run in runs])


def _encodings(runs: Labelled) -> Figure:
    """Plot distances of encodings: profiles of all runs, matrices of those with samples."""
    matrices = [
        {name: values for name, values in _samples(run).items() if name.startswith("encoding/")}
        if run.samples_file.is_file()
        else None
        for _, run in runs
    ]
    return encoding_figure(
        [(label, run.attention_of_metrics or {}) for label, run in runs], matrices
    )


FIGURES: dict[str, tuple[str, str, Callable[[Labelled], Figure]]] = {
    "entropy": (
        "Attention entropy per encoder layer",
        "F, attention entropy",
        partial(_metrics, entropy_figure),
    ),
    "query-key-gap": (
        "Query-key gap over training",
        "F, query-key gap",
        partial(_metrics, gap_figure),
    ),
    "purity": ("Purity of the query regions", "F, purity", partial(_metrics, purity_figure)),
    "encoding": ("Token distances under position encodings", "F, token distances", _encodings),
    "verdicts": (
        "Verdict on every encoder layer",
        NOT_IN_PAPER,
        partial(_metrics, verdict_figure),
    ),
    "knock-out": (
        "Errors without the encoders' self-attention",
        NOT_IN_PAPER,
        partial(_metrics, knock_out_figure),
    ),
}
"""Name -> title, the paper's figure, and what draws it."""


def _space(runs: Labelled, branch: str, layer: int) -> Figure:
    return space_figure([(label, _samples(run)) for label, run in runs], branch, layer, 1)


def _maps(draw: Callable[..., Figure], run: Run) -> Figure:
    return draw(_samples(run))


def _samples(run: Run) -> Mapping[str, Any]:
    return read_samples(run.folder) or {}


def _attention(runs: Sequence[Run]) -> str:
    """Command that studies runs; in place of a record, the run that it was made from."""
    folders = [
        run.folder if run.weights_file.is_file() else Path("runs", run.name, f"seed-{run.seed}")
        for run in runs
    ]
    return f"mspose attention {' '.join(map(str, folders))}"
