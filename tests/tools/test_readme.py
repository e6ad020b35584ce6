import pytest

from tools import readme

BEGIN, END = "<!-- one: made by python -m tools.reproduce -->", "<!-- /one -->"


def record(gpu=None, device="cpu", torch="2"):
    hardware = {"gpu": gpu, "cores": 2, "machine": "x86_64"}
    return {"device": device, "hardware": hardware, "versions": {"python": "3", "torch": torch}}


def test_a_table_replaces_what_stands_between_its_comments(capsys):
    readme.README.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    readme.show("one", "| new |", write=True)
    assert readme.README.read_text() == f"above\n{BEGIN}\n| new |\n{END}\nbelow\n"
    assert capsys.readouterr().out == "| new |\n"


@pytest.mark.parametrize("folder", ["docs", "results"])
def test_a_table_stands_where_its_comments_are(folder, tmp_path):
    readme.README.write_text(before := "no comments\n")
    (tmp_path / folder).mkdir()
    page = tmp_path / folder / "page.md"
    page.write_text(f"{BEGIN}\nold\n{END}\n")
    readme.show("one", "| new |", write=True)
    assert page.read_text() == f"{BEGIN}\n| new |\n{END}\n"
    assert readme.README.read_text() == before


@pytest.mark.parametrize(
    ("name", "tool", "write"),
    [("one", "benchmark", True), ("two", "reproduce", True), ("one", "reproduce", False)],
    ids=["another tool's place", "another table's place", "only shown"],
)
def test_a_readme_is_left_alone_where_the_table_has_no_place(name, tool, write, capsys):
    readme.README.write_text(before := f"{BEGIN}\nold\n{END}\n")
    readme.show(name, "| new |", write, tool)
    assert readme.README.read_text() == before
    said = capsys.readouterr().out
    assert "| new |" in said
    assert (
        f"put the lines <!-- {name}: made by python -m tools.{tool} --> and <!-- /{name} --> in a page" in said
    ) is write


def test_a_head_has_a_column_for_each_title():
    assert readme.head("a", "b") == [readme.row("a", "b"), "|---|---|"] == ["| a | b |", "|---|---|"]


@pytest.mark.parametrize(
    ("number", "decimals", "text"),
    [(1.23456, 2, "1.23"), (99.9994, 3, "99.999"), (100, 3, "1e2"), (4e5, 3, "4e5"), (2e12, 2, "2e12")],
)
def test_numbers_from_100_on_are_powers_of_ten(number, decimals, text):
    assert readme.rounded(number, decimals) == text


def test_machines_and_versions_are_named_once_in_order():
    records = [record("H100", "cuda:0"), record(), record("H100"), record("H100", "auto", torch="3")]
    assert readme.made_on(records) == "H100; 2 CPU cores (x86_64); python 3, torch 2; python 3, torch 3."
