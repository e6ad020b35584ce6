import pytest
import torch
from torch import nn

from lcw_lightning import plan_constraints
from lcw_lightning.weights.plan import plan_weights


class Block(nn.Module):
    """Matrices of every sort: a layer, an embedding, a norm, a matrix of its own, a vector, position embeddings."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.embedding = nn.Embedding(16, 8)
        self.norm = nn.LayerNorm((4, 4))
        self.matrix = nn.Parameter(torch.randn(4, 8))
        self.vector = nn.Parameter(torch.randn(1, 1, 8))


def test_the_share_counts_numbers_of_matrices_without_embeddings_norms_and_vectors():
    plan = plan_weights(Block(), "lcw")
    assert [row.name for row in plan.rows] == ["linear.weight", "matrix"]
    assert plan.share == 32 / (32 + 32)


def test_a_weight_tied_to_an_embedding_counts_as_the_embeddings():
    block = Block()
    block.head = nn.Linear(8, 16)
    block.head.weight = block.embedding.weight
    plan = plan_weights(block, "lcw")
    assert plan.left_out["head.weight"] == "tied to 'embedding.weight'"
    assert plan.share == 0.5


def test_a_weight_that_two_layers_share_counts_once():
    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    shared[1].weight = shared[0].weight
    assert plan_weights(shared, "lcw").share == 0.5


def test_a_module_in_two_places_is_not_tied():
    layer = nn.Linear(4, 4)
    plan = plan_weights(nn.Sequential(layer, layer), "lcw")
    assert list(plan.weights) == ["0.weight"]
    assert plan.share == 1


def test_what_the_user_excludes_is_shown_but_not_reported_as_left_out():
    plan = plan_weights(Block(), "lcw", exclude=["matrix"])
    assert plan.left_out == {}
    assert "matrix         Block   (4, 8)  excluded" in str(plan)
    assert plan.summary == "lcw: 1 of 2 weights, 50 % of the numbers in the model's matrices"


def test_many_layers_with_the_same_obstacle_are_counted_by_type():
    network = nn.Sequential(*(nn.Linear(4, 4).requires_grad_(index < 1) for index in range(4)), nn.Conv1d(4, 4, 1))
    network[4].requires_grad_(False)
    assert plan_weights(network, "lcw").summary.endswith("left out: 3 Linear, '4.weight' (frozen)")


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_layer_has_no_shape_yet():
    plan = plan_constraints(nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2)))
    assert plan.left_out == {"1.weight": "lazy; run one forward first"}
    assert plan.rows[1].shape == ()


def test_a_plan_changes_nothing():
    block = Block()
    before = {name: parameter.clone() for name, parameter in block.named_parameters()}
    print(plan_constraints(block))
    assert all(torch.equal(before[name], parameter) for name, parameter in block.named_parameters())
    assert not hasattr(block.linear, "parametrizations")


@pytest.mark.parametrize("kind", ["lcw", "cwn", "wn", "sn"])
def test_a_constrained_network_is_planned_as_before(kind):
    from lcw_lightning import constrain

    block = Block()
    before = plan_constraints(block, kind)
    with pytest.warns(UserWarning, match="unknown layer type"):
        constrain(block, kind)
    after = plan_constraints(block, kind)
    assert list(after.weights) == list(before.weights)
    assert (after.share, after.summary) == (before.share, before.summary)


def test_an_adapter_of_a_known_layer_is_told_from_an_unknown_layer():
    layer = nn.Linear(8, 4)
    layer.lora_a = nn.Parameter(torch.randn(2, 8))
    assert plan_weights(nn.Sequential(layer), "lcw").left_out == {"0.lora_a": "not the weight of its layer type"}
