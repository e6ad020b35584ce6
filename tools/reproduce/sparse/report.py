"""The table of sparse activations, from the runs' JSON files alone."""

import statistics
from dataclasses import dataclass

from tools.readme import head, made_on, rounded, row, unique
from tools.reproduce.paper.report import epochs
from tools.reproduce.sparse.grid import PAPER_TABLE_2, Method

NEAR_CHANCE = 0.2  # in test accuracy; chance is 0.1
TITLES = {
    "sparse_mlp100": "100 layers x 300 units on MNIST",
    "sparse_cnn50": "50 convolutions x 300 channels on CIFAR-10",
}
METHOD = ("activation", "sparsity", "V'(q*)", "weights")
HEAD = head(
    *(*METHOD, "rate", "seeds", "epochs", "train loss", "test accuracy"),
    *("measured sparsity", "not finite", "near chance", "paper's accuracy", "paper's sparsity"),
)


@dataclass(frozen=True)
class Chosen:
    """A method's runs at the learning rate that was chosen for it.

    Args:
        network: As in the config's name.
        method: The activation, and LCW or not.
        rate: The learning rate.
        records: The runs' records, one for each seed.
    """

    network: str
    method: Method
    rate: float
    records: list[dict]

    def last(self, quantity: str) -> list[float | None]:
        """Return the last epoch's numbers; ``None`` if not finite."""
        return [record["epochs"][quantity][-1] for record in self.records]

    @property
    def not_finite(self) -> int:
        """The number of runs whose loss became infinite or nan."""
        return sum(record["diverged"] for record in self.records)

    @property
    def near_chance(self) -> int:
        """The number of the other runs that stayed near chance."""
        finite = [record for record in self.records if not record["diverged"]]
        return sum(record["epochs"]["test/accuracy"][-1] < NEAR_CHANCE for record in finite)


def tables(methods: list[Chosen], rates: list[float], clipping: bool = True) -> str:
    """Return a Markdown table for each network, and what made it; results/sparse.md says how to read it."""
    parts = []
    for network in unique(chosen.network for chosen in methods):
        mine = [chosen for chosen in methods if chosen.network == network]
        config = mine[0].records[0]["config"]
        parts += [f"{TITLES.get(network, network)} ([{config}](../{config})):\n", *HEAD, *map(line, mine), ""]
    grid = ", ".join(f"{rate:g}" for rate in rates)
    edge = sum(chosen.rate in (rates[0], rates[-1]) for chosen in methods)
    caption = (
        f"{'' if clipping else 'Gradients are not clipped. '}Learning rates: of {grid}, chosen in 1 epoch of seed 0. "
        f"For {edge} of {len(methods)} methods it is the lowest or the highest of the grid."
    )
    records = [record for chosen in methods for record in chosen.records]
    return "\n".join([*parts, f"{caption} Made on {made_on(records)}"])


def rates_table(first: dict[tuple[str, Method], list[dict]], rates: list[float]) -> str:
    """Return a Markdown table of the test accuracies at every rate.

    Args:
        first: For each network and method the records of the runs that chose the rate, in the order of ``rates``.
        rates: The grid.
    """
    lines = head("network", *METHOD, *(f"{rate:g}" for rate in rates))
    for (network, method), records in first.items():
        cells = [f"{record['epochs']['test/accuracy'][-1]:.3f}{'*' * record['diverged']}" for record in records]
        lines.append(row(network, *method_cells(method), *cells))
    caption = "Test accuracy after 1 epoch of seed 0, by rate; * the loss became infinite or nan."
    made = made_on([record for records in first.values() for record in records])
    return "\n".join([*lines, "", f"{caption} Made on {made}"])


def line(chosen: Chosen) -> str:
    """Return a method's row of the table."""
    method, records = chosen.method, chosen.records
    losses = [loss for loss in chosen.last("train/loss") if loss is not None]
    accuracies, sparsities = chosen.last("test/accuracy"), chosen.last("test/sparsity")
    return row(
        *(*method_cells(method), f"{chosen.rate:g}", len(records), epochs(records)),
        rounded(statistics.mean(losses), 3) if losses else "diverged",
        f"{statistics.mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f})",
        f"{statistics.mean(sparsities):.3f}",
        *(f"{number} of {len(records)}" for number in (chosen.not_finite, chosen.near_chance)),
        *paper(chosen.network, method),
    )


def method_cells(method: Method) -> tuple[str, ...]:
    """Return the cells of a row that say which method it is."""
    return (
        *(method.activation, f"{method.sparsity:g}", f"{method.map_slope:.2f}"),
        "LCW" if method.lcw else "plain",
    )


def paper(network: str, method: Method) -> tuple[str, str]:
    """Return the paper's accuracy and sparsity, or ``-`` where it has none."""
    key = (method.activation, method.sparsity, method.slope)
    if method.lcw or key not in PAPER_TABLE_2 or network not in TITLES:
        return "-", "-"
    accuracy, accuracy_std, sparsity, sparsity_std, *cnn = PAPER_TABLE_2[key]
    if network == "sparse_cnn50":
        return f"{cnn[0]:.2f}", f"{cnn[1]:.2f}"
    return f"{accuracy:.2f} ± {accuracy_std:g}", f"{sparsity:.2f} ± {sparsity_std:g}"
