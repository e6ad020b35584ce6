import pytest
import torch
from torch import nn

from lcw_lightning import constrain
from lcw_lightning.checkpoints.record import read_record, save_record
from lcw_lightning.constraints.constrain import constrained_weights


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.up = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.head = nn.Linear(6, 4)
        self.square = nn.utils.parametrizations.orthogonal(nn.Linear(6, 4))


@pytest.mark.parametrize("kind", ["lcw", "cwn", "wn", "sn"])
def test_a_checkpoints_constraints_are_restored_before_its_weights(kind):
    source, target, checkpoint = Network(), Network(), {}
    constrain(source, kind, exclude=["head.*", "square.*"])
    save_record(source, checkpoint)
    read_record(checkpoint).restore(target)
    target.load_state_dict(source.state_dict())
    assert constrained_weights(target) == constrained_weights(source)
    assert torch.equal(target.eval().conv.weight, source.eval().conv.weight)


def test_saving_and_restoring_leaves_what_training_changes_by_looking():
    network, checkpoint = Network(), {}
    constrain(network, "sn", exclude=["square.*"])
    state = {key: value.clone() for key, value in network.state_dict().items()}
    save_record(network, checkpoint)
    read_record(checkpoint).restore(network)
    constrain(network, "sn", exclude=["square.*"])
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    _ = network.head.weight
    assert not all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_another_kind_is_refused_before_anything_changes():
    source, target, checkpoint = Network(), Network(), {}
    constrain(source, "cwn", include=["conv.*", "head.*"])
    constrain(target, "wn", include=["head.*"])
    save_record(source, checkpoint)
    with pytest.raises(ValueError, match=r"constrained 'head\.weight' with kind='cwn', this one with 'wn'; take 'cwn'"):
        read_record(checkpoint).restore(target)
    assert constrained_weights(target) == {"head.weight": "wn"}


def test_weights_in_no_basis_do_not_ask_for_one():
    source, target, checkpoint = Network(), Network(), {}
    constrain(source, "cwn", include=["head.*"])
    save_record(source, checkpoint)
    checkpoint["lcw_lightning"]["basis_version"] = 2
    read_record(checkpoint).restore(target)
    assert constrained_weights(target) == {"head.weight": "cwn"}


def test_a_plain_checkpoint_restores_nothing():
    network = Network()
    read_record({"state_dict": {}}).restore(network)
    assert constrained_weights(network) == {}


@pytest.mark.parametrize(
    ("version", "name", "kind", "message"),
    [
        pytest.param(2, "head.weight", "lcw", "basis version 2, but this lcw_lightning reads version 1", id="basis"),
        pytest.param(1, "tail.weight", "lcw", r"constrains 'tail\.weight', which Network does not have", id="model"),
        pytest.param(1, "up.weight", "lcw", r"'up\.weight' has the shape \[4, 6\], that of the model", id="shape"),
        pytest.param(
            1, "square.weight", "lcw", "cannot constrain 'square.weight': parametrized already by", id="parametrized"
        ),
        pytest.param(1, "head.weight", "cubic", r"'head\.weight' has the kind 'cubic'", id="kind"),
    ],
)
def test_constraints_that_cannot_be_restored_are_refused_before_anything_changes(version, name, kind, message):
    layout = {"kind": kind, "weight_shape": [4, 6], "transposed_groups": 0}
    first = {"kind": "lcw", "weight_shape": [8, 3, 3, 3], "transposed_groups": 0}
    checkpoint = {"lcw_lightning": {"basis_version": version, "constraints": {"conv.weight": first, name: layout}}}
    network = Network()
    with pytest.raises(ValueError, match=message):
        read_record(checkpoint).restore(network)
    assert constrained_weights(network) == {}
