"""The command line: a table of commands, whose options are their functions' signatures.

A command is a function of `mspose.commands`, or one of another module, named in the table, whose
signature and docstring serve as they are; that module is imported when its command is used, so that
`mspose --help` does not wait for PyTorch. What a command returns is printed; where that has errors,
the exit status is 1.
"""

import inspect
import io
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from importlib import import_module
from types import UnionType
from typing import Any, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import Namespace

from mspose import __version__, commands
from mspose.commands import is_main
from mspose.config import (
    Overrides,
    Parser,
    Settings,
    SlurmSettings,
    flatten,
    nearest_names,
    settings_parser,
    to_settings,
)
from mspose.errors import MsposeError, Preempted
from mspose.libraries import missing_library
from mspose.openmp import limit_spinning


class Elsewhere(NamedTuple):
    """A command whose function is not in `mspose.commands`."""

    function: str
    """Its module and name."""
    summary: str
    """The line that `mspose --help` has about it."""


Command = Callable[..., object]
COMMANDS: dict[str, dict[str, Command | Elsewhere]] = {
    "data": {
        "data get": Elsewhere(
            "mspose.data.preparation.get_data",
            "Download and unpack a published data set, or render a virtual one.",
        ),
        "data import": Elsewhere(
            "mspose.tools.importing.importer.import_data",
            "Make a data set of your own of poses from COLMAP, nerfstudio, TUM, EuRoC, KITTI and"
            " others.",
        ),
        "data check": Elsewhere(
            "mspose.tools.checking.check.check_data",
            "Read everything of a data set, say what is wrong or odd, draw the trajectories.",
        ),
        "data cache": Elsewhere(
            "mspose.data.preparation.cache_data",
            "Decode and resize every frame now, not on first use.",
        ),
        "data list": Elsewhere(
            "mspose.data.preparation.list_data",
            "List the data sets that there are, and which of their scenes are here.",
        ),
    },
    "train": {
        "train": commands.train,
        "evaluate": commands.evaluate,
        "baselines": commands.baselines,
    },
    "look": {
        "table": commands.table,
        "report": Elsewhere(
            "mspose.tools.report.page.make_report",
            "Write one self-contained HTML page about the results of runs.",
        ),
        "view": Elsewhere(
            "mspose.tools.viewer.server.view_run",
            "Show the poses of a run's predictions in a 3-D viewer in the browser.",
        ),
    },
    "study": {
        "attention": commands.attention,
        "ablate": Elsewhere(
            "mspose.studies.ablation.runner.ablate",
            "Run the variants of an ablation file over its seeds, and print their table.",
        ),
        "paper": commands.paper,
        "bench": Elsewhere(
            "mspose.tools.bench.bench",
            "Measure speed and memory against a plain reference, and print a table.",
        ),
    },
    "deploy": {
        "predict": Elsewhere(
            "mspose.tools.prediction.predict.predict_poses",
            "Estimate the poses of images, of the images in folders, or of videos.",
        ),
        "export": Elsewhere(
            "mspose.tools.exporting.export.export_run",
            "Write a run's model as one file for deployment: images of any size in, poses out.",
        ),
        "convert": Elsewhere(
            "mspose.tools.conversion.convert_checkpoint",
            "Turn a checkpoint of the released MS-Transformer or ActMST code into a run.",
        ),
    },
}
LISTED = {name: command for group in COMMANDS.values() for name, command in group.items()}
ALL = {**LISTED, "cell": commands.cell}
"""With the command that `mspose ablate` starts its runs with, which nobody types."""
COMMON = {
    "batch_size": "images at a time",
    "cache": "folder of the frame cache",
    "dataset": "another data set than the run's: name or path of a card",
    "device": "auto, cpu, cuda, or cuda:1 and so on",
    "ground_truth": "which poses, where a data set has several",
    "labels": "label files in place of the data set's own",
    "on_bad_frame": "broken or missing images: stop, or leave them out",
    "progress": "no progress bars",
    "root": "folder of the scenes, in place of the card's",
    "scenes": "some scenes only",
}
"""Help of the options that mean the same in several commands; a docstring's own goes before it."""
OF_CELLS = {"experiment", "variant", "seed", "runs", "quick"}
"""Settings that an ablation makes itself."""

log = logging.getLogger("mspose")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `mspose COMMAND ...`.

    Bad input ends in one line on stderr and exit status 2; Ctrl-C in 130; a run that was asked to
    stop, and can go on, in 75.
    """
    limit_spinning()  # before torch is imported
    set_up_messages()
    words = [with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    try:
        run(words)
        sys.stdout.flush()
    except MsposeError as error:
        _stop(error)
    except Preempted as stopped:
        log.info("%s", stopped)
        sys.exit(os.EX_TEMPFAIL)
    except BrokenPipeError:  # the reader of our output has enough, as in `mspose table | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written
        _stop(error)
    except ImportError as error:
        if (reason := missing_library(error)) is None:
            raise
        _stop(reason)
    except KeyboardInterrupt:
        log.info("interrupted")
        sys.exit(130)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        if isinstance(error, ValueError) and re.search("null (byte|character)|surrogates", reason):
            _stop(f"a name in the input is no name of a file, or not UTF-8: {reason}")
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and re.search("(out of|allocate|enough) memory", reason)
        ):
            _stop(
                "out of memory: a smaller --training.batch_size (evaluate: --batch-size) needs"
                f" less; {reason}"
            )
        traceback.print_exc()
        print(
            "mspose: this is a fault of mspose: please report the lines above, and the command",
            file=sys.stderr,
        )
        sys.exit(1)


def run(words: Sequence[str]) -> None:
    """Run the command that the words begin with, or answer `--help` and `--version`."""
    name = " ".join(words[:2]) if words[:1] == ["data"] else "".join(words[:1])
    if name in ALL:
        rest = words[len(name.split()) :]
        result = function_of(name)(**parse(name, rest))
        if result is not None and is_main():
            print(result)
        if getattr(result, "has_errors", False):
            sys.exit(1)
    elif name in ("--help", "-h", "data --help", "data -h"):
        print(overview("data" if name.startswith("data") else None))
    elif name == "--version":
        print(f"mspose {__version__}")
    else:
        known = [other for other in LISTED if name != "data" or other.startswith("data ")]
        close = nearest_names(name, known)
        meant = f"did you mean {' or '.join(close)}? " if close and name != "data" else ""
        wrong = f"there is no command {name!r}: " if name not in ("", "data") else ""
        raise MsposeError(
            f"{wrong}{meant}say what to do: mspose {' | '.join(known)} (more with mspose --help)"
        )


def function_of(name: str) -> Command:
    """The function of a command, imported where it is elsewhere."""
    command = ALL[name]
    if not isinstance(command, Elsewhere):
        return command
    module, _, function = command.function.rpartition(".")
    return getattr(import_module(module), function)


def overview(only: str | None = None) -> str:
    """The commands with their one-line descriptions, in groups."""
    lines = [] if only else ["Multi-scene absolute camera pose regression.", ""]
    lines.append(f"usage: mspose {'data ACTION' if only else 'COMMAND'} ...")
    for group, members in COMMANDS.items():
        if only in (None, group):
            lines += ["", f"{group}:"]
            for name, command in members.items():
                if isinstance(command, Elsewhere):
                    summary = command.summary
                else:
                    summary = parse_docstring(command.__doc__ or "").short_description or ""
                lines.append(f"  {name:<13} {summary}")
    return "\n".join([*lines, "", "mspose COMMAND --help lists the options of a command."])


def parser_of(name: str) -> Parser:
    """The parser of a command: from its signature, with the help of its docstring.

    Parameters before the `*` are arguments, those behind it options. Lists take several words; a
    bool that is False by default is a flag, and `progress` is turned off by `--quiet`. `Settings`
    stands for all settings and `--config`.
    """
    command = function_of(name)
    documented = parse_docstring(inspect.getdoc(command) or "")
    about = " ".join(filter(None, (documented.short_description, documented.long_description)))
    helps = {**COMMON, **{entry.arg_name: entry.description for entry in documented.params}}
    hints = get_type_hints(command)
    make = settings_parser if Settings in hints.values() else Parser
    parser = make(prog=f"mspose {name}", description=" ".join(about.split()))
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if kind is SlurmSettings:
            parser.add_class_arguments(SlurmSettings, "slurm")
        elif kind is Overrides:
            parser.add_class_arguments(Settings, None, skip=OF_CELLS)
        elif kind is not Settings:
            _add_argument(parser, parameter, kind, " ".join((helps[parameter.name] or "").split()))
    return parser


def _add_argument(parser: Parser, parameter: inspect.Parameter, kind: Any, text: str) -> None:
    required = parameter.default is parameter.empty
    options: dict[str, Any] = {"help": text.rstrip(".")}
    if not required:  # the help has no default where that is None
        options["default"] = SUPPRESS if parameter.default is None else parameter.default
    if get_origin(kind) in (Union, UnionType):  # of X | None
        kind = next(choice for choice in get_args(kind) if choice is not type(None))
    several = get_origin(kind) is list and not get_origin(get_args(kind)[0])
    if several:
        kind = get_args(kind)[0]
    if parameter.kind is not parameter.KEYWORD_ONLY:
        nargs = {(True, True): "+", (True, False): "*", (False, False): "?"}
        if (several, required) in nargs:
            options["nargs"] = nargs[several, required]
        parser.add_argument(parameter.name, type=kind, **options)
    elif parameter.name == "progress":
        options["default"] = SUPPRESS  # that of `quiet` is the opposite
        parser.add_argument("--quiet", dest="progress", action="store_false", **options)
    elif kind is bool and not parameter.default:
        parser.add_argument(f"--{parameter.name}", action="store_true", help=options["help"])
    else:
        if several:
            options["nargs"] = "+"
        parser.add_argument(f"--{parameter.name}", type=kind, required=required, **options)


def parse(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a command's function. Raises MsposeError for words that it does not take."""
    hints = get_type_hints(function_of(name))
    parser = parser_of(name)
    if Overrides in hints.values():
        return _split_overrides(hints, parser.parse_args(list(words), defaults=False))
    parsed = parser.parse_args(list(words))
    arguments = {key: parsed[key] for key in hints if key in parsed}
    if Settings in hints.values():
        arguments["settings"] = to_settings(parsed, parser)
    return arguments


def _split_overrides(hints: dict[str, Any], parsed: Namespace) -> dict[str, Any]:
    given = parsed.as_dict()
    slurm = SlurmSettings(**given.pop("slurm", {}))
    arguments = {key: given.pop(key) for key in list(given) if key in hints}
    return {**arguments, "slurm": slurm, "overrides": Overrides(flatten(given))}


def with_underscores(word: str) -> str:
    """`--on-bad-frame=skip` as `--on_bad_frame=skip`: options are typed with dashes or with
    underscores.
    """
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def set_up_messages() -> None:
    """Send our own messages to stderr and drop those of libraries: what goes wrong is said once, in
    one line.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, as in `mspose train >&-`
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("mspose: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO if is_main() else logging.ERROR)
    if not logging.getLogger().handlers:  # else Python prints warnings that no handler takes
        logging.getLogger().addHandler(logging.NullHandler())
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    threading.excepthook = _quiet_on_os_errors


def _quiet_on_os_errors(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's writing thread raises its error again in the main thread, which prints it."""
    if not issubclass(args.exc_type, OSError):
        threading.__excepthook__(args)


def _stop(reason: object) -> NoReturn:
    if not is_main():
        # the main process prints what stopped all of them, and torchrun ends the others meanwhile
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(2)
    line = " ".join(str(reason).splitlines())  # a file's name may hold line ends
    # as one write: where Python does not buffer, as under torchrun, `print` makes two, and the
    # messages of other processes get between them
    sys.stderr.write(f"mspose: error: {line}\n")
    sys.exit(2)
