"""Finished runs of an ablation, wherever they or their records lie; missing and unusable ones."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mspose.config import PLACES, Settings, flatten
from mspose.data.versions import recorded_version
from mspose.errors import MsposeError
from mspose.run import Run
from mspose.studies.ablation.plan import Ablation
from mspose.studies.ablation.single_run import has_self_attention
from mspose.studies.rows import Group, finished_runs, group_of

ROOTS = ("runs", "experiments/results")
"""Default folders of runs and records."""


class Finished(NamedTuple):
    """Finished runs of an ablation on one data set."""

    group: Group
    runs: Mapping[str, Mapping[int, Run]]
    """By label, in the order of the file, and seed; labels without a run are left out."""
    missing: list[str]
    """Runs that should be there: `seed 2 of qka, both`."""
    overrides: Mapping[str, str]
    """Settings by dotted name that all runs have in place of the file's."""
    remarks: list[str]
    """Notes below the table."""


class Change(NamedTuple):
    """A setting, its value in a run, and that of the file, as text (lists cannot be counted)."""

    name: str
    value: str
    of_file: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}, not {self.of_file}"


def finished_ablation(
    ablation: Ablation,
    roots: Iterable[Path | str],
    *,
    dataset: str | None = None,
    seeds: Sequence[int] | None = None,
) -> Finished:
    """Collect the finished runs of an ablation in or below `roots`.

    Args:
        dataset: name or path of the experiment that it was run on; by default the file's base.
        seeds: count only these; by default all that there are, and those of the file should be
            there.

    Quick tries are left out. So are runs with other settings than the file's and the shared
    overrides': where no run has the file's settings, those count that most runs share. Both are
    named in `remarks`. Raises MsposeError where there is no run at all, and for a broken file.
    """
    rows = ablation.rows(dataset)
    experiment = next(iter(rows.values())).experiment
    every = [
        run
        for run in finished_runs(roots)
        if run.experiment == experiment and (seeds is None or _seed(run) in seeds)
    ]
    known = [run for run in every if run.variant in rows]
    real = [run for run in known if not run.quick]
    tested = [run for run in real if run.has_errors]
    changes = {run: _changes(run, rows[run.variant]) for run in tested}
    counts = Counter(changes.values())
    shared = () if () in counts or not counts else counts.most_common(1)[0][0]
    chosen = [run for run in tested if changes[run] == shared]
    if not chosen:
        raise MsposeError(
            f"{', '.join(map(str, roots)) or 'no folder'}: no finished run of {experiment}; run"
            f" `mspose ablate {ablation.name}` first"
        )
    first, group = chosen[0], group_of(chosen[0].metrics)
    for run in chosen:
        if (other := group_of(run.metrics)) != group:
            raise MsposeError(
                f"{first.folder} ({group}) and {run.folder} ({other}) were not evaluated on the"
                " same data: evaluate them again, or name the folders of those that were"
            )
    by_seed = sorted(chosen, key=_seed)
    runs = {label: {_seed(run): run for run in by_seed if run.variant == label} for label in rows}
    runs = {label: found for label, found in runs.items() if found}
    expected = sorted({*ablation.seeds, *map(_seed, chosen)}) if seeds is None else seeds
    missing = named_by_seeds(
        (label, seed) for label in rows for seed in expected if seed not in runs.get(label, {})
    )
    unstudied = [
        run
        for run in chosen
        if run.attention_of_metrics is None and has_self_attention(run.settings)
    ]
    file = ablation.path.name
    left_out = [
        f"seed {_seed(run)} of {run.variant} ({', '.join(map(str, changes[run]))})"
        for run in tested
        if changes[run] != shared
    ]
    remarks = [
        ("Missing", missing),
        (f"Left out, not in {file}", sorted({run.variant for run in every if run not in known})),
        ("Left out, quick tries at toy size", _named(run for run in known if run.quick)),
        ("Left out, no errors of their frames", _named(run for run in real if run not in tested)),
        (f"All runs have other settings than {file}", [str(change) for change in shared]),
        (f"Left out, other settings than {'the other runs' if shared else file}", left_out),
        (
            "No attention metrics of this training (mspose attention RUN makes them)",
            _named(unstudied),
        ),
    ]
    return Finished(
        group=group,
        runs=runs,
        missing=missing,
        # an older version cannot be rendered: missing runs would be made on this one
        overrides={change.name: change.value for change in shared if change.name != "data.version"},
        remarks=[f"{what}: {'; '.join(names)}." for what, names in remarks if names],
    )


def named_by_seeds(pairs: Iterable[tuple[str, int]]) -> list[str]:
    """Format (label, seed) pairs as `seeds 1, 2 of neither, qka`, one text per set of seeds."""
    seeds: dict[str, list[int]] = {}
    for label, seed in pairs:
        seeds.setdefault(label, []).append(seed)
    labels: dict[tuple[int, ...], list[str]] = {}
    for label, found in seeds.items():
        labels.setdefault(tuple(sorted(found)), []).append(label)
    return [
        f"{'seed' if len(found) == 1 else 'seeds'} {', '.join(map(str, found))} of"
        f" {', '.join(names)}"
        for found, names in labels.items()
    ]


def _named(runs: Iterable[Run]) -> list[str]:
    return named_by_seeds((run.variant, _seed(run)) for run in runs)


def _seed(run: Run) -> int:
    return run.seed or 0


def _changes(run: Run, planned: Settings) -> tuple[Change, ...]:
    """List the settings of a run that differ from the planned ones."""
    wanted, there = flatten(replace(planned, seed=_seed(run))), flatten(run.settings)
    there["data.version"] = there["data.version"] or recorded_version(run.metrics)
    return tuple(
        Change(name, str(value), str(wanted[name]))
        for name, value in there.items()
        if name not in PLACES and value != wanted[name]
    )
