"""Tables and curves of a grid's runs, from their JSON files alone."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tools.readme import head, made_on, row
from tools.reproduce.paper.grids import PAPER_TABLE_1, Grid
from tools.reproduce.runs import Run, finished, settings

EVERY_N_EPOCHS = "--model.lr_scheduler.init_args.every_n_epochs"  # by which a schedule is scaled
PAPER_FIG_5 = {"plain": "-", "BN+init": "-", "WN": "does not train", "SN": "does not train"}
PANELS = ("train/loss", "test/loss", "train/accuracy", "test/accuracy")
ByMethod = dict[str, list[dict]]
Groups = dict[tuple[str, str], ByMethod]  # by network and data set


def load(runs: list[Run], folder: Path) -> Groups:
    """Return the records of the finished runs by network and data set, then by method."""
    groups: Groups = {}
    for record in finished([run.name for run in runs], folder):
        group = groups.setdefault((record["network"], record["data"]), {})
        group.setdefault(record["method"], []).append(record)
    return groups


def titled(grid: Grid, groups: Groups) -> Iterator[tuple[str, str, str, ByMethod]]:
    """Yield each group's network, data set and title, and its records by method."""
    for (network, data), methods in groups.items():
        yield network, data, f"{grid.networks[network]}, {data.upper().replace('CIFAR', 'CIFAR-')}", methods


def tables(name: str, grid: Grid, groups: Groups) -> str:
    """Return a Markdown table for each network and data set, and a line that says what made them."""
    parts = []
    for network, data, title, methods in titled(grid, groups):
        last, schedule = averaged(grid, network, data, methods)
        lines = table_1(network, data, methods, last) if name == "table1" else table_5(methods, last)
        parts += [f"{title}{schedule}:\n", *lines, ""]
    by_method = [records for methods in groups.values() for records in methods.values()]
    over_seeds = ", mean ± standard deviation over seeds" if max(map(len, by_method)) > 1 else ""
    which = "as said above" if schedule else f"the mean of the last {last} epochs" if last > 1 else "the last epoch's"
    note = f"Each value is {which}{over_seeds}; s/epoch is the median, with validation{flags(grid, by_method[0][0])}."
    return "\n".join([*parts, f"{note} Made on {made_on([record for records in by_method for record in records])}"])


def averaged(grid: Grid, network: str, data: str, methods: ByMethod) -> tuple[int, str]:
    """Return over how many last epochs values are averaged, and words for it if the schedule was scaled."""
    given = dict(flag.split("=", 1) for records in methods.values() for flag in records[0]["flags"])
    if EVERY_N_EPOCHS not in given:
        return grid.last, ""
    config, epochs = settings(network, data), int(given["--trainer.max_epochs"])
    whole, decay = config["trainer"]["max_epochs"], config["model"]["init_args"]["lr_scheduler"]["init_args"]
    last = max(1, grid.last * epochs // whole)
    return last, (
        f", {epochs} epochs in place of {whole}, the learning rate falling as far: times {decay['factor']} every "
        f"{float(given[EVERY_N_EPOCHS]):.3g} epochs in place of {decay['every_n_epochs']}; values are "
        + (f"means of the last {last} epochs" if last > 1 else "the last epoch's")
    )


def flags(grid: Grid, record: dict) -> str:
    """Return words for the flags that change neither the method nor the schedule."""
    more = [flag for flag in record["flags"] if flag not in grid.methods[record["method"]] and "epochs" not in flag]
    return f"; run with {' '.join(more)}" if more else ""


def table_5(methods: ByMethod, last: int) -> list[str]:
    """Return a table with all four quantities; the paper only has curves."""
    panels = [panel.replace("/", " ") for panel in PANELS]
    lines = head("method", "seeds", "epochs", *panels, "s/epoch", "the paper")
    for method, records in methods.items():
        values = [spread(records, panel, last) for panel in PANELS]
        says = PAPER_FIG_5.get(method, "trains")
        lines.append(row(method, len(records), epochs(records), *values, pace(records), says))
    return lines


def table_1(network: str, data: str, methods: ByMethod, last: int) -> list[str]:
    """Return a table with the quantities of the test images beside the paper's."""
    lines = head("method", "seeds", "epochs", "test accuracy", "paper", "test loss", "paper", "s/epoch")
    for method, records in methods.items():
        accuracy, loss = (spread(records, f"test/{quantity}", last) for quantity in ("accuracy", "loss"))
        paper_accuracy, paper_loss = (f"{number:.3f}" for number in PAPER_TABLE_1[network, data, method])
        ours = method, len(records), epochs(records)
        lines.append(row(*ours, accuracy, paper_accuracy, loss, paper_loss, pace(records)))
    return lines


def spread(records: list[dict], quantity: str, last: int) -> str:
    """Return the mean over the last epochs and over runs, and the standard deviation over runs."""
    ends = [record["epochs"][quantity][-last:] for record in records]
    if any(None in end for end in ends):
        return "diverged"
    means = [statistics.mean(end) for end in ends]
    deviation = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
    return f"{statistics.mean(means):.3f}{deviation}"


def epochs(records: list[dict]) -> str:
    """Return how many epochs the runs had."""
    return ", ".join(map(str, sorted({len(record["seconds"]) for record in records})))


def pace(records: list[dict]) -> str:
    """Return the median of the seconds per epoch."""
    return f"{statistics.median(seconds for record in records for seconds in record['seconds']):.1f}"


def draw(grid: Grid, groups: Groups, folder: Path, variant: str) -> list[Path]:
    """Write a picture for each network and data set; return the paths."""
    paths = []
    for network, data, title, methods in titled(grid, groups):
        paths.append(folder / f"{network}_{data}{variant}.png")
        curves(title, methods, list(grid.methods)).savefig(paths[-1], dpi=110)
    return paths


def curves(title: str, methods: ByMethod, order: Sequence[str]) -> Figure:
    """Draw losses and accuracies against epochs: the mean over seeds, and the range as a band.

    A method has the same color in all pictures, by its place in ``order``.
    """
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    for axes, quantity in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for method, records in methods.items():
            number = order.index(method)
            histories = [[float("nan") if x is None else x for x in record["epochs"][quantity]] for record in records]
            by_epoch = list(zip(*histories, strict=False))
            numbers = range(1, len(by_epoch) + 1)
            style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
            axes.plot(numbers, [statistics.mean(values) for values in by_epoch], label=method, lw=1.2, **style)
            if len(records) > 1:
                band = [min(values) for values in by_epoch], [max(values) for values in by_epoch]
                axes.fill_between(numbers, *band, color=style["color"], alpha=0.2, lw=0)
        part, name = quantity.split("/")
        axes.set(title=f"{'training' if part == 'train' else part} {name}", xlabel="epoch")
    figure.suptitle(title)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure
