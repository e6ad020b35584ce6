"""What the gates of one direction of a recurrent layer show on a minibatch, for given factors of its weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lcw_lightning.initialization.gate_factors import Factors, Statistics
from lcw_lightning.initialization.rescaling import PreactivationMoments, preactivation_moments
from lcw_lightning.observation.recurrent_gates import CellWeights
from lcw_lightning.observation.recurrent_inputs import RecurrentCall

__all__ = ["Direction", "pooled"]


@dataclass
class Direction:
    """One direction of one layer of a stack.

    Attributes:
        call: Of the layer.
        suffix: Of the names of its weights.
        weights: As they are before they are scaled.
        inputs: :math:`W_{ih} x_t`.
        gate_size: Units of a gate that are scaled together.
        projection_size: Units of a projection that are scaled together.
    """

    call: RecurrentCall
    suffix: str
    weights: CellWeights
    inputs: Tensor
    gate_size: int
    projection_size: int

    def measure(self, factors: Factors) -> Statistics:
        """Run over all steps with scaled weights; the statistics are over the rows of all ranks."""
        weights, inputs = self._scaled(factors)
        ran = self.call.sweep(self.suffix, inputs, weights)
        parts = [inputs, ran.recurrent, inputs + ran.recurrent, *([] if weights.hr is None else [ran.outputs])]
        moments = preactivation_moments(torch.cat(parts, dim=1), -1, by_unit=True)  # one reduction for all
        widths = [part.shape[1] for part in parts]
        units = [
            PreactivationMoments(*each) for each in zip(*(torch.split(row, widths) for row in moments), strict=True)
        ]
        inputs_seen, recurrent, total = (pooled(each, self.gate_size) for each in units[:3])
        outputs = [pooled(each, self.projection_size).std for each in units[3:]] or [total.std[:0]]
        return Statistics(inputs_seen.std, recurrent.std, total.std, total.mean, outputs[0])

    def _scaled(self, factors: Factors) -> tuple[CellWeights, Tensor]:
        def rows(values: Tensor, size: int) -> Tensor:
            return values.repeat_interleave(size).to(self.inputs.dtype)

        hh, hr, bias_ih, bias_hh = self.weights
        hh = hh * rows(factors.hh, self.gate_size).unsqueeze(1)
        hr = None if hr is None else hr * rows(factors.hr, self.projection_size).unsqueeze(1)
        bias_ih = bias_ih + rows(factors.shift, self.gate_size) if len(factors.shift) else bias_ih
        return CellWeights(hh, hr, bias_ih, bias_hh), self.inputs * rows(factors.ih, self.gate_size)


def pooled(moments: PreactivationMoments, size: int) -> PreactivationMoments:
    """Return the moments of groups of ``size`` units, around one mean each.

    Example:
        >>> units = PreactivationMoments(torch.tensor([1.0, -1.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 3.0, 3.0]))
        >>> pooled(units, 2)
        PreactivationMoments(mean=tensor([0., 2.]), std=tensor([1., 3.]))
    """
    if size == 1:
        return moments
    mean, mean_square = (values.view(-1, size).mean(1) for values in (moments.mean, moments.mean_square))
    return PreactivationMoments(mean, (mean_square - mean.square()).clamp(min=0).sqrt())
