"""What keeps a layer from being rescaled: rounding errors in place of variation, and the range of its numbers."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from lcw_lightning.compat import tree_leaves
from lcw_lightning.constraints.kinds import is_zero_sum
from lcw_lightning.observation.moments import ChannelSums
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["Operands", "UnscalableError", "first_tensor", "multiplied"]


class UnscalableError(ValueError):
    """A layer must be left as it is; the message is the reason."""


class Operands(NamedTuple):
    """What a layer multiplies: the root mean square of its inputs, and each unit's weights.

    Attributes:
        input_rms: Over the inputs of all ranks, a scalar; 0 if they are not known.
        norms: Norm of each unit's weights.
        sums: By how much the sum of each unit's weights misses zero, where a constraint makes it zero; otherwise 0.
        fan_in: Weights per unit.
    """

    input_rms: Tensor
    norms: Tensor
    sums: Tensor
    fan_in: int

    @classmethod
    def of(cls, ref: WeightRef, z: Tensor, inputs: Tensor | None) -> "Operands":
        """Return the operands, in float64, of the layer whose output is ``z``. All ranks must call this.

        Raises:
            UnscalableError: The minibatch has no samples, or the weights or the inputs are zero.
        """
        units = ref.units.detach()
        values, inputs_seen, squares = _reduced(z, inputs)
        if not values:
            raise UnscalableError("a batch of 0 samples")
        norms = torch.linalg.vector_norm(units, dim=1, dtype=torch.float64)
        if not norms.any():
            raise UnscalableError("zero weights")
        if inputs_seen and not squares:
            raise UnscalableError("zero inputs")
        sums = torch.zeros_like(norms)
        if is_zero_sum(ref):
            # Under autocast a layer multiplies by a weight that is rounded, and then sums to zero less exactly.
            is_coarser = torch.finfo(z.dtype).eps > torch.finfo(units.dtype).eps
            sums = (units.to(z.dtype) if is_coarser else units).sum(1, dtype=torch.float64)
        return cls((squares / inputs_seen.clamp(min=1)).sqrt(), norms, sums, units.shape[1])

    def resolution(self, dtype: torch.dtype, by_unit: bool) -> Tensor:
        r"""Return the standard deviation that rounding alone may give to preactivations of this dtype.

        For constant inputs c a zero-sum weight computes :math:`c \sum_j w_j` for the sum that rounding has left, plus
        the error of the product: at most :math:`\lambda \sqrt m u |w|^\top |a|` with high probability for fan_in m and
        unit roundoff u = eps / 2 (Higham & Mary 2019), and :math:`|w|^\top |a| \le \sqrt m \|w\| c`. Half precision
        adds up products in float32. Results cannot be finer than the smallest number of their dtype.

        Returns:
            Shape ``(1,)``, or ``(units,)`` with ``by_unit``.
        """
        norms, sums = (self.norms, self.sums.abs()) if by_unit else (_rms(self.norms), _rms(self.sums))
        eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        return self.input_rms * (2 * sums + eps * (1 + self.fan_in / 4) * norms) + 2 * smallest

    def check_range(self, factor: Tensor, dtype: torch.dtype, is_squared: bool) -> None:
        """Raise if the weight, multiplied by ``factor``, or the factor leaves the range of its dtype.

        Args:
            factor: Of each unit, or of all.
            dtype: Of the weight.
            is_squared: Whether the layer squares the numbers of the weight, as normalizations do, in float32 at least.

        Raises:
            UnscalableError: It would be infinite, or lose digits because it is below the smallest normal number.
        """
        own, precise = torch.finfo(dtype), torch.finfo(torch.promote_types(dtype, torch.float32))
        largest, scaled = (min(own.max, precise.max**0.5) if is_squared else own.max), (self.norms * factor).max()
        smallest = max(own.tiny, precise.tiny**0.5) if is_squared else own.tiny
        name = str(dtype).removeprefix("torch.")
        if not (scaled <= largest and factor.max() <= precise.max):
            raise UnscalableError(f"its rescaled weight would overflow {name}")
        if scaled < smallest * self.fan_in**0.5:
            raise UnscalableError(f"its rescaled weight would underflow {name}")


def first_tensor(values: Any) -> Tensor | None:
    """Return the first tensor of floating-point numbers among a layer's inputs or outputs, however they are nested.

    Example:
        >>> first_tensor((torch.tensor(3), {"x": [torch.tensor(0.5)]}))
        tensor(0.5000)
    """
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return next(tensors, None)


def multiplied(ref: WeightRef, given: Any) -> Tensor | None:
    """Return what a layer multiplies by its weight, in a call with the arguments ``given``.

    For Bilinear it has the mean square of the products of its two inputs, each of which a unit's weight multiplies.
    """
    tensors = [leaf.detach() for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    if isinstance(ref.layer, nn.Bilinear) and len(tensors) == 2:
        return tensors[0] * tensors[1].square().mean(-1, keepdim=True).sqrt()
    return first_tensor(given)


def _reduced(z: Tensor, inputs: Tensor | None) -> Tensor:
    """Return number of outputs, number of inputs and the inputs' sum of squares, each over all ranks."""
    number, squares = 0, 0.0
    if inputs is not None and inputs.numel():
        rows = inputs.detach() if inputs.dim() else inputs.detach().view(1)
        number = rows.numel()
        squares = ChannelSums.of(rows, rows.shape[-1], -1, count_zeros=False).squares.sum().item()
    sums = torch.tensor([z.numel(), number, squares], dtype=torch.float64, device=z.device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(sums)
    return sums


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(0, keepdim=True).sqrt()
