"""Batch norm over two real processes against one that has the whole batch, in float64."""

import subprocess
import sys

SCRIPT = """
from copy import deepcopy

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from mspose.models.batch_norm import SharedStatistics

dist.init_process_group("gloo")
mine = slice(0, 2) if dist.get_rank() == 0 else slice(2, 5)
torch.manual_seed(0)
image, slope = torch.randn(2, 5, 3, 4, 6, dtype=torch.float64)


def run(network, image, slope):
    # gradients of a loss summed over images, and what the network remembers
    image = image.clone().requires_grad_()
    output = network(image)
    (output * slope).sin().sum().backward()
    return output, image.grad, {name: weight.grad for name, weight in network.named_parameters()}


def close(one, other, what):
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11, msg=lambda text: f"{name}, {what}: {text}")


networks = {
    "two in a row": nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU6()),
    "timm's, with an activation of its own": BatchNormAct2d(3, eps=1e-3, momentum=0.01, act_layer=nn.SiLU),
    "without weights": nn.BatchNorm2d(3, affine=False),
    "cumulative": nn.BatchNorm2d(3, momentum=None),
}
for name, network in networks.items():
    whole = network.double()
    for weight in whole.parameters():
        nn.init.normal_(weight)
    shared = deepcopy(whole)
    statistics = SharedStatistics(shared)
    for _ in range(2):  # running statistics of two steps
        output, gradient, gradients = run(whole, image, slope)
        our_output, our_gradient, our_gradients = run(shared, image[mine], slope[mine])
        close(our_output, output[mine], "output")
        close(our_gradient, gradient[mine], "gradient of the image")
        for weight, our_gradient in our_gradients.items():
            dist.all_reduce(our_gradient)
            close(our_gradient, gradients[weight], f"gradient of {weight}")
        whole.zero_grad()
        shared.zero_grad()
    assert shared.state_dict().keys() == whole.state_dict().keys()
    for kept, tensor in whole.state_dict().items():
        close(shared.state_dict()[kept], tensor, kept)

    statistics.shared = False  # every process has the whole batch
    close(run(shared, image, slope)[0], run(whole, image, slope)[0], "alone")
    whole.eval()
    shared.eval()
    statistics.shared = True
    close(shared(image[mine]), whole(image)[mine], "evaluation")

half = nn.BatchNorm2d(3)
whole = deepcopy(half)
SharedStatistics(half)
image = image.bfloat16()
output = half(image[mine])
assert output.dtype == torch.bfloat16
torch.testing.assert_close(output, whole(image)[mine], rtol=0.02, atol=0.02)
torch.testing.assert_close(half.running_var, whole.running_var)
print("as one")
"""


def test_two_processes_normalise_as_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "script.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as one") == 2
