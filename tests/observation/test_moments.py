import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lcw_lightning.observation import moments as moments_module
from lcw_lightning.observation.moments import ChannelSums, NetworkMoments
from lcw_lightning.observation.observed_layers import observed_layers


def by_channel(values, num_channels, channel_dim):
    """The textbook form: (samples x positions x directions, channels), in float64."""
    last = values.double().movedim(channel_dim, -1)
    return last.reshape(-1, num_channels)


# shape, channels, channel dimension
TENSORS = {
    "batch": ((10, 6), 6, -1),
    "sequence": ((3, 5, 6), 6, -1),
    "two-directions": ((3, 5, 12), 6, -1),
    "image": ((4, 6, 5, 7), 6, -3),
    "one-image": ((6, 5, 7), 6, -3),
    "one-signal": ((6, 40), 6, -2),
    "one-sample": ((6,), 6, -1),
    "one-sample-of-two-directions": ((12,), 6, -1),
    "no-sample": ((0, 6), 6, -1),
}


def check(sums, values, num_channels, channel_dim):
    expected = by_channel(values, num_channels, channel_dim)
    assert sums.number == len(expected)
    torch.testing.assert_close(sums.total, expected.sum(0))
    torch.testing.assert_close(sums.squares, expected.square().sum(0))
    assert torch.equal(sums.zeros, (expected == 0).double().sum(0))


class Float64Sizes(TorchDispatchMode):
    """Watches for the largest float64 tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            self.largest = max(self.largest, made.numel())
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "num_channels", "channel_dim"), TENSORS.values(), ids=TENSORS)
def test_sums_are_those_of_every_channel(shape, num_channels, channel_dim, dtype):
    values = torch.relu(torch.randn(shape)).to(dtype)
    check(ChannelSums.of(values, num_channels, channel_dim), values, num_channels, channel_dim)


@pytest.mark.parametrize(("shape", "num_channels", "channel_dim"), TENSORS.values(), ids=TENSORS)
def test_a_tensor_that_is_summed_in_parts_has_the_same_sums(shape, num_channels, channel_dim, monkeypatch):
    monkeypatch.setattr(moments_module, "_LARGEST_COPY", 8)
    values = torch.relu(torch.randn(shape))
    with Float64Sizes() as sizes:
        sums = ChannelSums.of(values, num_channels, channel_dim)
    assert sizes.largest <= max(8, 3 * num_channels)  # the sums
    check(sums, values, num_channels, channel_dim)


def test_a_long_vector_of_the_wrong_width_is_left_for_the_layer_too():
    assert ChannelSums.of(torch.randn(2**17 + 1), num_channels=4, channel_dim=-1).sums.shape == (3, 2**17 + 1)


def test_sums_leave_expanded_and_strided_tensors_as_they_are():
    gradient = torch.tensor([1.0, 0.0, 2.0]).expand(4, 3)
    check(ChannelSums.of(gradient, 3, -1), gradient, 3, -1)
    images = torch.relu(torch.randn(4, 6, 5, 5)).to(memory_format=torch.channels_last)[:, :, ::2]
    check(ChannelSums.of(images, 6, -3), images, 6, -3)


def test_an_input_of_the_wrong_width_is_left_for_the_layer_itself_to_refuse():
    ChannelSums.of(torch.randn(4, 7), num_channels=8, channel_dim=-1)


def test_zeros_are_counted_where_they_are_asked_for():
    values = torch.zeros(3, 2)
    assert ChannelSums.of(values, 2, -1).zeros.tolist() == [3, 3]
    assert ChannelSums.of(values, 2, -1, count_zeros=False).zeros.tolist() == [0, 0]


@pytest.fixture
def moments():
    return NetworkMoments(observed_layers(nn.Sequential(nn.Linear(3, 2), nn.Conv2d(4, 5, 3), nn.LSTM(2, 3))))


def of(moments, name, series):
    count, mean, variance, zeros = moments.compute()[:, moments.columns[name, series]]
    return {"count": count, "mean": mean, "variance": variance, "zeros": zeros}


def test_moments_are_those_of_each_layers_channels(moments):
    images = torch.relu(torch.randn(7, 4, 5, 5))
    moments.update({("1", "input"): ChannelSums.of(images, 4, -3)})
    found, expected = of(moments, "1", "input"), by_channel(images, 4, -3)
    assert found["count"].tolist() == [7 * 25] * 4
    torch.testing.assert_close(found["mean"], expected.mean(0))
    torch.testing.assert_close(found["variance"], expected.var(0, correction=0))
    torch.testing.assert_close(found["zeros"], (expected == 0).double().mean(0))
    assert of(moments, "0", "input")["count"].tolist() == [0, 0, 0]
    assert of(moments, "0", "input")["mean"].isnan().all()


def test_moments_of_two_batches_are_those_of_their_union(moments):
    batch = torch.randn(10, 3)
    for part in (batch[:4], batch[4:]):
        moments.update({("0", "input"): ChannelSums.of(part, 3, -1)})
    found = of(moments, "0", "input")
    torch.testing.assert_close(found["mean"], batch.double().mean(0))
    torch.testing.assert_close(found["variance"], batch.double().var(0, correction=0))


SIZES = {"vanished": (0.0, 1e-30), "shifted": (1e6, 0.125)}


@pytest.mark.parametrize(("shift", "std"), SIZES.values(), ids=SIZES)
def test_vanished_values_and_large_shifts_keep_their_size(shift, std, moments):
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    values = (shift + std * signs).expand(2, 3)
    values = values.float() if shift + std != shift else values
    moments.update({("0", "input"): ChannelSums.of(values, 3, -1)})
    found = of(moments, "0", "input")
    assert found["mean"].tolist() == pytest.approx([shift] * 3, abs=1e-40)
    expected = values.double().std(0, correction=0).tolist()
    assert found["variance"].sqrt().tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_a_value_that_is_not_finite_shows_in_its_channel_alone(bad, moments):
    values = torch.tensor([[1.0, bad, 2.0], [0.0, 1.0, 4.0]])
    moments.update({("0", "input"): ChannelSums.of(values, 3, -1)})
    found = of(moments, "0", "input")
    for number in ("mean", "variance"):
        assert found[number].isfinite().tolist() == [True, False, True]
    assert found["count"].tolist() == [2, 2, 2]


def test_layers_have_the_mean_of_their_channels_by_series(moments):
    columns = torch.arange(float(moments.totals.shape[1]), dtype=torch.float64)
    by_layer = moments.mean_by_layer(columns)
    for (name, series), place in moments.columns.items():
        expected = columns[place].mean()  # NaN for a series that the layer does not have
        torch.testing.assert_close(by_layer[series][int(name)], expected, rtol=0, atol=0, equal_nan=True)
