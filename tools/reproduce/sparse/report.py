"""The table of sparse activations, from the runs' JSON files alone."""

import statistics
from dataclasses import dataclass

from tools.readme import head, made_on, rounded, row, unique
from tools.reproduce.paper.report import epochs
from tools.reproduce.sparse.grid import PAPER_TABLE_2, Method

FAILED = 0.2  # a run failed if its test accuracy is lower; chance is 0.1
TITLES = {
    "sparse_mlp100": "100 layers x 300 units on MNIST",
    "sparse_cnn50": "50 convolutions x 300 channels on CIFAR-10",
}
HEAD = head(
    *("activation", "sparsity", "V'(q*)", "weights", "rate", "seeds", "epochs", "train loss", "test accuracy"),
    *("measured sparsity", "failed", "paper's accuracy", "paper's sparsity"),
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
    def failures(self) -> int:
        """The number of runs that diverged or stayed near chance."""
        accuracies = self.last("test/accuracy")
        return sum(
            record["diverged"] or accuracy < FAILED for record, accuracy in zip(self.records, accuracies, strict=True)
        )


def tables(methods: list[Chosen], rates: list[float], select_epochs: int, clipping: bool = True) -> str:
    """Return a Markdown table for each network, and what made it; results/sparse.md says how to read it."""
    parts = []
    for network in unique(chosen.network for chosen in methods):
        mine = [chosen for chosen in methods if chosen.network == network]
        config = mine[0].records[0]["config"]
        parts += [f"{TITLES.get(network, network)} ([{config}](../{config})):\n", *HEAD, *map(line, mine), ""]
    grid = ", ".join(f"{rate:g}" for rate in rates)
    edge = sum(chosen.rate in (rates[0], rates[-1]) for chosen in methods)
    caption = (
        f"{'' if clipping else 'Gradients are not clipped. '}Learning rates: of {grid}, chosen after {select_epochs} "
        f"epoch{'s' * (select_epochs > 1)} of seed 0. "
        f"For {edge} of {len(methods)} methods it is the lowest or the highest of the grid."
    )
    records = [record for chosen in methods for record in chosen.records]
    return "\n".join([*parts, f"{caption} Made on {made_on(records)}"])


def line(chosen: Chosen) -> str:
    """Return a method's row of the table."""
    method, records = chosen.method, chosen.records
    losses = [loss for loss in chosen.last("train/loss") if loss is not None]
    accuracies, sparsities = chosen.last("test/accuracy"), chosen.last("test/sparsity")
    return row(
        *(method.activation, f"{method.sparsity:g}", f"{method.map_slope:.2f}"),
        *("LCW" if method.lcw else "plain", f"{chosen.rate:g}", len(records), epochs(records)),
        rounded(statistics.mean(losses), 3) if losses else "diverged",
        f"{statistics.mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f})",
        f"{statistics.mean(sparsities):.3f}",
        f"{chosen.failures} of {len(records)}",
        *paper(chosen.network, method),
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
