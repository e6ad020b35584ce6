"""Compare, before each reduction, at which layer the ranks of a distributed run stand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from torch import distributed

__all__ = ["END_OF_FORWARD", "Meet", "alone", "in_step"]

Meet = Callable[[str], None]
"""Says at which place this rank stands, and raises on all ranks if another rank stands elsewhere."""

END_OF_FORWARD = "at the end of the forward pass"


def alone(place: str) -> None:
    """Compare nothing, since there is one rank."""


@contextmanager
def in_step(by_hand: str) -> Iterator[Meet]:
    """Yield the function by which all ranks compare at which place they stand, in a process group of their own.

    The statistics that initialize a layer are those of all ranks' batches. Of a rank that takes another layer the
    reduction would get the numbers of that layer, or end the process if they are of another shape. All ranks must
    enter the block; without a default process group there is nothing to compare.

    Args:
        by_hand: How to initialize the weights before fit, as advice in the error.

    Raises:
        RuntimeError: On all ranks, in the function that is yielded, where ranks stand at different places.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        yield alone
        return
    group = _group()

    def meet(place: str) -> None:
        places: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(places, place, group)
        if len(set(places)) > 1:
            raise _ApartError(
                "all ranks must take the same layers in the first batch, which initializes their weights, but they are "
                f"{_by_rank(places)}; {by_hand} before fit and leave the callback out: DDP sends the weights of rank 0 "
                "to all ranks."
            )

    try:
        yield meet
    except _ApartError:
        raise  # as on all ranks
    except BaseException as error:
        with suppress(RuntimeError):  # the others wait at their next place
            meet(f"ended by {type(error).__name__}")
        raise
    meet("at the end")


class _ApartError(RuntimeError):
    """Ranks stand at different places."""


def _group() -> distributed.ProcessGroup:
    """Return this package's own process group, which lasts as long as the default group.

    It is not destroyed after use: in torch 2.6 the thread of a gloo group may then wait for the interpreter, and the
    interpreter for that thread.
    """
    default = distributed.group.WORLD
    if _GROUPS.get("default") is not default:
        _GROUPS.update(default=default, ours=distributed.new_group(backend="gloo"))
    return cast(distributed.ProcessGroup, _GROUPS["ours"])


_GROUPS: dict[str, Any] = {}
"""The default group of now, and this package's own beside it."""


def _by_rank(places: list[str]) -> str:
    """Return places with the ranks that stand there.

    Example:
        >>> _by_rank(["at 'a.weight'", END_OF_FORWARD, "at 'a.weight'"])
        "at 'a.weight' (ranks 0, 2), at the end of the forward pass (rank 1)"
    """
    ranks: dict[str, list[str]] = {}
    for rank, place in enumerate(places):
        ranks.setdefault(place, []).append(str(rank))
    return ", ".join(f"{place} (rank{'s'[: len(at) > 1]} {', '.join(at)})" for place, at in ranks.items())
