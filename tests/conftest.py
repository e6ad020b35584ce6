import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def _reseed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_command_line():
    """LightningCLI warns where it gets arguments while pytest's own are in sys.argv."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lcw"])
        yield
