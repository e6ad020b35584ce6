"""Tables of layers: a row a layer, a column a statistic."""

from collections.abc import Mapping, Sequence

from rich.box import Box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lcw_lightning.analysis.findings import Condition, Statistics

__all__ = ["fit_names", "layer_table", "side_by_side"]

COLUMNS = {
    "shift_ratio": "shift\nratio",
    "shift_angle_degrees": "shift\nangle",
    "preactivation_std": "std\nof z",
    "gradient_std": "std of\ndL/dz",
    "amplification_forward": "V(z)\n/ V(a)",
    "amplification_backward": "V(dL/da)\n/V(dL/dz)",
    "sparsity": "zeros\nin a",
    "dead_units": "dead\nunits",
}
FRACTIONS = ("sparsity", "dead_units")
SIDE_BY_SIDE = ("shift_ratio", "preactivation_std", "gradient_std")
SHORTEST_NAME = 12
RULED = Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)  # a line below the headings, which any encoding has


def _new_table(headings: Sequence[str]) -> Table:
    table = Table(box=RULED, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold", min_width=SHORTEST_NAME)
    for heading in headings:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    return table


def layer_table(statistics: Statistics, condition: Condition) -> Table:
    """Return a table with a row a layer, those that were never reached too."""
    table = _new_table(list(COLUMNS.values()))
    layers = [*statistics, *condition.unreached]
    remarks = {layer: ", ".join(_remarks(condition, layer)) for layer in layers}
    if any(remarks.values()):
        table.add_column("", no_wrap=True)
    for layer in layers:
        row = statistics.get(layer, {})
        table.add_row(
            Text(layer), *(_number(row, name) for name in COLUMNS), *([remarks[layer]] if remarks[layer] else [])
        )
    return table


def side_by_side(networks: Mapping[str, Statistics]) -> Table:
    """Return a table with a column a network, for some of the statistics, by label."""
    table = _new_table([f"{COLUMNS[name]}\n{label}" for name in SIDE_BY_SIDE for label in networks])
    for layer in dict.fromkeys(layer for statistics in networks.values() for layer in statistics):
        rows = [statistics.get(layer, {}) for statistics in networks.values()]
        table.add_row(Text(layer), *(_number(row, name) for name in SIDE_BY_SIDE for row in rows))
    return table


def _number(row: Mapping[str, float], name: str) -> str:
    if name not in row:
        return "-"
    return f"{round(100 * row[name], 1):g}%" if name in FRACTIONS else f"{row[name]:.3g}"


def _remarks(condition: Condition, layer: str) -> list[str]:
    named = {"never reached": "unreached", "frozen": "frozen", "zero weights": "zero"}
    return [remark for remark, group in named.items() if layer in getattr(condition, group)]


def fit_names(table: Table, console: Console) -> None:
    """Fold the names as far as it takes; numbers are never cut, so a narrower terminal wraps the lines."""

    def least() -> int:
        return Measurement.get(console, console.options.update(max_width=10_000), table).minimum

    names = table.columns[0]
    names.max_width = max(SHORTEST_NAME, max(len(str(name)) for name in names.cells) - max(0, least() - console.width))
    console.width = max(console.width, least())
