"""ModelPruning beside ConstraintCallback: they share no weight, which one sentence says."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.nn.utils import prune

from lcw_lightning import ConstraintCallback, constrain, fold
from lcw_lightning.constraints.constrain import constrained_weights

ORDERS = pytest.mark.parametrize("step", [1, -1], ids=["constraint-first", "pruning-first"])
METHODS = pytest.mark.parametrize("method", ["parametrize", "project"])


def pruning(*parameters):
    return ModelPruning(
        "l1_unstructured", amount=0.5, parameters_to_prune=list(parameters), use_global_unstructured=False
    )


def zeros(layer):
    return (layer.weight == 0).sum().item()


@METHODS
@ORDERS
@pytest.mark.parametrize("named", [True, False], ids=["named", "all"])
def test_pruning_of_constrained_weights_is_refused_and_the_module_kept(
    named, step, method, make_project, make_trainer, loader
):
    project = make_project()
    callbacks = [ConstraintCallback(method=method), pruning(*[(project.head, "weight")] * named)]
    with pytest.raises(ValueError, match=r"ModelPruning and ConstraintCallback take the same.*prune fold\(module\)"):
        make_trainer(*callbacks[::step]).fit(project, loader)
    assert constrained_weights(project) == {}


@METHODS
@ORDERS
def test_other_weights_are_pruned(step, method, make_project, make_trainer, loader):
    project = make_project()
    callbacks = [ConstraintCallback(method=method, exclude=["head.*"]), pruning((project.head, "weight"))]
    make_trainer(*callbacks[::step]).fit(project, loader)
    assert list(constrained_weights(project)) == ["body.0.weight", "body.2.weight"]
    assert zeros(project.head) >= project.head.weight.numel() // 2


@METHODS
def test_a_folded_network_is_pruned(method):
    network = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    constrain(network, method=method)
    plain = fold(network)
    for layer in (plain[0], plain[2]):
        prune.l1_unstructured(layer, "weight", amount=0.5)
        prune.remove(layer, "weight")
    plain.eval()(torch.rand(3, 6))
    assert (zeros(plain[0]), zeros(plain[2])) == (12, 4)


def test_control_a_projected_network_does_not_keep_the_zeros():
    network = nn.Sequential(nn.Linear(6, 4))
    constrain(network, method="project")
    prune.l1_unstructured(network[0], "weight", amount=0.5)
    prune.remove(network[0], "weight")
    with pytest.warns(UserWarning, match=r"centred now; take fold\(network\) before pruning"):
        network(torch.rand(3, 6))
    assert zeros(network[0]) == 0
