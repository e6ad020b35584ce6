"""Two processes see what one sees of both their batches."""

import pytest
import torch
from torch import nn

from lcw_lightning.observation.observed_layers import observed_layers
from lcw_lightning.observation.samples import NUM_VALUES
from lcw_lightning.observation.snapshot import Snapshot


class Routed(nn.Module):
    """Sends negative batches through an expert of their own, as a mixture of experts may."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(6, 5)
        self.expert = nn.Conv1d(5, 4, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs):
        hidden = self.trunk(inputs)
        if inputs.sum() < 0:
            hidden = hidden + self.expert(hidden.unsqueeze(-1)).mean(1)
        return self.head(hidden)


def look(batches, gradient_scale=1.0):
    network = Routed()
    snapshot = Snapshot(observed_layers(network), gradient_scale=gradient_scale, with_values=True)
    with snapshot.watching():
        for batch in batches:
            network(batch).square().sum().backward()
    return snapshot.statistics(), snapshot.values()


def look_on_rank(rank, batches):
    return look([batches[rank]])


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(1)
    return torch.rand(2, 40, 6) * torch.tensor([1.0, -5.0]).view(2, 1, 1)


@pytest.fixture(scope="module")
def ranks(batches, on_two_ranks):
    return on_two_ranks(look_on_rank, batches)


def test_both_have_the_statistics_of_the_union(batches, ranks):
    expected, _ = look(batches)
    for statistics, _ in ranks:
        assert statistics.keys() == expected.keys() == {"trunk", "expert", "head"}
        for name, row in statistics.items():
            assert row == pytest.approx(expected[name], rel=1e-6), name
    alone, _ = look(batches[:1])
    assert alone["trunk"]["input_mean"] != pytest.approx(expected["trunk"]["input_mean"], rel=0.1)


def test_both_have_the_samples_of_both(batches, ranks):
    alone = [look([batch])[1] for batch in batches]
    for _, samples in ranks:
        for key, found in samples.items():
            parts = [part[key] for part in alone if not part[key].isnan().all()]
            assert torch.equal(found.nan_to_num(), torch.cat(parts, dim=-1).nan_to_num()), key
    assert ranks[0][1]["trunk", "preactivation"].shape == (2 * NUM_VALUES,)


def test_a_layer_that_one_rank_alone_calls_shows_on_both_what_that_rank_saw(batches, ranks):
    alone, values = look(batches[1:])
    for statistics, samples in ranks:
        assert statistics["expert"] == pytest.approx(alone["expert"], rel=1e-6)
        assert samples["expert", "preactivation"].shape == (NUM_VALUES,)
        assert torch.equal(samples["expert", "preactivation"], values["expert", "preactivation"])
