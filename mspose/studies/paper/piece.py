"""A table or a figure of the paper: what it stands for, what makes it, what it was made from and
what it lacks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from mspose.studies.ablation.table import AblationTable
from mspose.studies.tables import Table

NOT_IN_PAPER = "not in the paper"


class Missing(NamedTuple):
    """What a table or figure lacks, and the command that would make it."""

    what: str
    command: str = ""


class Run(NamedTuple):
    """A finished run, or its record."""

    folder: Path
    metrics: Mapping[str, Any]
    study: Mapping[str, Any] | None = None
    """`attention.json`, where there is one."""

    @property
    def name(self) -> tuple[str, str]:
        """Experiment and variant."""
        return self.metrics["experiment"], self.metrics["variant"]


@dataclass
class Piece:
    """A table or a figure; without either where all of it is missing."""

    name: str
    """Of its files, without ending."""
    title: str
    stands_for: str
    """The paper's table or figure."""
    command: str
    """That makes it alone, or with the whole paper."""
    runs: Sequence[Run] = ()
    missing: list[Missing] = field(default_factory=list)
    table: Table | AblationTable | None = None
    draw: Callable[[], Figure] | None = None
    files: list[Path] = field(default_factory=list)
    """Written so far, relative to the paper's folder."""

    def run_lines(self) -> list[str]:
        """`qka-and-encoding-virtual/both: seeds 0, 1, 2`."""
        seeds: dict[str, list[str]] = {}
        for run in self.runs:
            seed = run.metrics["seed"]
            seeds.setdefault("/".join(run.name), []).extend([] if seed is None else [str(seed)])
        counts = {
            name: f": seed{'s' * (len(found) > 1)} {', '.join(found)}"
            for name, found in seeds.items()
            if found
        }
        return [name + counts.get(name, "") for name in seeds]

    def commits(self) -> list[str]:
        """Of the code that evaluated the runs; `+ changes` where its files were not as committed."""
        found = []
        for run in self.runs:
            provenance = run.metrics.get("provenance") or {}
            commit = provenance.get("commit")
            found.append(
                f"{commit[:12]}{' + changes' * bool(provenance.get('dirty'))}"
                if commit
                else "unknown"
            )
        return sorted(set(found))

    def devices(self) -> list[str]:
        """That the runs were studied on, or evaluated where their attention was not studied."""
        sources = [
            (run.study or {}).get("provenance") or run.metrics.get("provenance") or {}
            for run in self.runs
        ]
        return sorted({str(source.get("device") or "unknown") for source in sources})
