"""Make the activation modules of networks."""

from collections.abc import Callable

from torch import nn

__all__ = ["make_activation"]


def make_activation(activation: Callable[[], nn.Module]) -> nn.Module:
    """Return ``activation()``, a module of its own for one place in a network.

    Args:
        activation: A class of modules, or a function that makes one.

    Raises:
        ValueError: It is neither, such as a module, a name, or a function of tensors.

    Example:
        >>> make_activation(nn.Sigmoid)
        Sigmoid()
        >>> make_activation(nn.ReLU())
        Traceback (most recent call last):
        ValueError: activation must make a module for each layer, as the class torch.nn.ReLU does, got ReLU().
    """
    try:
        if callable(activation) and not isinstance(activation, nn.Module):
            made = activation()
            if isinstance(made, nn.Module):
                return made
    except TypeError as error:
        raise ValueError(_wanted(f"{activation!r} ({error})")) from error
    raise ValueError(_wanted(repr(activation)))


def _wanted(given: str) -> str:
    return f"activation must make a module for each layer, as the class torch.nn.ReLU does, got {given}."
