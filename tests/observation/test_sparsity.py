import pytest
import torch
from torch import nn

from lcw_lightning.observation.sparsity import ActivationSparsity, ZeroFractions


def count(network, batches, chosen=("0", "2", "4")):
    sparsity = ActivationSparsity(network, chosen)
    for inputs in batches:
        with sparsity.watching(), torch.no_grad():
            network(inputs)
    return sparsity.by_layer()


class Pass(nn.Sequential):
    """Linear layers that pass their input on."""

    def __init__(self, *others):
        layers = [nn.Linear(2, 2, bias=False) for _ in range(3)]
        for layer in layers:
            nn.init.eye_(layer.weight)
        super().__init__(layers[0], others[0], layers[1], others[1], layers[2])


def test_zeros_of_every_sign_count_and_nothing_else_does():
    tiny = torch.finfo(torch.float32).tiny
    inputs = torch.tensor([[0.0, -0.0], [tiny, 1.0], [torch.nan, torch.inf], [-1.0, 0.0]])
    assert count(Pass(nn.Identity(), nn.ReLU()), [inputs]) == {"2": 3 / 8, "4": 4 / 8}


def test_batches_count_by_their_size():
    batches = [torch.zeros(1, 2), torch.ones(7, 2)]
    assert count(Pass(nn.Identity(), nn.Identity()), batches) == {"2": 1 / 8, "4": 1 / 8}


def test_a_half_precision_network_counts_exactly():
    ones = torch.ones(3000, 2, dtype=torch.bfloat16)  # which bfloat16 cannot count
    ones[0, 0] = 0
    network = Pass(nn.Identity(), nn.Identity()).bfloat16()
    assert count(network, [ones])["2"] == 1 / 6000


def test_a_layer_that_is_called_twice_counts_both_times():
    network = Pass(nn.Identity(), nn.ReLU())
    network.append(network[2])  # after the last
    assert count(network, [torch.tensor([[-1.0, 1.0]])]) == {"2": 1 / 4, "4": 1 / 2}


def test_sums_do_not_depend_on_the_order_of_updates():
    fractions = ZeroFractions(2)
    for nonzeros, sizes in ((torch.tensor([1, 0]), torch.tensor([4, 0])), (torch.tensor([1, 0]), torch.tensor([1, 0]))):
        fractions.update(nonzeros, sizes)
    found = fractions.compute()
    assert found[0] == 3 / 5
    assert found[1].isnan()  # nothing was there to count


@pytest.mark.parametrize("network", [nn.ReLU(), nn.Sequential(nn.Embedding(3, 2))], ids=["relu", "embedding"])
def test_a_network_without_layers_is_an_error(network):
    with pytest.raises(ValueError, match="it needs a layer of"):
        ActivationSparsity(network, [])
