import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import load_file
from torch import nn

import lcw_lightning
from lcw_lightning import MLP, Digits, ImageClassifier
from lcw_lightning.cli import main


class Bare(LightningModule):
    """Someone else's module: no forward, and a network built late, under another name."""

    def configure_model(self):
        self.net = MLP(in_features=64, num_classes=10, depth=1, width=8)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Softmax(Bare):
    """Its forward does more than its network's."""

    def forward(self, images):
        return self.net(images).softmax(dim=1)


@pytest.fixture
def failure(capsys):
    """Return a function that runs an export that must fail: its exit status and what it says."""

    def fail(*flags):
        with pytest.raises(SystemExit) as exit_:
            main(["export", *flags])
        said = capsys.readouterr().err
        return (1, said + exit_.value.code) if isinstance(exit_.value.code, str) else (exit_.value.code, said)

    return fail


def paths():
    return sorted(str(path) for path in Path().rglob("*"))


def network_of(checkpoint):
    return ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu").network.eval()


def small_mlp():
    return MLP(in_features=64, num_classes=10, depth=3, width=16)


def images():
    data = Digits()
    data.setup("test")
    return data.test_dataset.tensors[0]


@pytest.mark.parametrize("config", [[], ["--config", "lightning_logs/version_0/config.yaml"]], ids=["run's", "given"])
def test_a_plain_network_computes_what_was_trained_from_the_written_file(config, small_checkpoint, capsys):
    before = paths()
    main(["export", *config, "--ckpt_path", small_checkpoint, "--output", "new/model.safetensors"])
    assert capsys.readouterr().out.endswith(
        "MLP of ImageClassifier with plain weights, checked: new/model.safetensors\n"
    )
    assert sorted(set(paths()) - set(before)) == ["new", "new/model.safetensors"]
    plain = small_mlp()
    plain.load_state_dict(load_file("new/model.safetensors"))
    torch.testing.assert_close(plain(images()), network_of(small_checkpoint)(images()), rtol=1e-5, atol=1e-5)


ONNX = pytest.param("onnx", marks=pytest.mark.skipif(find_spec("onnxscript") is None, reason="needs the extra onnx"))


@pytest.mark.parametrize("suffix", ["pt", "pt2", ONNX])
def test_the_other_formats_are_written_too(suffix, small_checkpoint):
    main(["export", "--ckpt_path", small_checkpoint, f"--output=model.{suffix}"])
    if suffix == "pt":
        small_mlp().load_state_dict(torch.load("model.pt", weights_only=True))
    elif suffix == "pt2":
        run = torch.export.load("model.pt2").module()
        torch.testing.assert_close(run(images()), network_of(small_checkpoint)(images()), rtol=1e-5, atol=1e-5)
    else:
        import onnx

        assert {held.name for held in onnx.load("model.onnx").graph.initializer} == small_mlp().state_dict().keys()


@pytest.mark.parametrize(("submodule", "prefix"), [("", "network."), ("network.hidden.0", "")], ids=["whole", "part"])
def test_a_part_is_written_by_name(submodule, prefix, small_checkpoint):
    main(["export", "--ckpt_path", small_checkpoint, "--output=m.pt", f"--submodule={submodule}", "--input_shape=[64]"])
    names = small_mlp().state_dict() if prefix else ["linear.weight", "linear.bias"]
    assert torch.load("m.pt").keys() == {prefix + name for name in names}


@pytest.mark.parametrize(("module", "prefix"), [(Bare, ""), (Softmax, "net.")])
def test_any_module_is_exported_without_what_it_adds_to_names_but_with_what_it_adds_to_the_forward(
    module, prefix, lcw, monkeypatch
):
    monkeypatch.setattr(lcw_lightning, module.__name__, module, raising=False)
    config = [f"--model=lcw_lightning.{module.__name__}", "--data=lcw_lightning.Digits", "--trainer.accelerator=cpu"]
    main(["fit", *config, *lcw.quiet, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"])
    (checkpoint,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    main(["export", f"--ckpt_path={checkpoint}", "--output=model.pt"])
    assert {f"{prefix}{name}" for name in MLP(64, 10, depth=1).state_dict()} == torch.load("model.pt").keys()
    if module is Softmax:
        main(["export", f"--ckpt_path={checkpoint}", "--output=model.pt2"])
        sums = torch.export.load("model.pt2").module()(images()).sum(dim=1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_the_machine_of_the_run_and_its_data_are_not_needed(small_checkpoint):
    config = Path("lightning_logs/version_0/config.yaml")
    config.write_text(config.read_text().replace("accelerator: cpu", "accelerator: tpu"))
    main(["export", "--ckpt_path", small_checkpoint, "--output=m.pt", "--data=null", "--input_shape=[1, 8, 8]"])
    assert Path("m.pt").exists()


MISTAKES = {
    "suffix": (["--output=model.bin"], 1, ["export writes .safetensors, .pt, .pt2, .onnx; got 'model.bin'"]),
    "no-output": ([], 2, ["--output is missing: give it by a flag"]),
    "other-network": (
        ["--output=m.pt", "--model.network.width=8"],
        1,
        ["does not fit ImageClassifier", "has the shape [16, 64], that of the model [8, 64]"],
    ),
    "other-depth": (["--output=m.pt", "--model.network.depth=2"], 1, ["'network.hidden.2.linear.weight'", "another"]),
    "folder": (["--output=lightning_logs.pt/"], 1, ["it is a folder, or a parent of it is a file"]),
    "in-a-file": (["--output=m.pt/m.pt"], 1, ["it is a folder, or a parent of it is a file"]),
    "negative-shape": (["--output=m.pt", "--input_shape=[-1]"], 1, ["--input_shape needs positive sizes, got [-1]"]),
    "no-data": (["--output=m.pt", "--data=null"], 1, ["ImageClassifier's input", "--input_shape="]),
    "wrong-shape": (["--output=m.pt", "--input_shape=[63]"], 1, ["does not run on inputs of shapes (3, 63), (5, 63)"]),
    "submodule": (["--output=m.pt", "--submodule=net"], 1, ["no submodule 'net'; it has network, losses, accuracies"]),
}


@pytest.mark.parametrize(("flags", "status", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_message_and_the_old_file_stays(flags, status, says, failure, small_checkpoint):
    Path("m.pt").write_text("old")
    Path("lightning_logs.pt").mkdir()
    before = paths()
    code, message = failure("--ckpt_path", small_checkpoint, *flags)
    assert code == status, message
    assert all(text in message for text in says), message
    assert "Traceback" not in message
    assert Path("m.pt").read_text() == "old"
    assert paths() == before


def test_a_missing_checkpoint_is_named(failure, lcw):
    code, message = failure("--output=m.pt", "--config", lcw.config)
    assert (code, "--ckpt_path is missing" in message) == (2, True)
    code, message = failure("--output=m.pt", "--config", lcw.config, "--ckpt_path=nowhere.ckpt")
    assert (code, "there is no checkpoint 'nowhere.ckpt'" in message) == (1, True)


def test_a_checkpoint_outside_of_its_run_needs_the_config(failure, small_checkpoint):
    shutil.copy(small_checkpoint, "elsewhere.ckpt")
    code, message = failure("--output=m.pt", "--ckpt_path=elsewhere.ckpt")
    assert (code, "the config of the run that wrote elsewhere.ckpt is missing: give it by --config" in message) == (
        1,
        True,
    )
    main(["export", "--config=lightning_logs/version_0/config.yaml", "--output=m.pt", "--ckpt_path=elsewhere.ckpt"])
    assert Path("m.pt").exists()


def test_the_runs_config_is_found_from_within_its_folder_too(lcw, small_checkpoint, monkeypatch):
    path = Path(small_checkpoint)
    monkeypatch.chdir(path.parent)
    main(["export", f"--ckpt_path={path.name}", "--output=m.pt"])
    assert Path("m.pt").exists()


def test_help_names_the_flags(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["export", "--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    for flag in ("--ckpt_path CKPT_PATH", "--output OUTPUT", "--submodule", "--input_shape"):
        assert flag in said
