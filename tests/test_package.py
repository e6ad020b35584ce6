import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lcw_lightning

PACKAGE = Path(lcw_lightning.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_public_name_is_there_and_documented():
    for name in lcw_lightning.__all__:
        assert getattr(lcw_lightning, name).__doc__, name


def test_importing_changes_no_state_of_torch_or_logging_and_loads_no_second_lightning():
    code = """
import logging, random, sys, torch, lightning
def state():
    return (torch.get_rng_state().tolist(), random.getstate(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.get_num_threads(), len(logging.getLogger().handlers))
before = state()
import lcw_lightning
assert state() == before
assert not logging.getLogger("lcw_lightning").handlers
assert "pytorch_lightning" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


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
