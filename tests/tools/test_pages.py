"""The tables of README.md, docs/ and results/ are those of the JSON files."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tools import readme
from tools.benchmark import __main__ as benchmark
from tools.records import ROOT
from tools.reproduce import __main__ as reproduce

BLOCK = re.compile(r"<!-- (\S+): made by python -m tools\.\w+ -->")
MLP100 = "sparse --networks sparse_mlp100"
NO_CLIPPING = f"{MLP100} --no-gradient-clipping --epochs 1 --rates 1e-5 3e-5 1e-4 3e-4 1e-3"
TINY_BATCHES = [network + table for network in ("mlp", "convnet") for table in ("", "_rates", "_same")]
REPORTS = {  # what tools.reproduce is given to make a table, by the table's name
    "digits": "digits",
    "rnn": "rnn",
    "rnn_mnist": "rnn_mnist",
    "convert": "convert",
    "preflight": "preflight",
    "fig5": "fig5",
    "fig5_20epochs": "fig5 --epochs 20",
    **dict.fromkeys(("recurrent", "recurrent_same"), "recurrent"),
    **{f"tiny_batches_{part}": "tiny_batches" for part in TINY_BATCHES},
    "sparse_digits": "sparse_digits",
    **dict.fromkeys(("sparse_noclipping_1epochs", "sparse_noclipping_1epochs_rates"), NO_CLIPPING),
    **dict.fromkeys(("sparse_2epochs", "sparse_2epochs_rates"), f"{MLP100} --epochs 2 --rates 1e-3 3e-3 1e-2"),
}
# Decimal numbers outside tables are versions, settings or mathematics. Those of measurements belong in tables.
DECIMALS = {
    "README.md": "3.10 2.6 0.1 2.0",  # Python, PyTorch, chance, licence
    "docs/command_line.md": "1.0 0.5",  # defaults
    "docs/analyze.md": "2.5 1.25",  # limits of the verdict
    "docs/compatibility.md": "0.003 0.02 0.07 0.7",  # rounding of 16-bit weights at stated sizes
    "docs/lightning.md": "2.5",  # the limit of the verdict
    "docs/recurrent.md": "2.5 6.5 0.15 0.97 0.9 0.93 0.14",  # the limit of the verdict; lcw_lightning.theory.recurrence
    "docs/sparse.md": "0.72 0.6 0.78 0.7 0.8 2.1 0.9 1.2",  # lcw_lightning.theory.variance_maps
    "results/fig5.md": "0.9 0.1",  # momentum and rate
    "results/preflight.md": "0.6 0.7 0.8 0.85",  # sparsities
    "results/recurrent.md": "0.9 0.001 0.0125 0.05 0.2 0.3 0.1",  # settings, chance
    "results/tiny_batches.md": "0.9 0.0125 0.05 0.2 0.1",  # settings, chance
    "results/sparse.md": "0.2 0.1 0.6 0.7 0.8 0.9 0.005 0.08 0.01",  # sparsities, chance, momentum, rates
}
NO_PROSE = re.compile(r"(?s)<!-- (\S+): made by .*?<!-- /\1 -->|```.*?```|`[^`]*`|\]\([^)]*\)")
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")

FOLDERS = {name: report.split()[0] for name, report in REPORTS.items()} | dict.fromkeys(
    ("preflight", "sparse_digits"), "sparse"
)


@pytest.fixture
def pages(monkeypatch, tmp_path):
    """Let tools write into copies of the pages, whose tables are taken out; return the folder."""
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    for page in readme_pages():
        copy = tmp_path / page.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(re.sub(r"(?s)(<!-- \S+: made by [^>]*-->\n).*?(<!-- /)", r"\1\2", page.read_text()))
    return tmp_path


def readme_pages() -> list[Path]:
    """Return README.md and the pages of docs/ and results/."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("results/*.md"))]


def table(name: str, folder: Path) -> str:
    """Return what stands between the comments that name a table, wherever that is."""
    pages = [
        path.read_text() for path in (folder / "README.md", *folder.glob("docs/*.md"), *folder.glob("results/*.md"))
    ]
    found = [page.partition(f"<!-- {name}: ")[2].partition(f"<!-- /{name} -->")[0] for page in pages]
    return next(text for text in found if text)


def test_every_table_is_known_here(pages):
    names = {name for page in readme.pages() for name in BLOCK.findall(page.read_text())}
    assert names == {*REPORTS, "benchmark"}


@pytest.mark.parametrize("name", REPORTS)
def test_a_table_is_that_of_the_json_files(name, pages):
    stored = pages / "stored"  # curves are drawn beside the JSON files
    shutil.copytree(ROOT / "results" / FOLDERS[name], stored, ignore=shutil.ignore_patterns("*.png"))
    reproduce.main([*REPORTS[name].split(), "--report", f"--output={stored}"])
    assert table(name, pages) == table(name, ROOT)


def test_the_tables_of_what_constraints_cost_are_those_of_the_json_files(pages):
    benchmark.main(["--report"])
    assert table("benchmark", pages) == table("benchmark", ROOT)


def test_every_json_file_was_made_at_a_clean_commit():
    for path in ROOT.glob("results/**/*.json"):
        content = json.loads(path.read_text())
        records = content if isinstance(content, list) else [content]
        for entry in (entry for record in records for entry in ([record] if "git" in record else record.values())):
            assert re.fullmatch(r"[0-9a-f]{7,}", entry["git"]), path


def test_no_number_of_a_measurement_stands_outside_a_table():
    for page in readme_pages():
        name = str(page.relative_to(ROOT))
        stray = set(DECIMAL.findall(NO_PROSE.sub("", page.read_text()))) - set(DECIMALS.get(name, "").split())
        assert not stray, f"{name}: {sorted(stray)}"


def test_control_a_measured_number_in_prose_is_found():
    text = (
        "It has 0.95 `0.5` [here](0.7.md).\n<!-- a: made by b -->\n0.1\n<!-- /a -->\n```\n0.2\n```\nv2.6.4, 3.5 times"
    )
    assert DECIMAL.findall(NO_PROSE.sub("", text)) == ["0.95", "3.5"]
