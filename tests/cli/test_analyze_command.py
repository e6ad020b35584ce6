"""`lcw analyze`: the first training step of any config, and nothing else of it."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from lcw_lightning import MLP, Digits, ImageClassifier, analyze, constrain, minibatch_init_
from lcw_lightning.analysis import report as report_module
from lcw_lightning.checkpoints.record import save_record
from lcw_lightning.cli import main

PROJECT = '''
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def dataset():
    torch.manual_seed(3)
    return TensorDataset(torch.rand(64, 8), torch.arange(64) % 3)


class Data(LightningDataModule):
    classes = 3

    def train_dataloader(self):
        return DataLoader(dataset(), batch_size=32)

    def val_dataloader(self):
        raise AssertionError("validation is none of analyze's business")


class Module(LightningModule):
    """Builds its layers where it is told to, and asks for what a run can give."""

    def __init__(
        self, build_in: str = "__init__", returns: str = "loss", manual: bool = False, brings_data: bool = False
    ):
        super().__init__()
        self.build_in, self.returns, self.automatic_optimization = build_in, returns, not manual
        if brings_data:
            self.train_dataloader = Data().train_dataloader
        if build_in == "__init__":
            self.build(3)

    def build(self, classes):
        self.network = nn.Sequential(
            nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes)
        )

    def setup(self, stage):
        if self.build_in == "setup":
            self.build(self.trainer.datamodule.classes)

    def configure_model(self):
        if self.build_in == "configure_model" and not hasattr(self, "network"):
            self.build(3)

    def forward(self, inputs):
        return self.network(inputs)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self(inputs), targets)
        self.log("loss", loss)
        self.logger.experiment.add_scalar("mine", loss, self.global_step)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            self.optimizers().step()
            return None
        return {"loss": loss, "dict": {"loss": loss, "other": 1}, "none": None}[self.returns]

    def validation_step(self, batch, batch_idx):
        raise AssertionError("validation is none of analyze's business")

    def configure_callbacks(self):
        return [LearningRateMonitor(), Forbidden()]

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if not self.automatic_optimization:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Forbidden(Callback):
    def setup(self, *args, **kwargs):
        raise AssertionError("a callback of the run was called")


class Refuses:
    """A logger, a strategy or a profiler that must not even be made."""

    def __new__(cls, *args, **kwargs):
        raise AssertionError("a part of the run was made")


class Logger(Refuses, DummyLogger):
    pass
'''


@pytest.fixture(autouse=True)
def _coarse_figures(monkeypatch):
    """Figures fit for print take longer than the rest of the command; tests/analysis/test_report.py looks at them."""
    monkeypatch.setattr(report_module, "DPI", 30)


@pytest.fixture
def project(tmp_path, monkeypatch, capsys):
    """Run `lcw` on the project above, in a folder of its own; return its standard output."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "analyzed_project.py").write_text(PROJECT)
    monkeypatch.syspath_prepend(code)
    monkeypatch.setitem(sys.modules, "analyzed_project", None)
    del sys.modules["analyzed_project"]
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(command, *flags, data=True):
        model = ["--model=analyzed_project.Module", *(["--data=analyzed_project.Data"] if data else [])]
        main([command, *model, "--trainer.accelerator=cpu", *flags])
        return capsys.readouterr().out

    return run


def content(folder="analysis"):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((Path(folder) / "analysis.json").read_text(), parse_constant=refuse)


def close(row, rel=1e-4):
    return pytest.approx(row, rel=rel, abs=1e-9)


def test_table_and_verdict_are_printed_and_files_written_and_nothing_else_is_left(lcw, capsys):
    lcw("analyze")
    said = capsys.readouterr().out
    lines = said.splitlines()
    layers = ["network.hidden.0.linear", "network.hidden.1.linear", "network.hidden.2.linear", "network.output"]
    judged = "Judged: 4 of 4 weights under lcw, rescaled on this batch, in training mode, on 128 samples."
    assert lines[0] == judged
    assert content()["judged"] == {
        "constraints": {"under lcw": 4},
        "training": True,
        "samples": 128,
        "initialized": "rescaled on this batch",
    }
    assert [line.split()[0] for line in lines[4:8]] == layers
    assert "; nothing is the matter.\n" in said
    assert lines[-1] == "written to analysis"
    assert list(content()["layers"]) == layers
    assert [path.name for path in Path().iterdir()] == ["analysis"]
    assert len(list(Path("analysis").rglob("*.png"))) == 15
    assert not [path for path in Path("analysis").rglob("*") if path.suffix not in (".png", ".json", "")]


def test_figures_have_the_format_of_the_flag(lcw):
    lcw("analyze", "--figures=svg")
    assert {path.suffix for path in Path("analysis").rglob("*.*")} == {".svg", ".json"}


@pytest.mark.parametrize("kind", ["lcw", "none"])
def test_numbers_are_those_that_the_monitor_logs_at_the_first_step(kind, lcw):
    lcw("analyze", f"--constraint.kind={kind}", "--output=report")
    logged = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.", "--trainer.log_every_n_steps=1"]
    lcw("fit", f"--constraint.kind={kind}", "--trainer.max_steps=1", "--test_after_fit=false", *logged)
    with Path("lightning_logs/version_0/metrics.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["shift_ratio/network.output"])
    found = {
        f"{name}/{layer}": number for layer, of in content("report")["layers"].items() for name, number in of.items()
    }
    assert len(found) == 44
    assert found == pytest.approx({key: float(row[key]) for key in found}, rel=1e-6, abs=1e-12)


def test_a_deep_plain_network_is_found_sick(lcw, capsys):
    lcw("analyze", "--constraint.kind=none", "--model.network.depth=30", "--model.network.width=64")
    said = " ".join(capsys.readouterr().out.split())
    assert "Gradients vanish: rms(z) x norm(dL/dz) falls by" in said
    assert "it is smallest in 'network.hidden.0.linear'" in said
    assert "Activation shift in 30 of 31 layers" in said
    assert "--constraint.kind=lcw" in said
    assert "minibatch_init_(" not in said  # which has been done


@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
def test_a_checkpoint_is_looked_at_as_it_is(build_in, project):
    from analyzed_project import Module, dataset

    torch.manual_seed(5)
    trained = Module()
    constrain(trained)
    for weight in trained.parameters():
        torch.nn.init.normal_(weight)
    checkpoint = {"state_dict": trained.state_dict(), "pytorch-lightning_version": "2.6.4"}
    save_record(trained, checkpoint)
    torch.save(checkpoint, "trained.ckpt")

    said = project("analyze", "--ckpt_path=trained.ckpt", f"--model.build_in={build_in}")
    inputs, targets = dataset()[:32]
    expected = analyze(trained, (inputs, targets))
    found = content()
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert {layer: close(row) for layer, row in found["layers"].items()} == expected.statistics
    assert f"loss {expected.loss:.4g}" in said
    project("analyze", f"--model.build_in={build_in}", "--output=fresh")
    assert content("fresh")["loss"] != pytest.approx(expected.loss, rel=1e-2)


def test_a_plain_checkpoint_is_judged_as_it_is_whatever_the_config_says(project):
    from analyzed_project import Module

    plain = Module()
    optimizer = {"state": {0: {"step": 1}}, "param_groups": []}
    checkpoint = {
        "state_dict": plain.state_dict(),
        "pytorch-lightning_version": "2.6.4",
        "optimizer_states": [optimizer],
    }
    torch.save(checkpoint, "plain.ckpt")
    for kind in ("none", "lcw"):
        project("analyze", "--ckpt_path=plain.ckpt", f"--constraint.kind={kind}")
        residual = max(row["constraint_residual"] for row in content()["layers"].values())
        assert residual > 1e-2
        assert content()["judged"]["initialized"] == "with the checkpoint's weights"
        assert list(content()["judged"]["constraints"]) == ["unconstrained"]
        network, kept = Module().network, content()["layers"]["network.0"]["shift_angle_degrees"]
        network.load_state_dict(plain.network.state_dict())
        inputs = sys.modules["analyzed_project"].dataset()[:32][0]
        assert kept == pytest.approx(analyze(network, inputs).statistics["0"]["shift_angle_degrees"], rel=1e-4)


def test_a_checkpoint_in_its_runs_folder_needs_no_config(lcw, small_checkpoint, capsys):
    state = torch.load(small_checkpoint)["state_dict"]
    main(["analyze", "--ckpt_path", small_checkpoint, *lcw.quiet])
    largest = max(row["constraint_residual"] for row in content()["layers"].values())
    assert largest < 1e-5
    assert state["network.hidden.0.linear.parametrizations.weight.original"].shape == (16, 63)
    assert sorted(path.name for path in Path().iterdir()) == ["analysis", "lightning_logs"]
    assert len(list(Path("lightning_logs").iterdir())) == 1


def test_kinds_are_compared_on_the_same_weights_and_batch(lcw, capsys):
    lcw("analyze", "--compare", "none", "lcw", "cwn", "wn", "sn", "--constraint.kind=wn")
    said, compared = capsys.readouterr().out, content()
    assert list(compared) == ["none", "lcw", "cwn", "wn", "sn"]
    assert [line.split(":")[0] for line in said.splitlines()[:5]] == list(compared)
    assert said.splitlines()[7].split() == ["layer", *["none", "lcw", "cwn", "wn", "sn"] * 3]
    inputs = {round(of["layers"]["network.hidden.0.linear"]["input_mean"], 6) for of in compared.values()}
    spreads = {round(of["layers"]["network.hidden.0.linear"]["input_mean_spread"], 6) for of in compared.values()}
    assert len(inputs) == len(spreads) == 1
    for kind, report in compared.items():
        if kind in ("lcw", "sn"):  # sn draws numbers of its own
            lcw("analyze", f"--constraint.kind={kind}", "--output=alone")
            assert content("alone")["layers"] == {layer: close(row) for layer, row in report["layers"].items()}
        residual = max(row["constraint_residual"] for row in report["layers"].values())
        assert (residual < 1e-5) == (kind in ("lcw", "cwn"))


def test_a_checkpoint_says_what_is_constrained_whatever_the_config_says(lcw, small_checkpoint):
    for kind in ("wn", "none"):
        lcw("analyze", "--ckpt_path", small_checkpoint, f"--constraint.kind={kind}")
        assert list(content()["judged"]["constraints"]) == ["under lcw"]


def test_the_network_as_it_was_built_is_compared_with_the_others(lcw, capsys):
    lcw("analyze", "--compare", "as_built", "none", "lcw")
    judged = {label: report["judged"] for label, report in content().items()}
    assert [facts["initialized"] for facts in judged.values()] == ["not rescaled", *["rescaled on this batch"] * 2]
    assert [list(facts["constraints"]) for facts in judged.values()] == [*[["unconstrained"]] * 2, ["under lcw"]]
    stds = [report["layers"]["network.hidden.1.linear"]["preactivation_std"] for report in content().values()]
    assert stds[0] < stds[1]  # as it was built, sigmoid layers lose the signal


def test_draws_add_a_check_to_the_same_report(lcw, capsys):
    lcw("analyze", "--output=one")
    lcw("analyze", "--draws=3")
    said = " ".join(capsys.readouterr().out.split())
    assert "pre-flight, 3 draws of the weights: q at 'network.hidden.2.linear' has the median" in said
    one, found = content("one"), content()
    preflight = found.pop("preflight")
    assert found == one
    assert (preflight["first_layer"], preflight["last_layer"]) == (
        "network.hidden.0.linear",
        "network.hidden.2.linear",
    )
    assert sorted(preflight["q"])[1] == preflight["q_median"]
    assert (Path("analysis") / "preflight.png").exists()


def test_a_draw_is_that_of_its_seed_on_the_first_draws_batch(lcw, monkeypatch):
    lcw("analyze", "--draws=3", "--seed_everything=5")
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    data = Digits()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    expected = []
    for seed in (5, 6, 7):
        torch.manual_seed(seed)
        network = MLP(64, 10, depth=3, width=16)
        constrain(network)
        minibatch_init_(network, images)
        z1 = network.hidden[0].linear(images.flatten(1))
        z3 = network.hidden[2].linear(network.hidden[1](torch.sigmoid(z1)))
        loss = torch.nn.functional.cross_entropy(network.output(torch.sigmoid(z3)), labels)
        first, last = torch.autograd.grad(loss, (z1, z3))
        expected.append((first.norm(dim=1) / last.norm(dim=1)).log10().median().item())
    assert content()["preflight"]["gradient_growth"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert len({round(growth, 3) for growth in expected}) == 3


def test_kinds_and_draws_go_together_and_share_data_that_is_read_once_a_kind(lcw, monkeypatch, capsys):
    setup, calls = Digits.setup, []
    monkeypatch.setattr(Digits, "setup", lambda self, stage: (calls.append(stage), setup(self, stage)))
    lcw("analyze", "--compare", "none", "lcw", "--draws=3")
    assert calls == ["fit", "fit"]
    drawn = content()
    lcw("analyze", "--compare", "none", "lcw", "--output=one")
    assert {kind: report["layers"] for kind, report in content("one").items()} == {
        kind: report["layers"] for kind, report in drawn.items()
    }
    said = capsys.readouterr().out
    assert "\nnone: pre-flight, 3 draws" in said
    assert "\nlcw: pre-flight, 3 draws" in said
    growths = [report["preflight"]["gradient_growth"] for report in drawn.values()]
    assert len({*growths[0], *growths[1]}) == 6


@pytest.mark.parametrize(
    ("build_in", "brings_data"),
    [("__init__", False), ("setup", False), ("configure_model", False), ("__init__", True), ("configure_model", True)],
)
def test_any_module_can_be_drawn(build_in, brings_data, project):
    flags = [f"--model.build_in={build_in}", f"--model.brings_data={brings_data}", "--draws=2"]
    project("analyze", *flags, data=not brings_data)
    q = content()["preflight"]["q"]
    assert len(q) == 2
    assert q[0] != q[1]


def test_a_step_that_changes_its_batch_spoils_no_later_draw(project, monkeypatch):
    from analyzed_project import Module

    step, shifts = Module.training_step, {"copy": lambda inputs: inputs + 1, "in-place": lambda inputs: inputs.add_(1)}
    for how, shift in shifts.items():
        changed = lambda self, batch, _, shift=shift: step(self, [shift(batch[0]), batch[1]], _)  # noqa: E731
        monkeypatch.setattr(Module, "training_step", changed)
        project("analyze", "--draws=3", f"--output={how}")
    assert content("copy")["preflight"] == content("in-place")["preflight"]


def test_the_rest_of_the_run_is_not_even_made(project):
    project(
        "analyze",
        "--trainer.logger=analyzed_project.Logger",
        "--trainer.callbacks=analyzed_project.Forbidden",
        "--trainer.strategy=ddp",
        "--trainer.devices=4",
        "--trainer.num_nodes=2",
        "--trainer.profiler=simple",
        "--trainer.accumulate_grad_batches=4",
        "--trainer.max_epochs=3",
    )
    assert [path.name for path in Path().iterdir()] == ["analysis"]
    plain = content()
    project("analyze", "--output=plain")
    assert content("plain") == plain


def test_in_a_run_the_callback_is_called(project):
    with pytest.raises(SystemExit, match="a callback of the run was called"):
        project("fit", "--trainer.max_epochs=1", "--trainer.callbacks=analyzed_project.Forbidden")
    with pytest.raises(SystemExit, match="a part of the run was made"):
        project("fit", "--trainer.max_epochs=1", "--trainer.logger=analyzed_project.Logger")


MODULES = {
    "dict": ["--model.returns=dict"],
    "manual": ["--model.manual=true"],
    "bf16-mixed": ["--trainer.precision=bf16-mixed"],
    "one-batch": ["--trainer.limit_train_batches=1"],
    "fast-dev-run": ["--trainer.fast_dev_run=true"],
}


@pytest.mark.parametrize("flags", MODULES.values(), ids=MODULES)
def test_modules_and_settings_of_all_sorts(flags, project):
    project("analyze")
    expected = content()["layers"]
    said = project("analyze", "--output=other", *flags)
    tolerance = 0.05 if "bf16" in flags[0] else 1e-4
    for layer, row in content("other")["layers"].items():
        assert row["gradient_std"] == pytest.approx(expected[layer]["gradient_std"], rel=tolerance)
    assert ("loss" in said.partition("\n\n")[2].partition(";")[0]) == ("manual" not in flags[0])


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_module_that_returns_no_loss_has_no_gradient(project):
    assert "forward pass only, no gradient was seen" in project("analyze", "--model.returns=none")


def test_a_module_may_bring_its_own_data(project):
    project("analyze", "--model.brings_data=true", data=False)
    assert len(content()["layers"]) == 3


def test_a_compiled_network_is_seen(lcw):
    lcw("analyze", "--output=plain")
    lcw("analyze", "--model.compile=true", "--output=compiled")
    plain, compiled = content("plain")["layers"], content("compiled")["layers"]
    assert list(plain.values()) == [close(row) for row in compiled.values()]


def test_patterns_choose_layers(lcw):
    lcw("analyze", "--shift_monitor.include=[network.hidden.*]", "--shift_monitor.exclude=['*.0.*']")
    assert list(content()["layers"]) == ["network.hidden.1.linear", "network.hidden.2.linear"]


MISTAKES = {
    "compare-and-checkpoint": (["--compare", "lcw", "--ckpt_path", "{ckpt}"], 1, "takes no --ckpt_path"),
    "draws-and-checkpoint": (["--draws=2", "--ckpt_path", "{ckpt}"], 1, "--draws draws the weights anew, so it takes"),
    "draws-without-seed": (["--draws=2", "--seed_everything=false"], 1, "needs a seed: --seed_everything=0"),
    "no-draws": (["--draws=0"], 2, "--draws: expected a number >0; got '0'"),
    "too-shallow": (["--draws=2", "--model.network.depth=1"], 1, "at least two hidden layers before the output layer"),
    "kind": (["--compare", "lwc"], 2, "'none', 'lcw'"),
    "no-seed": (["--compare", "lcw", "--seed_everything=false"], 1, "needs a seed: --seed_everything=0"),
    "checkpoint": (["--ckpt_path", "nowhere.ckpt"], 1, "there is no checkpoint 'nowhere.ckpt'"),
    "pattern": (["--shift_monitor.include=[netwrk.*]"], 1, "'netwrk.*' matches no weight"),
    "no-batch": (["--trainer.limit_train_batches=0"], 1, "needs one training step, but ImageClassifier had no tra"),
    "file": (["--output={ckpt}"], 1, "a report goes into a folder, but"),
    "in-features": (["--model.network.in_features=63"], 1, "it takes 63 features, and got 64"),
    "other-checkpoint": (["--ckpt_path", "{ckpt}", "--model.network.width=8"], 1, "has the shape [16, 64], that of"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of the small digits network."""
    model = ImageClassifier(MLP(64, 10, depth=3, width=16), torch.optim.SGD)
    constrain(model)
    content = {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.6.4"}
    save_record(model, content)
    path = tmp_path_factory.mktemp("checkpoint") / "small.ckpt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize(("flags", "status", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_message_and_writes_nothing(flags, status, says, lcw, checkpoint, capsys):
    with pytest.raises(SystemExit) as exit_:
        lcw("analyze", *(flag.format(ckpt=checkpoint) for flag in flags))
    said = capsys.readouterr().err + (exit_.value.code if isinstance(exit_.value.code, str) else "")
    assert (exit_.value.code if isinstance(exit_.value.code, int) else 1) == status
    assert says in said
    assert "Traceback" not in said
    assert not list(Path().iterdir())


@pytest.mark.filterwarnings("ignore:Encountered `nan` values")
def test_numbers_that_are_not_finite_are_said_and_written(lcw, capsys, monkeypatch):
    setup = Digits.setup

    def setup_with_nan(self, stage):
        setup(self, stage)
        self.train_dataset.tensors[0].fill_(math.nan)

    monkeypatch.setattr(Digits, "setup", setup_with_nan)
    lcw("analyze", "--minibatch_init.granularity=none")
    assert "Not finite: the input of 'network.hidden.0.linear'" in capsys.readouterr().out
    assert content()["loss"] == "nan"


def test_help_says_what_it_does(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["analyze", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert exit_.value.code == 0
    assert "Report on every layer before the first step; nothing is trained and nothing logged." in said
    assert "--output OUTPUT The folder to write into." in said
    assert "Kinds of constraint to compare, each on the same weights and batch; as_built is the model alone" in said
    assert "--ckpt_path CKPT_PATH The checkpoint that holds the weights" in said
