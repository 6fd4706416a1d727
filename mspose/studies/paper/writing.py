"""Writes the paper's folder: tables, figures, and an index of what each is and what is missing."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mspose.errors import MsposeError
from mspose.files import whole_file
from mspose.plotting import save_figure
from mspose.provenance import provenance
from mspose.resources import ABLATIONS, named_files
from mspose.studies.ablation.finished import ROOTS
from mspose.studies.ablation.plan import read_ablation
from mspose.studies.pages import data_uri, environment
from mspose.studies.paper.contents import contents
from mspose.studies.paper.piece import Missing, Piece
from mspose.studies.tables import PrintedTable

TABLES, FIGURES = "tables", "figures"
INDEX = ("index.md", "index.html")
TEMPLATES = Path(__file__).parent


def make_paper(
    runs: Sequence[Path | str], out: Path, *, ablations: Sequence[Path | str] = ()
) -> list[Piece]:
    """Write every table and figure that finished runs allow, and the index pages.

    `tables/` gets Markdown, LaTeX and CSV, `figures/` PDF and PNG; files of an earlier call are
    removed there, and its index before anything is written. Files elsewhere in `out` stay.

    Args:
        runs: folders of runs and records; by default those of ROOTS that are there.
        ablations: ablation files; by default those in `experiments/ablations/`, here or in the
            repository.

    Returns what the index pages name. Raises MsposeError where there is no finished run, a file of
    one is broken, or `out` cannot be written.
    """
    if absent := [str(path) for path in runs if not Path(path).exists()]:
        raise MsposeError(f"no such folder of runs: {', '.join(absent)}")
    words = [
        "mspose",
        "paper",
        *map(str, runs),
        *(["--ablation", *map(str, ablations)] if ablations else []),
    ]
    command = shlex.join([*words, "--out", str(out)])
    roots = [Path(path) for path in runs or ROOTS if Path(path).exists()]
    pieces = contents(
        roots, [read_ablation(path) for path in ablations or _known_ablations()], command
    )
    for name in INDEX:
        _remove(out / name)
    for piece in pieces:
        if piece.table is not None:
            _write_table(piece, piece.table, out)
        if piece.draw is not None:
            _write_figure(piece, out)
    written = {file for piece in pieces for file in piece.files}
    for folder in (TABLES, FIGURES):
        for file in sorted((out / folder).glob("*")):
            if file.is_file() and file.relative_to(out) not in written:
                _remove(file)
    _write_index(pieces, out, command)
    return pieces


def summary(pieces: Sequence[Piece]) -> str:
    """Count tables and figures, and list what is missing of them."""
    tables, figures = (
        sum(getattr(piece, kind) is not None for piece in pieces if piece.files)
        for kind in ("table", "draw")
    )
    lines = [f"{tables} tables, {figures} figures"]
    lacking = dict.fromkeys(lack for piece in pieces for lack in piece.missing)
    lines += [
        f"missing: {lack.what}" + (f"; made by: {lack.command}" if lack.command else "")
        for lack in lacking
    ]
    return "\n".join(lines)


def _known_ablations() -> list[Path]:
    """List the ablation files of the current folder, else of the repository."""
    here = sorted((Path.cwd() / ABLATIONS).glob("*.yaml"))
    return here or list(named_files(ABLATIONS).values())


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise MsposeError(
            f"cannot remove {file}, of an earlier paper: {error.strerror or error}"
        ) from error


def _write_table(piece: Piece, table: PrintedTable, out: Path) -> None:
    texts = {"md": table.to_markdown(), "tex": table.to_latex(), "csv": table.to_csv()}
    for ending, text in texts.items():
        path = Path(TABLES, f"{piece.name}.{ending}")
        with whole_file(out / path) as file:
            file.write(text)
        piece.files.append(path)


def _write_figure(piece: Piece, out: Path) -> None:
    """Write PDF and PNG; the reason why a figure cannot be drawn goes into `missing`."""
    assert piece.draw is not None
    try:
        figure = piece.draw()
    except MsposeError as reason:
        piece.missing.append(Missing(str(reason)))
        return
    for ending in ("pdf", "png"):
        path = Path(FIGURES, f"{piece.name}.{ending}")
        save_figure(figure, out / path)
        piece.files.append(path)


def _write_index(pieces: Sequence[Piece], out: Path, command: str) -> None:
    """Write both pages; `index.html` holds tables and figures in itself."""
    values: dict[str, Any] = {"pieces": pieces, "command": command, "made": provenance()}
    values["picture"] = lambda path: data_uri((out / path).read_bytes(), "png")
    for name in INDEX:
        text = environment(TEMPLATES).get_template(name).render(values)
        with whole_file(out / name) as file:
            file.write(text)
