"""Find the weights that several layers share."""

from torch import nn
from torch.nn.utils import parametrize

from lcw_lightning.weights.layer_types import layer_type_of
from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["Places", "parameter_places", "tied_to", "tied_to_other_type"]

Places = dict[int, list[tuple[str, nn.Module]]]
"""By the id of a parameter: the name and the module of each of its places."""


def parameter_places(model: nn.Module) -> Places:
    """Return where each parameter of ``model`` is; a module that stands in several places counts once."""
    places: Places = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((f"{prefix}.{name}" if prefix else name, module))
    return places


def tied_to(ref: WeightRef, places: Places) -> str | None:
    """Return to which other parameter a weight is tied, as an obstacle; None for a weight of its own."""
    is_parametrized = parametrize.is_parametrized(ref.layer, ref.name)
    holder = ref.layer.parametrizations[ref.name] if is_parametrized else None  # type: ignore[index]

    def is_own(place: str, module: nn.Module) -> bool:
        return module is holder or (module is ref.layer and place.rpartition(".")[2] == ref.name)

    found = [place for parameter in ref.parameters for place in places[id(parameter)]]
    return next((f"tied to {place!r}" for place, module in found if not is_own(place, module)), None)


def tied_to_other_type(ref: WeightRef, places: Places) -> str | None:
    """Return to which parameter of an embedding, or of another unknown layer type, a weight is tied; None for none."""
    found = [place for parameter in ref.parameters for place in places[id(parameter)]]
    own = set(ref.layer.modules())  # parametrizations have parameters too
    others = (name for name, module in found if module not in own and not _is_layers(module))
    return next((f"tied to {name!r}" for name in others), None)


def _is_layers(module: nn.Module) -> bool:
    return layer_type_of(module) is not None or isinstance(module, parametrize.ParametrizationList)
