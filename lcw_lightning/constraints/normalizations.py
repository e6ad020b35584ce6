"""The rivals of linearly constrained weights (Kutsuna, Section 5): weight, centered weight, spectral normalization."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from lcw_lightning.compat import TorchSpectralNorm, TorchWeightNorm
from lcw_lightning.constraints.registration import Constraint, register_constraint
from lcw_lightning.theory.zero_sum import project_zero_sum
from lcw_lightning.weights.weight_ref import units_first

__all__ = ["CenteredWeightNorm", "SpectralNorm", "WeightNorm", "centered_weight_norm"]


class WeightNorm(Constraint, TorchWeightNorm):
    r"""Torch's own weight_norm, by the output units of any layer type: :math:`w_i = g_i v_i / \|v_i\|`.

    ``original0`` is g, one gain per unit, of a shape that broadcasts against the weight's; for a transposed convolution
    with groups it is ``(groups, out_channels // groups, 1, ...)``. ``original1`` is v, of the weight's shape.
    """

    has_gains = True
    _version = 2  # 1 is torch's own, and that of both kinds in older files

    @override
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        saved = local_metadata.get("version", 1)
        if saved not in (1, self._version):
            kind, other = ("wn", "cwn") if saved == WeightNorm._version else ("cwn", "wn")
            args[-1].append(
                f"{prefix.removesuffix('.')} is of kind {other!r}, the state dict of kind {kind!r}; take {kind!r}."
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    @override
    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """Return the weight for gains g and directions v."""
        v = self.units_first(weight_v)
        gains = weight_g.view(-1, *[1] * (v.dim() - 1))
        return self.weight_layout(cast(Tensor, super().forward(gains, v)))  # type: ignore[no-untyped-call]

    @override
    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return gains and directions for ``weight``; a zero unit gets the gain 0 and an arbitrary direction."""
        kernels = self.units_first(weight)
        plain = kernels.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        v = self.project(plain)
        gains: Tensor = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        # A norm below the resolution of the plain weight is rounding error and gives no direction.
        resolution = 4 * torch.finfo(plain.dtype).eps * torch.linalg.vector_norm(plain, dim=1, keepdim=True)
        is_zero = gains <= resolution
        # With any direction the gain trains, unless all inputs that it uses are zero: this one uses all, and sums to 0.
        v = v.where(~is_zero, torch.linspace(-1, 1, v.shape[1], dtype=v.dtype, device=v.device))
        shape = (self.transposed_groups, -1) if self.transposed_groups else (-1, 1)
        gains = gains.masked_fill(is_zero, 0.0).view(*shape, *[1] * (weight.dim() - 2))
        return gains.to(weight.dtype), self.weight_layout(v.view(kernels.shape)).to(weight.dtype)

    def project(self, units: Tensor) -> Tensor:
        """Project rows of units onto what the constraint can represent; here the identity."""
        return units


class CenteredWeightNorm(WeightNorm):
    r"""Weight normalization of centred units: :math:`w_i = g_i (v_i - \bar v_i) / \|v_i - \bar v_i\|` (Huang et al.).

    Holds what :class:`WeightNorm` holds. Half precision is computed in float32.
    """

    sums_to_zero = True
    _version = 3

    @override
    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """Return the weight for gains g and directions v."""
        kernels = self.units_first(weight_v)
        centred = self.project(kernels.flatten(1).to(torch.promote_types(weight_v.dtype, torch.float32)))
        gains = weight_g.view(-1, 1).to(centred.dtype)
        # Torch's fused kernel has neither forward derivatives nor a rule for vmap.
        units = centred * (gains / torch.linalg.vector_norm(centred, dim=1, keepdim=True))
        return self.weight_layout(units.view(kernels.shape).to(weight_v.dtype))

    @override
    def project(self, units: Tensor) -> Tensor:
        """Project rows of units onto what the constraint can represent: subtract each unit's mean."""
        return project_zero_sum(units)


class SpectralNorm(Constraint, TorchSpectralNorm):
    r"""Torch's own spectral_norm, of the matrix whose rows are units: its largest singular value is 1.

    ``original`` has the weight's shape. In training mode each use of the weight does one step of the power method, in
    the buffers ``_u`` and ``_v``. Unlike in torch, no step is done while gradients are off, so that reading the weight,
    as a monitor does, leaves the run unchanged.

    Raises:
        ValueError: The weight is zero, which has no spectral norm to divide by.
    """

    has_fixed_norm = True

    def __init__(self, weight: Tensor, transposed_groups: int = 0) -> None:
        if not weight.is_meta and not weight.any():
            raise ValueError("spectral normalization divides by the norm of the weight, which is zero; draw it first.")
        kernels = units_first(weight, transposed_groups) if transposed_groups else weight
        # The power method starts from random vectors. The seed makes them equal in all runs on a CPU, and the random
        # numbers of the run stay the same.
        with torch.random.fork_rng([weight.device] if weight.is_cuda else []), torch.enable_grad():
            torch.default_generator.manual_seed(0)
            super().__init__(weight, transposed_groups, kernels.flatten(1))

    @override
    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight over its spectral norm."""
        kernels = self.units_first(weight)
        # In half precision the power method would not converge. The meta device has no autocast.
        with torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False):
            return self.weight_layout(super().forward(kernels.flatten(1)).view(kernels.shape))

    @override
    def _power_method(self, weight_mat: Tensor, n_power_iterations: int) -> None:
        if torch.is_grad_enabled():
            super()._power_method(weight_mat, n_power_iterations)


def centered_weight_norm(module: nn.Module, name: str = "weight") -> nn.Module:
    r"""Centre and normalize each output unit's weights, and train a gain for each (CWN; Huang et al. 2017).

    .. math:: w_i = g_i \frac{v_i - \bar v_i}{\|v_i - \bar v_i\|}, \qquad \sum_j w_{ij} = 0, \quad \|w_i\| = |g_i|

    Units are those of :func:`~lcw_lightning.linearly_constrained`. The trained parameters are named as those of
    :func:`torch.nn.utils.parametrizations.weight_norm`: ``module.parametrizations.weight.original0`` is g, one gain
    per unit, ``original1`` is v, of the weight's shape. Weight decay acts on both g and v; the norm of the weight
    follows g alone.

    **Initial value:** the zero-sum weight nearest to the present one, ``w - w.mean()`` per unit; its norm is the gain.
    A unit whose weights are all the same becomes zero: its gain is 0, and trains. Both parameters are new, so make the
    optimizer afterwards. Later assignments ``module.weight = w`` are projected likewise, and a state dict with a plain
    ``weight`` loads. Half precision is computed in float32.

    Args:
        module: Owner of the weight: Linear, Bilinear, a convolution, a recurrent layer, MultiheadAttention, or any
            module with a weight whose rows are units.
        name: Attribute name of the weight, such as ``weight_hh_l0`` of an LSTM.

    Returns:
        The module itself.

    Raises:
        ValueError: No such parameter, it is lazy, sharded or parametrized already, or its fan_in is below 2.

    Example:
        >>> layer = centered_weight_norm(nn.Linear(64, 3))
        >>> bool(layer.weight.sum(dim=1).abs().max() < 1e-6)
        True
        >>> torch.allclose(layer.weight.norm(dim=1, keepdim=True), layer.parametrizations.weight.original0)
        True
    """
    return register_constraint(module, name, CenteredWeightNorm)
