"""What torchrun starts twice: `two_processes.py whole|harmed WORDS` runs `mspose WORDS` with frozen
batch norms. Harmed, the second process is told to stop, and after the restart it is killed.
"""

import os
import signal
import sys

import torch
from interrupted import interrupted_by

from mspose.cli import main
from mspose.data.batches import Batches
from mspose.models.network import PoseNetwork


def freeze_batch_norms(network: PoseNetwork, mode: bool = True) -> PoseNetwork:
    """`PoseNetwork.train` with batch norms that stay in evaluation mode: on CPUs each process has
    statistics of its own, so that without them two processes compute what one does.
    """
    torch.nn.Module.train(network, mode)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    return network


if __name__ == "__main__":
    PoseNetwork.train = freeze_batch_norms
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if sys.argv[1] == "harmed" and os.environ["RANK"] == "1" and restarts < 2:
        harms = ((signal.SIGUSR1, (0, 1)), (signal.SIGKILL, (1, 1)))
        Batches.epoch = interrupted_by(*harms[restarts])
    main(sys.argv[2:])
