"""Start of the command line, which answers signals from its first moment on."""

import os
import signal
import sys
from types import FrameType

EXIT_INTERRUPTED = 130
STATUS = {
    signal.SIGINT: EXIT_INTERRUPTED,
    signal.SIGTERM: os.EX_TEMPFAIL,
    signal.SIGUSR1: os.EX_TEMPFAIL,
}
"""Exit status of a signal that comes while no training takes it (`distributed.Preemption`)."""


def main() -> None:
    """Run the command line: `mspose.cli.main`, which takes seconds to import."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun answers for several processes
        for number in STATUS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _stop)
    from mspose import cli

    cli.main()


def _stop(number: int, frame: FrameType | None) -> None:
    """End the command: by an exception, so that it can tidy up, wherever one would arrive."""
    raises, imports = False, False
    while frame is not None:
        raises |= (frame.f_globals.get("__name__"), frame.f_code.co_name) == ("mspose.cli", "run")
        imports |= frame.f_code.co_filename.startswith("<frozen importlib")  # and may catch it
        frame = frame.f_back
    interrupted = number == signal.SIGINT
    said = "interrupted" if interrupted else f"{signal.Signals(number).name}: ended on request"
    if raises and not imports:
        if interrupted:
            raise KeyboardInterrupt
        from mspose.errors import Preempted

        raise Preempted(f"{said}; the same command goes on")
    if sys.stderr is not None:
        os.write(2, f"mspose: {said}\n".encode())
    os._exit(STATUS[signal.Signals(number)])


if __name__ == "__main__":
    main()
