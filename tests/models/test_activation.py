"""An activation that makes no module is refused in one sentence by every network."""

import pytest
import torch
from torch import nn

from lcw_lightning import MLP, VGG19, DeepCNN, PreActResNet18

NETWORKS = {
    "MLP": lambda **kwargs: MLP(64, 10, depth=2, width=8, **kwargs),
    "VGG19": lambda **kwargs: VGG19(width=1, hidden_width=4, **kwargs),
    "PreActResNet18": lambda **kwargs: PreActResNet18(width=1, **kwargs),
    "DeepCNN": lambda **kwargs: DeepCNN(depth=2, channels=2, **kwargs),
}
GIVEN = {
    "instance": (nn.ReLU(), r"got ReLU\(\)\."),
    "name": ("relu", r"got 'relu'\."),
    "function": (torch.relu, r"got <built-in method relu .*missing 1 required positional arguments?: .input.\)\."),
    "none": (None, r"got None\."),
    "makes-a-number": (lambda: 3, r"got <function"),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(("activation", "got"), GIVEN.values(), ids=GIVEN)
def test_what_makes_no_module_is_refused(make, activation, got):
    wanted = r"^activation must make a module for each layer, as the class torch.nn.ReLU does, "
    with pytest.raises(ValueError, match=wanted + got):
        make(activation=activation)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_function_that_makes_modules_is_taken(make):
    network = make(activation=lambda: nn.LeakyReLU(0.3))
    slopes = [module.negative_slope for module in network.modules() if isinstance(module, nn.LeakyReLU)]
    assert slopes
    assert set(slopes) == {0.3}
