"""How the config of a run is found, and where it is kept."""

from pathlib import Path

import pytest
import yaml

from lcw_lightning.cli.run_config import checkpoint_without_config, config_of_run

FLAGS = {
    "ckpt-alone": (["--ckpt_path", "a/b.ckpt"], "a/b.ckpt"),
    "equals": (["--ckpt_path=a/b.ckpt", "--output=x", "--trainer.devices", "2"], "a/b.ckpt"),
    "none": (["--output=x"], None),
    "config": (["--config", "c.yaml", "--ckpt_path=b.ckpt"], None),
    "short-config": (["-c", "c.yaml", "--ckpt_path=b.ckpt"], None),
    "model": (["--model", "MLP", "--ckpt_path=b.ckpt"], None),
    "model-class": (["--ckpt_path=b.ckpt", "--model.class_path=MLP"], None),
    "model-setting": (["--ckpt_path=b.ckpt", "--model.depth=3"], "b.ckpt"),
    "url": (["--ckpt_path=s3://b.ckpt"], None),
    "abbreviated": (["--ckpt=b.ckpt"], None),
}


@pytest.mark.parametrize(("flags", "path"), FLAGS.values(), ids=FLAGS)
def test_a_checkpoint_without_a_config_is_known_from_the_flags(flags, path):
    assert checkpoint_without_config(flags) == (None if path is None else Path(path))


def test_the_config_lies_in_the_folder_of_the_run(tmp_path, monkeypatch):
    checkpoints = tmp_path / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "run.ckpt").touch()
    with pytest.raises(
        FileNotFoundError, match=r"the config of the run that wrote .*run.ckpt is missing: give it by --config"
    ):
        config_of_run(checkpoints / "run.ckpt")
    config = tmp_path / "version_0" / "config.yaml"
    config.touch()
    assert config_of_run(checkpoints / "run.ckpt") == str(config)
    monkeypatch.chdir(checkpoints)
    assert config_of_run(Path("run.ckpt")) == str(config)


def test_a_checkpoint_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint 'nowhere/x.ckpt'"):
        config_of_run(Path("nowhere/x.ckpt"))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_the_saved_config_does_not_say_what_the_run_went_on_from(lcw, small_checkpoint):
    lcw("fit", "--ckpt_path", small_checkpoint, "--trainer.max_epochs=3")
    saved = yaml.safe_load(Path("lightning_logs/version_1/config.yaml").read_text())
    assert saved["trainer"]["max_epochs"] == 3
    assert not {"ckpt_path", "weights_only"} & saved.keys()
