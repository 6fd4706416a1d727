"""Figures of the paper: attention in the runs of one data set, variants overlaid."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mspose.attention.curves import entropy_figure, gap_figure, tokens_figure
from mspose.attention.encoding_figure import encoding_figure
from mspose.attention.knock_out_figure import knock_out_figure
from mspose.attention.maps import decoder_maps_figure, encoder_maps_figure
from mspose.attention.query_key_space import space_figure
from mspose.attention.verdict_figure import purity_figure, verdict_figure
from mspose.config import BRANCHES
from mspose.run import Run
from mspose.studies.attention_figures import read_samples
from mspose.studies.paper.piece import NOT_IN_PAPER, Missing, Piece

Labelled = Sequence[tuple[str, Run]]
"""Runs under the label of their variant; those of one label are its seeds."""

OF_METRICS: dict[str, tuple[str, str, Any]] = {
    "entropy": ("Attention entropy per encoder layer", "F, attention entropy", entropy_figure),
    "tokens": ("Similarity of tokens behind every encoder layer", NOT_IN_PAPER, tokens_figure),
    "query-key-gap": ("Query-key gap over training", "F, query-key gap", gap_figure),
    "purity": ("Purity of the query regions", "F, purity", purity_figure),
    "encoding": ("Token distances under position encodings", "F, token distances", encoding_figure),
    "verdicts": ("Verdict on every encoder layer", NOT_IN_PAPER, verdict_figure),
    "knock-out": ("Errors without the encoders' self-attention", NOT_IN_PAPER, knock_out_figure),
}
"""Name -> title, the paper's figure, and what draws it."""
OF_FRAMES: dict[str, tuple[str, Any]] = {
    "encoder": ("Attention of encoder queries over a frame", encoder_maps_figure),
    "decoder": ("Attention of the scenes' decoder queries over frames", decoder_maps_figure),
}


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
    knocked_out = [(label, run) for label, run in studied if _study(run)["knock_out"]]
    shown_of = {"purity": of_pair, "knock-out": knocked_out}  # purity before and after
    pieces = [
        Piece(
            f"figure-{name}-{group}",
            f"{title}: {of}",
            stands_for,
            command,
            [run for _, run in shown],
            [*lacking],
            draw=partial(_draw, draw, shown),
        )
        for name, (title, stands_for, draw) in OF_METRICS.items()
        if (shown := shown_of.get(name, studied))
    ]
    first = dict(reversed(of_pair))  # of several seeds
    chosen = [(label, first[label]) for label in pair if label in first]
    return [*pieces, *_of_frames(group, of, chosen, command)]


def _draw(draw: Any, runs: Labelled) -> Figure:
    """Draw a figure of metrics; of encodings with the matrices of runs that have samples."""
    studies = [(label, _study(run)) for label, run in runs]
    if draw is not encoding_figure:
        return draw(studies)
    return draw(studies, [read_samples(run.folder) for _, run in runs])


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

    def space(branch: str, layer: int) -> Figure:
        samples = [(label, read_samples(run.folder) or {}) for label, run in sampled]
        return space_figure(samples, branch, layer, 1)

    def maps(draw: Any, run: Run) -> Figure:
        return draw(read_samples(run.folder) or {})

    layers = [
        (layer["branch"], layer["layer"]) for _, run in sampled for layer in _study(run)["layers"]
    ]
    last = dict(sorted(layers))
    pieces = [
        Piece(
            f"figure-space-{branch}-{group}",
            f"Query-key space and the keys that most queries attend to, {branch} branch: {of}",
            stands_for,
            command,
            [run for _, run in sampled],
            [*lacking],
            draw=partial(space, branch, last[branch]),
        )
        for branch in BRANCHES
        if branch in last
    ]
    pieces += [
        Piece(
            f"figure-{part}-attention-{label.replace('/', '-')}-{group}",
            f"{title}, {label}: {of}",
            NOT_IN_PAPER,
            command,
            [run],
            draw=partial(maps, draw, run),
        )
        for label, run in sampled
        for part, (title, draw) in OF_FRAMES.items()
    ]
    return pieces


def _study(run: Run) -> dict[str, Any]:
    """Study of a run that has one."""
    return run.attention_of_metrics or {}


def _attention(runs: Sequence[Run]) -> str:
    """Command that studies runs; in place of a record, the run that it was made from."""
    folders = [
        run.folder if run.weights_file.is_file() else Path("runs", run.name, f"seed-{run.seed}")
        for run in runs
    ]
    return f"mspose attention {' '.join(map(str, folders))}"
