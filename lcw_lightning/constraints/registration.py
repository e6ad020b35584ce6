"""The base class of constraints, what can get one, and how a layer gets it."""

from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from typing_extensions import override

from lcw_lightning.constraints.copying import make_copyable
from lcw_lightning.constraints.plain_weights import accept_plain_weight
from lcw_lightning.constraints.projection import is_projected
from lcw_lightning.constraints.weight_access import read_directly
from lcw_lightning.weights.selection import listed
from lcw_lightning.weights.settings import check_model
from lcw_lightning.weights.weight_ref import WeightRef, units_first

__all__ = [
    "Constraint",
    "constrainable_parameter",
    "obstacle_to",
    "register_constraint",
]


class Constraint(nn.Module):
    """Base class of our parametrizations: the shape of the weight, where its units lie, and facts about its values.

    Args:
        weight: The plain weight, output units along dimension 0.
        transposed_groups: Groups of a transposed convolution, whose weight has shape
            ``(in_channels, out_channels // groups, *kernel)``; 0 for other layers.
        args: Arguments of the next class in the method resolution order.
    """

    sums_to_zero: ClassVar[bool] = False
    """Whether each unit of the weight sums to zero."""
    has_gains: ClassVar[bool] = False
    """Whether each unit has a trained gain."""
    has_fixed_norm: ClassVar[bool] = False
    """Whether the norm of the weight is fixed, so that scaling has no effect."""

    def __init__(self, weight: Tensor, transposed_groups: int = 0, *args: Any) -> None:
        super().__init__(*args)
        self.weight_shape = tuple(weight.shape)
        self.transposed_groups = transposed_groups

    def units_first(self, tensor: Tensor) -> Tensor:
        """Return a tensor in the weight's layout as one whose dimension 0 counts units."""
        return units_first(tensor, self.transposed_groups) if self.transposed_groups else tensor

    def weight_layout(self, by_unit: Tensor) -> Tensor:
        """Return a tensor whose dimension 0 counts units as one in the weight's layout."""
        return self.units_first(by_unit)  # which is its own inverse

    @override
    def extra_repr(self) -> str:
        groups = f", transposed_groups={self.transposed_groups}" if self.transposed_groups else ""
        return f"weight_shape={self.weight_shape}{groups}"


def register_constraint(module: nn.Module, name: str, kind: type[Constraint]) -> nn.Module:
    """Parametrize ``module.name`` by a constraint of this kind, made for its present value, and return the module.

    Raises:
        ValueError: No such parameter, it is complex, lazy, sharded or constrained already, or the kind cannot hold it.
    """
    weight = constrainable_parameter(module, name, kind)
    constraint = kind(weight.detach(), WeightRef(module, name).transposed_groups)
    if parametrize.is_parametrized(module):
        # A copy shares its class with the original, which a further property would break.
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    weight.grad = None  # it has the shape of the weight, not of its coordinates
    parametrize.register_parametrization(module, name, constraint)
    accept_plain_weight(module, name)
    read_directly(module, name)
    make_copyable(module)
    return module


def constrainable_parameter(module: nn.Module, name: str, kind: type[Constraint]) -> nn.Parameter:
    """Return the plain parameter ``module.name``, if it can be constrained.

    Raises:
        ValueError: It cannot be, for a reason that :func:`obstacle_to` gives.
    """
    check_model(module)
    weight = module._parameters.get(name)
    if not hasattr(module, name):
        held = listed(module._parameters) or "none of its own; constrain() takes whole networks"
        raise ValueError(f"{type(module).__name__} has no parameter {name!r}; its parameters: {held}.")
    ref = WeightRef(module, name)
    if obstacle := "complex numbers" if ref.is_complex else obstacle_to(ref, kind):
        shape = "" if weight is None or is_lazy(weight) else f" of shape {tuple(weight.shape)}"
        raise ValueError(f"{type(module).__name__}.{name}{shape} cannot be constrained: {obstacle}.")
    return cast(nn.Parameter, weight)


def obstacle_to(ref: WeightRef, kind: type[Constraint], may_be_sharded: bool = False) -> str | None:
    """Return why a weight cannot get a constraint of a kind; None if it can."""
    if held := _held_by(ref):
        return held
    weight = ref.layer._parameters.get(ref.name)
    if weight is None:
        return "no parameter; a hook that computes it, such as pruning or the old weight_norm, must be taken away first"
    if is_lazy(weight):
        return "lazy; run one forward first"
    if hasattr(weight, "device_mesh") and not (may_be_sharded and ref.transposed_groups < 2):
        return "sharded; constrain the model before fully_shard()"
    if weight.dim() < 2 or (kind.sums_to_zero and ref.fan_in == 1):
        return "fan_in 1" + ", for which zero is the only zero-sum weight" * kind.sums_to_zero
    is_zero = kind.has_fixed_norm and not weight.is_meta and not weight.any()
    return "zero weights, whose norm cannot be fixed; draw them first" if is_zero else None


def _held_by(ref: WeightRef) -> str | None:
    if parametrize.is_parametrized(ref.layer, ref.name):
        held: Any = ref.layer.parametrizations[ref.name]  # type: ignore[index]
        return f"parametrized already by {' and '.join(type(one).__name__ for one in held)}"
    return "held by method='project' already" if is_projected(ref) else None
