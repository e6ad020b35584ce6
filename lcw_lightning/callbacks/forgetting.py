"""Let a callback outlive its run without the module that it served."""

from lightning.pytorch import Callback

__all__ = ["forget_module"]


def forget_module(callback: Callback) -> None:
    """Take the module's log methods off, which Lightning puts on every callback of a run and leaves there.

    A pickle or a deep copy of the callback would take the whole module along.
    """
    for name in ("log", "log_dict"):
        vars(callback).pop(name, None)
