"""Markdown tables, and their places in README.md and the pages of docs/ and results/: between two comments."""

from collections.abc import Iterable
from pathlib import Path

from tools.records import ROOT

README = ROOT / "README.md"


def show(name: str, text: str, write: bool, tool: str = "reproduce") -> None:
    """Print a table; with ``write``, also put it between the comments that name the table and the tool."""
    print(text)
    if not write:
        return
    begin, end = f"<!-- {name}: made by python -m tools.{tool} -->", f"<!-- /{name} -->"
    places = [page for page in pages() if begin in page.read_text()]
    if not places:
        print(f"\nNo page has a place for this: put the lines {begin} and {end} in a page of docs/ or results/.")
    for page in places:
        before, rest = page.read_text().split(begin)
        page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def pages() -> list[Path]:
    """Return README.md and all pages of docs/ and results/."""
    return [README, *(page for folder in ("docs", "results") for page in sorted(README.parent.glob(f"{folder}/*.md")))]


def row(*cells: object) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*titles: str) -> list[str]:
    """Return the first two lines of a table."""
    return [row(*titles), "|" + "---|" * len(titles)]


def rounded(number: float, decimals: int) -> str:
    """Return a number with some decimals, or as a power of ten if it is 100 or more."""
    return f"{number:.{decimals}f}" if number < 100 else f"{number:.0e}".replace("e+0", "e").replace("e+", "e")


def made_on(records: list[dict]) -> str:
    """Return the machines and the versions that made the records."""
    machines = unique(
        hardware["gpu"]
        if (hardware := record["hardware"])["gpu"] and record["device"] != "cpu"
        else f"{hardware['cores']} CPU cores ({hardware['machine']})"
        for record in records
    )
    versions = unique(", ".join(map(" ".join, record["versions"].items())) for record in records)
    return f"{'; '.join(machines)}; {'; '.join(versions)}."


def unique(items: Iterable) -> list:
    """Return each item once, in order."""
    return list(dict.fromkeys(items))
