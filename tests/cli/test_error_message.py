"""An error of torch, Lightning, Python or the system is said in words that name the flag, the file or the line."""

import errno
import os

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from lcw_lightning import MLP, Digits, ImageClassifier, constrain
from lcw_lightning.cli.error_message import TRANSLATIONS, message_of

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Bound(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(3, 2)
        self.network = constrain(self.network)


def stop_early_on_nothing():
    module = ImageClassifier(MLP(64, 10, depth=1, width=4), lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    Trainer(max_epochs=1, accelerator="cpu", callbacks=[EarlyStopping("val/lss")], **QUIET).fit(module, Digits())


def fit(**settings):
    return lambda: Trainer(**{"accelerator": "cpu", "max_epochs": 1, **QUIET, **settings}).fit(LightningModule(), [])


RAISED = {
    "names bound": (Bound, "'network' must be a module, got a list. If it comes from constrain(network): that"),
    "no step": (fit(), "the model has no training_step(), which this command calls"),
    "seed": (lambda: seed_everything(-1), "--seed_everything is a whole number from 0 to 4294967295; got -1."),
    "no data": (
        lambda: Trainer(accelerator="cpu", max_epochs=1, **QUIET).fit(
            ImageClassifier(nn.Linear(2, 2), torch.optim.SGD)
        ),
        "this command has no data: name a data module by --data, or define train_dataloader() in the model.",
    ),
    "epochs": (fit(max_epochs=-5), "--trainer.max_epochs is a whole number of 0 or more, or -1 for no limit; got -5."),
    "batches": (fit(limit_train_batches=2.5), "--trainer.limit_train_batches is a fraction from 0.0 to 1.0, or a"),
    "strategy": (fit(strategy="dpp"), "there is no strategy dpp: give auto, ddp"),
    "devices": (fit(devices="four"), "--trainer.devices is a number of devices above 0, or auto."),
    "rate": (lambda: torch.optim.SGD([torch.zeros(1)], lr=-1.0), "the optimizer takes no learning rate of -1.0;"),
    "momentum": (lambda: torch.optim.SGD([torch.zeros(1)], momentum=-1.0), "takes no momentum value of -1.0;"),
    "metric": (stop_early_on_nothing, "EarlyStopping has no metric val/lss to monitor; logged are `val/loss`"),
    "users code": (lambda: nn.Linear(2, 2).wieght, "'Linear' object has no attribute 'wieght' ("),
    "key": (lambda: {}["lr"], "KeyError: 'lr' ("),
}


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a `validation_step` but")
@pytest.mark.parametrize(("act", "says"), RAISED.values(), ids=RAISED)
def test_an_error_that_is_really_raised_is_put_into_words(act, says):
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whichever the library raises
        act()
    assert says in message_of(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("accelerator", ["cuda", "gpu"])
def test_a_missing_accelerator_is_named_with_those_that_there_are(accelerator):
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whichever Lightning raises
        Trainer(accelerator=accelerator, **QUIET)
    assert message_of(raised.value).startswith("this machine has no ")


def test_an_error_in_code_of_the_users_is_said_with_its_line():
    with pytest.raises(AttributeError) as raised:
        torch.zeros(2).lenght  # noqa: B018
    line = raised.tb.tb_lineno
    assert message_of(raised.value) == (
        f"AttributeError: 'Tensor' object has no attribute 'lenght' ({__file__}, line {line})"
    )


SYSTEM = {
    "missing": (
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/a/b"),
        "'/a/b' cannot be read or written: No such file",
    ),
    "full": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space is left on the disk; free some, or write"),
    "full, in our words": (OSError(errno.ENOSPC, "no space is left for 'x.ckpt'"), "no space is left for 'x.ckpt'."),
    "other": (OSError("a message alone"), "a message alone"),
    "in other words": (RuntimeError(f"Net is not written: {OSError(5, 'broken')}"), "Net is not written: broken"),
}


@pytest.mark.parametrize(("error", "says"), SYSTEM.values(), ids=SYSTEM)
def test_an_error_of_the_system_names_the_file_and_has_no_number(error, says):
    assert message_of(error).startswith(says)
    assert "Errno" not in message_of(error)


CODE = """def hook(checkpoint):
    return checkpoint["mine"]
"""
CONNECTOR = """def restore(hook):
    hook({})

def refuse(_):
    raise KeyError("it holds weights alone")
"""


@pytest.mark.parametrize(
    ("connector", "hook", "says"),
    [
        ("restore", "site-packages/a.py", "the checkpoint cannot be restored (KeyError: 'mine'): it is broken"),
        ("restore", "project/a.py", "KeyError: 'mine' (project/a.py, line 2)"),
        ("refuse", "project/a.py", "KeyError: 'it holds weights alone'"),
    ],
    ids=["library", "users hook", "Lightning itself"],
)
def test_a_checkpoint_is_called_broken_only_where_a_library_trips_over_it(connector, hook, says):
    names = {}
    exec(compile(CODE, hook, "exec"), names)
    exec(compile(CONNECTOR, "site-packages/lightning/checkpoint_connector.py", "exec"), names)
    with pytest.raises(KeyError) as raised:
        names[connector](names["hook"])
    error = raised.value.with_traceback(raised.tb.tb_next)  # without this file
    assert message_of(error).startswith(says)


def test_words_of_our_own_stay():
    with pytest.raises(ValueError, match="the model must be") as raised:
        constrain(MLP)
    assert message_of(raised.value) == str(raised.value)
    assert not any("lcw" in pattern for pattern in TRANSLATIONS)
