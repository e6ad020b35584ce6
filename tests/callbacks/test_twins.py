from importlib import import_module

import pytest
from lightning.pytorch import LightningModule

from lcw_lightning.callbacks.overrides import Overrides
from lcw_lightning.callbacks.twins import is_a, is_overridden

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
ASKED_FOR = {
    "callbacks": ["LearningRateFinder", "StochasticWeightAveraging", "WeightAveraging"],
    "loggers": ["MLFlowLogger", "TensorBoardLogger"],
    "strategies": ["DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy"],
    "strategies.launchers": ["_MultiProcessingLauncher"],
}
NAMES = [(module, name) for module, names in ASKED_FOR.items() for name in names]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda part: part)
def test_a_class_of_either_package_is_known_and_isinstance_is_blind(module, name):
    ours, twin = (getattr(import_module(f"{package}.{module}"), name) for package in PACKAGES)
    for cls in (ours, twin, type("Users", (twin,), {})):
        assert is_a(object.__new__(cls), ours)
    assert not isinstance(object.__new__(twin), ours)


def test_a_stranger_of_the_same_name_is_none():
    class WeightAveraging:
        pass

    wanted = import_module("lightning.pytorch.callbacks").WeightAveraging
    assert not is_a(WeightAveraging(), wanted)
    assert is_a(WeightAveraging(), wanted, WeightAveraging)


@pytest.mark.parametrize("package", PACKAGES)
def test_hooks_of_a_module_are_told_from_lightnings(package):
    class Base(import_module(package).LightningModule):
        def setup(self, stage):
            pass

    module = type("Project", (Base,), {})()
    assert isinstance(module, LightningModule) is (package == "lightning.pytorch")
    assert is_overridden("setup", module)
    assert not is_overridden("configure_model", module)
    Overrides().add(module, "configure_model", lambda configure_model: None)
    assert is_overridden("configure_model", module)
