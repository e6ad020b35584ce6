"""The settings that tell runs apart, as loggers show them: each under the name of the flag that sets it."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lcw_lightning.callbacks.loggers import log_settings, show_settings
from lcw_lightning.compat import log_no_hyperparameters

__all__ = ["HyperparameterLog", "hyperparameters"]

SWITCHES = {"constraint": "kind", "minibatch_init": "granularity", "edge_of_chaos_init": "weights"}
"""The setting of each group that is ``none`` where the group is turned off."""
GROUPS = ("seed_everything", *SWITCHES, "model", "data")
DEFAULTS: tuple[Any, ...] = (None, [], (), ["*"], ("*",))


class HyperparameterLog(Callback):
    """Log the settings of a run in place of what its module and data module have saved of theirs.

    TensorBoard shows them in its HParams tab, beside the metrics that the first epoch has logged.

    Args:
        settings: Numbers, words and truth values by name.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)
        self._is_shown = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for holder in (pl_module, getattr(trainer, "datamodule", None)):
            if holder is not None:
                log_no_hyperparameters(holder)
        for logger in trainer.loggers:
            log_settings(logger, self.settings)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_shown = False

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.logged_metrics:  # of an epoch that has ended
            self._show(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._show(trainer)

    def _show(self, trainer: Trainer) -> None:
        if self._is_shown or not trainer.training:
            return
        self._is_shown = True
        watched = [name for name in trainer.callback_metrics if name.startswith("shift/")]
        metrics = sorted({*trainer.logged_metrics, *watched}, key=lambda name: (not name.startswith("val"), name))
        for logger in trainer.loggers:
            show_settings(logger, self.settings, metrics)


def hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """Return the seed, the method, the initialization, the model and the data of a config, by flag.

    A class is shown by its name. Left out is what is not given, and the settings of a group that is turned off.

    Example:
        >>> optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "foreach": None}}
        >>> constraint = {"kind": "none", "method": "parametrize"}
        >>> hyperparameters({"constraint": constraint, "model": {"optimizer": optimizer}})
        {'constraint.kind': 'none', 'model.optimizer': 'SGD', 'model.optimizer.lr': 0.1}
    """
    groups = {group: config[group] for group in GROUPS if group in config}
    for group, switch in SWITCHES.items():
        if group in groups and groups[group].get(switch) == "none":
            groups[group] = {switch: "none"}
    return {name: setting for group, settings in groups.items() for name, setting in _flat(group, settings)}


def _flat(name: str, value: Any) -> Iterator[tuple[str, bool | float | str]]:
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield name, value["class_path"].rpartition(".")[2]
            value = value.get("init_args") or {}
        for key, child in value.items():
            yield from _flat(f"{name}.{key}", child)
    elif value not in DEFAULTS:
        yield name, value if isinstance(value, bool | int | float | str) else str(value)
