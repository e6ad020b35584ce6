import math
import platform
import subprocess

import pytest
import torch

from tools import records


def git(*arguments):
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in place of the repository."""
    monkeypatch.setattr(records, "ROOT", tmp_path)
    return tmp_path


def test_the_environment_is_the_versions_and_the_hardware():
    made = records.environment()
    assert made["versions"]["python"] == platform.python_version()
    assert made["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert made["hardware"]["machine"] == platform.machine()
    assert made["hardware"]["cores"] >= 1


def test_the_commit_is_dirty_once_a_file_that_counts_is_changed(folder):
    assert records.environment()["git"] is None
    git("init")
    git("commit", "--allow-empty", "--message=first")
    commit = git("rev-parse", "--short", "HEAD")
    (folder / "README.md").write_text("changed")
    assert records.environment()["git"] == commit
    (folder / "configs").mkdir()
    (folder / "configs" / "new.yaml").write_text("changed")
    assert records.environment()["git"] == f"{commit}-dirty"


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "folder" / "numbers.json"
    assert records.read_json(path) == {}
    records.write_json(path, {"a": torch.tensor([1.0, 2.0])})
    assert records.read_json(path) == {"a": [1.0, 2.0]}


def test_a_number_that_is_not_finite_leaves_the_old_file(tmp_path):
    path = tmp_path / "numbers.json"
    records.write_json(path, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(path, [math.nan])
    assert path.read_text() == "[\n 1\n]\n"
