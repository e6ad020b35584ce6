"""LoRA by peft on a frozen base, under the README's three callbacks: no tensor of the base changes."""

import pytest
import torch
from torch import nn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 3)

    def forward(self, inputs):
        return self.head(self.body(inputs))


def adapted(lightning, lr=0.1, **settings):
    peft = pytest.importorskip("peft")
    targets = {"target_modules": ["0", "2", "head"]} | settings
    network = peft.get_peft_model(Base(), peft.LoraConfig(r=4, **targets))

    class Tuned(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=lr)

    return Tuned()


def changed(module, before):
    """The names of parameters whose values differ, without those that a constraint has renamed."""
    after = dict(module.named_parameters())
    return [name for name, value in before.items() if name not in after or not torch.equal(value, after[name])]


def test_no_tensor_of_the_frozen_base_changes(lightning, make_trainer, loader):
    module = adapted(lightning)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    make_trainer().fit(module, loader)
    base = {name for name in before if "base_layer" in name}
    print(f"{len(base)} tensors of the base, {len(base & set(changed(module, before)))} changed")
    assert len(base) == 6
    assert base.isdisjoint(changed(module, before))
    assert any("lora" in name for name in changed(module, before))


def test_the_base_that_peft_keeps_beside_a_trained_head_does_not_change(lightning, make_trainer, loader):
    module = adapted(lightning, target_modules=["0", "2"], modules_to_save=["head"])
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    make_trainer().fit(module, loader)
    base = {name for name in before if "base_layer" in name or "original_module" in name}
    print(f"{len(base)} tensors of the base, {len(base & set(changed(module, before)))} changed")
    assert len(base) == 6
    assert base.isdisjoint(changed(module, before))


def test_control_a_base_that_is_not_frozen_changes(lightning, make_trainer, loader):
    module = adapted(lightning)
    module.requires_grad_()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    make_trainer().fit(module, loader)
    assert any("base_layer" in name for name in changed(module, before))
