"""`torch.compile` where it works, the plain function where it does not."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("mspose")


class Compiled:
    """A function of a batch through `torch.compile`; from a call on that cannot be compiled, the
    function as it is.

    Compiling for another size takes as long again, so smaller batches than the largest, such as the
    last one of an epoch, go through the function as it is.

    Attributes:
        function: what was given.
        chosen: what large batches go through: the compiled function, or `function` where that
            failed.
    """

    def __init__(self, function: Callable[..., Any], *, small: bool = False) -> None:
        """Compile `function` when it is first called.

        Args:
            function: what to compile; a network's `forward` leaves the network and the names of its
                weights alone.
            small: for calls that are over before a GPU's next is on its way: CUDA graphs save
                launching each kernel, and an output is valid until the next call only.
        """
        self.function = function
        self.chosen = torch.compile(
            function, dynamic=False, mode="reduce-overhead" if small else None
        )
        self._largest = 0

    def __call__(self, first_B: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the function. Raises what the function itself raises."""
        self._largest = max(self._largest, len(first_B))
        if len(first_B) < self._largest or self.chosen is self.function:
            return self.function(first_B, *args, **kwargs)
        try:
            return self.chosen(first_B, *args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except (
            Exception
        ) as error:  # compilers fail in many ways; what the function itself raises, it raises below
            result = self.function(first_B, *args, **kwargs)
            self.chosen = self.function
            log.warning(
                "torch.compile cannot be used here, going on without it (%s)", _reason(error)
            )
            return result


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
