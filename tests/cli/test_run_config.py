"""How the config of a run is found, and where it is kept."""

from pathlib import Path

import pytest
import torch
import yaml

from lcw_lightning.cli import main
from lcw_lightning.cli.run_config import checkpoint_without_config, config_of_run
from tests.quick import quick

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
    "last": (["--ckpt_path=last"], None),
    "registry": (["--ckpt_path", "registry:some-model"], None),
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


COMMANDS = {
    "validate": ["validate"],
    "test": ["test"],
    "predict": ["predict", "--output=predictions.csv"],
    "analyze": ["analyze"],
    "export": ["export", "--output=network.pt"],
    "fit": ["fit", "--trainer.max_epochs=3"],
}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("command", quick(["validate", "export", "fit"], COMMANDS))
def test_every_command_takes_the_config_of_the_run_from_its_checkpoint(command, lcw, small_checkpoint):
    main([*command, "--ckpt_path", small_checkpoint])
    if command[0] == "fit":
        saved = yaml.safe_load(Path("lightning_logs/version_1/config.yaml").read_text())
        first = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
        assert saved["model"] == first["model"]
        (path,) = Path("lightning_logs/version_1/checkpoints").glob("*.ckpt")
        assert torch.load(path)["epoch"] == 2  # the third


VERSION = ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.version=mine"]


@pytest.fixture
def own_version(lcw):
    """Run a fit into a folder that is named, which holds its config then."""
    lcw("fit", *VERSION, "--trainer.max_epochs=1", "--test_after_fit=false")
    return Path("logs/lightning_logs/mine")


def test_another_run_into_the_same_folder_is_refused_and_changes_nothing(lcw, own_version):
    config = (own_version / "config.yaml").read_text()
    says = r"the run's folder .*mine holds another run, with its config\.yaml: name another by --trainer\.logger\.init"
    with pytest.raises(SystemExit, match=says):
        lcw("fit", *VERSION, "--trainer.max_epochs=1", "--test_after_fit=false", "--constraint.kind=wn")
    assert (own_version / "config.yaml").read_text() == config


@pytest.mark.filterwarnings("ignore:Experiment logs directory", "ignore:Checkpoint directory", "ignore:The dirpath")
def test_the_evaluation_of_a_run_goes_into_its_folder(own_version):
    config = (own_version / "config.yaml").read_text()
    (path, *_) = (own_version / "checkpoints").glob("*.ckpt")
    main(["test", "--ckpt_path", str(path)])
    assert (own_version / "config.yaml").read_text() == config


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:The dirpath", "ignore:Experiment logs")
def test_a_named_run_goes_on_in_its_folder(lcw):
    lcw("fit", "--run_name=mine", "--trainer.max_epochs=1", "--test_after_fit=false")
    folder = Path("lightning_logs/mine")
    config = (folder / "config.yaml").read_text()
    (path, *_) = (folder / "checkpoints").glob("*.ckpt")
    main(["fit", "--ckpt_path", str(path), "--trainer.max_epochs=2", "--test_after_fit=false"])
    assert max(torch.load(found)["epoch"] for found in (folder / "checkpoints").glob("*.ckpt")) == 1
    assert (folder / "config.yaml").read_text() == config
    with pytest.raises(SystemExit, match=r"holds another run, with .*: name another by --run_name, go on with that"):
        lcw("fit", "--run_name=mine", "--trainer.max_epochs=2", "--test_after_fit=false")
