"""The maps alone, from the trained parameters to the weight, forward and backward; plain is a copy of the weight."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import nn

from tools.benchmark.methods import LARGEST_DENSE, METHODS
from tools.benchmark.timing import Settings, Task, interleaved

GEOTORCH = find_spec("geotorch") is not None
SIZES = ((256, 256), (512, 4608), (4096, 4096), (1000, 25088))  # units, fan_in


def measure(settings: Settings) -> Iterator[list[dict]]:
    """Yield the rows of each size, one for each method."""
    if not GEOTORCH:
        print("geotorch: left out, since it is not installed (pip install 'lcw_lightning[benchmark]').")
    for units, fan_in in SIZES:
        case = f"{units} x {fan_in}"
        if settings.wants(case):
            methods = rivals(fan_in)
            tasks = {name: task(units, fan_in, methods[name], settings.device) for name in methods}
            rows = interleaved(tasks, settings)
            yield [{"case": case, "geotorch": version("geotorch") if GEOTORCH else None, **row} for row in rows]


def rivals(fan_in: int) -> dict[str, Callable[[nn.Module], object]]:
    """Return the methods that can be measured here and at this size."""
    methods = dict(METHODS)
    if fan_in > LARGEST_DENSE:
        print(f"dense QR basis: left out for {fan_in} inputs, for which it takes {4e-9 * fan_in**2:.1f} GB.")
        del methods["dense QR basis"]
    if GEOTORCH:
        import geotorch  # noqa: PLC0415  # an extra

        # geotorch has no zero-sum vectors. Its other linear spaces are symmetric and skew matrices; its low-rank,
        # Stiefel and Grassmann manifolds decompose whole matrices. The sphere is comparable: like LCW it is one scalar
        # condition for each unit, in O(fan_in). Projection is the cheaper of its two maps. For a kernel the condition
        # would hold for rows of pixels instead of units, so the step of a network does not measure it.
        methods["geotorch sphere"] = partial(geotorch.sphere, embedded=True)
    return methods


def task(units: int, fan_in: int, method: Callable[[nn.Module], object], device: str) -> Task:
    """Return one forward and backward pass of a method's map, for one layer."""
    torch.manual_seed(0)
    layer = nn.Linear(fan_in, units, bias=False, device=device)
    method(layer)
    gradient = torch.randn(units, fan_in, device=device)

    def run() -> None:
        weight = layer.weight
        (weight.clone() if weight.is_leaf else weight).backward(gradient)
        layer.zero_grad()

    return Task(run)
