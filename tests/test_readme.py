import re
from pathlib import Path

import pytest

import lcw_lightning

ROOT = Path(lcw_lightning.__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_every_python_snippet_runs(snippet, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})


@pytest.mark.parametrize("name", lcw_lightning.__all__)
def test_every_public_name_is_mentioned(name):
    assert name in README


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_mentioned(path):
    assert f"configs/{path.name}" in README


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([^)]+)\)", README)
    for link in links:
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_its_test_command_is_the_one_that_ci_runs():
    assert README.count("tools/check\n") == 1
    assert "tools/check$" in (ROOT / ".ci" / "run").read_text()
