"""The command line: one verb each, no logic."""
# ruff: noqa: E402

from mspose.openmp import limit_spinning

limit_spinning()  # before torch is imported

import dataclasses
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from mspose import data_verbs, result_verbs, study_verbs
from mspose.config import Parser, Settings, settings_parser, to_settings
from mspose.distributed import is_main
from mspose.errors import MsposeError, Preempted

log = logging.getLogger("mspose")
Verb = tuple[ArgumentParser, Callable[[Namespace], None]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run `mspose VERB ...`; bad input ends in one line on stderr and exit status 2."""
    _speak_for_ourselves()
    arguments = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    verbs = {
        "train": _train,
        "evaluate": _evaluate,
        "table": _table,
        "data": data_verbs.data,
        "baselines": _baselines,
        "convert": _convert,
        "bench": _bench,
        "attention": study_verbs.attention,
        "ablate": study_verbs.ablate,
        "cell": study_verbs.cell,
        "paper": study_verbs.paper,
        "predict": result_verbs.predict,
        "export": result_verbs.export,
        "report": result_verbs.report,
        "view": result_verbs.view,
    }
    try:
        name = arguments[0] if arguments else ""
        if name not in verbs:
            _explain(verbs, arguments)
        parser, run = verbs[name]()
        parser.prog = f"mspose {name}"
        run(parser.parse_args(arguments[1:]))
        sys.stdout.flush()
    except MsposeError as error:
        _stop(error)
    except Preempted as stopped:
        log.info("%s", stopped)
        sys.exit(os.EX_TEMPFAIL)
    except (MemoryError, torch.OutOfMemoryError) as error:
        reason = next(iter(str(error).splitlines()), "")
        _stop(
            "out of memory: a smaller --training.batch_size (evaluate: --batch_size) needs less;"
            f" {reason}"
        )
    except BrokenPipeError:  # the reader of our output has enough, as in `mspose table | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (
        OSError
    ) as error:  # a full disk, a folder that may not be written: what went wrong is in the machine
        _stop(error)
    except KeyboardInterrupt:
        log.info("interrupted")
        sys.exit(130)


def _stop(reason: object) -> NoReturn:
    if (
        not is_main()
    ):  # what stopped all processes alike the main one says, and torchrun ends the others meanwhile
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(2)
    line = " ".join(str(reason).splitlines())  # a file's name may hold line ends
    print(f"mspose: error: {line}", file=sys.stderr)
    sys.exit(2)


def _print(text: str) -> None:
    if is_main():
        print(text)


def _shown(parsed: Namespace) -> bool:
    """Whether there are progress bars."""
    return is_main() and not parsed.quiet


def _speak_for_ourselves() -> None:
    """Our own messages go to stderr; those of libraries are left out: what goes wrong is said once,
    in one line.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, as in `mspose train >&-`
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("mspose: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO if is_main() else logging.ERROR)
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(
            logging.NullHandler()
        )  # else Python prints warnings that no handler takes
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    threading.excepthook = _quiet_on_os_errors


def _explain(verbs: Mapping[str, Callable[[], Verb]], arguments: Sequence[str]) -> NoReturn:
    """`--help`, `--version`, or an error about whatever else stands where a verb should."""
    parser = Parser(prog="mspose", description="Multi-scene absolute camera pose regression.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subcommands(dest="verb", metavar="VERB")
    for name, make in verbs.items():
        description = make()[0].description
        commands.add_subcommand(name, Parser(description=description), help=description)
    if arguments:
        parser.parse_args(arguments)
    raise MsposeError(f"say what to do: mspose {' | '.join(verbs)} (more with mspose --help)")


def _quiet_on_os_errors(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's writing thread raises its error again in the main thread, which then says it in
    one line.
    """
    if not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


def _underscored(word: str) -> str:
    """`--on-bad-frame=skip` as `--on_bad_frame=skip`: options may be typed with dashes or
    underscores.
    """
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _version() -> str:
    from mspose import __version__

    return f"mspose {__version__}"


def _settings(parsed: Namespace, parser: ArgumentParser) -> Settings:
    """The settings of a verb that takes an experiment file, with `--scenes` as a short way to say
    `--data.scenes`.
    """
    settings = to_settings(parsed, parser)
    if parsed.scenes:
        settings = dataclasses.replace(
            settings, data=dataclasses.replace(settings.data, scenes=list(parsed.scenes))
        )
    return settings


def _experiment_parser(description: str) -> ArgumentParser:
    parser = settings_parser(description=description)
    parser.add_argument(
        "--scenes", nargs="+", type=str, help="the same as --data.scenes: chess fire"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _train() -> Verb:
    parser = _experiment_parser("Train a model, or continue a run where it stopped.")

    def run(parsed: Namespace) -> None:
        from mspose.allocator import keep_freed_memory
        from mspose.training import train

        settings = _settings(parsed, parser)
        if not settings.training.recompute_backbone:  # which says that memory is short
            keep_freed_memory()
        folder = train(settings, progress=_shown(parsed))
        _print(f"{folder}\nevaluate it with: mspose evaluate {folder}")

    return parser, run


def _evaluate() -> Verb:
    parser = Parser(
        description="Predict a split with a run's model and compute medians and recall."
    )
    parser.add_argument("run", nargs="?", type=str, help="folder of a trained or converted run")
    parser.add_argument(
        "--predictions",
        type=str,
        help="a predictions file to compute metrics from, in place of a run",
    )
    parser.add_argument("--split", type=str, help="split to predict (default: test)")
    parser.add_argument(
        "--given_scene",
        action="store_true",
        help="use the true scene in place of the predicted one",
    )
    parser.add_argument(
        "--thresholds",
        type=list[tuple[PositiveFloat, PositiveFloat]],
        default=[],
        help="recall pairs: [[0.05,5],[0.25,2]] (m, deg)",
    )
    parser.add_argument("--batch_size", type=PositiveInt, default=32, help="images at a time")
    parser.add_argument(
        "--compile", action="store_true", help="compile the network first: for long splits on a GPU"
    )
    parser.add_argument("--method", type=str, help="with --predictions: a name for tables")
    study_verbs.add_run_data(
        parser, dataset="another data set than the run's; with --predictions: its name"
    )

    def run(parsed: Namespace) -> None:
        from mspose.allocator import keep_freed_memory
        from mspose.evaluation import evaluate_predictions, evaluate_run, summary

        keep_freed_memory()
        if (parsed.run is None) == (parsed.predictions is None):
            raise MsposeError(
                "evaluate takes the folder of a run, or --predictions FILE: give one of them"
            )
        of_run = ("given_scene", "scenes", "root", "labels", "cache", "compile")
        alone = ("method",) if parsed.predictions is None else of_run
        if idle := [f"--{name}" for name in alone if parsed[name]]:
            raise MsposeError(
                f"{', '.join(idle)}: without effect on {parsed.run or parsed.predictions}, leave"
                " it out"
            )
        if parsed.predictions is not None:
            names = ("dataset", "ground_truth", "split", "method")
            about = {name: parsed[name] for name in names}
            metrics, path = evaluate_predictions(
                Path(parsed.predictions), thresholds=parsed.thresholds, **about
            )
        else:
            fields = ("dataset", "ground_truth", "scenes", "root", "labels", "cache")
            metrics, path = evaluate_run(
                Path(parsed.run),
                split=parsed.split or "test",
                given_scene=parsed.given_scene,
                data={name: parsed[name] for name in fields if parsed[name] is not None},
                thresholds=parsed.thresholds,
                batch_size=parsed.batch_size,
                device=parsed.device,
                compile=parsed.compile,
                on_bad_frame=parsed.on_bad_frame,
                progress=_shown(parsed),
            )
        look = f"look at it with: mspose report {parsed.run}\n" if parsed.run else ""
        _print(f"{summary(metrics)}\n{look}{path}")

    return parser, run


def _baselines() -> Verb:
    parser = _experiment_parser(
        "Evaluate the mean training pose and the most similar training image on the test split."
    )

    def run(parsed: Namespace) -> None:
        from mspose.data.preparation import render_if_virtual
        from mspose.evaluation import summary
        from mspose.studies.baselines import evaluate_baselines

        settings = _settings(parsed, parser)
        data = settings.data
        render_if_virtual(data.dataset, data.root, data.scenes, progress=not parsed.quiet)
        for variant, (metrics, path) in evaluate_baselines(
            settings, progress=not parsed.quiet
        ).items():
            print(f"{variant}\n{summary(metrics)}\n{path}")

    return parser, run


def _table() -> Verb:
    parser = Parser(
        description="Print the paper-style table of finished runs, beside the published rows."
    )
    parser.add_argument(
        "runs", nargs="*", type=str, help="runs, or folders of runs (default: runs)"
    )
    parser.add_argument(
        "--ablation",
        type=str,
        help="the table of this ablation: its file, or its name; runs and records",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=NonNegativeInt, help="with --ablation: some seeds only"
    )
    parser.add_argument(
        "--format",
        type=Literal["markdown", "latex", "csv"],
        default="markdown",
        help="form of the text",
    )
    parser.add_argument(
        "--kind",
        type=Literal["median", "recall", "recall-scenes"],
        default="median",
        help="errors; recall; recall of every scene",
    )
    parser.add_argument(
        "--published", type=bool, default=True, help="show published rows of the same data set"
    )
    parser.add_argument(
        "--dataset", type=str, help="only runs on this data set; of an ablation: the experiment"
    )
    parser.add_argument("--ground_truth", type=str, help="only runs on this ground truth")
    parser.add_argument("--split", type=str, help="only this split")
    parser.add_argument("--digits", type=NonNegativeInt, default=2, help="decimals of metres")
    parser.add_argument("--out", type=str, help="file to write, in place of printing")

    def run(parsed: Namespace) -> None:
        from mspose.files import whole_file
        from mspose.studies.ablation.finished import ROOTS
        from mspose.studies.ablation.table import ablation_table
        from mspose.studies.tables import table_text

        of_runs = {
            "kind": "median",
            "published": True,
            "ground_truth": None,
            "split": None,
            "digits": 2,
        }
        idle = of_runs if parsed.ablation else {"seeds": None}
        if wrong := [f"--{name}" for name, default in idle.items() if parsed[name] != default]:
            where = "beside --ablation" if parsed.ablation else "without --ablation"
            raise MsposeError(f"{', '.join(wrong)}: without effect {where}, leave it out")
        if parsed.ablation:
            names = ["dataset", "seeds", "format"]
            text = ablation_table(
                parsed.ablation, parsed.runs or ROOTS, **{name: parsed[name] for name in names}
            )
        else:
            names = ["format", "kind", "published", "dataset", "ground_truth", "split", "digits"]
            text = table_text(parsed.runs or ["runs"], **{name: parsed[name] for name in names})
        if parsed.out is None:
            sys.stdout.write(text)
            return
        with whole_file(parsed.out) as file:
            file.write(text)

    return parser, run


def _convert() -> Verb:
    parser = Parser(
        description="Turn a checkpoint of the released MS-Transformer or ActMST code into a run."
    )
    parser.add_argument("checkpoint", type=str, help="a .pth or .safetensors file of tensors")
    parser.add_argument("--out", type=str, required=True, help="folder of the run to write")
    parser.add_argument(
        "--scenes", nargs="+", type=str, help="scene names in the order of the checkpoint's indices"
    )
    parser.add_argument(
        "--dataset", type=str, help="data set it was trained on (default: by the number of scenes)"
    )

    def run(parsed: Namespace) -> None:
        from mspose.tools.conversion import convert_checkpoint

        print(
            convert_checkpoint(
                Path(parsed.checkpoint),
                Path(parsed.out),
                scenes=parsed.scenes,
                dataset=parsed.dataset,
            )
        )

    return parser, run


def _bench() -> Verb:
    parser = Parser(
        description="Measure speed and memory against a plain reference, and print a table."
    )
    parser.add_argument(
        "part",
        nargs="?",
        type=Literal["train", "predict", "load", "all"],
        default="all",
        help="what to measure",
    )
    parser.add_argument("--device", default="auto", type=str, help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--repeat",
        type=PositiveInt,
        default=7,
        help="samples of each measurement, whose median is taken",
    )
    parser.add_argument(
        "--compile", action="store_true", help="measure our side through torch.compile as well"
    )
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes, to see that everything runs"
    )
    parser.add_argument(
        "--json",
        type=str,
        help="file for all measurements: experiments/results/bench-<machine>.json",
    )
    parser.add_argument("--markdown", type=str, help="file for the table, beside printing it")

    def run(parsed: Namespace) -> None:
        from mspose.tools.bench import bench

        names = ("device", "repeat", "compile", "quick", "json", "markdown")
        bench(parsed.part, **{name: parsed[name] for name in names})

    return parser, run
