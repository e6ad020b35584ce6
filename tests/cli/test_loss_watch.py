"""``lcw fit`` on data that hold NaN in the middle of the run."""

from pathlib import Path

import pytest
import torch

DATA = """
import torch
from lcw_lightning import Digits

class Spoiled(Digits):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, labels = batch
        if self.trainer.training and self.trainer.global_step == 13:
            images = torch.full_like(images, torch.nan)
        return images, labels
"""


@pytest.fixture
def fit(lcw):
    """Run ``lcw fit`` on data whose batch is NaN in step 13 of 22, the third of the second epoch."""

    def run(*flags):
        Path("spoiled_data.py").write_text(DATA)
        lcw("fit", "--data=spoiled_data.Spoiled", "--test_after_fit=false", *flags)

    return run


def checkpoint():
    (path,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    return torch.load(path)


def is_finite(state):
    return all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_fit_ends_with_an_exit_status_and_leaves_the_last_checkpoint_alone(fit):
    with pytest.raises(SystemExit) as exit_:
        fit()
    assert isinstance(exit_.value.code, str)  # Python prints it on stderr, and exits with status 1
    assert exit_.value.code.startswith("lcw: error: the training loss is not finite in step 13 (batch 2 of epoch 1);")
    assert "--loss_watch.if_not_finite=warn" in exit_.value.code
    assert checkpoint()["global_step"] == 11
    assert is_finite(checkpoint()["state_dict"])


def test_fit_names_the_layer_where_the_monitor_has_seen_it(fit):
    with pytest.raises(SystemExit) as exit_:
        fit("--shift_monitor.every_n_steps=13")
    assert "ShiftMonitor in step 13: Not finite: the input of 'network.hidden.0.linear'" in exit_.value.code


def test_fit_told_to_warn_goes_to_the_end_with_nan_weights(fit):
    with pytest.warns(UserWarning, match="not finite in step 13") as said:
        fit("--loss_watch.if_not_finite=warn")
    assert sum("training loss" in str(warning.message) for warning in said) == 1
    assert checkpoint()["global_step"] == 22
    assert not is_finite(checkpoint()["state_dict"])


def test_analyze_reports_a_loss_that_is_not_finite_and_does_not_end(lcw, capsys):
    Path("spoiled_at_once.py").write_text(DATA.replace("== 13", "== 0"))
    lcw("analyze", "--data=spoiled_at_once.Spoiled", "--minibatch_init.granularity=none")
    assert "Not finite: the input of 'network.hidden.0.linear'" in capsys.readouterr().out
