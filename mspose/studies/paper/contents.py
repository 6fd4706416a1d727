"""Contents of the paper, as far as finished runs and records allow it, and what is missing.

T1 to T6 are the tables of "Activating Self-Attention for Multi-Scene Absolute Pose Regression"
(Lee, Kim and Heo, NeurIPS 2024). Each is made for every data set that has runs.
"""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from mspose.config import read_settings
from mspose.data.cards import read_card
from mspose.errors import MsposeError
from mspose.run import Run
from mspose.studies.ablation.finished import finished_ablation
from mspose.studies.ablation.plan import Ablation
from mspose.studies.ablation.single_run import has_self_attention
from mspose.studies.ablation.table import make_ablation_table
from mspose.studies.ablation.worth import make_worth_table, was_knocked_out
from mspose.studies.paper.figures import figures
from mspose.studies.paper.piece import NOT_IN_PAPER, Missing, Piece
from mspose.studies.rows import finished_runs, group_of, lacking_frames, rows_of
from mspose.studies.tables import Kind, table_of

ABLATIONS = {
    "encoder-attention": "T1, encoder self-attention removed",
    "collapse-remedies": "T5, alternatives to QKA",
    "position-encodings": "T5, alternatives to the fixed encoding",
    "qka-and-encoding": "T6, the ablation",
}
"""The paper's table that an ablation stands for, by the name of its file."""
DATA_SETS = {"cambridge": "T2, Cambridge per scene", "7scenes": "T3, 7Scenes per scene"}
RECALL = "T4, recall at thresholds"
"""The thresholds are those of the data sets' cards: the paper's own are not known."""


def contents(roots: Sequence[Path], ablations: Sequence[Ablation], command: str) -> list[Piece]:
    """List tables in the paper's order, further tables, figures.

    Args:
        roots: folders of runs and records.
        command: the one that makes the whole paper from them.

    Raises MsposeError where there is no finished run, or a metrics.json is broken.
    """
    runs = [run for run in finished_runs(roots) if not run.quick]
    if not runs:
        folders = ", ".join(map(str, roots)) or "runs and experiments/results"
        raise MsposeError(
            f"no finished run in {folders} (quick tries do not count): `make ablation` makes some"
        )
    tables: list[Piece] = []
    drawn: list[Piece] = []
    experiments = _experiments_of(ablations, runs)
    for ablation in ablations:
        for experiment, base in experiments[ablation.name].items():
            table, plots = _ablation_pieces(ablation, experiment, base, roots, command)
            tables.append(table)
            drawn += plots
        if not experiments[ablation.name]:
            tables.append(_not_run(ablation))
    of_ablations = {experiment for found in experiments.values() for experiment in found}
    trained = [run for run in runs if run.experiment not in of_ablations]
    networks = [run for run in trained if not run.is_baseline and _has_self_attention(run)]
    for dataset, found in _by_dataset(networks).items():
        labelled = [(run.name, run) for run in found]
        pair = list(dict(labelled))[:2]
        drawn += figures(
            dataset, f"trained runs on {dataset}{_version(found[0])}", labelled, pair, command
        )
    tables += [*_trained_tables(trained, "median"), *_trained_tables(runs, "recall")]
    tables.sort(key=lambda piece: (piece.stands_for == NOT_IN_PAPER, piece.stands_for))
    return [*tables, *drawn]


def _has_self_attention(run: Run) -> bool:
    """False of runs without settings, such as another method's predictions."""
    return run.config_file.is_file() and has_self_attention(run.settings)


def _experiments_of(
    ablations: Sequence[Ablation], runs: Iterable[Run]
) -> dict[str, dict[str, str]]:
    """Find {experiment: its base experiment} by ablation, for every data set it was run on."""
    found: dict[str, dict[str, str]] = {ablation.name: {} for ablation in ablations}
    for run in runs:
        fitting = [name for name in found if run.experiment.startswith(f"{name}-")]
        if fitting:
            name = max(fitting, key=len)
            found[name][run.experiment] = run.experiment.removeprefix(f"{name}-")
    return found


def _argument(ablation: Ablation) -> str:
    """Name of an ablation for the command line, or its path where it lies elsewhere."""
    return ablation.name if ablation.path.parent.name == "ablations" else str(ablation.path)


def _not_run(ablation: Ablation) -> Piece:
    command = f"mspose ablate {_argument(ablation)}"
    return Piece(
        name=f"table-{ablation.name}",
        title=ablation.title,
        stands_for=ABLATIONS.get(ablation.name, NOT_IN_PAPER),
        command=f"mspose table --ablation {_argument(ablation)}",
        missing=[Missing(f"all runs of {ablation.name}, on any data set", command)],
    )


def _ablation_pieces(
    ablation: Ablation, experiment: str, base: str, roots: Sequence[Path], command: str
) -> tuple[Piece, list[Piece]]:
    """Make the table of an ablation on one data set, and the figures of its runs' attention."""
    dataset = None if base == read_settings(Path(ablation.base)).experiment else base
    arguments = _argument(ablation) + (f" --dataset {dataset}" if dataset else "")
    piece = Piece(
        name=f"table-{experiment}",
        title=f"{ablation.title}, on {base}",
        stands_for=ABLATIONS.get(ablation.name, NOT_IN_PAPER),
        command=f"mspose table {' '.join(map(str, roots))} --ablation {arguments}",
    )
    try:
        finished = finished_ablation(ablation, roots, dataset=dataset)
        piece.table = make_ablation_table(ablation, finished)
    except MsposeError as error:
        piece.missing.append(Missing(str(error)))
        return piece, []
    labelled = [(label, run) for label, seeds in finished.runs.items() for run in seeds.values()]
    piece.runs = [run for _, run in labelled]
    piece.missing += _missing_frames(lacking_frames(piece.runs))
    piece.title += _version(piece.runs[0])
    if finished.missing:
        overrides = "".join(
            f" --{name} {shlex.quote(value)}" for name, value in finished.overrides.items()
        )
        piece.missing.append(
            Missing(
                f"runs of {experiment}: {'; '.join(finished.missing)}",
                f"mspose ablate {arguments}{overrides}",
            )
        )
    remedy = max(ablation.variants, key=lambda label: len(ablation.variants[label]))
    with_attention = [(label, run) for label, run in labelled if _has_self_attention(run)]
    if not with_attention:
        return piece, []
    pair = (ablation.reference, remedy)
    more = figures(experiment, piece.title, with_attention, pair, command, piece.missing)
    if (worth := make_worth_table(ablation, finished)) is not None:
        of_worth = Piece(
            name=f"table-worth-{experiment}",
            title=f"Worth of self-attention: {piece.title}",
            stands_for=NOT_IN_PAPER,
            command=piece.command,
            runs=[run for _, run in with_attention if was_knocked_out(run)],
            table=worth,
        )
        more = [of_worth, *more]
    return piece, more


def _version(run: Run) -> str:
    """` version 1`, where a run is on a rendered data set."""
    version = group_of(run.metrics).data_version
    return f" version {version}" if version else ""


def _by_dataset(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Sort runs by data set; several ground truths, splits or versions of one are in the names."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        group = group_of(run.metrics)
        kinds = found.setdefault(group.dataset, {})
        kind = f"{group.ground_truth}-{group.split}"
        if group.data_version:
            kind += f"-version-{group.data_version}"
        kinds.setdefault(kind, []).append(run)
    return {
        dataset if len(kinds) == 1 else f"{dataset}-{kind}": of_kind
        for dataset, kinds in found.items()
        for kind, of_kind in kinds.items()
    }


def _trained_tables(runs: Sequence[Run], kind: Kind) -> list[Piece]:
    """Make a table of medians or recall per data set; name what the paper's data sets lack."""
    recall = kind == "recall"
    what, option = ("Recall", " --kind recall") if recall else ("Median errors of trained runs", "")
    found = _by_dataset(runs)
    pieces = []
    for dataset in DATA_SETS:
        if not any(name.partition("-")[0] == dataset for name in found):
            train = f"make train DATASET={dataset}; make eval RUN=runs/{dataset}/all/seed-0"
            pieces.append(
                Piece(
                    name=f"table-{kind}-{dataset}",
                    title=f"{what}, {dataset}",
                    stands_for=RECALL if recall else DATA_SETS[dataset],
                    command=f"mspose table runs --dataset {dataset}{option}",
                    missing=[Missing(f"a finished run on {dataset}", train)],
                )
            )
    for name, of_dataset in found.items():
        dataset = group_of(of_dataset[0].metrics).dataset
        folders = dict.fromkeys(str(run.folder.parent) for run in of_dataset)
        piece = Piece(
            name=f"table-{kind}-{name}",
            title=f"{what}, {name}" + ("" if "-version-" in name else _version(of_dataset[0])),
            stands_for=RECALL if recall else DATA_SETS.get(dataset, NOT_IN_PAPER),
            command=f"mspose table {' '.join(folders)}{option}",
            runs=of_dataset,
        )
        try:
            digits = 2 if dataset in DATA_SETS else 3
            rows = rows_of(of_dataset)
            piece.table = table_of(rows, kind=kind, digits=digits)
        except MsposeError as error:
            piece.missing.append(Missing(str(error)))
        else:
            piece.missing += _missing_frames(
                [f"{text} ({row.name})" for row in rows for text in row.lacking]
            )
            if dataset in DATA_SETS:
                there = {scene for row in rows for scene in row.scenes}
                lacking = [scene for scene in read_card(dataset).scenes if scene not in there]
                if lacking:
                    piece.missing.append(Missing(f"a run on {', '.join(lacking)} of {dataset}"))
        pieces.append(piece)
    return pieces


def _missing_frames(lacking: Sequence[str]) -> list[Missing]:
    """Name the test frames that were not evaluated, see `mspose.studies.rows.lacking_frames`."""
    return [Missing(f"test frames, evaluated are {text}") for text in lacking]
