"""The callbacks in processes that Lightning starts: real gloo ranks, from a script as a user would write it."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = """
import sys
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from lcw_lightning import ConstraintCallback, MinibatchInitCallback, ShiftMonitor, constrain
from lcw_lightning.constraints.constrain import constrained_weights

class Project(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.Sigmoid())
        self.head = nn.Linear(16, 4)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

class Sharded(Project):
    def configure_model(self):
        if not isinstance(self.head.bias, torch.distributed.tensor.DTensor):
            for layer in (self.body[0], self.body[2], self.head, self):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

def fit(module, strategy, callbacks, epochs=2, ckpt_path=None, **kwargs):
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(4, (64,))), batch_size=8)
    settings = {"accelerator": "cpu", "devices": 2, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"enable_checkpointing": False, "logger": False, "log_every_n_steps": 1} | kwargs
    trainer = Trainer(strategy=strategy, max_epochs=epochs, callbacks=callbacks, **settings)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer
"""

SECOND_FIT = """
from lcw_lightning.callbacks import returned

class Still(Project):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

if __name__ == "__main__":
    project = Still()
    fit(project, "ddp_fork", [MinibatchInitCallback()])
    with torch.no_grad():
        project.head.weight.mul_(3)  # as training may have done
    trained = project.head.weight.clone()
    for strategy in ("ddp_fork", "ddp_spawn"):
        fit(project, strategy, [MinibatchInitCallback()])
        assert torch.equal(project.head.weight, trained)
    returned._FINGERPRINTS.clear()  # control: without the word that has come back the weights are rescaled
    fit(project, "ddp_fork", [MinibatchInitCallback()])
    assert not torch.equal(project.head.weight, trained)
    print("kept")
"""

SPAWN = """
if __name__ == "__main__":
    project, drawn = Project(), Project()
    fit(project, "ddp_spawn", [ConstraintCallback(), MinibatchInitCallback(), ShiftMonitor()])
    assert constrained_weights(project) == {}
    assert type(project.head) is nn.Linear
    assert project.head.weight.sum(1).abs().max() < 1e-5 < drawn.head.weight.sum(1).abs().max()
    assert (project.head.weight - drawn.head.weight).abs().max() > 0.1
    normed = Project()  # somebody else's parametrization comes back as it was
    nn.utils.parametrizations.weight_norm(normed.body[0])
    before = [parameter.clone() for parameter in normed.body[0].parameters()]
    fit(normed, "ddp_fork", [ConstraintCallback(exclude=["body.0.*"])])
    assert constrained_weights(normed) == {}
    assert all(not torch.equal(old, new) for old, new in zip(before, normed.body[0].parameters(), strict=True))
    assert normed.head.weight.sum(1).abs().max() < 1e-5
    print("spawned")
"""

VALIDATED = """
if __name__ == "__main__":
    for callback in (ConstraintCallback("wn"), ConstraintCallback(method="project")):
        known = Project()
        constrain(known, callback.kind, method=callback.method)  # as a fit before leaves it
        constrained = constrained_weights(known)
        assert len(constrained) == 3
        saver = ModelCheckpoint(callback.method)
        fit(known, "ddp_spawn", [callback, MinibatchInitCallback(), ShiftMonitor(), saver], enable_checkpointing=True)
        assert constrained_weights(known) == constrained
        saved = torch.load(saver.best_model_path)["state_dict"]
        assert all(torch.equal(value, saved[key]) for key, value in known.state_dict().items())
    print("given back")
"""

SHARDED = """
if __name__ == "__main__":
    def run(name, epochs, **kwargs):
        module, logger = Sharded(), CSVLogger(name)
        callbacks = [ConstraintCallback(), ShiftMonitor(), ModelCheckpoint(name)]
        settings = {"logger": logger, "enable_checkpointing": True} | kwargs
        trainer = fit(module, ModelParallelStrategy(), callbacks, epochs, **settings)
        return trainer, {key: whole(value.detach()) for key, value in module.named_parameters()}, module

    _, expected, module = run("whole", 2)
    assert len(constrained_weights(module)) == 3
    assert hasattr(module.head.parametrizations.weight.original, "device_mesh")
    assert whole(module.head.weight).sum(1).abs().max() < 1e-5
    first, _, _ = run("first", 1)
    _, resumed, _ = run("resumed", 2, ckpt_path=first.checkpoint_callback.best_model_path)
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())

    try:
        fit(Sharded(), ModelParallelStrategy(), [ConstraintCallback(), MinibatchInitCallback()])
    except ValueError as error:
        assert "'body.0.weight' is sharded; call minibatch_init_() before fully_shard()" in str(error)
        print("sharded")

    class Late(Sharded):  # builds and shards in one hook, so that no callback can come between
        def __init__(self):
            LightningModule.__init__(self)

        def configure_model(self):
            if not hasattr(self, "head"):
                built = Project()
                self.body, self.head = built.body, built.head
                super().configure_model()

    try:
        fit(Late(), ModelParallelStrategy(), [ConstraintCallback()])
    except ValueError as error:
        assert "(sharded; constrain the model before fully_shard())" in str(error)
        print("refused")
"""

packages = pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])


def run_script(folder, package, text):
    script = folder / "train.py"
    script.write_text((PROJECT + text).replace("lightning.pytorch", package))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script.name],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@packages
@pytest.mark.slow
def test_after_spawned_processes_the_main_one_holds_the_trained_weights(package, tmp_path):
    assert "spawned" in run_script(tmp_path, package, SPAWN)


@packages
@pytest.mark.slow
def test_a_second_fit_after_forked_processes_does_not_initialize_again(package, tmp_path):
    assert "kept" in run_script(tmp_path, package, SECOND_FIT)


@packages
@pytest.mark.slow
def test_spawned_processes_take_a_constrained_module_and_give_it_back(package, tmp_path):
    assert "given back" in run_script(tmp_path, package, VALIDATED)


@packages
@pytest.mark.slow
def test_sharded_weights_train_log_and_resume_bit_exactly(package, tmp_path):
    said = run_script(tmp_path, package, SHARDED)
    assert "sharded" in said
    assert "refused" in said
    assert "shift_ratio/head" in Path(tmp_path, "whole/lightning_logs/version_0/metrics.csv").read_text()
