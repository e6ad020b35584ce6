"""Reports of an analysis as text, JSON and figures, of one network or of several side by side."""

import base64
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args

from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from lcw_lightning.analysis.failures import not_finite
from lcw_lightning.analysis.judged import Judged
from lcw_lightning.analysis.over_time import decades_over_time, findings_over_time, norms_by_state, sentence_over_time
from lcw_lightning.analysis.preflight import Preflight
from lcw_lightning.analysis.preflight_verdict import preflight_findings
from lcw_lightning.analysis.tables import fit_names, gate_table, layer_table, side_by_side
from lcw_lightning.analysis.verdict import Condition, Finding, findings
from lcw_lightning.files import written_atomically
from lcw_lightning.observation.recurrences import Recurrence
from lcw_lightning.observation.statistics import Statistic
from lcw_lightning.plotting.over_time import plot_over_time
from lcw_lightning.plotting.preflight import plot_preflight
from lcw_lightning.plotting.snapshots import plot_snapshots
from lcw_lightning.weights.selection import by_reason

__all__ = ["Format", "Report", "render", "save", "verdict_lines"]

Format = Literal["png", "svg", "pdf"]
"""Of figures; PNG has the resolution of print."""

DPI = 300
WIDTH = 160  # of text that does not go to a terminal


@dataclass(frozen=True)
class Report:
    """The analysis of every layer on one minibatch.

    Attributes:
        statistics: The value of each :class:`~lcw_lightning.observation.statistics.Statistic` by name, by layer in the
            order of the forward pass.
        condition: Which layers are frozen, never reached, zero or zero-sum.
        loss: Of the minibatch; None without one.
        values: Samples of preactivations, their gradients and inputs, for the figures.
        preflight: The check of many draws of the weights; None without one.
        judged: Which network this is: constraint, initialization, mode, batch; None if it is not known.
        recurrence: The gates of recurrent layers, and their gradients over time.

    Example:
        >>> print(Report({"linear": {"shift_ratio": 3.0}}, Condition()).findings[0].says)
        Activation shift in 1 of 1 layers: ...
    """

    statistics: dict[str, dict[str, float]]
    condition: Condition
    loss: float | None = None
    values: Mapping[tuple[str, Any], Tensor] = field(default_factory=dict, repr=False)
    preflight: Preflight | None = field(default=None, repr=False)
    judged: Judged | None = None
    recurrence: Recurrence = field(default_factory=Recurrence, repr=False)

    @property
    def findings(self) -> list[Finding]:
        """What is the matter, and what to try; empty if all is well."""
        found = findings(self.statistics, self.condition, self.loss)
        if not_finite(self.statistics, self.loss) is None:  # what follows from broken numbers says nothing
            found += findings_over_time(self.recurrence, self.condition.zero_sum)
        return found + (preflight_findings(self.preflight, self.condition.zero_sum) if self.preflight else [])

    def __str__(self) -> str:
        return render({"": self})

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the printed report, and its figures."""
        shown = (f'<img alt="{escape(name)}" src="{_as_url(figure)}">' for name, figure in _figures({"": self}).items())
        return f"<pre>{escape(str(self))}</pre>\n" + "\n".join(shown)

    def save(self, folder: str | os.PathLike[str], figures: Format = "png") -> Path:
        """Write ``analysis.json`` and figures, as PNG, SVG or PDF, into a folder; return its path."""
        return save({"": self}, folder, figures)


def render(reports: Mapping[str, Report]) -> str:
    """Return a table of all layers and the verdict of each report, by label; ``""`` labels a report on its own."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    text = io.StringIO()
    # Plain text in every environment: no colours, no notebook display.
    console = Console(file=text, width=width, force_terminal=False, force_jupyter=False, color_system=None)
    first, *others = reports.values()
    networks = {label: report.statistics for label, report in reports.items()}
    table = side_by_side(networks) if others else layer_table(first.statistics, first.condition)
    fit_names(table, console)
    for label, report in reports.items():
        if report.judged is not None:
            console.print(f"{f'{label}: ' if label else 'Judged: '}{report.judged}.", highlight=False, markup=False)
    console.print(table)
    if any(report.recurrence.gates for report in reports.values()):
        gates = gate_table({label: report.recurrence.gates for label, report in reports.items()})
        fit_names(gates, console)
        console.print("", gates, sep="\n")
    for label, report in reports.items():
        console.print(
            "\n".join(("", *verdict_lines(label, report))), highlight=False, markup=False, emoji=False, width=width
        )
    return text.getvalue()


def save(reports: Mapping[str, Report], folder: str | os.PathLike[str], figures: Format = "png") -> Path:
    """Write ``analysis.json`` and the figures of all reports, by label, into a folder.

    Raises:
        NotADirectoryError: ``folder`` is a file.
        ValueError: ``figures`` is neither png nor svg nor pdf.
    """
    if figures not in get_args(Format):
        raise ValueError(f"figures are saved as {', '.join(get_args(Format))}, not as {figures!r}; name one of these.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"a report goes into a folder, but {str(folder)!r} is a file; name another folder.")
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):  # text stays text, as publishers ask
        for name, figure in _figures(reports).items():
            with written_atomically(folder / f"{name}.{figures}") as path:
                figure.savefig(path, format=figures, dpi=DPI)
    content = {label: _as_json(report) for label, report in reports.items()}
    with written_atomically(folder / "analysis.json") as path:
        path.write_text(json.dumps(content[""] if list(content) == [""] else content, indent=1, allow_nan=False))
    return folder


def verdict_lines(label: str, report: Report) -> Iterator[str]:
    """Yield the lines of the verdict: what is the matter, and what to try; ``""`` labels a report on its own."""
    heading = (f"{label}: " if label else "") + ("" if report.loss is None else f"loss {report.loss:.4g}; ")
    if not any(Statistic.GRADIENT_STD in row for row in report.statistics.values()):
        heading += "forward pass only, no gradient was seen; "
    named = f"{label}: " if label else ""
    if report.preflight is not None:
        yield f"{named}{report.preflight}."
    if over_time := sentence_over_time(report.recurrence):
        yield f"{named}{over_time}."
    if left := report.recurrence.left:
        yield f"{named}not seen inside of recurrent layers: {by_reason(left)}."
    if not report.findings:
        yield f"{heading}nothing is the matter."
        return
    yield f"{heading}what is the matter:"
    yield from (f"- {finding.says}" for finding in report.findings)
    if advice := dict.fromkeys(advice for finding in report.findings for advice in finding.advice):
        yield "What to try:"
        yield from (f"- {line}" for line in advice)


def _figures(reports: Mapping[str, Report]) -> dict[str, Figure]:
    figures = plot_snapshots(
        {label: report.statistics for label, report in reports.items()},
        {label: report.values for label, report in reports.items()},
        Statistic,
    )
    if checked := {label: report.preflight for label, report in reports.items() if report.preflight is not None}:
        figures["preflight"] = plot_preflight(
            {label: preflight.q_by_layer for label, preflight in checked.items()},
            {label: preflight.growth_by_layer for label, preflight in checked.items()},
            next(iter(checked.values())).layers,
        )
    norms = {label: norms_by_state(report.recurrence) for label, report in reports.items()}
    is_one = len({state for states in norms.values() for state in states}) == 1 and len(norms) > 1
    lines = {
        label if is_one else f"{label} {state}".strip(): steps
        for label, states in norms.items()
        for state, steps in states.items()
    }
    if lines:
        figures["gradient_over_time"] = plot_over_time(lines)
    return figures


def _as_url(figure: Figure) -> str:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"


def _as_json(report: Report) -> dict[str, Any]:
    content: dict[str, Any] = {
        "judged": report.judged._asdict() if report.judged is not None else None,
        "loss": report.loss,
        "layers": report.statistics,
        "condition": report.condition._asdict(),
        "verdict": [finding._asdict() for finding in report.findings],
    }
    if report.recurrence != Recurrence():
        content["recurrence"] = report.recurrence._asdict()
        norms = norms_by_state(report.recurrence)
        content["recurrence"]["decades"] = {name: decades_over_time(steps) for name, steps in norms.items()}
    if report.preflight is not None:
        content["preflight"] = report.preflight.as_dict()
    return {name: _strict(value) for name, value in content.items()}


def _strict(content: Any) -> Any:
    """Return the content with NaN and infinity replaced by strings, since JSON has no such numbers."""
    if isinstance(content, Mapping):
        return {name: _strict(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content
