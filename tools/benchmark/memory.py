"""Memory of a training step, and bytes of the checkpoint after it."""

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from lcw_lightning.weights.weight_ref import named_weights
from tools.benchmark.methods import METHODS, NETWORKS, constrained
from tools.benchmark.step import sgd, step
from tools.benchmark.timing import Settings, Task, memory_of_a_run


def measure(settings: Settings) -> Iterator[list[dict]]:
    """Yield the rows of each network, one for each method.

    ``peak_bytes`` is what the network and its optimizer hold, plus what a step takes beyond that. ``extra`` is the
    difference to the plain network.
    """
    for network, make in NETWORKS.items():
        case = f"{network}, batch {settings.batch}"
        if settings.wants(case):
            weights = [ref.parameters[0].nbytes for ref in named_weights(make()).values()]
            sizes = {"weights_bytes": sum(weights), "largest_weight_bytes": max(weights)}
            rows = [{"method": method, **memory(make, method, settings)} for method in METHODS]
            yield [{"case": case, **row, **extra(row, rows[0]), **sizes} for row in rows]


def memory(make: Callable[[], nn.Module], method: str, settings: Settings) -> dict:
    """Return the bytes of a network under a method."""
    network = constrained(make, method, settings.device)
    optimizer = sgd(network)
    run = step(network, optimizer, settings)
    run()  # makes the momentum buffers
    taken = memory_of_a_run(Task(run), settings.device)
    held = [*network.parameters(), *network.buffers(), *tensors(optimizer)]
    return {
        "peak_bytes": size(held) + taken["peak_bytes"],
        "held_bytes": size(held),
        "checkpoint_bytes": size([*network.state_dict().values(), *tensors(optimizer)]),
    }


def tensors(optimizer: Optimizer) -> list[Tensor]:
    """Return the tensors of the optimizer's state."""
    return [leaf for leaf in tree_leaves(optimizer.state_dict()["state"]) if isinstance(leaf, Tensor)]


def size(held: Iterable[Tensor]) -> int:
    """Return the bytes of all storages; each is counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(storages.values())


def extra(row: dict, plain: dict) -> dict:
    """Return what a method takes beyond the plain network."""
    return {f"extra_{name}": row[name] - plain[name] for name in ("peak_bytes", "checkpoint_bytes")}
