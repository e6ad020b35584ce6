import ast
import re
from pathlib import Path

import pytest

import lcw_lightning

PACKAGE = Path(lcw_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
WINGS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
ROOT = Path(__file__).parents[1]
LAYERS = re.search(r"^layers = (\[.*?^\])", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)[1]
FLOORS = [sorted(layer.split(" | ")) for layer in ast.literal_eval(LAYERS)]


def test_the_package_can_be_seen_at_a_glance():
    assert len(list(PACKAGE.glob("*.py"))) <= 6
    assert len(WINGS) <= 12
    assert len(FLOORS) <= 6
    assert not list(PACKAGE.glob("*/*/__init__.py"))  # no wing has wings


def test_a_page_shows_the_floors_of_the_import_contract():
    table = (ROOT / "docs" / "architecture.md").read_text().partition("| floor |")[2].partition("\n\n")[0]
    floors = re.split(r"^\| \d ", table, flags=re.MULTILINE)[1:]
    assert [sorted(re.findall(r"\| `(\w+)(?:/|\.py)` \|", floor)) for floor in floors] == FLOORS


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_says_in_three_lines_what_it_is_for_and_what_it_may_touch(wing):
    docstring = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text()))
    purpose, limits = docstring.split("\n\n")
    assert len([*purpose.splitlines(), *limits.splitlines()]) <= 3


def lines_of(nodes):
    return {line for node in nodes for line in range(node.lineno, node.end_lineno + 1)}


def docstrings(tree):
    """Return the statements that are a string alone: docstrings, also those of attributes."""
    statements = (node for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return [node for node in statements if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)]


def lines_of_code(text):
    """Return the numbers of the lines that are neither blank, nor comments, nor docstrings."""
    written = {n for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith("#")}
    return written - lines_of(docstrings(ast.parse(text)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    code = lines_of_code(path.read_text())
    assert len(code) <= 160
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert len(code & lines_of([node])) <= 30, node.name
