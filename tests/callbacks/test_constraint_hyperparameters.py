"""Modules that keep networks among their hyperparameters, as lightning-hydra-template's do."""

import functools
import itertools
import zipfile

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, constrain, load_from_checkpoint
from lcw_lightning.constraints.constrain import constrained_weights

NAMES = ["net.0.weight", "net.2.weight"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:Attribute .* is an instance of `nn.Module`", "ignore:The dirpath has changed"
)
methods = pytest.mark.parametrize(
    ("kind", "method"),
    [("lcw", "parametrize"), ("cwn", "parametrize"), ("wn", "parametrize"), ("sn", "parametrize"), ("lcw", "project")],
)


class LitModule(LightningModule):
    def __init__(self, net, optimizer, scheduler=None, compile=False):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = net

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.hparams.optimizer(self.parameters())


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 3))


def lit(net=None):
    return LitModule(net or network(), functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9))


@pytest.fixture
def fit(make_trainer, loader, tmp_path):
    """Return a function that trains a module and gives its trainer and its checkpoint's path."""

    numbers = itertools.count()

    def run(module, *callbacks, epochs=1, data=None, ckpt_path=None, **kwargs):
        saver = ModelCheckpoint(tmp_path / str(next(numbers)), **kwargs)
        trainer = make_trainer(*callbacks, saver, enable_checkpointing=True, max_epochs=epochs)
        data = {"datamodule": data} if data else {"train_dataloaders": loader}
        trainer.fit(module, **data, ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
        return trainer, saver.best_model_path

    return run


def content(path):
    return torch.load(path, weights_only=False)


def pickled(path):
    with zipfile.ZipFile(path) as file:
        return file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@methods
@pytest.mark.parametrize("weights_only", [False, True], ids=["whole", "save_weights_only"])
def test_the_checkpoint_holds_the_plain_network_and_loads(kind, method, weights_only, fit):
    module = lit()
    _, path = fit(module, ConstraintCallback(kind, method=method), save_weights_only=weights_only)
    assert module.hparams.net is module.net
    assert list(constrained_weights(module)) == NAMES
    held = content(path)["hyper_parameters"]["net"]
    assert list(held.state_dict()) == list(network().state_dict())
    assert torch.equal(held[0].weight, module.eval().net[0].weight)
    assert b"clcw_lightning" not in pickled(path)  # no class or function of the package
    loaded = load_from_checkpoint(LitModule, path, weights_only=False)
    assert loaded.hparams.net is loaded.net
    assert constrained_weights(loaded) == constrained_weights(module)
    assert same(loaded, module)


def test_the_class_itself_loads_what_was_held_by_projection(fit):
    module = lit()
    _, path = fit(module, ConstraintCallback(method="project"))
    loaded = LitModule.load_from_checkpoint(path, weights_only=False)
    assert constrained_weights(loaded) == {}
    assert same(loaded, module)


@methods
def test_a_run_resumes_bit_exactly(kind, method, fit):
    whole, resumed = lit(), lit()
    fit(whole, ConstraintCallback(kind, method=method), epochs=3)
    _, path = fit(lit(), ConstraintCallback(kind, method=method))
    fit(resumed, ConstraintCallback(kind, method=method), epochs=3, ckpt_path=path)
    assert same(resumed, whole)


@methods
def test_a_checkpoint_saved_after_the_run_is_like_those_within(kind, method, fit, tmp_path):
    module = lit()
    trainer, path = fit(module, ConstraintCallback(kind, method=method))
    trainer.save_checkpoint(tmp_path / "after.ckpt", weights_only=False)
    assert module.hparams.net is module.net
    assert list(constrained_weights(module)) == NAMES
    plain = content(tmp_path / "after.ckpt")["hyper_parameters"]["net"]
    assert constrained_weights(plain) == {}
    assert same(plain, content(path)["hyper_parameters"]["net"])
    assert same(load_from_checkpoint(LitModule, tmp_path / "after.ckpt", weights_only=False), module)


@methods
def test_weights_alone_saved_after_the_run_load_too(kind, method, fit, tmp_path):
    module = lit()
    trainer, _ = fit(module, ConstraintCallback(kind, method=method))
    trainer.save_checkpoint(tmp_path / "after.ckpt", weights_only=True)  # where Lightning asks no callback any more
    for loaded in (
        load_from_checkpoint(LitModule, tmp_path / "after.ckpt", weights_only=False),
        LitModule.load_from_checkpoint(tmp_path / "after.ckpt", weights_only=False),
    ):
        assert constrained_weights(loaded) == constrained_weights(module)
        assert same(loaded, module)


class Wrapper(LightningModule):
    """Keeps a whole LightningModule, and more, among its hyperparameters."""

    def __init__(self, model, others=()):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.model = model

    def training_step(self, batch, batch_idx):
        return self.model.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return self.model.configure_optimizers()


@methods
@pytest.mark.parametrize("others", ["nested", "within-a-function"])
def test_a_whole_lightning_module_among_them_is_plain_too(others, kind, method, fit):
    model = lit()
    kept = {"nets": [model.net[0]]} if others == "nested" else functools.partial(model.net)
    module = Wrapper(model, kept)
    _, path = fit(module, ConstraintCallback(kind, method=method))
    held = content(path)["hyper_parameters"]
    assert constrained_weights(held["model"]) == {}
    assert type(held["model"]) is LitModule
    assert same(load_from_checkpoint(Wrapper, path, weights_only=False), module)
    if others == "nested":
        assert held["others"]["nets"][0] is held["model"].net[0]


class Data(LightningDataModule):
    """Computes features with a network that the module trains."""

    def __init__(self, featurizer):
        super().__init__()
        self.save_hyperparameters(logger=False)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(32, 8), torch.randint(3, (32,))), batch_size=16)


@methods
def test_the_data_modules_hyperparameters_are_plain_too(kind, method, fit):
    module = lit()
    data = Data(module.net)
    _, path = fit(module, ConstraintCallback(kind, method=method), data=data)
    held = content(path)
    assert constrained_weights(held["datamodule_hyper_parameters"]["featurizer"]) == {}
    assert held["datamodule_hyper_parameters"]["featurizer"] is held["hyper_parameters"]["net"]
    assert data.hparams.featurizer is module.net
    assert constrained_weights(Data.load_from_checkpoint(path, weights_only=False).hparams.featurizer) == {}


def test_a_network_that_was_constrained_by_hand_needs_no_callback(fit):
    net = network()
    constrain(net)
    module = lit(net)
    _, path = fit(module)
    assert same(LitModule.load_from_checkpoint(path, weights_only=False), module)
    _, path = fit(module, ConstraintCallback(), epochs=2)
    assert constrained_weights(content(path)["hyper_parameters"]["net"]) == {}
    assert same(load_from_checkpoint(LitModule, path, weights_only=False), module)


def test_without_trust_the_file_is_refused_and_says_what_it_holds(fit):
    _, path = fit(lit(), ConstraintCallback())
    with pytest.raises(ValueError, match=r"holds .*, which is more than tensors .* load it with weights_only=False"):
        load_from_checkpoint(LitModule, path)
