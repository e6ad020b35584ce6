import copy
import math
import pickle
import random
from importlib.util import find_spec
from statistics import NormalDist

import pytest
import torch
from torch import nn

from lcw_lightning import MLP, ClippedShiftedReLU, ClippedSoftThreshold, ShiftedReLU, SoftThreshold
from lcw_lightning.checkpoints.export import export
from lcw_lightning.theory.thresholded import Thresholded

TAU, MAX = 1.25, 0.75  # exact in every dtype
ACTIVATIONS = {
    "ShiftedReLU": lambda: ShiftedReLU(TAU),
    "SoftThreshold": lambda: SoftThreshold(TAU),
    "ClippedShiftedReLU": lambda: ClippedShiftedReLU(TAU, MAX),
    "ClippedSoftThreshold": lambda: ClippedSoftThreshold(TAU, MAX),
}
CLASSES = [ShiftedReLU, SoftThreshold, ClippedShiftedReLU, ClippedSoftThreshold]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

make = pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)
cls = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def definition(activation, x):
    """The paper's formula, in Python's own floats: value and slope."""
    kept = abs(x) if activation.odd else x
    value = min(max(kept - activation.tau, 0.0), activation.max)
    slope = 1.0 if 0 < value < activation.max else 0.0
    return (-value if activation.odd and x < 0 else value), slope


def grid(dtype=torch.float32):
    """Every multiple of 1/32 in [-4, 4]: all exact, kinks included; with tau and max so is all that comes out."""
    return torch.arange(-128, 129, dtype=torch.float64).div(32).to(dtype)


def value_and_slope(activation, x):
    x = x.clone().requires_grad_()
    value = activation(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


@make
@dtype
def test_value_and_slope_are_those_of_the_definition_with_slope_0_at_the_kinks(make, dtype):
    activation, x = make(), grid(dtype)
    value, slope = value_and_slope(activation, x)
    expected = [definition(activation, number) for number in x.tolist()]
    assert value.dtype == dtype
    assert value.tolist() == [value for value, _ in expected]
    assert slope.tolist() == [slope for _, slope in expected]
    assert {0.0, 1.0} == set(slope.tolist())


@make
@dtype
@pytest.mark.parametrize("tau", [1.0364333894937896, 0.5244005127080407], ids=str)
def test_zeros_and_saturation_are_exact_where_tau_and_max_must_be_rounded(make, dtype, tau):
    activation = make()
    activation.tau = tau
    if activation.clipped:
        activation.max = 1.1704
    # Beside the kinks lie numbers whose distance to them is of the size of tau's rounding; they may fall either way.
    x = torch.randn(20_000, dtype=torch.float64).to(dtype)
    value, slope = value_and_slope(activation, x)
    exact = x.double().abs() if activation.odd else x.double()
    margin = 2 * torch.finfo(dtype).eps * 3
    dead, saturated = exact < tau - margin, exact > tau + activation.max + margin
    assert dead.any()
    assert not value[dead].any()
    assert not slope[dead].any()
    assert (value[saturated].abs() == torch.tensor(activation.max, dtype=dtype)).all()
    assert not slope[saturated].any()
    linear = (exact > tau + margin) & (exact < tau + activation.max - margin)
    assert linear.any()
    assert (slope[linear] == 1).all()
    assert value[linear].all()


@make
def test_no_value_of_the_dead_zone_is_non_zero_in_half_precision(make):
    activation = make()
    for dtype in (torch.bfloat16, torch.float16):
        for _ in range(20):
            activation.tau = random.uniform(0.1, 3)
            edge = torch.tensor(activation.tau, dtype=dtype)
            lower = [edge]
            while len(lower) < 20:
                lower.append(torch.nextafter(lower[-1], torch.zeros((), dtype=dtype)))
            inside = torch.stack([x for x in lower if x.item() <= activation.tau])
            assert not activation(inside).any()
            assert not activation(-inside).any()


def test_clamping_before_the_shift_would_leave_what_is_no_zero():
    tau = 1.0364333894937896  # as where a kernel computes in more digits than it stores
    x = torch.linspace(-1, 1, 5, dtype=torch.bfloat16)
    assert (x.clamp(min=tau).double() - tau).all()
    assert not ShiftedReLU(tau)(x).any()


@make
def test_nan_stays_nan_and_infinity_saturates(make):
    activation = make()
    for length in (1, 64):  # one number at a time, and vectorized
        x = torch.tensor([math.nan, math.inf, -math.inf]).repeat(length)
        nan, positive, negative = activation(x)[-3:].tolist()
        assert math.isnan(nan)
        assert positive == activation.max
        assert negative == (-activation.max if activation.odd else 0)


@make
@dtype
def test_empty_tensors_pass(make, dtype):
    x = torch.empty(0, 3, dtype=dtype, requires_grad=True)
    value = make()(x)
    value.sum().backward()
    assert value.shape == x.grad.shape == (0, 3)


@make
def test_the_input_stays_as_it_is(make):
    x = grid()
    make()(x)
    assert torch.equal(x, grid())


@make
def test_gradients_are_right_up_to_the_second_order(make):
    x = torch.randn(50, dtype=torch.float64).mul(2).requires_grad_()
    activation = make()
    assert torch.autograd.gradcheck(activation, x)
    assert torch.autograd.gradgradcheck(lambda x: activation(x.square()), x)
    assert not torch.autograd.gradcheck(
        lambda x: activation(x) + (activation(x).detach() - 1) * x, x, raise_exception=False
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch's own use of it in jvp
@make
def test_torch_func_gives_the_same(make):
    activation, x = make(), grid()
    value, slope = value_and_slope(activation, x)
    assert torch.equal(torch.func.vmap(activation)(x), value)
    assert torch.equal(torch.func.vmap(torch.func.grad(activation))(x), slope)
    primal, tangent = torch.func.jvp(activation, (x,), (torch.full_like(x, 3.0),))
    assert torch.equal(primal, value)
    assert torch.equal(tangent, 3 * slope)


@make
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_activation_gives_the_same(make, backend):
    torch.compiler.reset()
    activation = make()
    compiled = torch.compile(activation, fullgraph=True, backend=backend)
    expected = value_and_slope(activation, grid())
    for one, other in zip(value_and_slope(compiled, grid()), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("make", "kept"),
    [(ACTIVATIONS["ShiftedReLU"], "output"), (ACTIVATIONS["SoftThreshold"], "input")],
    ids=["ShiftedReLU", "SoftThreshold"],
)
def test_only_the_input_or_the_output_is_kept_for_the_gradient(make, kept):
    storages = []

    def pack(tensor):
        storages.append(tensor.untyped_storage().data_ptr())
        return tensor

    x = torch.randn(100, requires_grad=True)
    activation = make()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = activation(x)
    pointers = {"input": x.untyped_storage().data_ptr(), "output": value.untyped_storage().data_ptr()}
    assert storages == [pointers[kept]]


@make
def test_copies_and_pickles_are_the_same_and_hold_no_state(make):
    activation = make()
    assert not activation.state_dict()
    for other in (copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))):
        assert repr(other) == repr(activation)
        assert other.thresholded == activation.thresholded
        assert torch.equal(other(grid()), activation(grid()))


def test_a_printed_activation_shows_tau_and_max():
    assert repr(ShiftedReLU(1.0364333894937896)) == "ShiftedReLU(tau=1.03643)"
    assert repr(ClippedSoftThreshold(0.5, 1)) == "ClippedSoftThreshold(tau=0.5, max=1)"


@make
def test_the_theory_gets_tau_max_and_parity(make):
    activation = make()
    assert activation.thresholded == Thresholded(TAU, activation.max, type(activation).odd)
    assert (activation.max == math.inf) is not type(activation).clipped


@cls
@pytest.mark.parametrize(("sparsity", "q"), [(0.6, 1.0), (0.85, 4.0)])
def test_the_sparsity_that_is_asked_for_comes_out_at_variance_q(cls, sparsity, q):
    activation = cls(sparsity=sparsity, q=q)
    quantile = NormalDist().inv_cdf((1 + sparsity) / 2 if cls.odd else sparsity)
    assert activation.tau == pytest.approx(quantile * math.sqrt(q), rel=1e-9)
    zeros = (activation(torch.randn(100_000) * math.sqrt(q)) == 0).double().mean().item()
    assert zeros == pytest.approx(sparsity, abs=5 * math.sqrt(sparsity * (1 - sparsity) / 100_000))


@pytest.mark.parametrize(
    ("cls", "arguments", "expected"),
    [
        # The paper's Table 2: clip by activation, sparsity and slope.
        pytest.param(ClippedShiftedReLU, {"sparsity": 0.85, "slope": 0.5}, 0.81, id="crelu"),
        pytest.param(ClippedShiftedReLU, {"sparsity": 0.85}, 1.17, id="crelu-default-slope"),
        pytest.param(ClippedSoftThreshold, {"sparsity": 0.5, "slope": 0.9}, 1.96, id="cst"),
        pytest.param(ClippedShiftedReLU, {"sparsity": 0.85, "q": 4.0}, 2.3407, id="q"),
    ],
)
def test_the_max_is_the_papers(cls, arguments, expected):
    assert cls(**arguments).max == pytest.approx(expected, abs=0.0051)


def test_under_lcw_a_larger_max_has_the_same_slope():
    plain, lcw = (ClippedShiftedReLU(sparsity=0.85, zero_sum=flag) for flag in (False, True))
    assert lcw.tau == plain.tau
    assert lcw.max > plain.max
    odd = [ClippedSoftThreshold(sparsity=0.85, zero_sum=flag).max for flag in (False, True)]
    assert odd[0] == pytest.approx(odd[1])


def test_a_shifted_relu_may_start_below_zero():
    assert ShiftedReLU(-0.5)(torch.tensor([-1.0, -0.25, 1.0])).tolist() == [0.0, 0.25, 1.5]
    assert ClippedShiftedReLU(-0.5, 1)(torch.tensor([-1.0, -0.25, 1.0])).tolist() == [0.0, 0.25, 1.0]
    assert ShiftedReLU(sparsity=0.4).tau == pytest.approx(NormalDist().inv_cdf(0.4))


MISTAKES = {
    "nothing": (ShiftedReLU, {}, "ShiftedReLU needs either tau or sparsity, got tau=None, sparsity=None"),
    "both": (
        SoftThreshold,
        {"tau": 1.0, "sparsity": 0.5},
        "SoftThreshold needs either tau or sparsity, got tau=1.0, sparsity=0.5",
    ),
    "no-max": (
        ClippedShiftedReLU,
        {"tau": 1.0},
        "ClippedShiftedReLU needs either tau and max or sparsity, got tau=1.0, max=None",
    ),
    "no-tau": (
        ClippedSoftThreshold,
        {"max": 1.0},
        "ClippedSoftThreshold needs either tau and max or sparsity, got tau=None, max=1.0",
    ),
    "mixture": (ClippedShiftedReLU, {"max": 1.0, "sparsity": 0.5}, "got tau=None, max=1.0, sparsity=0.5"),
    "negative-tau": (SoftThreshold, {"tau": -1.0}, "SoftThreshold needs a finite tau of at least 0, got -1.0"),
    "negative-tau-clipped": (ClippedSoftThreshold, {"tau": -1.0, "max": 1.0}, "tau of at least 0, got -1.0"),
    "nan-tau": (ShiftedReLU, {"tau": math.nan}, "ShiftedReLU needs a finite tau, got nan"),
    "max-0": (ClippedShiftedReLU, {"tau": 1.0, "max": 0.0}, "ClippedShiftedReLU needs a max above 0, got 0.0"),
    "nan-max": (ClippedSoftThreshold, {"tau": 1.0, "max": math.nan}, "needs a max above 0, got nan"),
    "sparsity-1": (ShiftedReLU, {"sparsity": 1.0}, "sparsity"),
    "slope-1": (ClippedShiftedReLU, {"sparsity": 0.85, "slope": 1.0}, "slope"),
    "q-0": (ClippedShiftedReLU, {"sparsity": 0.85, "q": 0.0}, "variance|q"),
}


@pytest.mark.parametrize(("cls", "arguments", "says"), MISTAKES.values(), ids=MISTAKES)
def test_impossible_arguments_are_refused(cls, arguments, says):
    with pytest.raises(ValueError, match=says):
        cls(**arguments)


@make
@pytest.mark.parametrize(
    "suffix",
    [
        "pt2",
        pytest.param(
            "onnx",
            marks=pytest.mark.skipif(
                any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")), reason="needs onnx"
            ),
        ),
    ],
)
def test_a_network_with_it_is_exported(make, suffix, tmp_path):
    network = MLP(in_features=16, num_classes=10, depth=2, width=64, activation=make)
    for linear in (network.hidden[0].linear, network.hidden[1].linear):
        nn.init.normal_(linear.weight)
    path = export(network, tmp_path / f"model.{suffix}", torch.randn(1, 16))  # which compares the outputs
    assert path.exists()
