import pytest
import torch
from torch import nn

from lcw_lightning import analyze, register_layer_type
from lcw_lightning.weights import layer_types


class Matrix(nn.Module):
    """A layer of a type that torch does not know."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x):
        return x @ self.kernel.T


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), Matrix(), nn.ReLU(), Matrix(), nn.ReLU(), nn.Linear(16, 4))


BATCH = (torch.randn(64, 16), torch.randint(4, (64,)))


def test_a_network_that_is_mostly_unseen_is_not_called_healthy(network):
    report = analyze(network, BATCH)
    (unseen,) = [finding for finding in report.findings if "are seen" in finding.says]
    assert unseen.says.startswith("Only 38.5 % of the numbers in the network's matrices are seen")  # 320 of 832
    assert "not those of '2.kernel', '4.kernel' (unknown layer type; see register_layer_type)" in unseen.says


def test_what_the_user_excludes_is_not_missed(network):
    assert not any("are seen" in finding.says for finding in analyze(network, BATCH, include=["*.weight"]).findings)


def test_registered_layers_are_seen(network, monkeypatch):
    monkeypatch.setattr(layer_types, "_TYPES", dict(layer_types._TYPES))
    register_layer_type(Matrix, weight="kernel")
    report = analyze(network, BATCH)
    assert list(report.statistics) == ["0", "2", "4", "6"]
    assert not any("are seen" in finding.says for finding in report.findings)
