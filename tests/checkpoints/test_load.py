"""Constrained and plain checkpoints load into each other, whole and safely or not at all."""

import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import ConstraintCallback, MinibatchInitCallback, constrain, fold, load_from_checkpoint
from lcw_lightning.checkpoints.read import read_checkpoint
from lcw_lightning.constraints.constrain import constrained_weights

ALL = ["conv.weight", "up.weight", "head.weight"]


class Project(LightningModule):
    """Never heard of constraints; its layers are built from a hyperparameter."""

    def __init__(self, width=8):
        super().__init__()
        self.save_hyperparameters()
        self.conv = nn.Conv2d(3, width, 3)
        self.up = nn.ConvTranspose2d(width, 6, 2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        return self.head(self.norm(self.up(self.conv(images))).amax((2, 3)))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class LateProject(Project):
    def __init__(self):
        LightningModule.__init__(self)

    def configure_model(self):
        if not hasattr(self, "conv"):
            built = Project()
            self.conv, self.up, self.norm, self.head = built.conv, built.up, built.norm, built.head


IMAGES = torch.randn(8, 3, 6, 6)


def trained(folder, module, *callbacks):
    """Train for an epoch and save; the trained module and the checkpoint's path."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, callbacks=list(callbacks), default_root_dir=folder, **quiet)
    trainer.fit(module, DataLoader(TensorDataset(IMAGES, torch.randint(4, (8,))), batch_size=4))
    trainer.save_checkpoint(folder / "run.ckpt")
    return module.eval(), folder / "run.ckpt"


pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
kinds = pytest.mark.parametrize("kind", ["lcw", "cwn", "wn", "sn"])


@kinds
@pytest.mark.parametrize("make", [lambda: Project(width=4), LateProject], ids=["__init__", "configure_model"])
def test_a_constrained_checkpoint_loads_into_a_module_that_never_heard_of_it(make, kind, tmp_path):
    module, path = trained(tmp_path, make(), ConstraintCallback(kind, exclude=["head.*"]))
    loaded = load_from_checkpoint(type(module), path).eval()
    assert type(loaded) is type(module)
    assert constrained_weights(loaded) == dict.fromkeys(ALL[:2], kind)
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(loaded(IMAGES), module(IMAGES))
    assert torch.equal(fold(loaded)(IMAGES), module(IMAGES))


class Constraining(Project):
    """Constrains itself."""

    def __init__(self, kind="cwn"):
        super().__init__()
        constrain(self, kind)


@kinds
def test_it_loads_into_a_module_that_constrains_itself_likewise(kind, tmp_path):
    module, path = trained(tmp_path, Constraining(kind), ConstraintCallback(kind))
    loaded = load_from_checkpoint(Constraining, path, kind=kind)
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_a_module_that_constrains_itself_otherwise_is_told_both_kinds(tmp_path):
    _, path = trained(tmp_path, Project(), ConstraintCallback("wn"))
    message = r"conv\.parametrizations\.weight\.0 is of kind 'cwn', the state dict of kind 'wn'; take 'wn'"
    with pytest.raises(ValueError, match=message):
        load_from_checkpoint(Constraining, path)


def test_without_it_the_same_checkpoint_does_not_load(tmp_path):
    _, path = trained(tmp_path, Project(), ConstraintCallback())
    with pytest.raises(RuntimeError, match="Missing key"):
        Project.load_from_checkpoint(path)


def test_a_plain_checkpoint_loads_as_ever(tmp_path):
    module, path = trained(tmp_path, Project(width=4))
    loaded = load_from_checkpoint(Project, path)
    assert constrained_weights(loaded) == {}
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_arguments_go_to_the_class_and_tensors_where_they_shall(tmp_path):
    _, path = trained(tmp_path, Project(width=4), ConstraintCallback())
    assert load_from_checkpoint(Project, path, map_location="cpu").hparams.width == 4
    with pytest.raises(ValueError, match=r"run\.ckpt' does not fit this Project: .*size mismatch for"):
        load_from_checkpoint(Project, path, width=6)


def test_a_checkpoint_in_double_precision_loads(tmp_path):
    module, path = trained(tmp_path, Project(), ConstraintCallback())
    content = torch.load(path)
    content["state_dict"] = {key: value.double() for key, value in module.double().state_dict().items()}
    torch.save(content, path)
    assert torch.equal(load_from_checkpoint(Project, path).conv.bias, module.conv.bias.float())


class Frozen(Project):
    """Leaves its frozen layer out of checkpoints."""

    def __init__(self):
        super().__init__()
        self.strict_loading = False
        self.conv.requires_grad_(False)

    def state_dict(self, *args, **kwargs):
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if not key.startswith("conv.")}


class Migrating(Project):
    """Reads checkpoints of an older self, which had no scale and called its head otherwise."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"].setdefault("scale", torch.full((), 2.0))
        checkpoint["state_dict"]["norm.bias"] += 1


@pytest.mark.filterwarnings("ignore:Found keys that are in the model state dict but not")
def test_a_module_that_leaves_frozen_layers_out_loads(tmp_path):
    module, path = trained(tmp_path, Frozen(), ConstraintCallback())
    loaded = load_from_checkpoint(Frozen, path)
    assert list(constrained_weights(loaded)) == [name for name in ALL if not name.startswith("conv.")]
    assert torch.equal(loaded.head.weight, module.head.weight)


def test_a_modules_own_hook_may_change_what_is_loaded(tmp_path):
    module, path = trained(tmp_path, Project(), ConstraintCallback())
    loaded = load_from_checkpoint(Migrating, path)
    assert loaded.scale == 2
    assert torch.equal(loaded.norm.bias, module.norm.bias + 1)
    assert torch.equal(loaded.head.weight, module.head.weight)


@pytest.mark.filterwarnings("ignore:Found keys that are not in the model state dict")
def test_lightnings_own_arguments_pass_through(tmp_path):
    _, path = trained(tmp_path, Project(), ConstraintCallback())
    edited(path, lambda content: content["state_dict"].update(extra=torch.zeros(1)))
    assert constrained_weights(load_from_checkpoint(Project, path, strict=False, weights_only=True)) != {}


def test_loaded_weights_are_not_initialized_again(tmp_path):
    trained(tmp_path, Project(), ConstraintCallback())
    loaded = load_from_checkpoint(Project, tmp_path / "run.ckpt")
    norm = loaded.head.weight.norm().item()
    loaded.configure_optimizers = lambda: torch.optim.SGD(loaded.parameters(), lr=0.0)
    trained(tmp_path / "again", loaded, ConstraintCallback(), MinibatchInitCallback())
    assert loaded.head.weight.norm().item() == pytest.approx(norm)


class Shared(Project):
    """One layer in two places."""

    def __init__(self):
        super().__init__()
        self.again = self.head


def test_a_layer_that_stands_in_two_places_loads_and_stays_shared(tmp_path):
    module, path = trained(tmp_path, Shared(), ConstraintCallback())
    loaded = load_from_checkpoint(Shared, path)
    assert loaded.again is loaded.head
    assert torch.equal(loaded.head.weight, module.head.weight)


class Halving(Project):
    """Changes a weight as it is loaded."""

    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"]["head.weight"] /= 2


@pytest.mark.parametrize("kind", ["lcw", "cwn", "wn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_that_the_modules_hook_changes_stays_changed(dtype, kind, tmp_path):
    module, path = trained(tmp_path, Project(), ConstraintCallback(kind))
    edited(path, lambda content: content.update(state_dict={k: v.to(dtype) for k, v in content["state_dict"].items()}))
    loaded = load_from_checkpoint(Halving, path)
    assert (loaded.head.weight.norm() / module.head.weight.norm()).item() == pytest.approx(0.5, rel=0.02)


def test_a_diverged_run_can_be_looked_at(tmp_path):
    _, path = trained(tmp_path, Project(), ConstraintCallback())
    key = "head.parametrizations.weight.original"
    edited(path, lambda content: content["state_dict"][key].fill_(torch.nan))
    assert load_from_checkpoint(Project, path).head.weight.isnan().all()


@kinds
@pytest.mark.parametrize("part", ["lost", "misshapen"])
def test_a_checkpoint_that_lacks_a_part_of_a_weight_is_refused(part, kind, tmp_path):
    _, path = trained(tmp_path, Project(), ConstraintCallback(kind))

    def spoil(content):
        keys = [key for key in content["state_dict"] if key.startswith("head.parametrizations.")]
        if part == "misshapen" or len(keys) == 1:
            content["state_dict"][keys[-1]] = torch.zeros(3, 3)
        else:
            del content["state_dict"][keys[-1]]

    with pytest.raises(ValueError, match=r"its coordinates of 'head\.weight' give no weight of shape \[4, 6\]"):
        load_from_checkpoint(Project, edited(path, spoil))


def test_a_checkpoint_of_weights_alone_carries_the_record_too(tmp_path):
    saver = ModelCheckpoint(tmp_path / "weights", save_weights_only=True)
    module, _ = trained(tmp_path, Project(), ConstraintCallback(), saver)
    loaded = load_from_checkpoint(Project, saver.best_model_path)
    assert torch.equal(loaded.head.weight, module.head.weight)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_constrained_by_hand_goes_on_under_the_callback(tmp_path):
    module = Project()
    constrain(module)
    _, path = trained(tmp_path, module)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, callbacks=[ConstraintCallback()], default_root_dir=tmp_path / "more", **quiet)
    trainer.fit(Project(), DataLoader(TensorDataset(IMAGES, torch.randint(4, (8,))), batch_size=4), ckpt_path=path)
    assert trainer.global_step == 4


def edited(path, change):
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    return path


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("payload_ran"),)


def other_basis(content):
    content["lcw_lightning"]["basis_version"] = 2


def other_basis_in_the_state_dict(content):
    metadata = content["state_dict"]._metadata
    metadata["conv.parametrizations.weight.0"]["version"] = 2


def other_shape(content):
    content["state_dict"]["head.parametrizations.weight.original"] = torch.zeros(4, 7)


def lost_coordinates(content):
    del content["state_dict"]["head.parametrizations.weight.original"]


def other_model(content):
    content["lcw_lightning"]["constraints"]["tail.weight"] = content["lcw_lightning"]["constraints"]["head.weight"]
    content["state_dict"]["tail.parametrizations.weight.original"] = torch.zeros(4, 5)


def record_of_a_draft(content):
    content["lcw_lightning"]["constraints"]["head.weight"] = "lcw"


def record_of_another_kind(content):
    content["lcw_lightning"] = "lcw"


def record_in_another_layout(content):
    content["lcw_lightning"]["constraints"]["head.weight"]["transposed_groups"] = 1


def record_with_strings(content):
    content["lcw_lightning"]["constraints"]["head.weight"]["weight_shape"] = ["4", "6"]


def flat_coordinates(content):
    content["state_dict"]["head.parametrizations.weight.original"] = torch.zeros(())


def path_among_hyperparameters(content):
    content["hyper_parameters"]["folder"] = Path("data")


def payload(content):
    content["hyper_parameters"]["width"] = Payload()


BROKEN = {
    "basis": (other_basis, "basis version 2, but this lcw_lightning reads version 1"),
    "basis-in-state-dict": (other_basis_in_the_state_dict, "basis version 2, but this lcw_lightning reads version 1"),
    "shape": (
        other_shape,
        r"its coordinates of 'head\.weight' give no weight of shape \[4, 6\]",
    ),
    "lost": (lost_coordinates, r"does not fit this Project: Missing key.*\"head\.weight\""),
    "other-model": (other_model, r"does not fit this Project: .*Unexpected key.*tail\.weight"),
    "draft": (record_of_a_draft, r"record of constraints, 'lcw_lightning', is broken; take another"),
    "record": (record_of_another_kind, r"record of constraints, 'lcw_lightning', is broken"),
    "layout": (record_in_another_layout, r"its coordinates of 'head\.weight' give no weight of shape"),
    "strings": (record_with_strings, r"record of constraints, 'lcw_lightning', is broken"),
    "flat": (flat_coordinates, r"its coordinates of 'head\.weight' give no weight of shape \[4, 6\]"),
    "path": (path_among_hyperparameters, r"holds pathlib\.\S+, which .*weights_only=False"),
    "payload": (payload, "more than tensors and plain values and may run code, so it was not loaded"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_checkpoint_is_one_message_and_runs_nothing(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, path = trained(tmp_path, Project(), ConstraintCallback())
    with pytest.raises(ValueError, match=message):
        load_from_checkpoint(Project, edited(path, change))
    assert not Path("payload_ran").exists()


@pytest.mark.parametrize("size", [0, 1, 1000, -1000], ids=str)
def test_a_truncated_checkpoint_is_refused(size, tmp_path):
    _, path = trained(tmp_path, Project(), ConstraintCallback())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"run\.ckpt' is no checkpoint of Lightning that can be read: it is truncated"):
        read_checkpoint(path)


class ReadsTwice(Project):
    """Reads the file itself before Lightning does, and trusts it, as chemprop's MPNN does."""

    @classmethod
    def load_from_checkpoint(cls, path, map_location=None, hparams_file=None, strict=True, **kwargs):
        width = torch.load(path, map_location, weights_only=False)["hyper_parameters"]["width"]
        cls.seen = path
        return super().load_from_checkpoint(
            path, map_location, hparams_file, strict, weights_only=False, width=width, **kwargs
        )


class ReadsOnce(Project):
    """Takes no argument that it does not know."""

    @classmethod
    def load_from_checkpoint(cls, path, map_location=None):
        return super().load_from_checkpoint(path, map_location)


METHODS = {
    "lcw": ConstraintCallback,
    "wn": lambda: ConstraintCallback("wn"),
    "project": lambda: ConstraintCallback(method="project"),
    "plain": lambda: ConstraintCallback("none"),
}
runs = pytest.mark.parametrize("callback", METHODS.values(), ids=METHODS)


@runs
@pytest.mark.parametrize("weights_only", [True, False], ids=["safe", "trusted"])
@pytest.mark.parametrize("project", [ReadsTwice, ReadsOnce])
def test_a_class_with_a_loader_of_its_own_gets_a_file(project, weights_only, callback, tmp_path):
    module, path = trained(tmp_path, project(width=4), callback())
    loaded = load_from_checkpoint(project, path, weights_only=weights_only)
    assert constrained_weights(loaded) == constrained_weights(module)
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_an_open_file_would_be_at_its_end(tmp_path):
    _, path = trained(tmp_path, ReadsTwice())
    with path.open("rb") as file, pytest.raises((EOFError, pickle.UnpicklingError)):
        ReadsTwice.load_from_checkpoint(file)


@runs
@pytest.mark.parametrize("kind", [str, Path])
def test_the_file_has_the_name_and_the_kind_of_path_that_were_given_and_goes_away(kind, callback, tmp_path):
    _, path = trained(tmp_path, ReadsTwice(), callback())
    load_from_checkpoint(ReadsTwice, kind(path))
    assert isinstance(ReadsTwice.seen, kind)
    assert Path(ReadsTwice.seen).name == "run.ckpt"
    is_plain = "parametrizations" not in str(list(torch.load(path)["state_dict"]))
    assert (Path(ReadsTwice.seen) == path) == Path(ReadsTwice.seen).exists() == is_plain


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint '.*nowhere\.ckpt'"):
        load_from_checkpoint(Project, tmp_path / "nowhere.ckpt")


def test_a_sharded_checkpoint_says_how_to_make_one_file_of_it(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder: a sharded checkpoint.*save_distributed_checkpoint=False"):
        load_from_checkpoint(Project, tmp_path)


class Sized(LightningModule):
    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(size, 2)


def test_arguments_that_the_checkpoint_does_not_hold_are_asked_for(tmp_path):
    project = Sized(3)
    content = {"state_dict": project.state_dict(), "pytorch-lightning_version": "2.6.4"}
    torch.save(content, tmp_path / "run.ckpt")
    wanted = r"do not make a Sized \(.*missing 1 required positional argument: 'size'\); give the arguments of its run"
    with pytest.raises(ValueError, match=wanted):
        load_from_checkpoint(Sized, tmp_path / "run.ckpt")
    assert load_from_checkpoint(Sized, tmp_path / "run.ckpt", size=3).layer.in_features == 3
