"""Export networks to plain files, and check each file against the network before it is put in place."""

import copy
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lcw_lightning.compat import tree_leaves
from lcw_lightning.constraints.fold import fold
from lcw_lightning.files import written_atomically

__all__ = ["check_exportable", "export"]


def export(network: nn.Module, path: str | os.PathLike[str], *example_inputs: Tensor) -> Path:
    """Write ``network``, folded to plain weights, into a file that computes the same outputs in eval mode.

    The suffix selects the format: ``.safetensors`` and ``.pt`` hold the plain state dict, which loads into the
    unconstrained network; ``.pt2`` (:func:`torch.export.load`) and ``.onnx`` hold the computation too, for any batch
    size. All tensors are on the CPU. The file is read back, run on random inputs and put in place only if its outputs
    equal those of the network to two thirds of their dtype's digits. The network, its train and eval modes and the
    random number generators do not change.

    Args:
        network: Any module, constrained or not.
        path: The file to write. An existing file is replaced once the new one is checked.
        example_inputs: Inputs of ``network``, each of shape ``(batch, ...)``. Only shape and dtype are used, except for
            integer inputs: the random inputs are then drawn from their values.

    Returns:
        The path.

    Raises:
        ValueError: The suffix is unknown, the network does not run on such inputs, or the file computes other outputs,
            as for a network whose eval output is random. No file is written then.
        RuntimeError: The exporter, or the runtime that checks the file, cannot take the network.
        ModuleNotFoundError: The suffix is ``.onnx`` and the extra ``onnx`` is not installed.

    Example:
        >>> import tempfile
        >>> from lcw_lightning.constraints.constrain import constrain
        >>> network = nn.Sequential(nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 10))
        >>> names = constrain(network)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export(network, Path(folder) / "model.safetensors", torch.rand(1, 64))
        ...     sorted(safetensors.torch.load_file(path))
        ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    check_exportable(path)
    write = FORMATS[Path(path).suffix]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # Not 1, which tracing would treat as a constant. Two sizes, which only a dynamic batch dimension accepts.
        batches = [[_random_batch(example, size) for example in example_inputs] for size in (3, 5)]
        plain = fold(network).cpu().eval()
        try:
            expected = _outputs(copy.deepcopy(network).cpu().eval(), batches)
        except Exception as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for batch in batches for tensor in batch)
            raise ValueError(f"{type(plain).__name__} does not run on inputs of shapes {shapes}: {error}") from error
        with written_atomically(path) as temporary:
            try:
                actual = _outputs(write(plain, batches[0], temporary), batches)
            except Exception as error:
                raise RuntimeError(f"{type(plain).__name__} cannot be written to {path}: {error}") from error
            _check_agreement(actual, expected, path)
    return Path(path)


def check_exportable(path: str | os.PathLike[str]) -> None:
    """Raise if :func:`export` cannot write such a file.

    Raises:
        ValueError: The suffix is unknown, or no file can be written at this path.
        ModuleNotFoundError: The suffix is ``.onnx`` and the extra ``onnx`` is not installed.
    """
    if Path(path).suffix not in FORMATS:
        raise ValueError(f"export writes {', '.join(FORMATS)}; got {os.fspath(path)!r}.")
    if Path(path).is_dir() or any(parent.is_file() for parent in Path(path).parents):
        raise ValueError(
            f"export cannot write {os.fspath(path)!r}: it is a folder, or a parent of it is a file; name a new file."
        )
    if Path(path).suffix == ".onnx":
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(
                f"export to .onnx needs {' and '.join(missing)}: pip install 'lcw_lightning[onnx]'."
            )


def _random_batch(example: Tensor, size: int) -> Tensor:
    shape = (size, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, dtype=example.dtype)
    # Integers are indices, such as tokens, and only those in the example are known to be valid.
    return example.cpu().flatten()[torch.randint(example.numel(), shape)]


def _outputs(run: Callable[..., Any], batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    outputs = [leaf for batch in batches for leaf in tree_leaves(run(*batch)) if isinstance(leaf, Tensor)]
    if not outputs:
        raise ValueError("it returns no tensor.")
    return outputs


def _check_agreement(actual: list[Tensor], expected: list[Tensor], path: str | os.PathLike[str]) -> None:
    try:
        for got, wanted in zip(actual, expected, strict=True):
            whole = not (wanted.is_floating_point() or wanted.is_complex())
            tolerance = 0.0 if whole else torch.finfo(wanted.dtype).eps ** (2 / 3)
            # Relative to the largest output, because a small one may be the difference of large terms.
            scale = wanted.abs().double().nan_to_num(posinf=0).max().item()
            torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * scale)
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} was not written, because the file does not compute the same outputs as the network. "
            f"{error}\nIs the network's output in eval mode random, NaN, or different from call to call?"
        ) from error


def _write_safetensors(plain: nn.Module, _: Sequence[Tensor], path: Path) -> Callable[..., Any]:
    # The format has no shared memory and no strides, so tied tensors are written under each of their names.
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in plain.state_dict().items()}
    # Not its save_file, whose files only the owner may read.
    path.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    return _loaded(plain, safetensors.torch.load_file(path))


def _write_state_dict(plain: nn.Module, _: Sequence[Tensor], path: Path) -> Callable[..., Any]:
    torch.save(plain.state_dict(), path)
    return _loaded(plain, torch.load(path, weights_only=True))


def _write_program(plain: nn.Module, inputs: Sequence[Tensor], path: Path) -> Callable[..., Any]:
    torch.export.save(_program(plain, inputs), path)
    return torch.export.load(path).module()


def _write_onnx(plain: nn.Module, inputs: Sequence[Tensor], path: Path) -> Callable[..., Any]:
    import onnxruntime  # noqa: PLC0415  # an extra

    with _quiet_recurrent_layers():
        # Not optimized: optimization renames parameters, and every runtime optimizes a model when it loads it.
        program = torch.onnx.export(_program(plain, inputs), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = {held.name: tensor.numpy() for held, tensor in zip(session.get_inputs(), inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


def _loaded(plain: nn.Module, state_dict: dict[str, Any]) -> nn.Module:
    network = copy.deepcopy(plain)
    network.load_state_dict(state_dict)
    return network


def _program(plain: nn.Module, inputs: Sequence[Tensor]) -> torch.export.ExportedProgram:
    dynamic_batch = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
    with _quiet_recurrent_layers():
        # strict=True, the default of older versions of torch, makes Dynamo refuse to trace in a long process.
        return torch.export.export(plain, tuple(inputs), dynamic_shapes=dynamic_batch, strict=False)


@contextmanager
def _quiet_recurrent_layers() -> Iterator[None]:
    with warnings.catch_warnings():
        # Torch's tracing of its own recurrent layers gives both warnings, and a user cannot avoid them.
        warnings.filterwarnings("ignore", message="(?s).*_flat_weights.* assigned during export")
        warnings.filterwarnings("ignore", message="_check_is_size will be removed", category=FutureWarning)
        yield


# Each function writes the file, reads it back and returns a function that computes its outputs.
FORMATS: dict[str, Callable[[nn.Module, Sequence[Tensor], Path], Callable[..., Any]]] = {
    ".safetensors": _write_safetensors,
    ".pt": _write_state_dict,
    ".pt2": _write_program,
    ".onnx": _write_onnx,
}
