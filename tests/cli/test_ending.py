"""How the process ends after an error that has no words of its own, and what Lightning may not say."""

import errno
import logging
import sys
import threading

import pytest
from lightning.pytorch import Trainer

from lcw_lightning.cli.ending import ends_in_one_message, without_advertisements

ERRORS = {
    "gpu": (
        RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be ..."),
        "the GPU met a number that is out of bounds, most often a label beyond the number of classes",
    ),
    "silent": (AssertionError(), "lcw: error: AssertionError\n"),
    "own": (ValueError("this and that."), "lcw: error: this and that.\n"),
}


@pytest.mark.parametrize(("error", "says"), ERRORS.values(), ids=ERRORS)
def test_an_error_ends_in_a_sentence(error, says):
    with pytest.raises(SystemExit) as exit_, ends_in_one_message():
        raise error
    assert says in exit_.value.code


def in_a_thread(act):
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


def test_a_thread_ends_in_one_line_however_often(capsys):
    def fail():
        raise OSError(errno.ENOSPC, "no space is left for 'events'")

    hook = threading.excepthook
    with ends_in_one_message():
        in_a_thread(fail)
        in_a_thread(fail)
        in_a_thread(sys.exit)  # which is no failure
    assert capsys.readouterr().err == "lcw: a thread ended: no space is left for 'events'.\n"
    assert threading.excepthook is hook


@pytest.mark.parametrize("status", [0, 2, "lcw: error: mine"])
def test_an_exit_stays_as_it_is(status):
    with pytest.raises(SystemExit) as exit_, ends_in_one_message():
        raise SystemExit(status)
    assert exit_.value.code == status


def test_ctrl_c_outside_a_fit_has_its_status_too(capsys):
    with pytest.raises(SystemExit) as exit_, ends_in_one_message():
        raise KeyboardInterrupt
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "lcw: ended by Ctrl-C\n"


@pytest.fixture
def said(caplog):
    """Return a function that makes a Trainer, and what Lightning says of it."""
    settings = {"logger": True, "enable_checkpointing": True, "enable_model_summary": False}

    def make(tmp_path):
        caplog.clear()
        with caplog.at_level(logging.INFO, "lightning.pytorch"), caplog.at_level(logging.INFO):
            logging.getLogger("lightning.pytorch").addHandler(caplog.handler)
            Trainer(default_root_dir=tmp_path, accelerator="cpu", **settings)
            logging.getLogger("lightning.pytorch").removeHandler(caplog.handler)
        return caplog.text

    return make


def test_lightning_does_not_advertise_its_other_products(said, tmp_path):
    assert "Tip: For seamless" in said(tmp_path)  # the control: it does so
    with without_advertisements():
        quiet = said(tmp_path)
    assert "Tip" not in quiet
    assert "GPU available" in quiet
    assert "Tip: For seamless" in said(tmp_path)
