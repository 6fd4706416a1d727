"""`torch.compile` where it works, the plain function where it does not."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mspose.models.stored import reason

log = logging.getLogger("mspose")


class Compiled:
    """A function of a batch, compiled; the function itself once a call could not be compiled.

    Compiling for another size takes as long again, so batches smaller than the largest so far, such
    as the last one of an epoch, go through the function itself.

    Attributes:
        function: the function itself.
        chosen: the compiled one, or `function` where compilation failed.
    """

    def __init__(self, function: Callable[..., Any], *, small: bool = False) -> None:
        """Compile `function`, such as a network's `forward`, when it is first called.

        `small` is for calls that end before a GPU's next one is launched: CUDA graphs save
        launching each kernel, and an output is valid until the next call only.
        """
        self.function = function
        mode = "reduce-overhead" if small else None
        self.chosen = torch.compile(function, dynamic=False, mode=mode)
        self._largest = 0

    def __call__(self, first_B: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the function. Raises what the function itself raises."""
        self._largest = max(self._largest, len(first_B))
        if self.chosen is self.function or len(first_B) < self._largest:
            return self.function(first_B, *args, **kwargs)
        try:
            return self.chosen(first_B, *args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways; the function's own errors return
            result = self.function(first_B, *args, **kwargs)
            self.chosen = self.function
            log.warning(
                "torch.compile cannot be used here, going on without it (%s)", reason(error)
            )
            return result
