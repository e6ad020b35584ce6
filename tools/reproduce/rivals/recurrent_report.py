"""Tables and the picture of the recurrent networks, from the records of the methods alone."""

import statistics
from itertools import product

from matplotlib.figure import Figure

from tools.readme import head, row
from tools.reproduce.rivals.choosing import Axis
from tools.reproduce.rivals.report import at, below, failures, held_out, spread

PANELS = {"sigmoid": ("sigmoid",), "tanh, ReLU": ("tanh", "ReLU"), "gated cells": ("LSTM", "GRU")}
TITLES = ("tried", "rate", "gain", "held-out accuracy", "test accuracy: mean (lowest to highest)", "failed")


def table(records: dict[str, dict]) -> str:
    """Return the Markdown table of the chosen settings and the seeds, and a line that says what made it."""
    lines = head("cell, method", *TITLES, "a run: median seconds")
    for name, record in records.items():
        best, seconds = record["tried"][0], [run["seconds"] for run in record["runs"] if "seconds" in run]
        chosen = [f"{value:g}" if record["runs"] else "-" for value in record["chosen"].values()]
        cells = [len(record["tried"]), *chosen, held_out(best), spread(record), failures(record)]
        lines.append(row(name, *cells, f"{statistics.median(seconds):.0f}" if seconds else "-"))
    return "\n".join([*lines, "", below(list(records.values()))])


def same_settings(records: dict[str, dict], axes: tuple[Axis, ...]) -> str:
    """Return the table of all methods at each setting of the grid before it is extended."""
    points = [dict(zip([axis.name for axis in axes], point, strict=True)) for point in product(*map(Axis.values, axes))]
    titles = [" ".join(f"{name} {value:g}" for name, value in point.items()) for point in points]
    lines = [row(name, *(held_out(at(record, point)) for point in points)) for name, record in records.items()]
    return "\n".join([*head("cell, method", *titles), *lines])


def picture(records: dict[str, dict]) -> Figure:
    """Draw held-out accuracy against epochs: the mean of each method's seeds, and their range."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (title, cells) in zip(panels, PANELS.items(), strict=True):
        for name, record in records.items():
            curves = [run["held_out_accuracy"] for run in record["runs"] if not run.get("diverged", True)]
            if name.startswith(cells) and curves:
                by_epoch = list(zip(*curves, strict=True))
                epochs = range(1, len(by_epoch) + 1)
                (line,) = panel.plot(epochs, list(map(statistics.mean, by_epoch)), label=name)
                ends = list(map(min, by_epoch)), list(map(max, by_epoch))
                panel.fill_between(epochs, *ends, color=line.get_color(), alpha=0.15, linewidth=0)
        panel.set(title=title, xlabel="epoch", ylim=(0, 1.02))
        if panel.lines:
            panel.legend(fontsize="small")
    panels[0].set_ylabel("held-out accuracy")
    return figure
