import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from lcw_lightning import linearly_constrained
from lcw_lightning.constraints.zero_sum_map import SMALL, zero_sum_weight
from lcw_lightning.theory.zero_sum import embed_zero_sum

LAYOUTS = {
    "linear": ((3, 12), torch.contiguous_format),
    "conv": ((3, 3, 2, 2), torch.contiguous_format),
    "channels-last": ((3, 3, 2, 2), torch.channels_last),
    "channels-last-3d": ((2, 3, 2, 2, 1), torch.channels_last_3d),
}
layouts = pytest.mark.parametrize(("shape", "memory_format"), LAYOUTS.values(), ids=LAYOUTS)


def coordinates(shape, dtype=torch.float64):
    fan_in = torch.Size(shape[1:]).numel()
    return torch.randn(shape[0], fan_in - 1, dtype=dtype, requires_grad=True)


@layouts
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_the_map_in_the_layout_of_the_weight(shape, memory_format, dtype):
    v = coordinates(shape, dtype)
    w = zero_sum_weight(v, shape, memory_format)
    assert w.dtype == dtype
    assert w.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(w, embed_zero_sum(v).view(shape))


@pytest.mark.parametrize("units", [1, 2 + SMALL // 300], ids=["small", "large"])
def test_small_and_large_weights_have_the_same_value_and_gradient(units):
    v = coordinates((units, 300))
    torch.testing.assert_close(zero_sum_weight(v, (units, 300)), embed_zero_sum(v))
    direction = torch.randn(units, 300, dtype=torch.float64)
    ours = torch.autograd.grad(zero_sum_weight(v, (units, 300)), v, direction)
    torch.testing.assert_close(ours, torch.autograd.grad(embed_zero_sum(v), v, direction))


@layouts
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.filterwarnings("ignore:Please use `torch.vmap`")  # so torch 2.6 says of its own gradcheck
def test_derivatives_of_both_orders_and_both_directions_are_exact(shape, memory_format):
    v = coordinates(shape)

    def cubed(v):  # of which the second derivative is not zero
        return zero_sum_weight(v, shape, memory_format) ** 3

    assert gradcheck(cubed, v, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(cubed, v)
    with forward_ad.dual_level():
        dual = zero_sum_weight(forward_ad.make_dual(v.detach(), torch.ones_like(v)), shape, memory_format)
        tangent = forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, embed_zero_sum(torch.ones_like(v)).view(shape))


@layouts
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_transforms_see_the_matrix_of_the_map(shape, memory_format):
    v = coordinates(shape).detach()
    expected = torch.autograd.functional.jacobian(lambda v: embed_zero_sum(v).view(shape), v)

    def function(v):
        return zero_sum_weight(v, shape, memory_format)

    torch.testing.assert_close(torch.func.jacrev(function)(v), expected)
    torch.testing.assert_close(torch.func.jacfwd(function)(v), expected)
    stacked = torch.stack([v, 2 * v])
    torch.testing.assert_close(torch.vmap(function)(stacked)[1], 2 * function(v))


def test_it_compiles_into_one_graph():
    torch.compiler.reset()
    v = coordinates((3, 3, 2, 2))

    def function(v):
        return zero_sum_weight(v, (3, 3, 2, 2), torch.channels_last) * 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(v)
    torch.testing.assert_close(compiled, function(v))
    assert compiled.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("fan_in", [7, SMALL], ids=["small", "large"])
def test_a_trace_has_the_map_and_its_gradient(fan_in):
    traced = torch.jit.trace(lambda v: zero_sum_weight(v, (3, fan_in)), coordinates((3, fan_in)))
    v = coordinates((3, fan_in))
    factor = torch.rand(3, fan_in, dtype=v.dtype)
    torch.testing.assert_close(traced(v), zero_sum_weight(v, (3, fan_in)))
    gradients = [
        torch.autograd.grad((weight * factor).sum(), v) for weight in (traced(v), zero_sum_weight(v, (3, fan_in)))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("fan_in", [300, 4608, 2**17])
def test_the_first_entry_is_as_exact_as_the_others(fan_in):
    v = torch.ones(1, fan_in - 1)  # whose sum is large beside each entry
    exact = embed_zero_sum(v.double())
    assert ((zero_sum_weight(v, (1, fan_in)) - exact) / exact)[0, 0].abs() < 2 * torch.finfo(torch.float32).eps
    s = v.sum()
    cancelled = s + s * torch.tensor(-1 - fan_in**-0.5)  # the same number, where digits are lost
    assert abs(cancelled / exact[0, 0] - 1) > 2 * torch.finfo(torch.float32).eps


KERNELS = {
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), torch.channels_last),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), torch.channels_last),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), torch.channels_last_3d),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), torch.channels_last),
}


@pytest.mark.parametrize(("make", "memory_format"), KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("first", ["constrain", "format"])
def test_a_kernel_has_the_memory_format_of_its_network(make, memory_format, first):
    layer = make()
    if first == "format":
        layer.to(memory_format=memory_format)
    linearly_constrained(layer)
    before = layer.weight.detach().clone(memory_format=torch.contiguous_format)
    layer.to(memory_format=memory_format).double().float()
    assert layer.weight.is_contiguous(memory_format=memory_format)
    assert not layer.weight.is_contiguous()
    assert torch.equal(layer.weight, before)
    layer.weight.square().sum().backward()
    assert layer.parametrizations.weight.original.grad.is_contiguous()
    layer.to(memory_format=torch.contiguous_format)
    assert layer.weight.is_contiguous()


def test_the_largest_temporary_is_the_weight_itself():
    v = torch.randn(512, 1151)
    allocated = []

    class Allocations(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **kwargs or {})
            if isinstance(output, torch.Tensor):
                allocated.append((output.untyped_storage().data_ptr(), output.untyped_storage().nbytes()))
            return output

    with Allocations():
        zero_sum_weight(v, (512, 1152))
    large = {pointer for pointer, size in allocated if size > v.nbytes // 2 and pointer != v.data_ptr()}
    assert len(large) == 1
