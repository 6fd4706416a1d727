"""Training that gets a signal before a batch. As a script: `interrupted.py NUMBER EPOCH STEP WORDS`
runs `mspose WORDS`; it imports no more than that, as processes of tests start often.
"""

import os
import sys

from mspose.cli import main
from mspose.data.batches import Batches


def interrupted_by(number: int, at: tuple[int, int]):
    """`Batches.epoch`, whose process gets the signal before the batch (epoch, step)."""
    real = Batches.epoch

    def epoch(self, seed, epoch, **options):
        for step, batch in enumerate(real(self, seed, epoch, **options), start=options["first"]):
            if (epoch, step) == at:
                os.kill(os.getpid(), number)
            yield batch

    return epoch


if __name__ == "__main__":
    number, epoch, step = map(int, sys.argv[1:4])
    Batches.epoch = interrupted_by(number, (epoch, step))
    main(sys.argv[4:])
