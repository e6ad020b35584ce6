"""Names near one that does not exist are offered, and none where none is near."""

import inspect
import sys
from types import ModuleType

import pytest

import lcw_lightning
from lcw_lightning.cli.near_names import near_class, near_flag, options_of


class Handing(lcw_lightning.MLP):
    """Hands its arguments on."""

    def __init__(self, features, **kwargs):
        super().__init__(features, **kwargs)


CLASSES = {
    "torch.optim.Sgd": "torch.optim.SGD",
    "torch.nn.Relu": "torch.nn.ReLU",
    "relu": "torch.nn.ReLU",
    "Sdg": "torch.optim.SGD",
    "StepLr": "torch.optim.lr_scheduler.StepLR",
    "MNSIT": "lcw_lightning.MNIST",
    "lcw_lightning.MPL": "lcw_lightning.MLP",
    "EarlyStoping": "lightning.pytorch.callbacks.EarlyStopping",
    "torch.optim.qqqq": "",
    "nowhere.Net": "",
}


@pytest.mark.parametrize(("given", "near"), CLASSES.items(), ids=CLASSES)
def test_a_class_is_near_whose_name_differs_little(given, near):
    inspect.getmembers(lcw_lightning)  # imports all classes, as lcw does
    assert near_class(given) == near


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("--constraint.knd", "--constraint.kind"),
        ("--kind", "--constraint.kind"),
        ("--ckptpath", "--ckpt_path"),
        ("--zzz", ""),
    ],
)
def test_a_flag_is_near_that_ends_alike_or_differs_little(given, near):
    assert near_flag(given, ["--ckpt_path", "--constraint.kind", "--config"]) == near


def test_the_options_of_a_class_are_the_arguments_of_its_constructor():
    assert options_of("torch.nn.ReLU") == ["inplace"]
    assert options_of("torch.nn.functional.relu") == ["input", "inplace"]
    assert {"width", "depth"} < {*options_of(f"{__name__}.Handing")}


@pytest.mark.parametrize("path", ["torchvision.models.resnet18", "nowhere.Net", "torch.Tensor", "torch.pi"])
def test_options_that_cannot_all_be_known_are_not_listed(path):
    assert options_of(path) == []


def test_what_a_package_loads_late_is_not_loaded_for_a_name(monkeypatch):
    late = ModuleType("late")
    late.__all__ = ["Broken"]
    late.__getattr__ = lambda name: (_ for _ in ()).throw(ImportError(name))
    monkeypatch.setitem(sys.modules, "late", late)
    assert near_class("late.Brokn") == "late.Broken"
