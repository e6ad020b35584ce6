import pytest
import torch
from torch import nn

from lcw_lightning import constrain
from lcw_lightning.checkpoints.all_or_nothing import load_all_or_nothing


def make():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(model, state):
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def missing(state):
    del state["2.bias"]


def unexpected(state):
    state["3.weight"] = torch.zeros(2)


def wrong_shape(state):
    state["2.weight"] = torch.zeros(2, 7)


SPOILED = {
    "missing": (missing, r'nothing of it was loaded: Missing key\(s\) in state_dict: "2\.bias"\. Build the model'),
    "unexpected": (unexpected, r'Unexpected key\(s\) in state_dict: "3\.weight"'),
    "shape": (wrong_shape, r"size mismatch for 2\.weight"),
}
spoiled = pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)


@spoiled
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_a_state_dict_that_does_not_fit_changes_nothing_and_says_why(spoil, message, assign):
    model, state = make(), {key: value + 1 for key, value in make().state_dict().items()}
    spoil(state)
    before, parameters = snapshot(model), list(model.parameters())
    with pytest.raises(ValueError, match=message):
        load_all_or_nothing(model, model.load_state_dict, state, assign=assign)
    assert same(model, before)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))


@spoiled
def test_without_it_torch_loads_half(spoil, message):
    model, state = make(), {key: value + 1 for key, value in make().state_dict().items()}
    spoil(state)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="loading state_dict"):
        model.load_state_dict(state)
    assert not same(model, before)


def test_what_fits_is_loaded():
    model, state = make(), {key: value + 1 for key, value in make().state_dict().items()}
    load_all_or_nothing(model, model.load_state_dict, state)
    assert same(model, state)


def test_a_load_that_is_not_strict_stays_so():
    model, state = make(), {"0.weight": torch.ones(3, 4), "tail.weight": torch.ones(1)}
    keys = load_all_or_nothing(model, model.load_state_dict, state, strict=False)
    assert keys.unexpected_keys == ["tail.weight"]
    assert model[0].weight.eq(1).all()


def test_a_plain_state_dict_still_loads_into_constrained_weights():
    model, plain = make(), make()
    constrain(model)
    load_all_or_nothing(model, model.load_state_dict, plain.state_dict())
    torch.testing.assert_close(model[0].weight, plain[0].weight - plain[0].weight.mean(1, keepdim=True))


def test_an_error_of_another_kind_keeps_its_words():
    model = make()

    def exhausted():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        load_all_or_nothing(model, exhausted)


def test_an_error_of_the_models_own_hooks_undoes_the_load_too():
    model, state = make(), {key: value + 1 for key, value in make().state_dict().items()}
    before = snapshot(model)

    def refuse(module, keys):
        raise LookupError("no")

    model.register_load_state_dict_post_hook(refuse)
    with pytest.raises(LookupError):
        load_all_or_nothing(model, model.load_state_dict, state)
    assert same(model, before)
