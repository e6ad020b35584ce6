"""Save networks among a checkpoint's hyperparameters with plain weights, as a run without constraints does."""

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.constraints.fold import fold

__all__ = ["fold_hyperparameters"]

_KEYS = (LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY)


def fold_hyperparameters(checkpoint: MutableMapping[str, Any]) -> None:
    """Replace constrained networks that ``save_hyperparameters()`` has put into a checkpoint by plain copies.

    Networks are found in dicts, lists and tuples. The networks of the module and of the data module do not change.
    Parameters that are shared stay shared in the copies.

    Example:
        >>> from lcw_lightning import constrain
        >>> network = nn.Linear(4, 2)
        >>> names = constrain(network)
        >>> checkpoint = {"hyper_parameters": {"net": network, "lr": 0.1}}
        >>> fold_hyperparameters(checkpoint)
        >>> checkpoint
        {'hyper_parameters': {'net': Linear(in_features=4, out_features=2, bias=True), 'lr': 0.1}}
    """
    held = {key: checkpoint[key] for key in _KEYS if key in checkpoint}
    networks = {id(network): network for network in _networks(held)}
    if any(constrained_weights(network) for network in networks.values()):
        folded = fold(nn.ModuleList(networks.values()))  # together, so that shared parameters stay shared
        checkpoint.update(_replaced(held, dict(zip(networks, folded, strict=True))))  # type: ignore[call-overload]


def _networks(value: Any) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _networks(item)


def _replaced(value: Any, networks: Mapping[int, nn.Module]) -> Any:
    """Return a copy of nested containers in which the networks with these ids are replaced."""
    if isinstance(value, dict):
        copied = copy.copy(value)
        copied.update({key: _replaced(item, networks) for key, item in value.items()})
        return copied
    if isinstance(value, (list, tuple)):
        items = [_replaced(item, networks) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return networks.get(id(value), value)
