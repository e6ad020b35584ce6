"""Tables with one row per layer and one column per statistic."""

from collections.abc import Mapping, Sequence

from rich.box import Box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lcw_lightning.analysis.findings import Condition, Statistics
from lcw_lightning.observation.statistics import GATE_STATISTICS, Statistic

__all__ = ["fit_names", "gate_table", "layer_table", "side_by_side"]

COLUMNS = [statistic for statistic in Statistic if statistic.heading]
SIDE_BY_SIDE = (Statistic.SHIFT_RATIO, Statistic.PREACTIVATION_STD, Statistic.GRADIENT_STD)
GATE_HEADINGS = dict(zip(GATE_STATISTICS, ("mean\nof z", "std\nof z", "shift\nratio"), strict=True))
SHORTEST_NAME = 12
RULED = Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)  # one line of hyphens below the headings, in ASCII


def _new_table(headings: Sequence[str], rows: str = "layer") -> Table:
    table = Table(box=RULED, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(rows, overflow="fold", min_width=SHORTEST_NAME)
    for heading in headings:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    return table


def layer_table(statistics: Statistics, condition: Condition) -> Table:
    """Return a table with one row per layer, including the layers that were never reached."""
    table = _new_table([statistic.heading for statistic in COLUMNS])
    layers = [*statistics, *condition.unreached]
    remarks = {layer: ", ".join(_remarks(condition, layer)) for layer in layers}
    if any(remarks.values()):
        table.add_column("", no_wrap=True)
    for layer in layers:
        row = statistics.get(layer, {})
        table.add_row(
            Text(layer), *(_number(row, column) for column in COLUMNS), *([remarks[layer]] if remarks[layer] else [])
        )
    return table


def side_by_side(networks: Mapping[str, Statistics]) -> Table:
    """Return a table of three statistics, each with one column per network, by label."""
    table = _new_table([f"{column.heading}\n{label}" for column in SIDE_BY_SIDE for label in networks])
    for layer in dict.fromkeys(layer for statistics in networks.values() for layer in statistics):
        rows = [statistics.get(layer, {}) for statistics in networks.values()]
        table.add_row(Text(layer), *(_number(row, column) for column in SIDE_BY_SIDE for row in rows))
    return table


def gate_table(networks: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> Table:
    """Return a table with one row per gate of recurrent layers, by layer and gate, for each network by its label."""
    labels = ["" if label == "" else f"\n{label}" for label in networks]
    table = _new_table([f"{heading}{label}" for heading in GATE_HEADINGS.values() for label in labels], "gate")
    names = [(layer, gate) for gates in networks.values() for layer, by_gate in gates.items() for gate in by_gate]
    for layer, gate in dict.fromkeys(names):
        rows = [gates.get(layer, {}).get(gate, {}) for gates in networks.values()]
        numbers = (f"{row[name]:.3g}" if name in row else "-" for name in GATE_HEADINGS for row in rows)
        table.add_row(Text(f"{layer}.{gate}"), *numbers)
    return table


def _number(row: Mapping[str, float], statistic: Statistic) -> str:
    if statistic not in row:
        return "-"
    number = row[statistic]
    return f"{round(100 * number, 1):g}%" if statistic.scale == "fraction" else f"{number:.3g}"


def _remarks(condition: Condition, layer: str) -> list[str]:
    named = {"never reached": "unreached", "frozen": "frozen", "zero weights": "zero"}
    return [remark for remark, group in named.items() if layer in getattr(condition, group)]


def fit_names(table: Table, console: Console) -> None:
    """Wrap layer names until the table fits the console; never truncate numbers, so wide rows may exceed it."""

    def least() -> int:
        return Measurement.get(console, console.options.update(max_width=10_000), table).minimum

    names = table.columns[0]
    names.max_width = max(SHORTEST_NAME, max(len(str(name)) for name in names.cells) - max(0, least() - console.width))
    console.width = max(console.width, least())
