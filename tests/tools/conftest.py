import pytest
import torch

from tools import readme


@pytest.fixture(autouse=True)
def _own_readme(monkeypatch, tmp_path):
    """Tools write into a README of the test's own."""
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")


@pytest.fixture(autouse=True)
def _denormals():
    """Tools flush denormal numbers, which is a state of the process."""
    yield
    torch.set_flush_denormal(False)
