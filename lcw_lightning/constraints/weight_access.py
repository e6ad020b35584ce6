"""A constrained weight in evaluation: built once, and used until what it was built from changes."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrize
from torch.optim.optimizer import register_optimizer_step_post_hook
from typing_extensions import override

__all__ = ["CachesEvaluation", "forget_evaluations", "read_weight_fast", "read_weight_slowly"]

_is_recorded = torch._C._len_torch_dispatch_stack
_has_process_group = distributed.is_initialized if distributed.is_available() else bool


class Entry(NamedTuple):
    """A weight, and what tells whether it is still that of its layer."""

    layer: nn.Module  # a replica shares the cache
    parameters: dict[str, nn.Parameter | None]
    constraints: dict[str, nn.Module | None]
    steps: int
    original: nn.Parameter
    version: int
    address: int
    weight: Tensor
    weight_version: int
    storage: Tensor  # shares the original's: so no other tensor can come to lie at its address


class EvaluationCache:
    """The weight that was last built while gradients were off. Copies and pickles of it are empty."""

    steps = 0  # of all optimizers: the fused ones change parameters behind their version

    def __init__(self) -> None:
        self.entry: Entry | None = None

    def build(self, layer: nn.Module, held: nn.Module, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``make(original)``, and keep it."""
        original = held._parameters["original"]
        assert original is not None
        # First, so that what another thread changes meanwhile shows.
        seen = self.steps, original, original._version, original.data_ptr()
        with torch.inference_mode(mode=False), torch.no_grad():  # a tensor of inference mode has no version
            weight = make(original)
            storage = original.detach()
        if original.is_cuda:
            torch.cuda.current_stream(original.device).synchronize()  # other streams may read it next
        self.entry = Entry(layer, held._parameters, held._modules, *seen, weight, weight._version, storage)
        return weight

    @override
    def __reduce__(self) -> tuple[type["EvaluationCache"], tuple[()]]:
        return EvaluationCache, ()


class CachesEvaluation(nn.Module):
    """A parametrization of one tensor that depends on nothing else: in evaluation its weight is built once."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cache = EvaluationCache()

    @override
    def train(self, mode: bool = True) -> "CachesEvaluation":
        """Forget the weight: who says that training, or another evaluation begins may have changed it unseen."""
        self.cache.entry = None
        return super().train(mode)


def read_weight_fast(module: nn.Module, name: str) -> None:
    """Let ``module.name`` go past torch's machinery of parametrizations, and in evaluation past its computation too.

    In eval mode without gradients the weight is the same tensor as in the last call, until the original's version or
    storage, or the weight itself, has changed, an optimizer has stepped, or ``train()`` or ``eval()`` is called. Not
    seen are, in the midst of an evaluation, writes that torch does not count (``.data``, ``.numpy()``, kernels called
    by hand), and hooks on the parametrization. It is not kept where a dispatch mode records operations, where the
    original's memory is shared with other processes, nor where a process group exists, because collectives and sharding
    change parameters behind their version.
    """
    computed: property = getattr(type(module), name)
    compute = cast(Callable[[nn.Module], Tensor], computed.fget)
    key = f"_{name}_in_evaluation"

    def read(self: nn.Module) -> Tensor:
        # Not is_compiling(), which takes longer: where else one traces, parameters are others or of another type.
        if torch.compiler.is_dynamo_compiling() or torch._C._get_tracing_state() is not None:
            return compute(self)
        cache: EvaluationCache = self.__dict__[key]
        entry = cache.entry
        is_evaluation = not (self.training or torch.is_grad_enabled() or _is_recorded() or _has_process_group())
        if is_evaluation and entry is not None:
            # Here and in full, because calls, and each object that matrix products drive out of the cache, cost time.
            layer, parameters, constraints, steps, original, version, address, weight, weight_version, _ = entry
            if (
                layer is self
                and parameters.get("original") is original
                and version == original._version
                and weight_version == weight._version
                and address == original.data_ptr()
                and steps == EvaluationCache.steps
                and len(constraints) == 1
                and not (weight.is_cuda and torch.cuda.is_current_stream_capturing())
            ):
                return weight
        return _build(self, name, cache, is_evaluation, compute)

    module.__dict__[key] = module.parametrizations[name][0].cache  # type: ignore[union-attr, index]
    setattr(type(module), name, property(read, computed.fset))


def forget_evaluations(module: nn.Module) -> None:
    """Let the weights of a layer be built anew."""
    for cache in _caches(module).values():
        cache.entry = None


def read_weight_slowly(module: nn.Module) -> None:
    """Take away what :func:`read_weight_fast` has put on a layer whose weights are plain again."""
    for key in _caches(module):
        del vars(module)[key]


def _build(
    module: nn.Module, name: str, cache: EvaluationCache, is_evaluation: bool, compute: Callable[[nn.Module], Tensor]
) -> Tensor:
    """Return the weight from what it is trained by, kept in evaluation where that is safe."""
    cache.entry = None
    held: Any = module._modules["parametrizations"]._modules[name]  # type: ignore[union-attr]
    original, constraint = held._parameters.get("original"), held._modules["0"]
    is_simple = original is not None and len(held._modules) == 1 and not (_has_hooks(held) or _has_hooks(constraint))
    if not is_simple or parametrize._cache_enabled:
        return compute(module)
    if is_evaluation and _can_be_kept(original):
        return cache.build(module, held, constraint.forward)
    return cast(Tensor, constraint.forward(original))


def _caches(module: nn.Module) -> dict[str, EvaluationCache]:
    return {key: value for key, value in vars(module).items() if isinstance(value, EvaluationCache)}


def _count_step(*_: Any) -> None:
    EvaluationCache.steps += 1


register_optimizer_step_post_hook(_count_step)


def _has_hooks(module: nn.Module) -> bool:
    # Such as those by which a sharded parameter is fetched.
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _can_be_kept(original: Tensor | None) -> bool:
    # A replica has no parameters, a transform and a functional call have tensors.
    if type(original) is not nn.Parameter or original.is_inference() or torch._C._are_functorch_transforms_active():
        return False
    if original.is_cuda:
        return not torch.cuda.is_current_stream_capturing()  # a CUDA graph must replay what it captures
    return not original.is_shared()  # type: ignore[no-untyped-call]
