import copy

import torch
from torch import nn

from lcw_lightning.observation.compiled import eager_mode, is_compiled


def test_what_torch_compiles_is_told_from_what_it_does_not():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert not is_compiled(network)
    assert is_compiled(nn.Sequential(torch.compile(network)))
    part = copy.deepcopy(network)
    part[0].compile()
    assert is_compiled(part)


def backend_calls(function, *contexts):
    """How often a compiled function's code runs while contexts are entered, then left in the same order."""
    calls = []

    def backend(graph, example_inputs):
        return lambda *args: (calls.append(1), graph.forward(*args))[1]

    torch.compiler.reset()
    compiled = torch.compile(function, backend=backend)
    for context in contexts:
        context.__enter__()
    compiled(torch.ones(3))
    for context in contexts:
        context.__exit__(None, None, None)
    held = len(calls)
    compiled(torch.ones(3))
    return held, len(calls)


def test_eager_mode_ends_with_its_last_holder_in_any_order():
    assert backend_calls(torch.sin, eager_mode, eager_mode) == (0, 1)
    assert backend_calls(torch.sin) == (1, 2)
