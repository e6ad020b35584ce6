"""Recurrent networks that classify sequences."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from lcw_lightning.models.norms import check_settings

__all__ = ["Cell", "RecurrentClassifier", "SigmoidRNN"]

Cell = Literal["sigmoid", "tanh", "relu", "lstm", "gru"]


class SigmoidRNN(nn.RNNBase):
    r"""Elman's network with the sigmoid, which :class:`torch.nn.RNN` lacks.

    .. math:: h_t = \mathrm{sigmoid}(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}).

    Parameters have the names, the shapes and the default initialization of :class:`torch.nn.RNN` with
    ``batch_first=True``, and so have batches and results. There is one direction, and no dropout; sequences of a batch
    have one length.

    Args:
        input_size: Features of each step.
        hidden_size: Units of each layer.
        num_layers: Number of layers, each of which reads the states of the one below.

    Example:
        >>> outputs, last = SigmoidRNN(3, 8, num_layers=2)(torch.rand(5, 7, 3))
        >>> outputs.shape, last.shape
        (torch.Size([5, 7, 8]), torch.Size([2, 5, 8]))
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__("RNN_TANH", input_size, hidden_size, num_layers, batch_first=True)
        self.mode = "RNN_SIGMOID"

    @override
    def flatten_parameters(self) -> None:
        """Do nothing: cuDNN, for which torch puts the weights together, has no such network."""

    @override
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the states of the last layer, and every layer's last state; ``hx`` is the first, zero by default."""
        if hx is None:
            hx = input.new_zeros(self.num_layers, len(input), self.hidden_size)
        steps, last = input, []
        for number, state in enumerate(hx):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            w_ih, w_hh, b_ih, b_hh = (getattr(self, f"{name}_l{number}") for name in names)
            states = []
            for step in nn.functional.linear(steps, w_ih, b_ih + b_hh).unbind(1):
                state = torch.sigmoid(torch.addmm(step, state, w_hh.T))  # noqa: PLW2901
                states.append(state)
            steps = torch.stack(states, 1)
            last.append(state)
        return steps, torch.stack(last)


class RecurrentClassifier(nn.Module):
    """Recurrent network that reads a sequence, then logits from the top layer's last state.

    Inputs have shape ``(batch, steps, in_features)``, the output has shape ``(batch, num_classes)``. Data modules give
    such sequences with ``sequence="rows"`` or ``"pixels"``. The weights have torch's default initialization;
    minibatch initialization rescales them gate by gate.

    Args:
        in_features: Features of each step, such as 1 for pixels of a grey image.
        num_classes: Number of logits.
        cell: ``sigmoid`` (:class:`~lcw_lightning.models.recurrent.SigmoidRNN`), ``tanh`` or ``relu`` (torch.nn.RNN),
            ``lstm`` or ``gru``.
        layers: Number of recurrent layers.
        width: Units of each recurrent layer.

    Raises:
        ValueError: Unknown cell, or a size below 1.

    Example:
        >>> RecurrentClassifier(in_features=8, num_classes=10, cell="gru")(torch.rand(5, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, in_features: int, num_classes: int, cell: Cell = "sigmoid", layers: int = 1, width: int = 128
    ) -> None:
        sizes = {"in_features": in_features, "num_classes": num_classes, "layers": layers, "width": width}
        check_settings(self, "none", **sizes)
        if cell not in get_args(Cell):
            raise ValueError(f"RecurrentClassifier supports the cells {', '.join(get_args(Cell))}; got {cell!r}.")
        super().__init__()
        self.recurrent = _recurrent(cell, in_features, width, layers)
        self.output = nn.Linear(width, num_classes)

    @override
    def forward(self, sequences: Tensor) -> Tensor:
        states, _ = self.recurrent(sequences)
        logits: Tensor = self.output(states[:, -1])
        return logits


def _recurrent(cell: Cell, in_features: int, width: int, layers: int) -> nn.RNNBase:
    if cell == "sigmoid":
        return SigmoidRNN(in_features, width, layers)
    if cell in ("tanh", "relu"):
        return nn.RNN(in_features, width, layers, nonlinearity=cell, batch_first=True)
    return (nn.LSTM if cell == "lstm" else nn.GRU)(in_features, width, layers, batch_first=True)
