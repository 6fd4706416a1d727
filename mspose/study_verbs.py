"""The verbs of studies over several runs: one each, no logic, like those of `cli.py`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from mspose.config import Parser, Settings, flatten, read_settings
from mspose.errors import MsposeError

Verb = tuple[ArgumentParser, Callable[[Namespace], None]]


class _Given(Parser):
    """Parses what was given alone, without defaults: settings that are to override those of files."""

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        return super().parse_args(*arguments, defaults=False, **options)


def add_run_data(parser: ArgumentParser, *, dataset: str) -> None:
    """Options that say where a run's model computes, and on which data if not on its own."""
    parser.add_argument("--device", default="auto", type=str, help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--on_bad_frame",
        type=Literal["stop", "skip"],
        default="stop",
        help="broken or missing images",
    )
    parser.add_argument("--dataset", type=str, help=dataset)
    parser.add_argument("--ground_truth", type=str, help="another ground truth than the run's")
    parser.add_argument("--scenes", nargs="+", type=str, help="some scenes only")
    parser.add_argument("--root", type=str, help="folder of the scenes")
    parser.add_argument(
        "--labels", nargs="+", type=str, help="label files in place of the data set's own"
    )
    parser.add_argument("--cache", type=str, help="folder of the frame cache")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def ablate() -> Verb:
    """`mspose ablate`."""
    from mspose.studies.ablation.launcher import SlurmSettings

    parser = _Given(
        description=(
            "Run the variants of an ablation file over its seeds, and print their table. What has a"
            " result is skipped, what was interrupted goes on. Settings given here hold for all"
            " variants; what is not given is as in the base experiment, whatever default stands"
            " below."
        )
    )
    parser.add_argument(
        "file", type=str, help="an ablation file, or its name in experiments/ablations/"
    )
    parser.add_argument(
        "--dataset",
        type=str,
        help=(
            "another base experiment: its name in experiments/, or a path; auto: real data that is"
            " here"
        ),
    )
    parser.add_argument(
        "--seeds", nargs="+", type=NonNegativeInt, help="in place of the file's: 0 1"
    )
    parser.add_argument(
        "--variants", nargs="+", type=str, help="some rows only, by their labels: qka both"
    )
    parser.add_argument("--runs", type=str, help="folder of all runs (default: runs)")
    parser.add_argument(
        "--jobs", type=PositiveInt, help="cells at once (default: 1; quick: the cores; slurm: all)"
    )
    parser.add_argument(
        "--launcher", type=Literal["local", "slurm"], help="this machine (default), or a cluster"
    )
    parser.add_argument(
        "--quick", action="store_true", help="toy size, to see that everything runs"
    )
    parser.add_argument(
        "--record", type=str, help="folder for a copy of the results without models: to keep in git"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress table")
    own = [action.dest for action in parser._actions]
    parser.add_class_arguments(SlurmSettings, "slurm")
    parser.add_class_arguments(
        Settings, None, skip={"experiment", "variant", "seed", "runs", "quick"}
    )

    def run(parsed: Namespace) -> None:
        from mspose.studies.ablation.runner import ablate

        given = parsed.as_dict()
        options = {name: given.pop(name) for name in own if name in given}
        slurm = SlurmSettings(**given.pop("slurm", {}))
        quiet = options.pop("quiet", False)
        text, failures = ablate(
            **options, slurm=slurm, overrides=flatten(given), progress=not quiet
        )
        print(text)
        if failures:
            raise MsposeError(
                f"{len(failures)} failed: {', '.join(failures)}; the same command tries again"
            )

    return parser, run


def cell() -> Verb:
    """`mspose cell`."""
    parser = Parser(
        description=(
            "Run one cell of an ablation: train, evaluate, study its attention; or go on with it."
        )
    )
    parser.add_argument(
        "file", type=str, help="its settings, as mspose ablate wrote them into runs/.../cells/"
    )
    parser.add_argument("--progress", action="store_true", help="progress bars")

    def run(parsed: Namespace) -> None:
        from mspose.allocator import keep_freed_memory
        from mspose.studies.ablation.cell import run_cell

        settings = read_settings(Path(parsed.file))
        if not settings.training.recompute_backbone:  # which says that memory is short
            keep_freed_memory()
        print(run_cell(settings, progress=parsed.progress))

    return parser, run


def attention() -> Verb:
    """`mspose attention`."""
    parser = Parser(
        description=(
            "Study the self-attention in the encoders of finished runs: entropy, similarity,"
            " query-key gap, purity and a verdict per layer, and pictures."
        )
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=str,
        metavar="RUN",
        help="folders of runs; several share their pictures",
    )
    parser.add_argument(
        "--split", type=str, default="test", help="split whose frames the network looks at"
    )
    parser.add_argument(
        "--frames",
        type=PositiveInt,
        default=64,
        help="frames at most, spread evenly over the scenes",
    )
    parser.add_argument(
        "--neighbours",
        type=PositiveInt,
        default=10,
        help="nearest neighbours of a query that purity looks at",
    )
    parser.add_argument("--samples", type=PositiveInt, default=3, help="frames that pictures show")
    parser.add_argument(
        "--branch", type=Literal["position", "orientation"], help="branch of the query-key space"
    )
    parser.add_argument(
        "--layer",
        type=PositiveInt,
        help="encoder layer that pictures show, from 1 (default: the last)",
    )
    parser.add_argument(
        "--head", type=PositiveInt, help="head that pictures show, from 1 (default: all, or 1)"
    )
    parser.add_argument(
        "--projection",
        type=Literal["tsne", "pca"],
        default="tsne",
        help="of queries and keys; pca: fast",
    )
    parser.add_argument(
        "--numbers", type=bool, default=True, help="false: take those of an earlier call, draw anew"
    )
    parser.add_argument("--pictures", type=bool, default=True, help="false: numbers alone")
    parser.add_argument(
        "--out",
        type=str,
        help=(
            "folder for pictures of several runs together (default: attention/ in their common one)"
        ),
    )
    add_run_data(parser, dataset="another data set than the run's")

    def run(parsed: Namespace) -> None:
        from mspose.allocator import keep_freed_memory
        from mspose.attention.record import read_study, study_table
        from mspose.studies.attention_study import check_choice, study_run

        keep_freed_memory()
        runs = [Path(name) for name in dict.fromkeys(map(os.path.abspath, parsed.runs))]
        numbers = ("split", "frames", "neighbours", "samples", "device", "on_bad_frame")
        fields = ("dataset", "ground_truth", "scenes", "root", "labels", "cache")
        changed = [name for name in (*numbers, *fields) if parsed[name] != parser.get_default(name)]
        if changed and not parsed.numbers:
            idle = ", ".join(f"--{name}" for name in changed)
            raise MsposeError(
                f"{idle}: without effect on the numbers of an earlier call, leave out --numbers"
                " false"
            )
        if parsed.numbers:
            for folder in runs:
                check_choice(folder, parsed.branch, parsed.layer, parsed.head)
            data = {name: parsed[name] for name in fields if parsed[name] is not None}
            options = {name: parsed[name] for name in numbers}
            studies = [
                study_run(folder, data=data, progress=not parsed.quiet, **options)
                for folder in runs
            ]
        else:
            studies = [read_study(folder) for folder in runs]
        print(study_table(studies))
        if parsed.pictures:
            from mspose.studies.attention_figures import draw

            out = Path(parsed.out) if parsed.out else None
            if out is None and len(runs) > 1:
                out = Path(os.path.commonpath(runs)) / "attention"
            names = ("branch", "layer", "head", "projection")
            for path in draw(runs, out=out, **{name: parsed[name] for name in names}):
                print(os.path.relpath(path))

    return parser, run


def paper() -> Verb:
    """`mspose paper`."""
    parser = Parser(
        description=(
            "Write every table (Markdown, LaTeX, CSV) and figure (PDF, PNG) that finished runs"
            " allow, and a page that names for each what makes it, what it was made from and what"
            " is missing."
        )
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=str,
        help="folders of runs and records (default: runs and experiments/results)",
    )
    parser.add_argument("--out", type=str, default="paper", help="folder to write (default: paper)")
    parser.add_argument(
        "--ablation",
        nargs="+",
        type=str,
        default=[],
        help="ablation files (default: those in experiments/ablations/)",
    )

    def run(parsed: Namespace) -> None:
        from mspose.studies.paper import make_paper, summary

        pieces = make_paper(parsed.runs, Path(parsed.out), ablations=parsed.ablation)
        print(f"{summary(pieces)}\n{Path(parsed.out) / 'index.html'}")

    return parser, run
