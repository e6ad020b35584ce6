"""Remove constraints: every weight becomes an ordinary parameter of the same value."""

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.utils import parametrize

from lcw_lightning.compat import flat_weight_names
from lcw_lightning.constraints.copying import detached_copy
from lcw_lightning.constraints.kinds import kind_of
from lcw_lightning.constraints.plain_weights import remove_plain_weight_hooks
from lcw_lightning.constraints.projection import put_back_, release_
from lcw_lightning.weights.settings import check_model
from lcw_lightning.weights.weight_ref import named_weights

__all__ = ["fold", "remove_constraints_"]


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Return a plain copy of ``model``: every parametrized tensor becomes an ordinary parameter of the same value.

    The copy has plain types and plain state dict keys and computes the same outputs; the original is left untouched.

    Raises:
        ValueError: The model is no module.

    Example:
        >>> from lcw_lightning import constrain
        >>> network = nn.Sequential(nn.Linear(4, 2))
        >>> names = constrain(network)
        >>> sorted(fold(network).state_dict())
        ['0.bias', '0.weight']
    """
    check_model(model)
    folded = detached_copy(model)
    for ref in named_weights(folded).values():
        put_back_(ref)
        release_(ref)
    for module in list(folded.modules()):
        if "parametrizations" in module._modules:  # of its own, not those of a layer whose attributes it hands on
            _fold_layer_(module)
    return folded


def _fold_layer_(module: nn.Module) -> None:
    # remove_parametrizations would delete the property from the class, which a copy shares with the original.
    parametrizations: nn.ModuleDict = module.parametrizations.eval()  # type: ignore[union-attr, assignment]
    values = {
        name: nn.Parameter(
            getattr(module, name), requires_grad=any(original.requires_grad for original in held.parameters())
        )
        for name, held in parametrizations.items()
    }
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    remove_plain_weight_hooks(module)
    held = {**values, **module._parameters}
    module._parameters.clear()
    # In the order of a layer that was never constrained: weights first, and layer by layer in a recurrent one.
    order = dict.fromkeys([*flat_weight_names(module), *held])
    module._parameters.update({name: held[name] for name in order})


def remove_constraints_(model: nn.Module, keep: Collection[str] = ()) -> None:
    """Make the constrained weights of ``model`` ordinary parameters of the same values in place, but those to keep."""
    for ref in [ref for name, ref in named_weights(model).items() if name not in keep]:
        release_(ref)
        if kind_of(ref) != "none":
            # Torch deletes the weight's property from the class, which copies of the layer share.
            shared = type(ref.layer)
            ref.layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            parametrize.remove_parametrizations(ref.layer, ref.name)
            remove_plain_weight_hooks(ref.layer)
            if ref.name in ref.layer._buffers:  # where torch leaves a frozen weight of two originals
                frozen = nn.Parameter(ref.layer._buffers.pop(ref.name), requires_grad=False)  # type: ignore[arg-type]
                ref.layer.register_parameter(ref.name, frozen)
