import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from lcw_lightning import MLP, ShiftedReLU, constrain, minibatch_init_
from lcw_lightning.initialization.edge_of_chaos import edge_of_chaos_init_

SEED, OTHER_SEED = 0, 1
WEIGHTS = ("gaussian", "delta_orthogonal")


def _inputs():
    torch.manual_seed(2)
    return torch.randn(2, 40, 12) * torch.tensor([1.0, 5.0]).view(2, 1, 1)


def _network(seed):
    torch.manual_seed(seed)
    network = MLP(12, 5, depth=3, width=8, activation=lambda: ShiftedReLU(0.3))
    constrain(network, exclude=["output.*"])
    return network


class _Sequences(nn.Module):
    """Recurrence and attention over sequences of four steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(SEED)
        self.lstm = nn.LSTM(12, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.relu = nn.RNN(12, 6, nonlinearity="relu", batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.cell = nn.GRUCell(6, 5)
        constrain(self, exclude=["relu.*"])

    def forward(self, rows):
        states = self.relu(self.lstm(rows.view(-1, 4, 12))[0])[0]
        return self.cell(self.attention(states, states, states)[0][:, 0])


def _sequences_initialized(inputs):
    with pytest.warns(UserWarning, match=r"left as they are: 'cell\.weight_hh' \(zero states\)$"):
        return minibatch_init_(_Sequences(), inputs).state_dict()


def _drawn(seed, inputs, weights):
    return edge_of_chaos_init_(_network(seed), inputs, weights=weights).state_dict()


def _initialize_on_rank(rank):
    inputs = _inputs()[rank]
    found = {weights: _drawn((SEED, OTHER_SEED)[rank], inputs, weights) for weights in WEIGHTS}
    found["minibatch"] = minibatch_init_(_network(SEED), inputs).state_dict()
    found["sequences"] = _sequences_initialized(inputs)
    with pytest.raises(ValueError, match="sharded") as refusal:
        edge_of_chaos_init_(fully_shard(_network(SEED)), inputs)
    return found | {"refusal": str(refusal.value)}


@pytest.fixture(scope="module")
def ranks(on_two_ranks):
    """What each of two ranks ended with, each on a batch of its own."""
    return on_two_ranks(_initialize_on_rank)


def test_two_ranks_act_on_the_union_of_their_batches_and_end_bit_equal(ranks):
    first, second = (found["minibatch"] for found in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, value in minibatch_init_(_network(SEED), _inputs().flatten(0, 1)).state_dict().items():
        torch.testing.assert_close(first[key], value)


def test_two_ranks_find_the_factors_of_recurrent_layers_on_the_union_of_their_batches_and_end_bit_equal(ranks):
    first, second = (found["sequences"] for found in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, value in _sequences_initialized(_inputs().flatten(0, 1)).items():
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-4)
    key, alone = "lstm.parametrizations.weight_ih_l0.original", _sequences_initialized(_inputs()[1])
    assert not torch.allclose(second[key], alone[key], rtol=1e-2)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_two_ranks_take_the_draw_of_rank_0_matched_to_the_union_of_their_batches(weights, ranks):
    first, second = (found[weights] for found in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, value in _drawn(SEED, _inputs().flatten(0, 1), weights).items():
        torch.testing.assert_close(first[key], value)
    alone = _drawn(OTHER_SEED, _inputs()[1], weights)
    assert not any(torch.allclose(second[key], value) for key, value in alone.items())


def test_a_sharded_network_is_refused(ranks):
    assert (
        "cannot draw 'hidden.0.linear.weight': it is sharded; call edge_of_chaos_init_() before" in ranks[0]["refusal"]
    )
