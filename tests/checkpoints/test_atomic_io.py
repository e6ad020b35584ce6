import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO

from lcw_lightning.checkpoints.atomic_io import AtomicCheckpointIO

SMALL = {"state_dict": {"weight": torch.arange(3.0)}}


def test_a_checkpoint_is_saved_into_a_new_folder_and_loads(tmp_path):
    path = tmp_path / "new" / "one.ckpt"
    AtomicCheckpointIO().save_checkpoint(SMALL, path)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["weight"], torch.arange(3.0))
    assert list(path.parent.iterdir()) == [path]


def test_an_error_amid_a_write_leaves_the_old_checkpoint_alone(tmp_path):
    path = tmp_path / "one.ckpt"
    AtomicCheckpointIO().save_checkpoint(SMALL, path)
    with pytest.raises(AttributeError, match="local object"):
        AtomicCheckpointIO().save_checkpoint({**SMALL, "callback": lambda: None}, path)
    assert torch.equal(torch.load(path)["state_dict"]["weight"], torch.arange(3.0))
    assert list(tmp_path.iterdir()) == [path]


def test_remote_paths_go_lightnings_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AtomicCheckpointIO().save_checkpoint(SMALL, "memory://folder/one.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint("memory://folder/one.ckpt", weights_only=True)
    assert torch.equal(loaded["state_dict"]["weight"], torch.arange(3.0))
    assert not list(tmp_path.iterdir())


def test_storage_options_are_an_error_as_lightnings(tmp_path):
    with pytest.raises(TypeError, match="`storage_options` arg is not supported for `AtomicCheckpointIO`"):
        AtomicCheckpointIO().save_checkpoint(SMALL, tmp_path / "one.ckpt", storage_options={})
    assert not list(tmp_path.iterdir())


class UsersIO(TorchCheckpointIO):
    pass


class Witness(Callback):
    def setup(self, trainer, pl_module, stage):
        Witness.seen = type(trainer.strategy.checkpoint_io)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], AtomicCheckpointIO),
        (["--trainer.plugins=lightning.pytorch.plugins.AsyncCheckpointIO"], AsyncCheckpointIO),
        (["--trainer.strategy=SingleDeviceStrategy", f"--trainer.strategy.checkpoint_io={__name__}.UsersIO"], UsersIO),
    ],
    ids=["default", "plugin", "strategy"],
)
def test_the_command_line_saves_atomically_unless_told_otherwise(flags, expected, lcw):
    lcw("fit", "--trainer.fast_dev_run=true", f"--trainer.callbacks={__name__}.Witness", *flags)
    assert Witness.seen is expected
