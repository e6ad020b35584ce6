"""The loss that analyze takes of a network's outputs: the user's, cross-entropy, or the outputs' own."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["check_loss", "cross_entropy_of_logits", "has_loss", "loss_value", "own_loss"]


def check_loss(loss: object) -> None:
    """Raise unless a loss is None or a function.

    Raises:
        ValueError: It is something else, such as the targets, or a class of losses.
    """
    if loss is None or (callable(loss) and not isinstance(loss, type | Tensor)):
        return
    given = f"the class {loss.__name__} itself" if isinstance(loss, type) else f"a {type(loss).__name__}"
    raise ValueError(
        f"analyze() needs a loss that is a function of outputs and targets, got {given}; inputs and targets are one "
        "argument: analyze(network, (inputs, targets), loss)."
    )


def has_loss(outputs: Any) -> bool:
    """Return whether outputs have a loss of their own, as those of transformers have if labels are given."""
    return isinstance(getattr(outputs, "loss", None), Tensor)


def own_loss(outputs: Any) -> Tensor:
    """Return the loss of outputs that have one."""
    loss: Tensor = outputs.loss
    return loss


def cross_entropy_of_logits(outputs: Any, targets: Any) -> Tensor:
    """Return the cross-entropy of logits and class numbers.

    Raises:
        ValueError: Outputs or targets are something else.
    """
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and not targets.is_floating_point():
        if outputs.dim() > 1 and outputs.shape[1] == 1:
            raise ValueError(
                "analyze() takes the cross-entropy of logits unless it is given a loss=, and over one class that is "
                "always 0; give the loss of a network with one output, such as binary_cross_entropy_with_logits."
            )
        try:
            return cross_entropy(outputs, targets)
        except (IndexError, RuntimeError, ValueError) as error:
            given = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}: {error}"
            cause: Exception | None = error
    else:
        names = [
            str(value.dtype) if isinstance(value, Tensor) else type(value).__name__ for value in (outputs, targets)
        ]
        given, cause = f"outputs of {names[0]} and targets of {names[1]}.", None
    raise ValueError(
        "analyze() takes the cross-entropy of logits and class numbers unless it is given a loss=, a function of "
        f"outputs and targets; got {given}"
    ) from cause


def loss_value(loss: Callable[..., Tensor], outputs: Any, targets: Sequence[Any]) -> Tensor:
    """Return the loss of outputs and targets.

    Raises:
        ValueError: It is not one number.
    """
    value = loss(outputs, *targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"analyze() needs a loss that is one number, got {given}; take its mean.")
    return value
