import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def _reseed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch):
    """LightningCLI warns where it gets arguments while pytest's own are in sys.argv."""
    monkeypatch.setattr(sys, "argv", ["lcw"])
