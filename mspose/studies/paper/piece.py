"""Tables and figures of the paper: what each stands for, what makes it, its runs and its gaps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from mspose.provenance import commit_text
from mspose.run import Run
from mspose.studies.tables import PrintedTable

NOT_IN_PAPER = "not in the paper"


class Missing(NamedTuple):
    """A missing input of a table or figure, and the command that makes it."""

    what: str
    command: str = ""


@dataclass
class Piece:
    """A table or a figure; without either where all of it is missing."""

    name: str
    """Name of its files, without ending."""
    title: str
    stands_for: str
    """The paper's table or figure."""
    command: str
    """Command that makes it, alone or with the whole paper."""
    runs: Sequence[Run] = ()
    missing: list[Missing] = field(default_factory=list)
    table: PrintedTable | None = None
    draw: Callable[[], Figure] | None = None
    files: list[Path] = field(default_factory=list)
    """Files written so far, relative to the paper's folder."""

    def run_lines(self) -> list[str]:
        """List the runs as `qka-and-encoding-virtual/both: seeds 0, 1, 2`."""
        seeds: dict[str, list[str]] = {}
        for run in self.runs:
            seeds.setdefault(run.name, []).extend([] if run.seed is None else [str(run.seed)])
        return [
            f"{name}: seed{'s' if len(found) > 1 else ''} {', '.join(found)}" if found else name
            for name, found in seeds.items()
        ]

    def commits(self) -> list[str]:
        """List the commits that evaluated the runs; `+ changes` where files differed from it."""
        return sorted({commit_text(run.provenance) for run in self.runs})

    def devices(self) -> list[str]:
        """List the devices that the runs' attention was studied on, else the runs evaluated."""
        sources = [
            (run.attention_of_metrics or {}).get("provenance") or run.provenance
            for run in self.runs
        ]
        return sorted({str(source.get("device") or "unknown") for source in sources})
