"""Find the weights that several layers share."""

from torch import nn

from lcw_lightning.weights.weight_ref import WeightRef

__all__ = ["Places", "parameter_places", "tied_to"]

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


def tied_to(name: str, ref: WeightRef, places: Places) -> str | None:
    """Return to which other parameter a weight is tied, as an obstacle; None for a weight of its own."""
    own = (name, f"{name.removesuffix(ref.name)}parametrizations.{ref.name}.")
    others = [
        place
        for parameter in ref.parameters
        for place, module in places[id(parameter)]
        if not (place.startswith(own) or (module is ref.layer and place.endswith(ref.name)))
    ]
    return f"tied to {others[0]!r}" if others else None
