"""What ``lcw`` does beyond Lightning's fit, validate, test and predict."""

import copy
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lcw_lightning.callbacks.analyst import Analyst
from lcw_lightning.checkpoints import read_checkpoint
from lcw_lightning.depth_profile import DepthProfile
from lcw_lightning.export import export
from lcw_lightning.freshness import mark_initialized
from lcw_lightning.loading import load_all_or_nothing
from lcw_lightning.overrides import override_method, restore_method
from lcw_lightning.records import restore_constraints
from lcw_lightning.report import Report

__all__ = ["ONE_STEP", "CommandTrainer"]

ONE_STEP: dict[str, Any] = {
    "strategy": "auto",
    "devices": 1,
    "num_nodes": 1,
    "callbacks": None,
    "logger": False,
    "profiler": None,
    "accumulate_grad_batches": 1,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "fast_dev_run": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Settings of a trainer that runs one training step on one device and leaves no trace."""


class CommandTrainer(Trainer):
    """Lightning's Trainer with the subcommands that are ours: LightningCLI looks for subcommands in its trainer."""

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
            model: As the config builds it.
            ckpt_path: The checkpoint, whose weights go into the model. One that lies in a run's folder needs no
                --config: the run's own is taken.
            output: The file to write. The suffix is the format: .safetensors and .pt hold weights, .pt2 (torch.export)
                and .onnx the computation too. An older file stays until the new one is checked against the model.
            submodule: The part of the model to write, such as network or generator. Unless given, it is the one part
                that does all that the model's forward does, so that names begin where the network's do; if there is
                none, the whole model ('' always means the whole).
            input_shape: Shape of one input, without the batch dimension, such as [3, 32, 32]. Unless given, the
                model's example_input_array, or else a training batch, tells it.
            weights_only: False unpickles anything that the checkpoint holds, and so runs its code.
            datamodule: Gives a training batch.
        """
        model.trainer = self  # as in any run, since hooks of the model and of the data module may ask it
        if datamodule is not None:
            self.datamodule, datamodule.trainer = datamodule, self
        load_weights(model, read_checkpoint(ckpt_path, map_location="cpu", weights_only=weights_only is not False))
        inputs = example_inputs(model, datamodule, input_shape)
        part = exported_part(model, inputs) if submodule is None else _submodule(model, submodule)
        path = export(part, output, *inputs)
        sys.stdout.write(f"{type(part).__name__} of {type(model).__name__} with plain weights, checked: {path}\n")

    def analyze(
        self,
        model: LightningModule,
        output: str = "analysis",
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        datamodule: LightningDataModule | None = None,
    ) -> tuple[Report, DepthProfile]:
        """Run the first training step and report on every layer; nothing is trained and nothing logged.

        The table and the verdict are printed; analysis.json and figures go into a folder. The constraint and the
        minibatch initialization are those of the config; --shift_monitor.include and .exclude choose layers.

        Args:
            model: As the config builds it.
            output: The folder to write into.
            ckpt_path: A checkpoint, whose weights are looked at in place of freshly drawn ones. One that lies in a
                run's folder needs no --config: the run's own is taken.
            weights_only: False unpickles anything that the checkpoint holds, and so runs its code.
            datamodule: Gives the training batch.
        """
        del output  # of several reports together
        callbacks: list[Callback] = self.callbacks  # type: ignore[attr-defined]
        analyst = next(callback for callback in callbacks if isinstance(callback, Analyst))
        if ckpt_path is not None:
            checkpoint = read_checkpoint(ckpt_path, map_location="cpu", weights_only=weights_only is not False)
            analyst.load = partial(_load, model, {**checkpoint, "optimizer_states": []})
            mark_initialized(model)
        override_method(model, "configure_callbacks", lambda _: [])
        try:
            self.fit(model, datamodule=datamodule)
        finally:
            restore_method(model, "configure_callbacks")
        if analyst.report is None or analyst.profile is None:
            raise ValueError(
                f"analyze needs one training step, but {type(model).__name__} had no training batch, or skipped it."
            )
        return analyst.report, analyst.profile


def load_weights(model: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Load the checkpoint's constraints and weights, these in their own dtype, as a run loads a checkpoint."""
    model.setup("predict")
    model.configure_model()
    _load(model, checkpoint)


def _load(model: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    checkpoint = dict(checkpoint)  # the module's own hook may change it
    restore_constraints(model, checkpoint)
    model.on_load_checkpoint(checkpoint)
    settings = {"strict": model.strict_loading, "assign": True}
    load_all_or_nothing(model, model.load_state_dict, checkpoint["state_dict"], **settings)


def example_inputs(
    model: LightningModule, datamodule: LightningDataModule | None, input_shape: Sequence[int] | None
) -> tuple[Tensor, ...]:
    """Return inputs of ``model``: of the given shape, or its ``example_input_array``, or of a training batch.

    Floating-point ones have the dtype of the model's parameters.
    """
    inputs: Any = model.example_input_array
    if input_shape is not None:
        if any(size < 1 for size in input_shape):
            raise ValueError(f"--input_shape needs positive sizes, got {list(input_shape)}.")
        inputs = torch.rand(1, *input_shape)
    elif inputs is None and datamodule is not None:
        datamodule.prepare_data()
        datamodule.setup("fit")
        inputs = next(iter(datamodule.train_dataloader()))
        inputs = inputs[0] if isinstance(inputs, list | tuple) else inputs
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    if not all(isinstance(value, Tensor) for value in inputs):
        raise ValueError(
            f"export needs the shape of {type(model).__name__}'s input, which neither its example_input_array nor the "
            "first item of a training batch tells; give it without the batch dimension: --input_shape='[3, 32, 32]'."
        )
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return tuple(value.to(dtype) if value.is_floating_point() else value for value in inputs)


def exported_part(model: LightningModule, inputs: Sequence[Tensor]) -> nn.Module:
    """Return the child that holds all of the model's weights and does all of its forward, or else the model."""
    owners = {key.partition(".")[0] for key in model.state_dict()}
    children = [child for name, child in model.named_children() if owners == {name}]
    if children and (not is_overridden("forward", model) or _same_outputs(children[0], model, inputs)):
        return children[0]
    return model


def _same_outputs(part: nn.Module, model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    few = [value[:2] for value in inputs]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            outputs = [copy.deepcopy(module).eval()(*few) for module in (part, model)]
            torch.testing.assert_close(*outputs, rtol=0, atol=0)
        except Exception:  # whatever a forward raises; export() will say it of the whole model
            return False
    return True


def _submodule(model: LightningModule, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        children = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"{type(model).__name__} has no submodule {name!r}; it has {children}.") from error
