from functools import partial

import torch
from torch import nn

from lcw_lightning import MLP
from tools.benchmark import methods, step, timing


def test_all_ways_to_hold_zero_sums_take_the_same_steps():
    made = partial(MLP, in_features=3072, num_classes=10, depth=2, width=8, activation=nn.Tanh)
    weights, settings = {}, timing.Settings(batch=16)
    for name in ("plain", "LCW", "LCW, project", "dense QR basis"):
        network = methods.constrained(made, name, "cpu")
        optimizer = step.sgd(network)
        optimizer.param_groups[0]["lr"] = 0.1
        run = step.step(network, optimizer, settings)
        for _ in range(3):
            run()
        weights[name] = network.hidden[1].linear.weight.detach()
    for name in ("LCW, project", "dense QR basis"):
        torch.testing.assert_close(weights[name], weights["LCW"], atol=1e-5, rtol=0)
    assert not torch.allclose(weights["plain"], weights["LCW"], atol=1e-3)
    basis = methods.dense_basis(8, torch.device("cpu"))
    torch.testing.assert_close(basis.T @ basis, torch.eye(7))
    torch.testing.assert_close(basis.sum(0), torch.zeros(7), atol=1e-6, rtol=0)
