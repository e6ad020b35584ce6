import pytest
import torch

from lcw_lightning.observation.samples import NUM_UNITS, NUM_VALUES, NUM_VALUES_OF_UNIT, ValueSamples, spread

LAYERS = [f"layer{number}" for number in range(9)]


@pytest.mark.parametrize("number", [1, 3, 100, 4096, 5000, 32768, 10**6], ids=str)
def test_a_sample_is_the_same_every_time_and_holds_values_of_the_tensor_alone(number):
    values = torch.randperm(number).float()
    sample = spread(values, 4096)
    assert sample.shape == (4096,)
    assert torch.equal(sample, spread(values, 4096))
    assert torch.isin(sample, values).all()
    assert len(sample.unique()) >= min(number, 4096) * 0.75


def test_a_sample_of_a_batch_holds_about_as_many_values_of_each_unit_and_of_each_input():
    batch = torch.stack(torch.meshgrid(torch.arange(128.0), torch.arange(256.0), indexing="ij"))
    inputs, units = (spread(indices.flatten(), 4096) for indices in batch)
    for indices, number in ((inputs, 128), (units, 256)):
        counts = torch.bincount(indices.long(), minlength=number)
        assert (counts - 4096 / number).abs().max() <= 0.5 * 4096 / number
    # A control: every eighth value would hold every eighth unit alone.
    strided = batch[1].flatten()[::8]
    assert len(strided) == 4096
    assert len(strided.unique()) == 32


def test_a_sample_is_a_copy():
    values = torch.zeros(10)
    sample = spread(values, 4)
    values.fill_(1)
    assert not sample.any()


def test_a_part_is_taken_along_the_last_dimension():
    values = torch.arange(3.0).view(3, 1).expand(3, 1000)
    assert torch.equal(spread(values, 5), torch.arange(3.0).view(3, 1).expand(3, 5))


def test_quantiles_of_a_sample_are_those_of_all_values():
    values = torch.randn(256, 512) * torch.linspace(0.2, 2, 512) + torch.linspace(-1, 1, 512)
    sample = spread(values.flatten(), NUM_VALUES)
    levels = torch.tensor([0.01, 0.25, 0.5, 0.75, 0.99])
    for level, found in zip(levels, sample.quantile(levels), strict=True):
        below = (values < found).double().mean().item()
        error = (level * (1 - level) / NUM_VALUES).sqrt().item()  # of a quantile's rank
        assert below == pytest.approx(level.item(), abs=4 * error)


def test_values_come_by_layer_and_quantity_and_inputs_by_unit_of_three_layers():
    samples = ValueSamples(LAYERS)
    seen = {}
    for number, name in enumerate(LAYERS):
        values = torch.full((128, 30), float(number)) + torch.arange(30.0) / 100
        for quantity in ("input", "preactivation", "preactivation_gradient", "input_gradient"):
            part = samples.part(name, quantity, values, channel_dim=-1)
            if part is not None:
                seen[name, quantity] = [part]
    samples.update(seen)
    found = samples.compute()
    assert {key for key in found if key[1] == "input"} == {
        (name, "input") for name in (LAYERS[1], LAYERS[4], LAYERS[8])
    }
    assert len(found) == 2 * len(LAYERS) + 3
    for number, name in enumerate(LAYERS):
        for quantity in ("preactivation", "preactivation_gradient"):
            assert found[name, quantity].shape == (NUM_VALUES,)
            assert found[name, quantity].long().unique().item() == number
    units = found[LAYERS[4], "input"]
    assert units.shape == (NUM_UNITS, NUM_VALUES_OF_UNIT)
    assert torch.equal(units, (4 + torch.arange(20.0) / 100).view(20, 1).expand(20, 256))


@pytest.mark.parametrize(("number", "shown"), [(1, [0]), (2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (20, [1, 10, 19])])
def test_the_layers_whose_units_show_are_the_second_the_middle_one_and_the_last(number, shown):
    names = list(map(str, range(number)))
    assert ValueSamples(names).unit_layers == list(map(str, shown))


def test_the_units_of_images_are_channels_over_batch_and_positions():
    samples = ValueSamples(["conv"])
    images = torch.arange(5.0).view(5, 1, 1).expand(8, 5, 3, 3) + 0.0
    samples.update({("conv", "input"): [samples.part("conv", "input", images, channel_dim=-3)]})
    units = samples.compute()["conv", "input"]
    assert torch.equal(units[:5], torch.arange(5.0).view(5, 1).expand(5, NUM_VALUES_OF_UNIT))
    assert torch.equal(units.isnan().any(1), torch.arange(NUM_UNITS) >= 5)


def test_all_calls_of_a_shared_layer_are_in_its_sample():
    samples = ValueSamples(["shared"])
    calls = [torch.full((size, 4), float(number)) for number, size in enumerate((3, 500, 64))]
    seen = {
        ("shared", quantity): [samples.part("shared", quantity, values, channel_dim=-1) for values in calls]
        for quantity in ("preactivation", "input")
    }
    samples.update(seen)
    found = samples.compute()
    for sample in (found["shared", "preactivation"], *found["shared", "input"][:4]):
        counts = torch.bincount(sample.long(), minlength=3) / len(sample)
        assert counts.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_what_was_not_seen_or_held_nothing_is_nan():
    samples = ValueSamples(["seen", "unseen", "empty"])
    for quantity in ("preactivation", "input"):
        assert samples.part("empty", quantity, torch.zeros(0, 4), channel_dim=-1) is None
    samples.update({("seen", "preactivation"): [samples.part("seen", "preactivation", torch.ones(2, 4), -1)]})
    found = samples.compute()
    assert (found["seen", "preactivation"] == 1).all()
    assert all(sample.isnan().all() for key, sample in found.items() if key != ("seen", "preactivation"))


def test_ranks_that_did_not_see_a_layer_put_no_gap_into_the_others_sample():
    samples = ValueSamples(["layer"])
    part = samples.part("layer", "preactivation", torch.ones(2, 4), -1)
    samples.update({("layer", "preactivation"): [part]})
    unseen = ValueSamples(["layer"])
    for state in ("values", "units"):  # as torchmetrics does on two ranks
        setattr(samples, state, torch.stack((getattr(samples, state), getattr(unseen, state))))
    assert (samples.compute()["layer", "preactivation"] == 1).all()
