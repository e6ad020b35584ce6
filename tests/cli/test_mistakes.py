"""Every mistake ends in one message and a non-zero exit status, and loses nothing."""

from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

import lcw_lightning
from lcw_lightning.cli import main


@pytest.fixture
def failure(lcw, capsys):
    """Return a function that runs a command that must fail: its exit status and all that it says."""

    def fail(command, *flags):
        with pytest.raises(SystemExit) as exit_:
            lcw(command, *flags)
        said = capsys.readouterr()
        if isinstance(exit_.value.code, str):  # Python prints it on stderr, and exits with status 1
            return 1, said.out + said.err + exit_.value.code
        return exit_.value.code, said.out + said.err

    return fail


MISTAKES = {
    "kind": (["--constraint.kind=lwc"], 2, ["constraint.kind", "lwc", "'none', 'lcw'"]),
    "pattern": (["--constraint.include=[netwrk.*]"], 1, ["'netwrk.*' matches no weight", "near it are 'network."]),
    "flag": (["--constraint.knd=lcw"], 2, ["unrecognized arguments: --constraint.knd=lcw"]),
    "abbreviation": (["--constraint.kin=cwn"], 2, ["--constraint.kin=cwn; near it is --constraint.kind"]),
    "flag-without-group": (["--max_epochs=3"], 2, ["--max_epochs=3; near it is --trainer.max_epochs"]),
    "flag-without-value": (["--config"], 2, ["--config needs a value"]),
    "group": (["--constraint=[head.*]"], 2, ["--constraint: '[head.*]' is no config; the settings of a group have"]),
    "key": (["--model.network.wdth=3"], 2, ["lcw_lightning.MLP has no option 'wdth'; near it is 'width'"]),
    "config": (["--config", "nowhere.yaml"], 2, ["does not exist", "nowhere.yaml"]),
    "checkpoint": (["--ckpt_path", "nowhere.ckpt"], 1, ["there is no checkpoint 'nowhere.ckpt'"]),
    "fan-in": (
        ["--model.network.width=1", "--constraint.include=['*.1.*']"],
        1,
        ["'network.hidden.1.linear.weight'", "fan_in 1, for which zero"],
    ),
    "every-n-steps": (["--shift_monitor.every_n_steps=-1"], 1, ["every_n_steps >= 0, got -1"]),
    "in-features": (
        ["--model.network.in_features=63"],
        1,
        ["'network.hidden.0.linear', Linear(in_features=63", "it takes 63 features, and got 64"],
    ),
    "schedule": (["--model.lr_scheduler.every_n_epochs=0"], 1, ["every_n_epochs > 0", "every_n_epochs=0"]),
    "network": (["--model=ImageClassifier"], 2, ["network"]),
    "labels": (
        ["--model.network.num_classes=8"],
        1,
        ["labels (batch,) from 0 to num_classes - 1; got logits of shape (128, 8) and labels", "between 0 and 9."],
    ),
    "channels": (
        ["--model.network=VGG19"],
        1,
        ["'network.features.conv1_1', Conv2d(3, 16,", "3 channels, and got 1"],
    ),
    "one-sample": (
        ["--model.network.norm=batch", "--data.batch_size=1"],
        1,
        ["'network.hidden.0.norm', BatchNorm1d(16", "takes two samples or more; make batches larger"],
    ),
    "activation": (
        ["--model.network.activation=relu"],
        2,
        ["--model.network.activation: there is no class relu, near it is torch.nn.ReLU. Name a class as module.Class"],
    ),
    "activation-instance": (
        ["--model.network.activation=torch.nn.ReLU()"],
        2,
        ["--model.network.activation: torch.nn.ReLU() is no path of a class, near it is torch.nn.ReLU."],
    ),
    "activation-function": (
        ["--model.network.activation=torch.relu"],
        2,
        ["--model.network.activation: torch.relu is no class, nor a function that returns a Module"],
    ),
    "norm": (["--model.network.norm=bn"], 2, ["--model.network.norm: expected one of 'none', 'batch'", "got 'bn'"]),
    "word": (["--model.network.depth=deep"], 2, ["--model.network.depth: expected an int; got 'deep'"]),
    "depth": (["--model.network.depth=0"], 1, ["lcw: error: MLP needs a depth of at least 1", "got 0"]),
    "batch-size": (["--data.batch_size=0"], 1, ["batch_size must be at least 1, got 0"]),
    "std": (["--minibatch_init.target_std=-1"], 1, ["MinibatchInitCallback needs target_std > 0, got -1.0"]),
    "string": (["--constraint.include=a.*"], 2, ["--constraint.include: expected a list, such as [a, b]; got 'a.*'"]),
    "optimizer": (
        ["--model.optimizer=Sdg"],
        2,
        ["--model.optimizer: there is no class Sdg, near it is torch.optim.SGD. Name a class as module.Class"],
    ),
    "rate": (["--model.optimizer.lr=fast"], 2, ["--model.optimizer.lr: expected a float; got 'fast'"]),
    "callback": (
        ["--trainer.callbacks=EarlyStoping"],
        2,
        ["--trainer.callbacks: there is no class EarlyStoping, near it is lightning.pytorch.callbacks.EarlyStopping"],
    ),
    "precision": (
        ["--trainer.precision=half"],
        2,
        ["--trainer.precision: expected an int or one of 'transformer-engine'"],
    ),
}


@pytest.mark.parametrize(("flags", "status", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_message(flags, status, says, failure, lcw):
    if "--model=ImageClassifier" in flags:
        lcw.args = []
    code, message = failure("fit", *flags)
    assert code == status
    assert all(text in message for text in says), message
    raw = ("Traceback", "usage:", "Union subtypes", "Namespace(", "Parser key", "dot import path", "Errno")
    assert not any(words in message for words in raw)
    *_, text = (line for line in message.splitlines() if not line.startswith("(JSONARGPARSE"))
    assert "error: " in text  # all that is said, but for the tip before it, is one line


HOW = "Name a class as module.Class, with its module in the working directory or installed"
MODULES = {  # in the working directory, and what is said of its class Net
    "missing": (None, ["No module named 'missing_{}'. " + HOW]),
    "without_class": ("", ["module 'without_class_{}' has no attribute 'Net'. " + HOW]),
    "near_class": ("class Ned: pass", ["attribute 'Net', near it is near_class_{}.Ned. " + HOW]),
    "other_class": (
        "class Net: pass",
        ["path other_class_{}.Net does not correspond to a subclass of LightningModule"],
    ),
    "needy": ("\nimport nowhere", ["raised ModuleNotFoundError: No module named 'nowhere' (", "needy_{}.py, line 2)"]),
    "failing": ("\n1 / 0", ["raised ZeroDivisionError: division by zero (", "failing_{}.py, line 2)"]),
    "rude": ("class (", ["raised SyntaxError: invalid syntax (rude_{}.py, line 1)"]),
}


@pytest.mark.parametrize("given", ["flag", "config"])
@pytest.mark.parametrize(("name", "text", "says"), [(name, *rest) for name, rest in MODULES.items()], ids=MODULES)
def test_a_class_that_cannot_be_had_is_named_in_a_sentence_or_two(name, text, says, given, failure, lcw):
    module = f"{name}_{given}"  # Python imports a name once
    if text is not None:
        Path(f"{module}.py").write_text(text)
    Path("config.yaml").write_text(f"model: {module}.Net")
    lcw.args = []
    code, message = failure("fit", *(["--model", f"{module}.Net"] if given == "flag" else ["--config", "config.yaml"]))
    assert code == 2
    assert all(part.format(given) in message for part in says), message
    assert message.splitlines()[1].startswith("error: --model: ")
    assert len(message.splitlines()) == 2


YAML = {
    "twice": ("model: a\nmodel: b\n", "the key 'model' stands twice, in lines 1 and 2; keep one"),
    "twice-within": (
        "trainer:\n  devices: 1\n  devices: 2\n",
        "'devices' stands twice, in lines 2 and 3",
    ),
    "broken": ("model: [1, 2\n", "while parsing a flow sequence"),
    "text": ("hello\n", "Unexpected config: hello"),
    "indentation": (
        "trainer:\n  devices: 1\n   max_epochs: 1\n",
        "in line 3, column 14, mapping values are not allowed here; the keys of one group begin in one column",
    ),
    "tab": ("trainer:\n\tdevices: 1\n", "the keys of one group begin in one column, behind spaces, not tabs"),
    "no-setting": ("max_epochs: 1\n", "which is no setting of lcw fit; near it is 'trainer.max_epochs'"),
}


@pytest.mark.parametrize(("text", "says"), YAML.values(), ids=YAML)
def test_a_config_that_is_no_whole_mapping_is_refused(text, says, failure):
    Path("bad.yaml").write_text(text)
    code, message = failure("fit", "--config", "bad.yaml")
    assert code == 2
    assert says in message


COMMANDS = {
    "missing": ([], "name a command: lcw fit, lcw validate, lcw test, lcw predict, lcw export, lcw analyze"),
    "misspelt": (["fitt"], "there is no command 'fitt', near it is 'fit'; there are fit, validate, test"),
    "no-config-flag": (["fit", "digits.yaml"], "settings are given by flags, and a config by --config=FILE"),
}


@pytest.mark.parametrize(("command", "says"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_that_is_missing_or_misspelt_is_said(command, says, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "export", "analyze"])
def test_a_missing_model_is_asked_for_by_flag_or_config(command, failure, lcw):
    lcw.args = ["--ckpt_path=last", "--output=x.pt"] if command == "export" else []
    code, message = failure(command)
    assert code == 2
    assert "--model is missing: give it by a flag, or by a config, --config=FILE" in message


DEPTHS = {
    "fit-deeper": ("fit", 4, "the checkpoint has no 'network.hidden.3.linear.weight', which ImageClassifier has"),
    "fit-shallower": (
        "fit",
        2,
        "the checkpoint constrains 'network.hidden.2.linear.weight', which",
    ),
    "test-deeper": (
        "test",
        4,
        'nothing of it was loaded: Missing key(s) in state_dict: "network.hidden.3.',
    ),
}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(("command", "depth", "says"), DEPTHS.values(), ids=DEPTHS)
def test_a_checkpoint_of_another_depth_is_refused(command, depth, says, failure, small_checkpoint):
    code, message = failure(command, "--ckpt_path", small_checkpoint, f"--model.network.depth={depth}")
    assert code == 1
    assert says in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_named(failure):
    code, message = failure("fit", "--trainer.accelerator=gpu")
    assert code == 1
    assert "gpu" in message


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("payload_ran"),)


NO_CHECKPOINT = "'bad.ckpt' is no checkpoint of Lightning that can be read: it is truncated"
FILES = {
    "empty": (lambda path, whole: path.write_bytes(b""), NO_CHECKPOINT),
    "half": (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), NO_CHECKPOINT),
    "text": (lambda path, whole: path.write_text("hello"), NO_CHECKPOINT),
    "few-bytes": (lambda path, whole: path.write_bytes(b"\x80\x02"), NO_CHECKPOINT),
    "state-dict": (lambda path, whole: torch.save(torch.nn.Linear(2, 2).state_dict(), path), NO_CHECKPOINT),
    "tensor": (lambda path, whole: torch.save(torch.zeros(3), path), NO_CHECKPOINT),
    "payload": (
        lambda path, whole: torch.save({"state_dict": Payload()}, path),
        "more than tensors and plain values and may run code, so it was not loaded",
    ),
}


@pytest.mark.parametrize(("write", "says"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_whole_and_safe_checkpoint_is_refused_and_kept(write, says, failure, small_checkpoint):
    whole = Path(small_checkpoint).read_bytes()
    write(Path("bad.ckpt"), whole)
    before = Path("bad.ckpt").read_bytes()
    code, message = failure("fit", "--ckpt_path", "bad.ckpt")
    assert code == 1
    assert says in message
    assert Path("bad.ckpt").read_bytes() == before
    assert Path(small_checkpoint).read_bytes() == whole
    assert not Path("payload_ran").exists()


BROKEN = {
    "loops": {"loops": {"fit_loop": 3}},
    "optimizers": {"optimizer_states": "x"},
    "callbacks": {"callbacks": [1]},
    "version": {"pytorch-lightning_version": 3},
}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("part", BROKEN.values(), ids=BROKEN)
def test_a_checkpoint_that_lightning_cannot_restore_is_called_broken(part, failure, small_checkpoint):
    torch.save({**torch.load(small_checkpoint), **part}, "bad.ckpt")
    code, message = failure("fit", "--ckpt_path", "bad.ckpt")
    assert code == 1
    assert "lcw: error: the checkpoint cannot be restored (" in message
    assert "it is broken; take another one of the run." in message


def test_a_folder_that_cannot_be_made_is_named(failure):
    Path("file").touch()
    code, message = failure("fit", "--trainer.default_root_dir=file/runs")
    assert code == 1
    assert "file/runs' cannot be read or written: Not a directory." in message


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_checkpoint_from_the_web_is_not_unpickled_either(failure, small_checkpoint):
    content = torch.load(small_checkpoint)
    torch.save({**content, "extra": Payload()}, "bad.ckpt")
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        code, message = failure("test", "--ckpt_path", f"http://127.0.0.1:{server.server_port}/bad.ckpt")
        server.shutdown()
    assert code == 1
    assert "getattr, which is more than tensors and plain values and may run code" in message
    assert not Path("payload_ran").exists()


NO_TEST = """
import torch
from lcw_lightning import MLP
from lightning.pytorch import LightningModule

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = MLP(64, 10, depth=1, width=4)

    def training_step(self, batch, batch_idx):
        raise AssertionError("trains")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


def test_a_test_that_cannot_be_done_is_refused_before_the_training(lcw, capsys):
    Path("untested.py").write_text(NO_TEST)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--model=untested.Net", "--data=Digits", "--test_after_fit=true"])
    assert "--test_after_fit=true needs a test_step(), which Net does not have" in str(exit_.value.code)


def test_a_checkpoint_of_another_network_is_refused(failure, small_checkpoint):
    code, message = failure("test", "--ckpt_path", small_checkpoint, "--model.network.width=8")
    assert code == 1
    assert "its 'network.hidden.0.linear.weight' has the shape [16, 64], that of the model [8, 64]" in message


def test_nan_in_the_first_batch_stops_with_the_layers_name(failure, monkeypatch):
    setup = lcw_lightning.Digits.setup

    def setup_with_nan(self, stage):
        setup(self, stage)
        self.train_dataset.tensors[0][:, 0, 3, 3] = float("nan")

    monkeypatch.setattr(lcw_lightning.Digits, "setup", setup_with_nan)
    code, message = failure("fit")
    assert code == 1
    assert "'network.hidden.0.linear.weight' are NaN or infinite" in message


def test_debug_mode_shows_the_traceback(lcw, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(ValueError, match="matches no weight"):
        lcw("fit", "--constraint.include=[netwrk.*]")
