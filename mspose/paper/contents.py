"""What the paper consists of, as far as finished runs and records allow it, and what is missing.

T1 to T6 are the tables of "Activating Self-Attention for Multi-Scene Absolute Pose Regression" (Lee, Kim and Heo,
NeurIPS 2024). Each is made for every data set that has runs.
"""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from mspose.ablation.finished import finished_cells, has_attention, study_of
from mspose.ablation.plan import Ablation
from mspose.ablation.table import make_ablation_table
from mspose.config import read_settings
from mspose.errors import MsposeError
from mspose.paper.figures import figures
from mspose.paper.piece import NOT_IN_PAPER, Missing, Piece, Run
from mspose.rows import finished_runs, group_of
from mspose.tables import Kind, table_of

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
    """Tables in the paper's order, further tables, figures.

    Args:
        roots: folders of runs and records.
        command: what makes the whole paper from them.

    Raises MsposeError where there is no finished run, or a metrics.json is broken.
    """
    runs = [Run(*run) for run in finished_runs(roots) if not run[1].get("quick")]
    if not runs:
        places = ", ".join(map(str, roots)) or "runs and experiments/results"
        raise MsposeError(f"no finished run in {places} (quick tries do not count): `make ablation` makes some")
    experiments = _experiments_of(ablations, runs)
    cells = {experiment for found in experiments.values() for experiment in found}
    tables: list[Piece] = []
    drawn: list[Piece] = []
    for ablation in ablations:
        for experiment, base in experiments[ablation.name].items():
            table, pictures = _ablation_pieces(ablation, experiment, base, roots, command)
            tables.append(table)
            drawn += pictures
        if not experiments[ablation.name]:
            tables.append(_not_run(ablation))
    trained = [run for run in runs if run.metrics["experiment"] not in cells]
    networks = [run for run in trained if not run.name[1].startswith("baseline-") and has_attention(run.folder)]
    for dataset, found in _by_dataset(networks).items():
        labelled = [("/".join(run.name), run._replace(study=study_of(run.folder, run.metrics))) for run in found]
        pair = list(dict(labelled))[:2]
        drawn += figures(dataset, f"trained runs on {dataset}{_version(found[0])}", labelled, pair, command)
    tables += [*_trained_tables(trained, "median"), *_trained_tables(runs, "recall")]
    return [*sorted(tables, key=lambda piece: (piece.stands_for == NOT_IN_PAPER, piece.stands_for)), *drawn]


def _experiments_of(ablations: Sequence[Ablation], runs: Iterable[Run]) -> dict[str, dict[str, str]]:
    """By ablation, {experiment of its cells: their base experiment}, for every data set that it was run on."""
    found: dict[str, dict[str, str]] = {ablation.name: {} for ablation in ablations}
    for run in runs:
        experiment = run.metrics["experiment"]
        fitting = [name for name in found if experiment.startswith(f"{name}-")]
        if fitting:
            name = max(fitting, key=len)
            found[name][experiment] = experiment.removeprefix(f"{name}-")
    return found


def _named(ablation: Ablation) -> str:
    """What the command line calls it: its name where it lies among the others, else its path."""
    return ablation.name if ablation.path.parent.name == "ablations" else str(ablation.path)


def _not_run(ablation: Ablation) -> Piece:
    command = f"mspose ablate {_named(ablation)}"
    return Piece(
        name=f"table-{ablation.name}",
        title=ablation.title,
        stands_for=ABLATIONS.get(ablation.name, NOT_IN_PAPER),
        command=f"mspose table --ablation {_named(ablation)}",
        missing=[Missing(f"all cells of {ablation.name}, on any data set", command)],
    )


def _ablation_pieces(
    ablation: Ablation, experiment: str, base: str, roots: Sequence[Path], command: str
) -> tuple[Piece, list[Piece]]:
    """(the table of an ablation on one data set, the figures of its cells' attention)."""
    dataset = None if base == read_settings(ablation.base).experiment else base
    arguments = _named(ablation) + (f" --dataset {dataset}" if dataset else "")
    piece = Piece(
        name=f"table-{experiment}",
        title=f"{ablation.title}, on {base}",
        stands_for=ABLATIONS.get(ablation.name, NOT_IN_PAPER),
        command=f"mspose table {' '.join(map(str, roots))} --ablation {arguments}",
    )
    try:
        finished = finished_cells(ablation, roots, dataset=dataset)
    except MsposeError as error:
        piece.missing.append(Missing(str(error)))
        return piece, []
    piece.table = make_ablation_table(ablation, finished)
    cells = [(label, cell) for label, seeds in finished.cells.items() for cell in seeds.values()]
    piece.runs = [Run(cell.folder, cell.metrics, cell.study) for _, cell in cells]
    piece.title += _version(piece.runs[0])
    if finished.missing:
        overrides = "".join(f" --{name} {shlex.quote(value)}" for name, value in finished.overrides.items())
        piece.missing.append(
            Missing(f"cells of {experiment}: {'; '.join(finished.missing)}", f"mspose ablate {arguments}{overrides}")
        )
    remedy = max(ablation.variants, key=lambda label: len(ablation.variants[label]))
    labelled = [(label, Run(cell.folder, cell.metrics, cell.study)) for label, cell in cells if cell.has_attention]
    if not labelled:
        return piece, []
    return piece, figures(experiment, piece.title, labelled, (ablation.reference, remedy), command, piece.missing)


def _version(run: Run) -> str:
    """` version 1`, where a run is on a rendered data set."""
    version = group_of(dict(run.metrics)).data_version
    return f" version {version}" if version else ""


def _by_dataset(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """By data set; where it has several ground truths, splits or versions, they are in the names."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        group = group_of(dict(run.metrics))
        kind = f"{group.ground_truth}-{group.split}"
        kind += f"-version-{group.data_version}" if group.data_version else ""
        found.setdefault(group.dataset, {}).setdefault(kind, []).append(run)
    return {
        dataset if len(kinds) == 1 else f"{dataset}-{kind}": of
        for dataset, kinds in found.items()
        for kind, of in kinds.items()
    }


def _trained_tables(runs: Sequence[Run], kind: Kind) -> list[Piece]:
    """A table per data set, of medians or of recall; of the paper's data sets without runs, what would make them."""
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
    for name, of in found.items():
        dataset = of[0].metrics["dataset"] or "unknown"
        folders = dict.fromkeys(str(run.folder.parent) for run in of)
        piece = Piece(
            name=f"table-{kind}-{name}",
            title=f"{what}, {name}" + ("" if "-version-" in name else _version(of[0])),
            stands_for=RECALL if recall else DATA_SETS.get(dataset, NOT_IN_PAPER),
            command=f"mspose table {' '.join(folders)}{option}",
            runs=of,
        )
        try:
            piece.table = table_of([run.folder for run in of], kind=kind, digits=2 if dataset in DATA_SETS else 3)
        except MsposeError as error:
            piece.missing.append(Missing(str(error)))
        pieces.append(piece)
    return pieces
