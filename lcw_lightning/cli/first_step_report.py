"""Report on the first training step of a run, and end the run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lcw_lightning.analysis.analyze import report_of
from lcw_lightning.analysis.judged import judged
from lcw_lightning.analysis.preflight import DepthProfile
from lcw_lightning.analysis.report import Report
from lcw_lightning.callbacks.edge_of_chaos_init import EdgeOfChaosInitCallback
from lcw_lightning.callbacks.first_batch import FirstBatchInit
from lcw_lightning.callbacks.gradient_scale import gradient_scale
from lcw_lightning.callbacks.minibatch_init import MinibatchInitCallback
from lcw_lightning.callbacks.overrides import Overrides
from lcw_lightning.compat import end_fit
from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.snapshot import Snapshot
from lcw_lightning.weights.plan import plan_weights

__all__ = ["FirstStepReport"]

_INITIALIZED = {MinibatchInitCallback: "rescaled on this batch", EdgeOfChaosInitCallback: "drawn at the edge of chaos"}


class FirstStepReport(Callback):
    """Watch the first training step as ShiftMonitor would, keep the report, and end the run.

    Args:
        include: Glob patterns on weight names ``layer.weight``.
        exclude: Glob patterns of weights to leave out.

    Attributes:
        report: None until the step is done.
        profile: The observations of all layers in that step, for a pre-flight check; None until it begins.
        load: Called once the module is built and constrained, to load other weights into it.
    """

    def __init__(self, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> None:
        self.include = list(include)
        self.exclude = list(exclude)
        self.report: Report | None = None
        self.profile: DepthProfile | None = None
        self.load: Callable[[], None] | None = None
        self._initialized = ""
        self._watching = ExitStack()
        self._snapshot: Snapshot | None = None
        self._overrides = Overrides()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.load is not None:
            # ConstraintCallback comes first, so this wraps its override.
            self._overrides.add(pl_module, "configure_model", self._configure_and_load)

    def _configure_and_load(self, configure_model: Callable[[], None]) -> None:
        configure_model()
        assert self.load is not None
        self.load()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._initialized = self._initialization(trainer)
        layers = observed_layers(pl_module, self.include, self.exclude)
        scale = gradient_scale(trainer, pl_module)
        self._snapshot = Snapshot(layers, pl_module.device, scale, with_values=True, over_time=True)
        self._watching.enter_context(self._snapshot.watching())
        self.profile = DepthProfile({name: layer.layer for name, layer in observed_layers(pl_module).items()})
        self._watching.enter_context(self.profile.watching())

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._watching.close()
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self._snapshot is not None:
            plan = plan_weights(pl_module, "seen", self.include, self.exclude)
            facts = judged(pl_module, batch, self._initialized)
            value = loss.item() if isinstance(loss, Tensor) else None
            reached = {id(parameter) for parameter in pl_module.parameters() if parameter.grad is not None}
            self.report = report_of(pl_module, self._snapshot, value, plan, facts, reached)
        end_fit()

    def _initialization(self, trainer: Trainer) -> str:
        armed = [type(c) for c in trainer.callbacks if isinstance(c, FirstBatchInit) and c.is_armed]  # type: ignore[attr-defined]
        as_built = "with the checkpoint's weights" if self.load is not None else "not rescaled"
        return next((words for kind, words in _INITIALIZED.items() if kind in armed), as_built)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        end_fit()  # on_train_batch_end is not called for a batch that the module skips

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._watching.close()
        self._overrides.restore()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._watching.close()
        self._overrides.restore()
