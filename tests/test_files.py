"""A full disk is one sentence with the file's path, and the old file stays."""

import errno
import subprocess
import sys

import pytest
import torch

from lcw_lightning.files import written_atomically

SAVE = """
import resource, sys, torch
from lcw_lightning.checkpoints import AtomicCheckpointIO
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # what a full disk does, for this process alone
try:
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(int(sys.argv[1]))}, "run.ckpt")
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes are set by resource")
@pytest.mark.parametrize(("numbers", "fits"), [(100, True), (100_000, False)], ids=["fits", "too-large"])
def test_a_checkpoint_for_which_no_space_is_left_names_its_path_and_keeps_the_old_one(numbers, fits, tmp_path):
    torch.save({"weights": torch.ones(1)}, tmp_path / "run.ckpt")
    command = [sys.executable, "-W", "ignore", "-c", SAVE, str(numbers)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert said.startswith("" if fits else "no space is left for 'run.ckpt' on its disk or in its quota (")
    assert bool(said) != fits
    assert len(torch.load(tmp_path / "run.ckpt")["weights"]) == (numbers if fits else 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run.ckpt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_systems_own_word_for_it_is_understood(number, tmp_path):
    with pytest.raises(OSError, match="no space is left for"), written_atomically(tmp_path / "x"):
        raise OSError(number, "full")


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "no"), RuntimeError("other"), ValueError("mine")], ids=str
)
def test_another_error_stays_what_it_is(error, tmp_path):
    with pytest.raises(type(error)) as raised, written_atomically(tmp_path / "x"):
        raise error
    assert raised.value is error
