import csv
from pathlib import Path

import pytest
import torch
import yaml

import lcw_lightning
from lcw_lightning import ImageClassifier
from lcw_lightning.cli import main
from lcw_lightning.constraints.constrain import constrained_weights

# Lightning says so when a checkpoint is loaded by a run with a folder of its own.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def states(pattern="lightning_logs/*/checkpoints/*.ckpt"):
    """The state dicts of all checkpoints, in the order of their paths."""
    return [torch.load(path)["state_dict"] for path in sorted(Path().glob(pattern))]


def saved_config(version=0):
    return yaml.safe_load(Path(f"lightning_logs/version_{version}/config.yaml").read_text())


def test_fit_writes_config_checkpoint_and_events(lcw):
    lcw("fit")
    names = {path.name.split(".")[0] for path in Path("lightning_logs/version_0").iterdir()}
    assert names == {"config", "checkpoints", "events", "hparams"}
    assert saved_config()["seed_everything"] == 0
    constraint = {"kind": "lcw", "include": ["*"], "exclude": [], "method": "parametrize"}
    assert saved_config()["constraint"] == constraint


def test_the_saved_config_gives_the_same_weights_again(lcw, small_checkpoint):
    main(["fit", "--config", "lightning_logs/version_0/config.yaml", *lcw.quiet])
    first, again = states()
    assert all(torch.equal(first[key], value) for key, value in again.items())


def test_a_saved_config_does_not_override_the_checkpoint_given_before_it(lcw, small_checkpoint, capsys):
    lcw("test", "--ckpt_path", small_checkpoint)
    expected = capsys.readouterr().out
    config = "lightning_logs/version_0/config.yaml"
    main(["test", "--ckpt_path", small_checkpoint, "--config", config, *lcw.quiet])
    assert capsys.readouterr().out == expected


def test_the_seed_decides_the_weights(lcw):
    lcw("fit", "--seed_everything=1")
    lcw("fit", "--seed_everything=2")
    one, other = states()
    assert not torch.equal(one["network.output.bias"], other["network.output.bias"])


def test_the_seed_is_fixed_unless_it_is_given(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["seed_everything"] == 0


def test_vanished_numbers_are_flushed_to_zero(lcw):
    torch.set_flush_denormal(False)
    lcw("fit", "--trainer.fast_dev_run=true")
    assert not (torch.full((1,), 1e-38) / 1000).any()


def test_explicit_flags_win_over_the_checkpoints_hyperparameters(lcw, small_checkpoint):
    lcw("fit", "--ckpt_path", small_checkpoint, "--trainer.max_epochs=3", "--model.optimizer.lr=0.5")
    assert saved_config(version=1)["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5


@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
def test_a_checkpoint_is_evaluated_to_its_own_accuracy(command, stage, lcw, small_checkpoint):
    lcw(command, "--ckpt_path", small_checkpoint, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
    with Path("csv/lightning_logs/version_0/metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    model = ImageClassifier.load_from_checkpoint(small_checkpoint, map_location="cpu")
    data = lcw_lightning.Digits()
    data.setup("test")
    images, labels = data.test_dataset.tensors
    expected = (model(images).argmax(1) == labels).double().mean().item()
    assert float(row[f"{stage}/accuracy"]) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:.*are evaluated as they are")
def test_evaluating_without_a_checkpoint_says_so(lcw):
    with pytest.warns(UserWarning, match="lcw test without --ckpt_path uses freshly drawn weights"):
        lcw("test")


def test_predict_writes_logits(lcw, small_checkpoint):
    lcw("predict", "--ckpt_path", small_checkpoint)
    predictions = torch.load("lightning_logs/version_1/predictions_rank0.pt")
    assert torch.cat(predictions).shape == (360, 10)


def test_load_from_checkpoint_needs_no_help(small_checkpoint):
    model = ImageClassifier.load_from_checkpoint(small_checkpoint, map_location="cpu")
    assert len(constrained_weights(model)) == 4
    state = torch.load(small_checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(state[key].cpu(), value) for key, value in model.state_dict().items())


def test_a_run_without_logger_writes_no_config(lcw):
    lcw("fit", "--trainer.logger=false")
    assert not Path("config.yaml").exists()


def test_ours_come_before_the_users_callbacks(lcw):
    lcw("fit", "--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.max_epochs=1")
    (averaged,) = states()
    assert averaged["network.output.parametrizations.weight.original"].shape == (10, 15)


def test_print_config_shows_the_groups_of_our_callbacks(lcw, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", lcw.config, "--print_config"])
    assert exit_.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["minibatch_init"] == {
        "target_std": 1.0,
        "granularity": "layer",
        "include": ["*"],
        "exclude": [],
        "recurrent_share": 0.5,
    }
    monitor = {"every_n_steps": 50, "figures": True, "histograms": False, "include": ["*"], "exclude": []}
    assert config["shift_monitor"] == monitor | {"sparsity": None}


def test_completion_is_printed_for_bash_and_is_small(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--print_completion=shtab-bash"])
    assert exit_.value.code == 0
    script = capsys.readouterr().out
    assert "_shtab_lcw lcw" in script
    assert "--constraint.kind" in script
    assert len(script) < 2e6  # a shell reads it at its start; walking a strategy's classes once gave 116 MB


def test_any_activation_goes_by_class_path_and_arguments(lcw):
    lcw("fit", "--model.network.activation=torch.nn.Hardtanh", "--model.network.activation.max_val=2.0")
    activation = saved_config()["model"]["init_args"]["network"]["init_args"]["activation"]
    assert activation["class_path"] == "torch.nn.Hardtanh"
    assert activation["init_args"]["max_val"] == 2.0


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_any_lightning_module_goes_by_class_path_and_needs_no_data_module(lcw):
    lcw.args = lcw.quiet
    boring = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
    lcw("fit", boring, "--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1")
    (state,) = states()
    assert set(state) == {"layer.bias", "layer.parametrizations.weight.original"}
