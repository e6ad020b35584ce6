"""Tables and curves of a grid's runs, from their JSONs alone."""

import json
import statistics
from pathlib import Path

from grids import PAPER_TABLE_1, Grid
from matplotlib.figure import Figure
from runs import Run

PAPER_FIG_5 = {"plain": "-", "WN": "does not train", "SN": "does not train"}
PANELS = ("train/loss", "test/loss", "train/accuracy", "test/accuracy")


def load(runs: list[Run], folder: Path) -> dict[tuple[str, str, str], list[dict]]:
    """Return the finished runs by network, data set and method; those without any are left out."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for run in runs:
        path = folder / f"{run.name}.json"
        if path.exists():
            groups.setdefault((run.network, run.data, run.method), []).append(json.loads(path.read_text()))
    return groups


def tables(name: str, grid: Grid, groups: dict[tuple[str, str, str], list[dict]]) -> str:
    """Return a Markdown table for each network and data set, and a line that says what made them."""
    parts = []
    for network, data in unique(key[:2] for key in groups):
        mine = {method: runs for (n, d, method), runs in groups.items() if (n, d) == (network, data)}
        parts.append(f"{grid.networks[network]}, {data.upper().replace('CIFAR', 'CIFAR-')}:\n")
        if name == "table1":
            parts += table_1(network, data, mine, grid.last)
        else:
            parts += table_5(mine, grid.last)
        parts.append("")
    everything = [run for runs in groups.values() for run in runs]
    several = max(map(len, groups.values())) > 1
    over_seeds = ", mean ± standard deviation over seeds" if several else ""
    which = "the last epoch's" if grid.last == 1 else f"the mean of the last {grid.last} epochs"
    note = f"Each value is {which}{over_seeds}; s/epoch is the median, with validation."
    return "\n".join([*parts, f"{note} {made_by(everything)}"])


def table_5(methods: dict[str, list[dict]], last: int) -> list[str]:
    """Return lines with all four quantities; the paper has curves alone."""
    lines = [
        "| method | seeds | epochs | train loss | test loss | train accuracy | test accuracy | s/epoch | the paper |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, runs in methods.items():
        values = " | ".join(spread(runs, panel, last) for panel in PANELS)
        says = PAPER_FIG_5.get(method, "trains")
        lines.append(f"| {method} | {len(runs)} | {epochs(runs)} | {values} | {pace(runs)} | {says} |")
    return lines


def table_1(network: str, data: str, methods: dict[str, list[dict]], last: int) -> list[str]:
    """Return lines with the test's quantities beside the paper's."""
    lines = [
        "| method | seeds | epochs | test accuracy | paper | test loss | paper | s/epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, runs in methods.items():
        accuracy, loss = (spread(runs, f"test/{quantity}", last) for quantity in ("accuracy", "loss"))
        paper_accuracy, paper_loss = PAPER_TABLE_1[network, data, method]
        ours = f"| {method} | {len(runs)} | {epochs(runs)} | {accuracy} | {paper_accuracy:.3f} "
        lines.append(f"{ours}| {loss} | {paper_loss:.3f} | {pace(runs)} |")
    return lines


def spread(runs: list[dict], quantity: str, last: int) -> str:
    """Return the mean over the last epochs, then over runs, and the standard deviation over runs."""
    ends = [run["epochs"][quantity][-last:] for run in runs]
    if any(None in end for end in ends):
        return "diverged"
    means = [statistics.mean(end) for end in ends]
    deviation = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
    return f"{statistics.mean(means):.3f}{deviation}"


def epochs(runs: list[dict]) -> str:
    """Return how many epochs the runs had."""
    return ", ".join(map(str, sorted({len(run["seconds"]) for run in runs})))


def pace(runs: list[dict]) -> str:
    """Return the median of seconds an epoch."""
    return f"{statistics.median(seconds for run in runs for seconds in run['seconds']):.1f}"


def made_by(runs: list[dict]) -> str:
    """Return on which machines and with which versions runs were made."""
    machines = unique(
        hardware["gpu"]
        if (hardware := run["hardware"])["gpu"] and run["device"] != "cpu"
        else f"{hardware['cores']} CPU cores ({hardware['machine']})"
        for run in runs
    )
    versions = unique(", ".join(f"{name} {number}" for name, number in run["versions"].items()) for run in runs)
    return f"Made on {'; '.join(machines)}; {'; '.join(versions)}."


def unique(items) -> list:
    """Return items in order, each once."""
    return list(dict.fromkeys(items))


def curves(title: str, methods: dict[str, list[dict]]) -> Figure:
    """Draw losses and accuracies against epochs: the mean over seeds, and the range as a band."""
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    for axes, quantity in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for number, (method, runs) in enumerate(methods.items()):
            histories = [[float("nan") if x is None else x for x in run["epochs"][quantity]] for run in runs]
            by_epoch = list(zip(*histories, strict=False))
            numbers = range(1, len(by_epoch) + 1)
            style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
            axes.plot(numbers, [statistics.mean(values) for values in by_epoch], label=method, lw=1.2, **style)
            if len(runs) > 1:
                band = [min(values) for values in by_epoch], [max(values) for values in by_epoch]
                axes.fill_between(numbers, *band, color=style["color"], alpha=0.2, lw=0)
        part, name = quantity.split("/")
        axes.set(title=f"{'training' if part == 'train' else part} {name}", xlabel="epoch")
    figure.suptitle(title)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def draw(grid: Grid, groups: dict[tuple[str, str, str], list[dict]], folder: Path, variant: str) -> list[Path]:
    """Write a picture for each network and data set; return where."""
    paths = []
    for network, data in unique(key[:2] for key in groups):
        mine = {method: runs for (n, d, method), runs in groups.items() if (n, d) == (network, data)}
        paths.append(folder / f"{network}_{data}{variant}.png")
        curves(f"{grid.networks[network]}, {data.upper().replace('CIFAR', 'CIFAR-')}", mine).savefig(paths[-1], dpi=110)
    return paths


def write_between_markers(readme: Path, name: str, text: str, tool: str = "reproduce.py") -> bool:
    """Put the text between the README's markers of that name and tool, if it has them."""
    begin, end = f"<!-- {name}: made by tools/{tool} -->", f"<!-- /{name} -->"
    content = readme.read_text()
    if begin not in content:
        return False
    before, rest = content.split(begin)
    readme.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
    return True
