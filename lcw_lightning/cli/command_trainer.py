"""The subcommands of ``lcw`` beyond Lightning's fit, validate, test and predict."""

import sys
from functools import partial

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lcw_lightning.analysis.preflight import DepthProfile
from lcw_lightning.analysis.report import Format, Report
from lcw_lightning.callbacks.constraint import ConstraintCallback
from lcw_lightning.callbacks.overrides import Overrides
from lcw_lightning.callbacks.twins import is_overridden
from lcw_lightning.checkpoints.export import export
from lcw_lightning.checkpoints.read import read_checkpoint
from lcw_lightning.cli.export_source import example_inputs, exported_part, load_state, load_weights, submodule_named
from lcw_lightning.cli.first_step_report import FirstStepReport
from lcw_lightning.weights.freshness import mark_initialized

__all__ = ["CommandTrainer", "check_test_step"]


class CommandTrainer(Trainer):
    """Lightning's Trainer with our subcommands, because LightningCLI takes subcommands from its trainer's methods."""

    def export(
        self,
        model: LightningModule,
        ckpt_path: str,
        output: str,
        submodule: str | None = None,
        input_shape: list[int] | None = None,
        weights_only: bool | None = None,
        datamodule: LightningDataModule | None = None,
    ) -> None:
        """Write a checkpoint's network with plain weights, as .safetensors, .pt, .pt2 or .onnx.

        Args:
            model: The model that the config builds.
            ckpt_path: The checkpoint with the weights. In a run's folder it needs no --config, because the run's own
                config is used.
            output: The file to write. The suffix selects the format: .safetensors and .pt hold weights, .pt2
                (torch.export) and .onnx the computation too. An existing file stays until the new one is checked
                against the model.
            submodule: The part of the model to write, such as network or generator. By default it is the part that
                computes the same outputs as the model, so that weight names start at the network; if there is none, it
                is the whole model ('' always means the whole model).
            input_shape: Shape of one input, without the batch dimension, such as [3, 32, 32]. By default it is taken
                from the model's example_input_array, or else from a training batch.
            weights_only: False unpickles the whole checkpoint, which may run code that it contains.
            datamodule: The data module that gives a training batch.
        """
        model.trainer = self  # as in any run, since hooks of the model and of the data module may use it
        if datamodule is not None:
            self.datamodule, datamodule.trainer = datamodule, self
        load_weights(model, read_checkpoint(ckpt_path, map_location="cpu", weights_only=weights_only is not False))
        inputs = example_inputs(model, datamodule, input_shape)
        part = exported_part(model, inputs) if submodule is None else submodule_named(model, submodule)
        path = export(part, output, *inputs)
        sys.stdout.write(f"{type(part).__name__} of {type(model).__name__} with plain weights, checked: {path}\n")

    def analyze(
        self,
        model: LightningModule,
        output: str = "analysis",
        figures: Format = "png",
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        datamodule: LightningDataModule | None = None,
    ) -> tuple[Report, DepthProfile]:
        """Run the first training step and report on every layer; nothing is trained and nothing logged.

        The table and the verdict are printed; analysis.json and figures go into a folder. The constraint and the
        minibatch initialization are those of the config; --shift_monitor.include and .exclude choose layers.

        Args:
            model: The model that the config builds.
            output: The folder to write into.
            figures: Format of the figures: png, or svg or pdf, which any magnification leaves sharp.
            ckpt_path: A checkpoint whose weights are analyzed in place of freshly drawn ones. In a run's folder it
                needs no --config, because the run's own config is used.
            weights_only: False unpickles the whole checkpoint, which may run code that it contains.
            datamodule: The data module that gives the training batch.
        """
        del output, figures  # analyze() of the command line writes them, for all reports together
        callbacks: list[Callback] = self.callbacks  # type: ignore[has-type]
        first_step = next(callback for callback in callbacks if isinstance(callback, FirstStepReport))
        if ckpt_path is not None:
            checkpoint = read_checkpoint(ckpt_path, map_location="cpu", weights_only=weights_only is not False)
            # The checkpoint decides what is constrained, as in every evaluation.
            self.callbacks = [c for c in callbacks if not isinstance(c, ConstraintCallback)]
            first_step.load = partial(load_state, model, {**checkpoint, "optimizer_states": []})
            mark_initialized(model)
        with Overrides() as overrides:
            overrides.add(model, "configure_callbacks", lambda _: [])
            self.fit(model, datamodule=datamodule)
        if first_step.report is None or first_step.profile is None:
            raise ValueError(
                f"analyze needs one training step, but {type(model).__name__} had no training batch, or skipped it."
            )
        return first_step.report, first_step.profile


def check_test_step(model: LightningModule) -> None:
    """Raise unless a module can be tested.

    Raises:
        ValueError: It has no ``test_step``.
    """
    if not is_overridden("test_step", model):
        raise ValueError(
            f"--test_after_fit=true needs a test_step(), which {type(model).__name__} does not have; define it, or "
            "leave the flag out."
        )
