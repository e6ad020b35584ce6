"""A user's subclass of a constraint is of its parent's kind, but may compute another weight."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parametrize

from lcw_lightning import analyze, constrain, edge_of_chaos_init_, fold, load_from_checkpoint, minibatch_init_
from lcw_lightning.checkpoints.record import save_record
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.constraints.fold import remove_constraints_
from lcw_lightning.constraints.kinds import PARAMETRIZATIONS
from lcw_lightning.constraints.normalizations import CenteredWeightNorm, SpectralNorm, WeightNorm
from lcw_lightning.constraints.registration import register_constraint
from lcw_lightning.constraints.zero_sum import ZeroSum


class Warped(ZeroSum):
    """Zero-sum, of coordinates that grow faster than the weight: twice the coordinates are not twice the weight."""

    def forward(self, original):
        return super().forward(original.asinh())

    def right_inverse(self, weight):
        return super().right_inverse(weight).sinh()


class Centred(CenteredWeightNorm):
    pass


class Normed(WeightNorm):
    pass


class Spectral(SpectralNorm):
    pass


KINDS = {Warped: "lcw", Centred: "cwn", Normed: "wn", Spectral: "sn"}
subclasses = pytest.mark.parametrize("subclass", KINDS, ids=KINDS.values())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))


def held(subclass, model=None):
    """Return a network whose first layer is parametrized by the subclass, through torch's own function."""
    model = network() if model is None else model
    parametrize.register_parametrization(model[0], "weight", subclass(model[0].weight.detach()))
    return model


@subclasses
def test_it_is_of_its_parents_kind(subclass):
    model = held(subclass)
    assert constrained_weights(model) == {"0.weight": KINDS[subclass]}
    assert type(model[0].parametrizations.weight[0]) not in PARAMETRIZATIONS.values()


@subclasses
def test_constrain_leaves_it_as_it_is_and_refuses_another_kind(subclass):
    model = held(subclass)
    assert constrain(model, KINDS[subclass]) == ["0.weight", "2.weight"]
    assert type(model[0].parametrizations.weight[0]) is subclass
    other = "wn" if KINDS[subclass] != "wn" else "lcw"
    with pytest.raises(ValueError, match=r"'0\.weight'.* are under .* already; take a fresh module"):
        constrain(held(subclass), other)


@subclasses
@pytest.mark.parametrize("plain", [fold, lambda model: remove_constraints_(model) or model], ids=["fold", "remove"])
def test_it_comes_off_with_the_weight_that_it_computes(subclass, plain):
    model, inputs = held(subclass).eval(), torch.rand(4, 64)
    expected = model(inputs)
    free = plain(model)
    assert constrained_weights(free) == {}
    assert torch.equal(free(inputs), expected)
    assert type(free[0]) is nn.Linear


@pytest.mark.parametrize("subclass", [Warped, Centred, Normed])
def test_minibatch_initialization_scales_the_weight_that_it_computes(subclass):
    model, inputs = held(subclass), torch.rand(32, 64)
    before = model[0].weight.detach().clone()
    minibatch_init_(model, inputs)
    z = nn.functional.linear(inputs, model[0].weight)
    std = z.std(0, correction=0) if model[0].parametrizations.weight[0].has_gains else z.std()
    torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-2, atol=0)
    cosines = nn.functional.cosine_similarity(model[0].weight, before)
    torch.testing.assert_close(cosines, torch.ones(64))


def test_twice_the_coordinates_are_not_twice_its_weight():
    layer = held(Warped)[0]
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(20)
    assert (layer.weight - 20 * before).norm() > 0.1 * before.norm()


def test_minibatch_initialization_leaves_a_fixed_norm_alone():
    model = held(Spectral).eval()
    before = model[0].weight.detach().clone()
    with pytest.warns(UserWarning, match=r"left as they are: '0\.weight' \(under sn its norm is always 1\)"):
        minibatch_init_(model, torch.rand(32, 64))
    assert torch.equal(model[0].weight, before)


def test_edge_of_chaos_initialization_draws_the_weight_that_its_parent_gets():
    weights = []
    for subclass in (Warped, ZeroSum):
        model = held(subclass)
        edge_of_chaos_init_(model, torch.rand(4, 64), q=0.5)
        weights.append(model[0].weight)
    torch.testing.assert_close(*weights)


def test_edge_of_chaos_initialization_refuses_a_fixed_norm():
    with pytest.raises(ValueError, match=r"'0\.weight': under sn its norm is always 1"):
        edge_of_chaos_init_(held(Spectral), torch.rand(4, 64), q=0.5)


@subclasses
def test_the_analysis_knows_whether_it_sums_to_zero_in_half_precision(subclass):
    model = held(subclass, network().bfloat16())
    zero_sum = analyze(model, torch.rand(16, 64, dtype=torch.bfloat16)).condition.zero_sum
    assert ("0" in zero_sum) == (KINDS[subclass] in ("lcw", "cwn"))


class Project(LightningModule):
    """Registers the subclass itself."""

    def __init__(self, subclass=Warped):
        super().__init__()
        self.layers = network()
        if subclass is not None:
            register_constraint(self.layers[0], "weight", subclass)


def saved(module, path):
    checkpoint = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.0"}
    save_record(module, checkpoint)
    torch.save(checkpoint, path)
    return path


@subclasses
def test_its_checkpoint_loads_bit_for_bit_into_a_module_that_registers_it(subclass, tmp_path):
    module = Project(subclass)
    path = saved(module, tmp_path / "run.ckpt")
    loaded = load_from_checkpoint(Project, path, subclass=subclass)
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(ValueError, match="does not fit"):
        load_from_checkpoint(Project, path, subclass=None)


def test_a_checkpoint_of_its_parent_loads_as_the_weights_that_it_holds(tmp_path):
    module = Project(ZeroSum)
    loaded = load_from_checkpoint(Project, saved(module, tmp_path / "run.ckpt"), subclass=Warped)
    weight, coordinates = "weight", "parametrizations.weight.original"
    torch.testing.assert_close(getattr(loaded.layers[0], weight), getattr(module.layers[0], weight))
    assert not torch.allclose(loaded.layers[0].get_parameter(coordinates), module.layers[0].get_parameter(coordinates))
