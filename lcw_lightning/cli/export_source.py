"""What ``lcw export`` exports: a checkpoint's network, or a part of it, and inputs for checking the file."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lcw_lightning.checkpoints.all_or_nothing import load_all_or_nothing
from lcw_lightning.checkpoints.record import impose_record, read_record

__all__ = ["example_inputs", "exported_part", "load_state", "load_weights", "submodule_named"]


def load_weights(model: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Load the checkpoint's constraints and weights, the weights in their own dtype, as a run does."""
    model.setup("predict")
    model.configure_model()
    load_state(model, checkpoint)


def load_state(model: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Load the checkpoint's constraints and weights into a model that is built."""
    checkpoint = dict(checkpoint)  # the module's hook may change it
    impose_record(read_record(checkpoint), model)
    model.on_load_checkpoint(checkpoint)
    settings = {"strict": model.strict_loading, "assign": True}
    load_all_or_nothing(model, model.load_state_dict, checkpoint["state_dict"], **settings)


def example_inputs(
    model: LightningModule, datamodule: LightningDataModule | None, input_shape: Sequence[int] | None
) -> tuple[Tensor, ...]:
    """Return inputs of ``model``: of the given shape, its ``example_input_array``, or from a training batch.

    Floating-point inputs have the dtype of the model's parameters.
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
    """Return the child that has all weights and computes the same outputs as the model, or else the model."""
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
        except Exception:  # a forward may raise anything; export() then reports the error of the whole model
            return False
    return True


def submodule_named(model: LightningModule, name: str) -> nn.Module:
    """Return the part of the model that has this name.

    Raises:
        ValueError: It has none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        children = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"{type(model).__name__} has no submodule {name!r}; it has {children}.") from error
