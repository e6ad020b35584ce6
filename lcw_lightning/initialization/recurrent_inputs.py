"""What the weights inside a recurrent layer multiply: inputs of its upper layers, and hidden states."""

import re
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lcw_lightning.weights.restoring import undisturbed

__all__ = ["WEIGHT", "recurrent_input"]

WEIGHT = re.compile(r"weight_(?P<of>ih|hh)_l(?P<number>\d+)(?P<reverse>_reverse)?")
"""Names of the weights with a bias; that of a projection has none."""

_KINDS: dict[str, type[nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}


def recurrent_input(layer: nn.RNNBase, name: str, given: Any, state: Any) -> Tensor:
    """Return what a weight of a recurrent layer multiplies in a call, features last.

    Of a hidden state the mean is right, not each value: the sum over time of h_(t-1) is the sum of h_t, which is the
    output, less the last state, plus the first one. So it is in both directions and for packed sequences.

    Args:
        layer: The layer; dropout between its layers is left out.
        name: Such as ``weight_hh_l1_reverse``.
        given: The layer's input.
        state: The layer's first state; None for zeros.

    Example:
        >>> layer, x = nn.RNN(3, 4, num_layers=2), torch.rand(5, 2, 3)
        >>> recurrent_input(layer, "weight_hh_l1", x, None).mean(dim=(0, 1)).allclose(
        ...     torch.cat([torch.zeros(1, 2, 4), layer(x)[0][:-1]]).mean(dim=(0, 1)), atol=1e-6)
        True
    """
    match = WEIGHT.fullmatch(name)
    assert match is not None
    number, direction = int(match["number"]), int(match["reverse"] is not None)
    for below in range(number):
        given = _run(layer, below, given, state)[0]
    if match["of"] == "ih":
        return _data(given)
    output, first, last = _run(layer, number, given, state)
    width = last.shape[-1]
    states = _data(output).chunk(1 + layer.bidirectional, dim=-1)[direction]
    change: Tensor = (first[direction] - last[direction]).view(-1, width).sum(0)
    return states + change * width / states.numel()


def _run(layer: nn.RNNBase, number: int, given: Any, state: Any) -> tuple[Any, Tensor, Tensor]:
    """Run one layer of a stack: its output, and its first and last states, one per direction."""
    directions = 1 + layer.bidirectional
    with undisturbed(layer):  # as a new layer draws random weights
        alone = _alone(layer, number)
    mine = slice(number * directions, (number + 1) * directions)
    states = state if isinstance(state, tuple) or state is None else (state,)
    own = None if states is None else tuple(one[mine] for one in states)
    output, ends = alone(given, own if own is None or layer.mode == "LSTM" else own[0])
    last = cast(Tensor, ends[0] if layer.mode == "LSTM" else ends)
    return output, torch.zeros_like(last) if own is None else own[0], last


def _alone(layer: nn.RNNBase, number: int) -> nn.Module:
    names = [
        f"{kind}_l{{}}{end}"
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        for end in ("", "_reverse")
    ]
    weights = {
        name.format(0): value.detach()
        for name in names
        if (value := getattr(layer, name.format(number), None)) is not None
    }
    first = weights["weight_ih_l0"]
    settings: dict[str, Any] = {"proj_size": layer.proj_size} if layer.mode == "LSTM" else {}
    if layer.mode.startswith("RNN"):
        settings["nonlinearity"] = layer.mode.removeprefix("RNN_").lower()
    alone = _KINDS[layer.mode](
        first.shape[1],
        layer.hidden_size,
        bias=layer.bias,
        batch_first=layer.batch_first,
        bidirectional=layer.bidirectional,
        device=first.device,
        dtype=first.dtype,
        **settings,
    )
    alone.load_state_dict(weights)
    return alone.eval()


def _data(values: Any) -> Tensor:
    return cast(Tensor, values.data if isinstance(values, PackedSequence) else values)
