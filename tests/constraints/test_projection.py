import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.optimizer import _global_optimizer_post_hooks

from lcw_lightning import (
    centered_weight_norm,
    constrain,
    edge_of_chaos_init_,
    fold,
    linearly_constrained,
    minibatch_init_,
)
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.constraints.fold import remove_constraints_
from lcw_lightning.weights.weight_ref import named_weights

LAYERS = {
    "linear": lambda: (nn.Linear(6, 4), "weight"),
    "bilinear": lambda: (nn.Bilinear(3, 4, 2), "weight"),
    "conv1d": lambda: (nn.Conv1d(6, 4, 3), "weight"),
    "grouped": lambda: (nn.Conv2d(6, 4, 3, groups=2), "weight"),
    "channels-last": lambda: (nn.Conv2d(6, 4, 3).to(memory_format=torch.channels_last), "weight"),
    "depthwise": lambda: (nn.Conv2d(4, 4, 3, groups=4), "weight"),
    "transposed": lambda: (nn.ConvTranspose2d(6, 4, (3, 2)), "weight"),
    "transposed-grouped": lambda: (nn.ConvTranspose2d(6, 4, 3, groups=2), "weight"),
    "transposed-channels-last": lambda: (nn.ConvTranspose2d(6, 4, 3).to(memory_format=torch.channels_last), "weight"),
    "lstm": lambda: (nn.LSTM(5, 3), "weight_hh_l0"),
    "gru-cell": lambda: (nn.GRUCell(5, 3), "weight_ih"),
    "attention": lambda: (nn.MultiheadAttention(4, 2), "in_proj_weight"),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def unit_indices(layer, weight):
    """Where the numbers of each unit lie in the flat weight, picked from the documented layout of torch's weights."""
    places = torch.arange(weight.numel()).view(weight.shape)
    if "Transpose" not in type(layer).__name__:
        return places.flatten(1)
    ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    rows = [places[group * ins : (group + 1) * ins, out] for group in range(layer.groups) for out in range(outs)]
    return torch.stack([row.flatten() for row in rows])


def gradient_hooks(model):
    return [len(parameter._post_accumulate_grad_hooks or ()) for parameter in model.parameters()]


def network():
    torch.manual_seed(1)
    convolutions = [nn.Conv2d(2, 4, 3), nn.Tanh(), nn.ConvTranspose2d(4, 4, 3, groups=2), nn.Tanh()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(100, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def train(model, make_optimizer, steps=8, batches=1, before_step=lambda model: None):
    generator, optimizer = torch.Generator().manual_seed(2), make_optimizer(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(batches):
            inputs = 1 + torch.randn(16, 2, 5, 5, generator=generator, dtype=torch.float64)
            labels = torch.randint(3, (16,), generator=generator)
            nn.functional.cross_entropy(model(inputs), labels).backward()
        before_step(model)
        optimizer.step()
    return torch.cat([ref.value.detach().flatten() for ref in named_weights(model).values()])


def sgd(**kwargs):
    return lambda parameters: torch.optim.SGD(parameters, lr=0.3, **kwargs)


def projected():
    model = network()
    constrain(model, method="project")
    return model


def parametrized():
    model = network()
    constrain(model)
    return model


@layers
@pytest.mark.parametrize("hold", [True, False], ids=["held", "plain"])
def test_sgd_takes_the_path_of_coordinates_in_a_dense_basis(make, hold):
    layer, name = make()
    weight = getattr(layer.double(), name)
    units = unit_indices(layer, weight)
    fan_in = units.shape[1]
    basis = torch.linalg.qr(torch.eye(fan_in, dtype=torch.float64)[:, 1:] - 1 / fan_in).Q
    coordinates = (weight.detach().flatten()[units] @ basis).requires_grad_()
    strides = weight.stride()
    if hold:
        assert name in constrain(layer, include=[name], method="project")
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizers = [torch.optim.SGD([tensor], **settings) for tensor in (weight, coordinates)]
    for _ in range(5):
        curvature, target = torch.rand_like(weight), torch.rand_like(weight)
        for optimizer, rows in zip(optimizers, (weight.flatten()[units], coordinates @ basis.T), strict=True):
            optimizer.zero_grad()
            (curvature.flatten()[units] * (rows - target.flatten()[units]).square()).sum().backward()
            optimizer.step()
    path, expected = weight.detach().flatten()[units], (coordinates @ basis.T).detach()
    if hold:
        torch.testing.assert_close(path, expected, rtol=0, atol=1e-12)
        assert path.sum(1).abs().max() < 1e-14
        assert getattr(layer, name) is weight
        assert weight.stride() == strides
    else:
        assert (path - expected).abs().max() > 0.1


def clip_norm(model):
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)


SAME_PATH = {
    "momentum": {"make_optimizer": sgd(momentum=0.9, weight_decay=0.01)},
    "nesterov": {"make_optimizer": sgd(momentum=0.9, nesterov=True)},
    "dampening": {"make_optimizer": sgd(momentum=0.9, dampening=0.5, maximize=True)},
    "clipping": {"make_optimizer": sgd(momentum=0.9), "before_step": clip_norm},
    "accumulation": {"make_optimizer": sgd(momentum=0.9), "batches": 3, "before_step": clip_norm},
}


@pytest.mark.parametrize("settings", SAME_PATH.values(), ids=SAME_PATH)
def test_networks_under_sgd_take_the_path_of_parametrized_ones(residual, settings):
    model = projected()
    path = train(model, **settings)
    torch.testing.assert_close(path, train(parametrized(), **settings), rtol=0, atol=1e-12)
    assert residual(model) < 1e-14
    assert (path - train(network(), **settings)).abs().max() > 1e-3


def test_clipping_sees_the_norm_of_the_centred_gradient():
    norms = []
    for model in (projected(), parametrized(), network()):
        train(model, sgd(), steps=1)
        norms.append(nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()]).item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    assert norms[2] > 1.01 * norms[0]


def test_a_quasi_newton_method_with_its_closure_stays_zero_sum(residual):
    model, data = projected(), torch.randn(16, 2, 5, 5, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    losses = []

    def closure():
        optimizer.zero_grad()
        losses.append(model(data).square().sum())
        losses[-1].backward()
        return losses[-1]

    optimizer.step(closure)
    assert residual(model) < 1e-14
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "leave",
    [
        {"make_optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.03)},
        {"make_optimizer": sgd(), "before_step": lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-3)},
    ],
    ids=["adam", "clip-by-value"],
)
def test_what_leaves_the_subspace_is_put_back_and_is_another_algorithm(residual, leave):
    model = projected()
    path = train(model, **leave)
    assert residual(model) < 1e-14
    assert (path - train(parametrized(), **leave)).abs().max() > 1e-3
    unheld = parametrized()
    remove_constraints_(unheld)
    train(unheld, **leave)
    assert residual(unheld) > 1e-2


def test_adam_is_projected_adam():
    paths = []
    for held in (True, False):
        model = parametrized()
        remove_constraints_(model)
        if held:
            constrain(model, method="project")
        refs = list(named_weights(model).values())

        @torch.no_grad()
        def centre(tensors, refs=refs):
            for ref, tensor in zip(refs, tensors, strict=True):
                rows = tensor.flatten()[places := unit_indices(ref.layer, tensor)]
                tensor.view(-1)[places] = rows - rows.mean(1, keepdim=True)

        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        generator = torch.Generator().manual_seed(2)
        for _ in range(5):
            optimizer.zero_grad()
            inputs = torch.randn(16, 2, 5, 5, generator=generator, dtype=torch.float64)
            model(inputs).square().sum().backward()
            if not held:
                centre([ref.value.grad for ref in refs])
            optimizer.step()
            if not held:
                centre([ref.value for ref in refs])
        paths.append(torch.cat([ref.value.detach().flatten() for ref in refs]))
    torch.testing.assert_close(paths[0], paths[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("held", [True, False], ids=["held", "let go"])
def test_half_precision_does_not_drift(residual, held):
    layer = nn.Linear(256, 8, bias=False).bfloat16()
    constrain(layer, method="project")
    if not held:
        remove_constraints_(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        layer(1 + torch.randn(16, 256).bfloat16()).square().mean().backward()
        optimizer.step()
    assert (residual(layer) < 0.02) == held


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_other_tensors_keep_their_gradients_and_a_second_derivative_sees_the_centring():
    layer = nn.Linear(5, 3, bias=False).double()
    constrain(layer, method="project")
    shared, factor = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True), torch.rand(3, 5, dtype=torch.float64)
    ((layer.weight + shared) * factor).sum().backward()
    assert torch.equal(shared.grad, factor)
    torch.testing.assert_close(layer.weight.grad, factor - factor.mean(1, keepdim=True))

    layer.weight.grad, plain = None, layer.weight.detach().clone().requires_grad_()
    (layer.weight**3).sum().backward(create_graph=True)
    (second,) = torch.autograd.grad(layer.weight.grad.square().sum(), layer.weight)
    gradient = 3 * plain**2
    (expected,) = torch.autograd.grad((gradient - gradient.mean(1, keepdim=True)).square().sum(), plain)
    torch.testing.assert_close(second, expected)


def test_the_state_dict_is_the_plain_one_and_a_plain_one_is_projected(residual):
    model, plain = projected(), network()
    assert list(model.state_dict()) == list(plain.state_dict())
    for assign in (False, True):
        model.load_state_dict({key: value.clone() for key, value in plain.state_dict().items()}, assign=assign)
        assert residual(model) < 1e-14 < residual(plain)
        assert max(gradient_hooks(model)) == 1
    train(model, torch.optim.Adam)
    assert residual(model) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_its_own_state_dict_comes_back_bit_for_bit(dtype):
    layer = nn.Linear(300, 200, dtype=dtype)
    constrain(layer, method="project")
    optimizer = torch.optim.Adam(layer.parameters(), eps=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(1, 300, dtype=dtype)).sum().backward()
        optimizer.step()
    saved = copy.deepcopy(layer.state_dict())
    layer.load_state_dict(saved)
    constrain(layer, method="project")
    assert torch.equal(layer.weight, saved["weight"])


def pickled(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_copies_stay_constrained_by_themselves(residual, copied):
    model = projected()
    model[0].requires_grad_(False)
    twin = copied(model)
    assert constrained_weights(twin) == constrained_weights(model)
    assert gradient_hooks(twin) == gradient_hooks(model)
    before = copy.deepcopy(model.state_dict())
    train(twin, lambda parameters: torch.optim.Adam(parameters, lr=0.1))
    assert residual(twin) < 1e-14
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    twin.load_state_dict(network().state_dict())
    assert residual(twin) < 1e-14


@pytest.mark.parametrize("plain", [fold, lambda model: remove_constraints_(model) or model], ids=["fold", "remove"])
def test_folded_and_released_networks_are_plain(residual, plain):
    model = projected()
    state = copy.deepcopy(model.state_dict())
    free = plain(model)
    assert constrained_weights(free) == {}
    assert all(torch.equal(value, free.state_dict()[key]) for key, value in state.items())
    assert not any(gradient_hooks(free))
    assert not any(module._load_state_dict_post_hooks for module in free.modules())
    train(free, sgd())
    assert residual(free) > 1e-2


def test_a_frozen_weight_is_projected_once_and_constrained_again_when_it_thaws(residual):
    model = network()
    constrain(model, method="project")
    model[0].requires_grad_(False)
    assert not model[0].weight.requires_grad
    before = model[0].weight.clone()
    adam = {"make_optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.1)}
    train(model, **adam)
    assert torch.equal(model[0].weight, before)
    model.requires_grad_(False).requires_grad_(True)
    train(model, **adam)
    assert not torch.equal(model[0].weight, before)
    assert residual(model) < 1e-14


def test_another_parameter_in_its_place_is_plain_until_it_is_held_again(residual):
    model, drawn = projected(), network().state_dict()
    model[7].weight = nn.Parameter(drawn["7.weight"].clone())
    assert "7.weight" not in constrained_weights(model)
    free = fold(model)
    free.load_state_dict(drawn)
    assert constrained_weights(free) == {}
    again, loaded = copy.deepcopy(model), copy.deepcopy(model)
    constrain(again, method="project")
    loaded.load_state_dict(drawn)
    for held in (again, copy.deepcopy(again), loaded):
        assert list(constrained_weights(held)) == list(named_weights(held))
        train(held, torch.optim.Adam)
        assert residual(held) < 1e-14


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_another_parameter_in_its_place_is_plain_in_copies_too(copied):
    model = projected()
    model[7].weight = nn.Parameter(network().state_dict()["7.weight"])
    twin = copied(model)
    assert set(constrained_weights(twin)) == set(named_weights(twin)) - {"7.weight"}
    assert gradient_hooks(twin) == gradient_hooks(model)


def test_a_weight_that_is_gone_says_nothing_of_another_in_its_memory():
    for _ in range(50):
        layer = nn.Linear(5, 3)
        assert constrained_weights(layer) == {}
        constrain(layer, method="project")
        assert constrained_weights(layer) == {"weight": "lcw"}


def test_every_optimizer_gets_one_hook_for_all_projected_weights():
    projected()
    hooks = len(_global_optimizer_post_hooks)
    train(projected(), torch.optim.Adam, steps=1)
    assert len(_global_optimizer_post_hooks) == hooks >= 1


def test_a_weight_that_something_else_computes_by_now_is_left_to_it():
    model = projected()
    prune.l1_unstructured(model[7], "weight", amount=0.5)
    assert "7.weight" not in constrained_weights(model)
    with pytest.warns(
        UserWarning, match=r"Linear.weight zero-sum, but something else, such as pruning.*computes it.*fold"
    ):
        drawn = {key: torch.rand_like(value) for key, value in model.state_dict().items()}
    model.load_state_dict(copy.deepcopy(drawn))
    assert torch.equal(model[7].weight_orig, drawn["7.weight_orig"])
    assert not torch.equal(model[5].weight, drawn["5.weight"])


def draw_again(model):
    for layer in model.modules():
        if weights := [p for name, p in layer.named_parameters(recurse=False) if "weight" in name]:
            nn.init.uniform_(weights[0], 0.5, 1.0)


def averages_outside(model):
    """Write what schedule-free optimizers evaluate: an interpolation with a copy that is no longer zero-sum."""
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.lerp_(parameter + 0.5, 0.3)


def averages_by_data(model):
    for parameter in model.parameters():
        parameter.data.lerp_(parameter.data + 0.5, 0.3)


WRITES = {"drawn again": draw_again, "lerp_": averages_outside, "by .data, and another mode": averages_by_data}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("use", ["evaluated", "saved", "constrained again", "rescaled", "copied and evaluated"])
def test_a_weight_that_was_written_to_is_zero_sum_when_it_is_used(residual, write, use):
    model, inputs = projected(), torch.rand(4, 2, 5, 5, dtype=torch.float64)
    model(inputs)
    write(model)
    assert residual(model) > 0.1
    used = copy.deepcopy(model) if "copied" in use else model
    if use == "constrained again":
        constrain(model, method="project")
    elif use == "rescaled":
        minibatch_init_(model, inputs)
    else:
        with pytest.warns(UserWarning, match=r"something wrote values to it that do not sum to zero.*centred now"):
            used.state_dict() if use == "saved" else used.eval()(inputs)
    assert residual(used) < 1e-14


def test_control_a_released_network_keeps_what_is_written(residual):
    model = projected()
    remove_constraints_(model)
    draw_again(model)
    model(torch.rand(4, 2, 5, 5, dtype=torch.float64))
    assert residual(model) > 0.1


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_forward_pass_writes_to_no_weight_that_is_zero_sum(mode):
    model = getattr(projected(), mode)()
    model(torch.rand(4, 2, 5, 5, dtype=torch.float64))
    before = [(parameter._version, parameter.clone()) for parameter in model.parameters()]
    for _ in range(2):
        model(torch.rand(4, 2, 5, 5, dtype=torch.float64))
    for parameter, (version, value) in zip(model.parameters(), before, strict=True):
        assert parameter._version == version
        assert torch.equal(parameter, value)


def test_a_step_of_rate_zero_changes_no_bit():
    model = projected()
    train(model, torch.optim.Adam)
    before = copy.deepcopy(model.state_dict())
    train(model, lambda parameters: torch.optim.Adam(parameters, lr=0.0), steps=1)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_second_call_changes_nothing():
    model = projected()
    train(model, sgd())
    before, hooks = copy.deepcopy(model.state_dict()), gradient_hooks(model)
    assert constrain(model, method="project") == list(constrained_weights(model)) == list(named_weights(model))
    assert gradient_hooks(model) == hooks
    assert max(hooks) == 1
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_somebody_elses_hooks_stay():
    model, calls = projected(), []
    model[0].weight.register_post_accumulate_grad_hook(calls.append)
    remove_constraints_(model)
    train(model, sgd(), steps=1)
    assert len(calls) == 1


MISTAKES = {
    "kind": (lambda model: constrain(model, "cwn", method="project"), "holds kind='lcw' alone, got 'cwn'"),
    "method": (lambda model: constrain(model, method="penalize"), "method is one of 'parametrize', 'project'; got"),
    "parametrized": (
        lambda model: constrain(linearly_constrained(model[5]), method="project"),
        "are under lcw already",
    ),
    "projected": (
        lambda model: constrain(model, method="project") and constrain(model),
        r"lcw by parametrize: '0\.weight', .* are under lcw already; take a fresh module or fold",
    ),
    "linearly_constrained": (
        lambda model: constrain(model, method="project") and linearly_constrained(model[5]),
        r"Linear\.weight of shape .* cannot be constrained: held by method='project' already",
    ),
    "centered_weight_norm": (
        lambda model: constrain(model, method="project") and centered_weight_norm(model[5]),
        r"Linear\.weight of shape .* cannot be constrained: held by method='project' already",
    ),
    "tied": (
        lambda model: constrain(nn.ModuleList([model, tied(model)]), include=["1.*"], method="project"),
        r"'1\.weight' \(tied to '0\.7\.weight'\)",
    ),
}


def tied(model):
    layer = nn.Linear(6, 3)
    layer.weight = model[7].weight
    return layer


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake(network())


def test_kind_none_takes_any_method():
    assert constrain(model := network(), "none", method="project") == []
    assert constrained_weights(model) == {}


def test_initializations_keep_the_constraint(residual):
    model = nn.Sequential(*(module for _ in range(3) for module in (nn.Linear(64, 64), nn.Tanh())))
    constrain(model, method="project")
    inputs = torch.rand(32, 64)
    edge_of_chaos_init_(model, inputs, q=0.5)
    assert residual(model) < 1e-5
    minibatch_init_(model, inputs)
    assert residual(model) < 1e-5
    assert model[:1](inputs).std().item() == pytest.approx(1, rel=0.01)


@pytest.mark.filterwarnings("ignore:.*record_function")
def test_a_compiled_step_of_the_optimizer_stays_zero_sum(residual):
    model = projected()

    def compiled_adam(parameters):
        adam = torch.optim.Adam(parameters, lr=0.03)
        adam.step = torch.compile(adam.step, backend="eager")
        return adam

    path = train(model, compiled_adam)
    assert residual(model) < 1e-14
    expected = train(projected(), lambda parameters: torch.optim.Adam(parameters, lr=0.03))
    torch.testing.assert_close(path, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_takes_the_same_path(residual, backend):
    path = train(projected(), sgd(momentum=0.9))
    model = projected()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(train(compiled, sgd(momentum=0.9)), path, rtol=0, atol=1e-12)
    assert residual(model) < 1e-14


def test_the_output_projection_of_attention_is_put_back_too(residual):
    attention, tokens = nn.MultiheadAttention(8, 2), torch.rand(3, 2, 8)
    constrain(attention, method="project")
    with torch.no_grad():
        attention.out_proj.weight.normal_()
    with pytest.warns(UserWarning, match="Linear.weight zero-sum, but something wrote"):
        attention(tokens, tokens, tokens)
    assert residual(attention) < 1e-6


def test_a_folded_network_has_the_outputs_of_one_that_was_written_to(residual):
    model, inputs = projected().eval(), torch.rand(4, 2, 5, 5, dtype=torch.float64)
    draw_again(model)
    plain = fold(model)
    with pytest.warns(UserWarning, match="centred now"):
        torch.testing.assert_close(plain(inputs), model(inputs))
    assert residual(plain) < 1e-14


def test_another_parametrization_on_top_is_said_and_the_weight_released():
    class Absolute(nn.Module):
        def forward(self, weight):
            return weight.abs()

    model = nn.Sequential(nn.Linear(4, 3))
    constrain(model, method="project")
    nn.utils.parametrize.register_parametrization(model[0], "weight", Absolute())
    with pytest.warns(UserWarning, match=r"such as pruning or a parametrization, computes it now.*fold"):
        model(torch.rand(2, 4))
    assert gradient_hooks(model) == [0, 0]


def test_rounding_of_a_few_products_is_not_written_into_a_weight_that_a_graph_holds():
    layer, inputs = nn.Linear(3, 2000), torch.rand(4, 3)
    constrain(layer, method="project")
    layer(inputs)

    @torch.no_grad()
    def rescale(*_):  # in the call itself, as minibatch initialization does
        handle.remove()
        for factor in (1.1, 0.7, 1.3, 0.9):
            layer.weight.mul_(factor)

    handle = layer.register_forward_pre_hook(rescale)
    first = layer(inputs)
    second = layer(inputs)
    assert torch.equal(first, second)
    (first + second).sum().backward()
