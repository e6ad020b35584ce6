"""Read a number of a device some time after it was computed, without a wait for what was queued since."""

from collections.abc import Callable

import torch
from torch import Tensor, distributed

__all__ = ["later"]


def later(number: Tensor, over_ranks: bool = False) -> Callable[[], float]:
    """Return a function that returns the number, for which it waits only if it is not there yet.

    On CUDA and between ranks neither the call nor the function waits for work that is queued in between. Other devices
    than CPU and CUDA finish all that is queued before the number is read.

    Args:
        number: A tensor with one element, which belongs to this function from now on.
        over_ranks: Return the sum over all ranks. All ranks must call this, in the same order as other collectives;
            each may read the sum when it likes.

    Example:
        >>> read = later(torch.tensor(2.0))
        >>> read()
        2.0
    """
    summed = distributed.all_reduce(number, async_op=True) if over_ranks else None
    if number.is_cuda:
        if summed is not None:
            summed.wait()  # the stream waits; the process does not
        copy = number.to("cpu", non_blocking=True)
        arrived: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(number.device))

    def read() -> float:
        if number.is_cuda:
            arrived.synchronize()
            return copy.item()
        if summed is not None:
            summed.wait()
        return number.item()

    return read
