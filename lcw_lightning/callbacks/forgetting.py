"""Remove a callback's references to the module of a finished run."""

from lightning.pytorch import Callback

__all__ = ["forget_module"]


def forget_module(callback: Callback) -> None:
    """Remove the module's log methods, which Lightning sets on every callback of a run and leaves there.

    With them a pickle or a deep copy of the callback would contain the whole module.
    """
    for name in ("log", "log_dict"):
        vars(callback).pop(name, None)
