"""Batch norm with the statistics of a whole batch, of which each process has a part.

For every batch norm that computes through `F.batch_norm` (torch's, torchvision's, timm's), on any
device, with exact gradients. B images, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class SharedStatistics(TorchFunctionMode):
    """Makes the batch norms of a network, in training mode, normalise by the statistics over all
    processes.

    Attributes:
        shared: set it to False for a batch that every process has whole.
    """

    def __init__(self, network: nn.Module) -> None:
        """The network keeps its modules and the names of its weights."""
        super().__init__()
        self.shared = True
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.forward = self._around(module.forward)  # type: ignore[method-assign, assignment]

    def _around(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        @torch.compiler.disable  # compilers do not see through the exchange
        def around(input_BC: Tensor) -> Tensor:
            with self if self.shared else nullcontext():
                return forward(input_BC)

        return around

    def __torch_function__(
        self,
        function: Callable,
        types: Sequence[type],
        args: Sequence = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm and kwargs["training"]:
            return shared_batch_norm(*args, **kwargs)
        return function(*args, **kwargs)


def shared_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = True,  # noqa: ARG001
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` in training, as one process would compute it on all the processes' images
    together.

    `input` is (images, channels, ...). All processes call it alike, each with at least one image.
    """
    output_BC, mean_C, variance_C, count = _SharedBatchNorm.apply(input, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
            running_var.lerp_((variance_C * count / (count - 1)).to(running_var.dtype), momentum)
    return output_BC


class _SharedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input_BC: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        fine_BC = input_BC.to(torch.promote_types(input_BC.dtype, torch.float32))
        variance_C, mean_C = torch.var_mean(fine_BC, dim=_all_but_channels(fine_BC), correction=0)
        part = torch.cat(
            (mean_C, variance_C, mean_C.new_full((1,), input_BC.numel() / len(mean_C)))
        )
        # all processes' parts, as a sum with zeros: every backend has it, and all get the same
        # numbers in one order
        parts_P = part.new_zeros(dist.get_world_size(), len(part))
        parts_P[dist.get_rank()] = part
        dist.all_reduce(parts_P)
        mean_PC, variance_PC, count_P1 = parts_P.split([len(mean_C), len(mean_C), 1], dim=1)
        count = count_P1.sum()
        mean_C = (mean_PC * count_P1).sum(dim=0) / count
        variance_C = ((variance_PC + (mean_PC - mean_C).square()) * count_P1).sum(dim=0) / count

        output_BC = F.batch_norm(
            input_BC, mean_C, variance_C, weight_C, bias_C, training=False, eps=eps
        )
        ctx.save_for_backward(input_BC, weight_C, mean_C, (variance_C + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean_C, variance_C, count)
        return output_BC, mean_C, variance_C, count

    @staticmethod
    def backward(
        ctx: Any, gradient_BC: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        input_BC, weight_C, mean_C, inverse_deviation_C, count = ctx.saved_tensors
        places = _all_but_channels(input_BC)
        shape = (1, -1, *(1 for _ in places[1:]))
        fine_BC = gradient_BC.to(mean_C.dtype)
        centred_BC = input_BC.to(mean_C.dtype) - mean_C.view(shape)
        sums_2C = torch.stack((fine_BC.sum(dim=places), (fine_BC * centred_BC).sum(dim=places)))
        weight_gradient_C = sums_2C[1] * inverse_deviation_C if weight_C is not None else None
        bias_gradient_C = sums_2C[0].clone() if weight_C is not None else None

        dist.all_reduce(sums_2C)
        mean_2C = sums_2C / count
        slope_C = inverse_deviation_C if weight_C is None else inverse_deviation_C * weight_C
        centred_BC *= (mean_2C[1] * inverse_deviation_C.square()).view(shape)
        input_gradient_BC = (fine_BC - mean_2C[0].view(shape) - centred_BC) * slope_C.view(shape)
        return input_gradient_BC.to(input_BC.dtype), weight_gradient_C, bias_gradient_C, None


def _all_but_channels(tensor_BC: Tensor) -> tuple[int, ...]:
    return (0, *range(2, tensor_BC.dim()))
