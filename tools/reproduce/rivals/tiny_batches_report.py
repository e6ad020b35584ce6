"""Tables and the picture of tiny batches, from the records alone, which are by batch size and method."""

import statistics
from collections.abc import Callable

from matplotlib.figure import Figure

from tools.readme import head, row, unique
from tools.reproduce.rivals.choosing import Axis
from tools.reproduce.rivals.report import accuracies, at, below, held_out, spread

Records = dict[tuple[int, str], dict]


def table(records: Records) -> str:
    """Return the Markdown table of test accuracies, and a line that says what made it."""
    lines = by_method(records, spread, "test accuracy: mean (lowest to highest)")
    return "\n".join([*lines, "", below(list(records.values()))])


def rates(records: Records) -> str:
    """Return the table of the chosen rates, each with the held-out accuracy by which it was chosen."""

    def cell(record: dict) -> str:
        best = held_out(record["tried"][0])
        return f"{record['chosen']['rate']:.2g}: {best}" if record["runs"] else best

    return "\n".join(by_method(records, cell, "rate: held-out accuracy"))


def by_method(records: Records, cell: Callable[[dict], str], title: str) -> list[str]:
    """Return a table with a row for each method and a column for each batch size."""
    sizes, methods = (unique(keys) for keys in zip(*records, strict=True))
    lines = head(title, *(f"batch {size}" for size in sizes))
    for method in methods:
        found = [records.get((size, method)) for size in sizes]
        lines.append(row(method, *(cell(record) if record else "-" for record in found)))
    return lines


def same_rates(records: Records, axis_of: Callable[[int], Axis]) -> str:
    """Return the table of all methods at each batch size and each rate of the grid before it is extended."""
    sizes, methods = (unique(keys) for keys in zip(*records, strict=True))
    lines = head("batch", "rate", *methods)
    for size in sizes:
        for rate in axis_of(size).values():
            found = [records.get((size, method)) for method in methods]
            cells = [held_out(at(record, {"rate": rate})) if record else "-" for record in found]
            lines.append(row(size, f"{rate:.2g}", *cells))
    return "\n".join(lines)


def picture(records: dict[str, Records], titles: dict[str, str]) -> Figure:
    """Draw test accuracy against batch size, for each network: the mean of each method's seeds, and their range."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for panel, (network, mine) in zip(figure.subplots(1, len(records), squeeze=False)[0], records.items(), strict=True):
        for number, method in enumerate(unique(method for _, method in mine)):
            found = {size: accuracies(record) for (size, name), record in mine.items() if name == method}
            found = {size: values for size, values in found.items() if values}
            means = [statistics.mean(values) for values in found.values()]
            below_mean = [mean - min(values) for mean, values in zip(means, found.values(), strict=True)]
            above_mean = [max(values) - mean for mean, values in zip(means, found.values(), strict=True)]
            places = [size * 1.03 ** (number - 3) for size in found]  # apart, for the ranges to be seen
            panel.errorbar(places, means, [below_mean, above_mean], marker="o", markersize=4, capsize=2, label=method)
        sizes = unique(size for size, _ in mine)
        panel.set(title=titles[network], xlabel="batch size", ylabel="test accuracy", xscale="log")
        panel.set_ylim(bottom=0)
        panel.set_xticks(sizes, sizes)
        panel.minorticks_off()
        panel.legend(fontsize="small")
    return figure
