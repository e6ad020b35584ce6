"""What an analysis found, as text, JSON and figures; several networks side by side."""

import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import Box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lcw_lightning.files import written_atomically
from lcw_lightning.plotting.snapshots import plot_snapshots
from lcw_lightning.verdict import Condition, Finding, findings

__all__ = ["Report", "render", "save"]

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
WIDTH = 160  # of what is not printed in a terminal
SHORTEST_NAME = 12
RULED = Box("    \n    \n -- \n" + "    \n" * 5, ascii=True)  # a line below the headings, which any encoding has


@dataclass(frozen=True)
class Report:
    """What one minibatch shows of every layer, before training.

    Attributes:
        statistics: Numbers by name, as :func:`~lcw_lightning.statistics.network_statistics` defines them, by layer in
            the order of the forward pass.
        condition: Layers that are frozen, never reached or zero.
        loss: Of the minibatch; None without one.
        values: Samples of values for the figures.

    Example:
        >>> print(Report({"linear": {"shift_ratio": 3.0}}, Condition()).findings[0].says)
        Activation shift in 1 of 1 layers: ...
    """

    statistics: dict[str, dict[str, float]]
    condition: Condition
    loss: float | None = None
    values: Mapping[tuple[str, Any], Tensor] = field(default_factory=dict, repr=False)

    @property
    def findings(self) -> list[Finding]:
        """What is the matter, and what to try; empty if all is well."""
        return findings(self.statistics, self.condition, self.loss)

    def __str__(self) -> str:
        return render({"": self})

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``analysis.json`` and figures into a folder; return its path."""
        return save({"": self}, folder)


def render(reports: Mapping[str, Report]) -> str:
    """Return a table with a row a layer and a verdict for each report, by label; ``""`` labels one that is alone."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    text = io.StringIO()
    # Text alone, whatever the environment says: no colours, and no display of a notebook's.
    console = Console(file=text, width=width, force_terminal=False, force_jupyter=False, color_system=None)
    table = _table(next(iter(reports.values()))) if len(reports) == 1 else _table_side_by_side(reports)
    _fit(table, console)
    console.print(table)
    for label, report in reports.items():
        console.print(
            "\n".join(("", *_verdict(label, report))), highlight=False, markup=False, emoji=False, width=width
        )
    return text.getvalue()


def save(reports: Mapping[str, Report], folder: str | os.PathLike[str]) -> Path:
    """Write ``analysis.json`` and the figures of all reports, by label, into a folder.

    Raises:
        NotADirectoryError: There is a file of that name.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"a report goes into a folder, but {str(folder)!r} is a file; name another folder.")
    figures = plot_snapshots(
        {label: report.statistics for label, report in reports.items()},
        {label: report.values for label, report in reports.items()},
    )
    for name, figure in figures.items():
        with written_atomically(folder / f"{name}.png") as path:
            figure.savefig(path)
    content = {label: _as_json(report) for label, report in reports.items()}
    with written_atomically(folder / "analysis.json") as path:
        path.write_text(json.dumps(content[""] if list(content) == [""] else content, indent=1, allow_nan=False))
    return folder


def _fit(table: Table, console: Console) -> None:
    """Fold the names as far as it takes; numbers are never cut, so a narrower terminal wraps the lines."""

    def least() -> int:
        return Measurement.get(console, console.options.update(max_width=10_000), table).minimum

    names = table.columns[0]
    names.max_width = max(SHORTEST_NAME, max(len(str(name)) for name in names.cells) - max(0, least() - console.width))
    console.width = max(console.width, least())


def _verdict(label: str, report: Report) -> Iterator[str]:
    heading = (f"{label}: " if label else "") + ("" if report.loss is None else f"loss {report.loss:.4g}; ")
    if not any("gradient_std" in row for row in report.statistics.values()):
        heading += "forward alone, no gradient was seen; "
    if not report.findings:
        yield f"{heading}nothing is the matter."
        return
    yield f"{heading}what is the matter:"
    yield from (f"- {finding.says}" for finding in report.findings)
    if advice := dict.fromkeys(advice for finding in report.findings for advice in finding.advice):
        yield "What to try:"
        yield from (f"- {line}" for line in advice)


def _new_table(headings: Sequence[str]) -> Table:
    table = Table(box=RULED, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold", min_width=SHORTEST_NAME)
    for heading in headings:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    return table


def _table(report: Report) -> Table:
    table = _new_table(list(COLUMNS.values()))
    layers = [*report.statistics, *report.condition.unreached]
    remarks = {layer: ", ".join(_remarks(report, layer)) for layer in layers}
    if any(remarks.values()):
        table.add_column("", no_wrap=True)
    for layer in layers:
        row = report.statistics.get(layer, {})
        table.add_row(
            Text(layer), *(_number(row, name) for name in COLUMNS), *([remarks[layer]] if remarks[layer] else [])
        )
    return table


def _table_side_by_side(reports: Mapping[str, Report]) -> Table:
    table = _new_table([f"{COLUMNS[name]}\n{label}" for name in SIDE_BY_SIDE for label in reports])
    for layer in dict.fromkeys(layer for report in reports.values() for layer in report.statistics):
        rows = [report.statistics.get(layer, {}) for report in reports.values()]
        table.add_row(Text(layer), *(_number(row, name) for name in SIDE_BY_SIDE for row in rows))
    return table


def _number(row: Mapping[str, float], name: str) -> str:
    if name not in row:
        return "-"
    return f"{round(100 * row[name], 1):g}%" if name in FRACTIONS else f"{row[name]:.3g}"


def _remarks(report: Report, layer: str) -> list[str]:
    named = {"never reached": "unreached", "frozen": "frozen", "zero weights": "zero"}
    return [remark for remark, group in named.items() if layer in getattr(report.condition, group)]


def _as_json(report: Report) -> dict[str, Any]:
    def safe(number: float) -> float | str:
        return number if math.isfinite(number) else str(number)  # JSON knows neither NaN nor infinity

    return {
        "loss": None if report.loss is None else safe(report.loss),
        "layers": {
            layer: {name: safe(number) for name, number in row.items()} for layer, row in report.statistics.items()
        },
        "condition": report.condition._asdict(),
        "verdict": [finding._asdict() for finding in report.findings],
    }
