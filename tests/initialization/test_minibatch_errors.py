import pytest
import torch
from torch import nn

from lcw_lightning import minibatch_init_

NAN = torch.full((8, 4), float("nan"))


def test_buffers_come_back_after_an_error_too():
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8))
    with pytest.raises(ValueError, match="NaN or infinite"):
        minibatch_init_(network, NAN)
    assert not network[0].running_mean.any()


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        pytest.param(nn.Sequential(nn.Linear(4, 2)), NAN, "those of '0.weight' are NaN or infinite", id="nan"),
        pytest.param(
            nn.Sequential(nn.Threshold(99.0, 0.0), nn.Linear(4, 3, bias=False), nn.Linear(3, 2)),
            torch.randn(8, 4),
            "needs a layer that can be rescaled, but left are: '1.weight', '2.weight' .zero inputs.;",
            id="dead",
        ),
        pytest.param(
            nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))),
            5 * torch.randn(8, 4),
            "needs a layer that can be rescaled, but left are: '0.weight' .its parametrization changes the value.;",
            id="spectral-norm",
        ),
    ],
)
def test_what_cannot_be_scaled_is_named_and_the_network_stays_as_it_was(network, inputs, message):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        minibatch_init_(network, inputs)
    assert not network[0]._forward_pre_hooks
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class OneWay(nn.Module):
    """A parametrization without a right inverse."""

    def forward(self, original):
        return original.tanh()


def test_a_parametrization_without_a_right_inverse_is_refused_by_name():
    layer = nn.Linear(4, 8)
    nn.utils.parametrize.register_parametrization(layer, "weight", OneWay())
    with pytest.raises(ValueError, match=r"left are: 'weight' \(its parametrization changes the value\)"):
        minibatch_init_(layer, torch.randn(32, 4))


def test_rounding_of_a_constant_input_does_not_count_as_variation():
    inputs = torch.full((64, 300), 1 / 3)
    with pytest.raises(ValueError, match=r"left are: 'weight' \(preactivations that do not vary\)"):
        minibatch_init_(nn.Linear(300, 5), inputs, granularity="unit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"target_std": 0.0}, "needs target_std > 0, got 0.0", id="std"),
        pytest.param(
            {"granularity": "channel"}, r"granularity is one of 'layer', 'unit'; got 'channel'", id="granularity"
        ),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        minibatch_init_(nn.Linear(4, 2), torch.randn(8, 4), **settings)
