import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import lcw_lightning
from lcw_lightning import ImageClassifier
from lcw_lightning.cli import main
from lcw_lightning.constraints import constrained_weights

# Lightning says so when a checkpoint is loaded by a run with a folder of its own.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

CONFIG = str(Path(lcw_lightning.__file__).parents[1] / "configs" / "digits_mlp50.yaml")
SMALL = ["--config", CONFIG, "--model.network.depth=3", "--model.network.width=16", "--trainer.max_epochs=2"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lcw(command, *flags):
    main([command, *SMALL, *QUIET, *flags])


@pytest.fixture
def checkpoint():
    """The path of the last checkpoint of a small run."""
    lcw("fit")
    (path,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    return str(path)


def failure(capsys, *args):
    """The exit status and the message of a command that must fail."""
    with pytest.raises(SystemExit) as exit_:
        main(list(args))
    if isinstance(exit_.value.code, str):  # what Python prints on stderr at exit status 1
        return 1, exit_.value.code
    return exit_.value.code, capsys.readouterr().err


MISTAKES = {
    "kind": (["--constraint.kind=lwc"], 2, r"constraint.kind", "lwc"),
    "pattern": (["--constraint.include=[netwrk.*]"], 1, "'netwrk.*' matches no weight", "near it are 'network."),
    "flag": (["--constraint.knd=lcw"], 2, "unrecognized arguments: --constraint.knd=lcw", ""),
    "key": (["--model.network.wdth=3"], 2, "Option 'wdth' is not accepted", ""),
    "config": (["--config", "nowhere.yaml"], 2, "does not exist", "nowhere.yaml"),
    "checkpoint": (["--ckpt_path", "nowhere.ckpt"], 1, "there is no checkpoint 'nowhere.ckpt'", ""),
    "fan-in": (["--model.network.width=1"], 1, "fan_in is 1 for 'network.hidden.1.linear.weight'", "exclude"),
    "every-n-steps": (["--shift_monitor.every_n_steps=-1"], 1, "every_n_steps >= 0, got -1", ""),
}


@pytest.mark.parametrize(("flags", "status", "says", "names"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_message(flags, status, says, names, capsys):
    code, message = failure(capsys, "fit", *SMALL, *QUIET, *flags)
    assert code == status
    assert says in message
    assert names in message
    assert "Traceback" not in message
    assert "usage:" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_named(capsys):
    code, message = failure(capsys, "fit", *SMALL, "--trainer.accelerator=gpu")
    assert code == 1
    assert "gpu" in message


def test_a_missing_network_is_named(capsys):
    code, message = failure(capsys, "fit", "--model=ImageClassifier", "--data=Digits")
    assert code == 2
    assert "network" in message


def test_a_truncated_checkpoint_is_refused_and_kept(checkpoint, capsys):
    whole = Path(checkpoint).read_bytes()
    Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
    code, message = failure(capsys, "fit", *SMALL, "--ckpt_path", "half.ckpt")
    assert code == 1
    assert "'half.ckpt' cannot be read: it is truncated" in message
    assert Path("half.ckpt").read_bytes() == whole[: len(whole) // 2]
    assert Path(checkpoint).read_bytes() == whole


def test_a_checkpoint_of_another_network_is_refused(checkpoint, capsys):
    code, message = failure(capsys, "test", *SMALL, *QUIET, "--ckpt_path", checkpoint, "--model.network.width=8")
    assert code == 1
    assert "size mismatch for network.output" in message


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("payload_ran"),)


def test_a_checkpoint_with_a_payload_is_refused_and_not_run(capsys):
    torch.save({"state_dict": Payload()}, "payload.ckpt")
    code, message = failure(capsys, "test", *SMALL, "--ckpt_path", "payload.ckpt")
    assert code == 1
    assert "holds more than tensors and plain values" in message
    assert not Path("payload_ran").exists()


def test_nan_in_the_first_batch_stops_with_the_layers_name(monkeypatch, capsys):
    setup = lcw_lightning.Digits.setup

    def setup_with_nan(self, stage):
        setup(self, stage)
        self.train_dataset.tensors[0][:, 0, 3, 3] = float("nan")

    monkeypatch.setattr(lcw_lightning.Digits, "setup", setup_with_nan)
    code, message = failure(capsys, "fit", *SMALL, *QUIET)
    assert code == 1
    assert "'network.hidden.0.linear.weight' are NaN or infinite" in message


def test_debug_mode_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(ValueError, match="matches no weight"):
        lcw("fit", "--constraint.include=[netwrk.*]")


def test_fit_writes_config_checkpoint_and_events():
    lcw("fit")
    run = Path("lightning_logs/version_0")
    assert {path.name.split(".")[0] for path in run.iterdir()} == {"config", "checkpoints", "events", "hparams"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["seed_everything"] == 0
    assert config["constraint"] == {"kind": "lcw", "include": ["*"], "exclude": []}


def test_the_saved_config_gives_the_same_weights_again(checkpoint):
    main(["fit", "--config", "lightning_logs/version_0/config.yaml", *QUIET])
    first, again = (torch.load(path) for path in sorted(Path().glob("lightning_logs/*/checkpoints/*.ckpt")))
    assert all(torch.equal(first["state_dict"][key], value) for key, value in again["state_dict"].items())


def test_the_seed_decides_weights_and_order_of_batches(monkeypatch):
    setup, seeds = lcw_lightning.Digits.setup, []
    monkeypatch.setattr(
        lcw_lightning.Digits, "setup", lambda data, stage: (seeds.append(data.seed), setup(data, stage))
    )
    lcw("fit", "--seed_everything=1")
    lcw("fit", "--seed_everything=2")
    one, other = (torch.load(path) for path in sorted(Path().glob("lightning_logs/*/checkpoints/*.ckpt")))
    assert not torch.equal(*(run["state_dict"]["network.output.bias"] for run in (one, other)))
    assert set(seeds) == {1, 2}


def test_explicit_flags_win_over_the_checkpoints_hyperparameters(checkpoint):
    lcw("fit", "--ckpt_path", checkpoint, "--trainer.max_epochs=3", "--model.optimizer.lr=0.5")
    config = yaml.safe_load(Path("lightning_logs/version_1/config.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_is_evaluated_to_the_runs_own_accuracy(command, checkpoint, capsys):
    stage = {"validate": "val", "test": "test"}[command]
    capsys.readouterr()
    lcw(command, "--ckpt_path", checkpoint, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
    with Path("csv/lightning_logs/version_0/metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    model = ImageClassifier.load_from_checkpoint(checkpoint)
    data = lcw_lightning.Digits()
    data.setup("test")
    images, labels = data.test_dataset.tensors
    expected = (model(images.to(model.device)).argmax(1).cpu() == labels).double().mean().item()
    assert float(row[f"{stage}/accuracy"]) == pytest.approx(expected)


def test_predict_writes_logits(checkpoint):
    lcw("predict", "--ckpt_path", checkpoint)
    predictions = torch.load("lightning_logs/version_1/predictions_rank0.pt")
    assert torch.cat(predictions).shape == (360, 10)


def test_load_from_checkpoint_needs_no_help(checkpoint):
    model = ImageClassifier.load_from_checkpoint(checkpoint)
    assert len(constrained_weights(model)) == 4
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(state[key], value.cpu()) for key, value in model.state_dict().items())


def test_a_run_without_logger_writes_no_config():
    lcw("fit", "--trainer.logger=false")
    assert not Path("config.yaml").exists()


def test_ours_come_before_the_users_callbacks():
    lcw("fit", "--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.max_epochs=1")
    (path,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    averaged = torch.load(path)["state_dict"]
    assert averaged["network.output.parametrizations.weight.original"].shape == (10, 15)


def test_print_config_shows_the_three_groups(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", CONFIG, "--print_config"])
    assert exit_.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["minibatch_init"] == {"target_std": 1.0, "granularity": "layer"}
    assert config["shift_monitor"] == {"every_n_steps": 50, "include": ["*"], "exclude": []}


def test_completion_is_printed_for_bash(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--print_completion=shtab-bash"])
    assert exit_.value.code == 0
    script = capsys.readouterr().out
    assert "_shtab_lcw lcw" in script
    assert "--constraint.kind" in script


def test_any_activation_goes_by_class_path_and_arguments():
    lcw("fit", "--model.network.activation=torch.nn.Hardtanh", "--model.network.activation.max_val=2.0")
    config = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    activation = config["model"]["init_args"]["network"]["init_args"]["activation"]
    assert activation["class_path"] == "torch.nn.Hardtanh"
    assert activation["init_args"]["max_val"] == 2.0


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_any_lightning_module_goes_by_class_path_and_needs_no_data_module():
    boring = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
    main(["fit", boring, "--trainer.fast_dev_run=true", "--trainer.num_sanity_val_steps=0", *QUIET])


def test_two_ranks_walk_the_path_of_one_process_with_their_batches_together():
    flags = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=10", "--trainer.accelerator=cpu"]
    lcw("fit", *flags, "--data.batch_size=128", "--trainer.default_root_dir=one")
    # Lightning starts the second rank as a process of its own, with the command line of the first.
    ranks = ["--data.batch_size=64", "--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.default_root_dir=two"]
    script = Path("lcw_in_a_file.py")
    script.write_text("from lcw_lightning.cli import main\nmain()\n")
    subprocess.run([sys.executable, "-W", "ignore", script, "fit", *SMALL, *QUIET, *flags, *ranks], check=True)
    one, two = (torch.load(*Path(folder).glob("**/*.ckpt"))["state_dict"] for folder in ("one", "two"))
    assert set(one) == set(two)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5)
