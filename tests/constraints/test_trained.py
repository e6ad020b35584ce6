"""Projection takes little from zero-mean random weights, and more from trained ones."""

import pytest
import torch
from torch import nn

from lcw_lightning import ConstraintCallback, EdgeOfChaosInitCallback, MinibatchInitCallback, ShiftedReLU
from lcw_lightning.constraints.trained import taken_by_projection, trained_evidence
from lcw_lightning.theory.projected_share import projected_share, random_share_limit
from lcw_lightning.weights.weight_ref import named_weights
from tests.quick import quick

ZERO_MEAN = {
    "kaiming_uniform": nn.init.kaiming_uniform_,
    "kaiming_normal": nn.init.kaiming_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "normal": nn.init.normal_,
    "trunc_normal": nn.init.trunc_normal_,
    "uniform": lambda weight: nn.init.uniform_(weight, -1, 1),
    "orthogonal": nn.init.orthogonal_,
    "sparse": lambda weight: nn.init.sparse_(weight, sparsity=0.5),
    "eye": nn.init.eye_,
}
POSITIVE = {
    "uniform": lambda weight: nn.init.uniform_(weight, 0, 1),
    "constant": lambda weight: nn.init.constant_(weight, 0.1),
    "ones": nn.init.ones_,
    "shifted": lambda weight: nn.init.normal_(weight, 0.5, 1.0),
}
SHAPES = [(units, fan_in) for units in (1, 16, 512) for fan_in in (2, 8, 64, 512, 4096)]


def is_alarming(weight):
    return projected_share(weight) > random_share_limit(*weight.shape)


@pytest.mark.parametrize("draw", ZERO_MEAN.values(), ids=ZERO_MEAN)
def test_zero_mean_initializers_raise_no_alarm(draw):
    torch.manual_seed(0)
    assert not [shape for shape in SHAPES if is_alarming(draw(torch.empty(shape)))]


@pytest.mark.parametrize("draw", POSITIVE.values(), ids=POSITIVE)
def test_positive_initializers_raise_it(draw):
    torch.manual_seed(0)
    large = [(units, fan_in) for units, fan_in in SHAPES if units * fan_in >= 1024 and fan_in >= 64]
    assert all(is_alarming(draw(torch.empty(shape))) for shape in large)


def test_the_share_is_chi_square_with_one_degree_a_unit():
    torch.manual_seed(0)
    shares = torch.tensor([projected_share(torch.randn(8, 64)) for _ in range(2000)]) * 8 * 64
    assert shares.mean().item() == pytest.approx(8, rel=0.05)
    assert shares.var().item() == pytest.approx(16, rel=0.15)


def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def mlp(activation):
    return nn.Sequential(nn.Linear(64, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 10))


def cnn(activation):
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), activation(), nn.Conv2d(16, 32, 3), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))


# An MLP of sigmoids or tanh, trained by Adam on these images, stays below the limit: silence is no proof.
@pytest.mark.parametrize(
    ("make", "activation"),
    quick(["mlp-relu"], {"mlp-relu": (mlp, nn.ReLU), "cnn-relu": (cnn, nn.ReLU), "cnn-sigmoid": (cnn, nn.Sigmoid)}),
)
def test_a_network_trained_plain_raises_it_in_some_layer(make, activation):
    torch.manual_seed(0)
    network, (images, labels) = make(activation), digits()
    assert trained_evidence(network, named_weights(network)) == ""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert trained_evidence(network, named_weights(network)).startswith("projection takes ")
    taken = taken_by_projection(named_weights(network))
    assert taken[0].is_alarming
    assert [each.is_alarming for each in taken] == sorted((each.is_alarming for each in taken), reverse=True)


def test_batches_that_a_norm_has_seen_are_evidence_too():
    network = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    network(torch.randn(4, 8))
    assert trained_evidence(network, named_weights(network)) == "its BatchNorm layers have seen 1 batches"


class TestFit:
    @pytest.fixture
    def trained(self, make_project):
        project = make_project()
        nn.init.uniform_(project.body[2].weight, 0, 1)
        return project

    @pytest.mark.parametrize("kind", ["lcw", "cwn"])
    def test_it_says_what_the_constraint_takes_from_trained_weights(self, kind, trained, make_trainer, loader):
        with pytest.warns(UserWarning, match=r"projection takes 7\d % of the squared norm of 'body\.2\.weight', 1"):
            make_trainer(ConstraintCallback(kind)).fit(trained, loader)

    def test_it_says_that_a_fixed_norm_changes_trained_weights(self, trained, make_trainer, loader):
        with pytest.warns(UserWarning, match=r"'sn' divides each weight by its norm; list the .* in exclude"):
            make_trainer(ConstraintCallback("sn")).fit(trained, loader)

    @pytest.mark.parametrize("kind", ["none", "wn"])
    def test_a_kind_that_takes_nothing_says_nothing(self, kind, trained, make_trainer, loader, recwarn):
        make_trainer(ConstraintCallback(kind)).fit(trained, loader)
        assert not [warning for warning in recwarn if "projection takes" in str(warning.message)]

    def test_minibatch_initialization_warns_without_a_constraint_too(self, trained, make_trainer, loader):
        with pytest.warns(UserWarning, match=r"initializes a module that may have been trained: projection takes"):
            make_trainer(MinibatchInitCallback()).fit(trained, loader)

    def test_a_draw_at_the_edge_of_chaos_warns_too(self, trained, make_trainer, loader):
        trained.body[1], trained.body[3] = ShiftedReLU(0.3), ShiftedReLU(0.3)
        with pytest.warns(UserWarning, match=r"EdgeOfChaosInitCallback initializes a module that may have been tra"):
            make_trainer(EdgeOfChaosInitCallback()).fit(trained, loader)

    def test_freshly_drawn_weights_raise_nothing_and_the_share_is_said(
        self, make_project, make_trainer, loader, caplog
    ):
        with caplog.at_level("INFO", logger="lightning.pytorch"):
            make_trainer(ConstraintCallback(), MinibatchInitCallback()).fit(make_project(), loader)
        assert "; projection takes at most " in caplog.text
