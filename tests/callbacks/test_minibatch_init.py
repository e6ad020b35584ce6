import re

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, constrain, minibatch_init_
from lcw_lightning.constraints.constrain import constrained_weights

both = pytest.mark.parametrize("lightning", ["lightning.pytorch", "pytorch_lightning"], indirect=True)


@both
@pytest.mark.parametrize("kind", ["none", "lcw"])
def test_the_first_step_trains_weights_initialized_on_the_first_batch(
    kind, make_snapshots, first_batch, make_project, make_trainer, loader
):
    project, expected, snapshots = make_project(), make_project(), make_snapshots()
    make_trainer(ConstraintCallback(kind), MinibatchInitCallback(), snapshots).fit(project, loader)
    constrain(expected, kind)
    minibatch_init_(expected, first_batch)
    for key, value in expected.state_dict().items():
        assert torch.equal(snapshots.states[0][key], value), key


def test_settings_reach_the_layers(make_snapshots, first_batch, make_project, make_trainer, loader):
    project, expected, snapshots = make_project(), make_project(), make_snapshots()
    make_trainer(MinibatchInitCallback(target_std=0.5, granularity="unit"), snapshots).fit(project, loader)
    minibatch_init_(expected, first_batch, target_std=0.5, granularity="unit")
    assert torch.equal(snapshots.states[0]["head.weight"], expected.head.weight)


def test_patterns_choose_the_layers(make_snapshots, make_project, make_trainer, loader):
    project, plain, snapshots = make_project(), make_project(), make_snapshots()
    make_trainer(MinibatchInitCallback(exclude=["head.*"]), snapshots).fit(project, loader)
    assert torch.equal(snapshots.states[0]["head.weight"], plain.head.weight)
    assert not torch.equal(snapshots.states[0]["body.0.weight"], plain.body[0].weight)


@both
def test_one_line_says_what_was_rescaled_and_what_was_left(make_project, make_trainer, loader, caplog, lightning):
    project = make_project()
    nn.init.zeros_(project.head.weight)
    with caplog.at_level("INFO"):
        make_trainer(MinibatchInitCallback()).fit(project, loader)
    (line,) = [message for message in caplog.messages if message.startswith("minibatch initialization")]
    assert re.search(
        r": 2 of 3 layers rescaled by factors .* to .*; left as they are: 'head\.weight' \(zero weights\)$", line
    )


def test_a_first_batch_on_which_no_layer_can_be_rescaled_stops_the_run_before_a_step(
    make_project, make_trainer, make_snapshots
):
    project, plain = make_project(), make_project()
    for module in (project, plain):
        for layer in (*module.body, module.head):
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)
    dataset = TensorDataset(torch.randn(4, 8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"needs a layer that can be rescaled, but left are: .*\(zero weights\)"):
        make_trainer(MinibatchInitCallback()).fit(project, DataLoader(dataset))
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in project.state_dict().items())


def test_validation_before_training_sees_no_hook(make_project, make_trainer, loader):
    project, plain = make_project(), make_project()
    make_trainer(MinibatchInitCallback()).validate(project, loader)
    assert torch.equal(project.head.weight, plain.head.weight)


def test_a_layer_that_the_first_batch_does_not_reach_is_reported(make_project, make_trainer, loader):
    project = make_project()
    project.spare = nn.Linear(4, 4)
    before = project.spare.weight.clone()
    with pytest.warns(UserWarning, match=r"did not reach 'spare\.weight'"):
        make_trainer(MinibatchInitCallback()).fit(project, loader)
    assert torch.equal(project.spare.weight, before)


def test_nan_in_the_first_batch_stops_the_run_and_leaves_no_hook(make_project, make_trainer):
    project = make_project()
    dataset = TensorDataset(torch.full((4, 8), float("nan")), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"those of 'body\.0\.weight' are NaN or infinite"):
        make_trainer(MinibatchInitCallback()).fit(project, DataLoader(dataset))
    assert not any(module._forward_pre_hooks for module in project.modules())


def test_it_works_where_layers_are_built_late(make_snapshots, make_project, make_trainer, loader):
    project, snapshots = make_project("configure_model"), make_snapshots()
    make_trainer(ConstraintCallback(), MinibatchInitCallback(), snapshots).fit(project, loader)
    assert len(constrained_weights(project)) == 3
    assert not snapshots.states[0]["head.bias"].any()


def test_fast_dev_run_initializes_on_its_one_batch(make_snapshots, make_project, make_trainer, loader):
    project, snapshots = make_project(), make_snapshots()
    make_trainer(MinibatchInitCallback(), snapshots, fast_dev_run=True).fit(project, loader)
    assert not snapshots.states[0]["head.bias"].any()


def test_a_first_batch_that_the_module_skips_is_not_the_first(make_snapshots, make_project, make_trainer, loader):
    project, snapshots = make_project(), make_snapshots()
    project.on_train_batch_start = lambda batch, batch_idx: -1 if project.current_epoch == 0 else None
    make_trainer(MinibatchInitCallback(), snapshots, max_epochs=2).fit(project, loader)
    assert not snapshots.states[0]["head.bias"].any()
    assert not any(module._forward_pre_hooks for module in project.modules())


def test_a_run_that_failed_in_its_first_batch_can_be_started_again(
    make_snapshots, first_batch, make_project, make_trainer, loader
):
    project, snapshots, callback = make_project(), make_snapshots(), MinibatchInitCallback()
    spoiled = DataLoader(TensorDataset(torch.full((4, 8), float("nan")), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        make_trainer(callback).fit(project, spoiled)
    make_trainer(callback, snapshots).fit(project, loader)
    z = snapshots.states[0]["body.0.weight"] @ first_batch.T
    assert z.std(correction=0).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*`limit_train_batches=0`")
def test_a_run_without_training_batches_changes_nothing(make_project, make_trainer, loader):
    project, plain = make_project(), make_project()
    make_trainer(MinibatchInitCallback(), limit_train_batches=0).fit(project, loader)
    assert torch.equal(project.head.weight, plain.head.weight)


def test_training_sees_every_batch_once_and_in_order(make_project, make_trainer, loader):
    seen = []
    project = make_project()
    step = project.training_step
    project.training_step = lambda batch, batch_idx: (seen.append(batch[0]), step(batch, batch_idx))[1]
    make_trainer(MinibatchInitCallback()).fit(project, loader)
    assert [batch.tolist() for batch in seen] == [batch[0].tolist() for batch in loader]


class Sequences(LightningModule):
    """Recurrence and attention inside a larger network, over each sample as a sequence of four steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(2, 6), nn.Tanh())
        self.recurrent = nn.ModuleDict({"lstm": nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)})
        self.attention = nn.TransformerEncoderLayer(10, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.relu, self.head = nn.RNN(10, 5, nonlinearity="relu", batch_first=True), nn.Bilinear(5, 5, 3)

    def forward(self, x):
        states, _ = self.relu(self.attention(self.recurrent["lstm"](self.body(x.view(-1, 4, 2)))[0]))
        return self.head(states[:, 0], states[:, -1])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("none", "parametrize"), ("lcw", "parametrize"), ("lcw", "project")],
    ids=["none", "lcw", "project"],
)
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_recurrence_and_attention_are_rescaled_in_the_forward_that_trains(
    kind, method, share, make_snapshots, first_batch, make_trainer, loader
):
    module, expected, snapshots = Sequences(), Sequences(), make_snapshots()
    callbacks = ConstraintCallback(kind, method), MinibatchInitCallback(recurrent_share=share)
    make_trainer(*callbacks, snapshots).fit(module, loader)
    constrain(expected, kind, method=method)
    plain = {key: value.clone() for key, value in expected.state_dict().items()}
    minibatch_init_(expected, first_batch, recurrent_share=share)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(snapshots.states[0][key], value)
        if "weight" in key and "norm" not in key:
            assert not torch.equal(value, plain[key]), key  # control


def test_a_gate_without_factors_stops_the_run_and_leaves_the_module_as_it_was(make_trainer, loader):
    module = Sequences()
    nn.init.normal_(module.recurrent["lstm"].weight_ih_l1, std=100)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"for the \w+ gate of 'recurrent\.lstm\.weight_hh_l1'"):
        make_trainer(MinibatchInitCallback(exclude=["*weight_ih_l1"])).fit(module, loader)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_pre_hooks for part in module.modules())
