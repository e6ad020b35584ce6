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


def test_importing_changes_no_state_of_torch_or_logging():
    code = """
import logging, random, torch, lightning
def state():
    return (torch.get_rng_state().tolist(), random.getstate(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.get_num_threads(), len(logging.getLogger().handlers))
before = state()
import lcw_lightning
assert state() == before
assert not logging.getLogger("lcw_lightning").handlers
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 200
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            documented = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            assert node.end_lineno - node.lineno + 1 - documented <= 30, node.name
