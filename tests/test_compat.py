"""What this package expects of each private interface of torch, Lightning and jsonargparse."""

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.compile import from_compiled
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from lcw_lightning import compat

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def test_transforms_of_torch_func_are_seen():
    seen = []
    torch.vmap(lambda x: (seen.append(compat.is_transformed()), x)[1])(torch.ones(2))
    assert seen == [True]
    assert not compat.is_transformed()


def test_a_view_is_known_as_one():
    tensor = torch.ones(2, 3)
    assert compat.is_view(tensor.view(6))
    assert not compat.is_view(tensor.view(6).clone())


def test_hooks_on_saved_tensors_are_seen():
    seen = []
    checkpoint(lambda x: (seen.append(compat.saves_by_hooks()), x.sin())[1], torch.ones(2), use_reentrant=False)
    assert seen == [True]
    assert not compat.saves_by_hooks()


def compiled_in_place(module):
    module.compile()
    return module


def compiled_by_lightning(module):
    return from_compiled(torch.compile(module))


@pytest.mark.parametrize("compiled", [compiled_in_place, torch.compile, compiled_by_lightning])
def test_a_compiled_module_is_known_as_one(compiled):
    assert compat.is_compiled_here(compiled(BoringModel()))
    assert not compat.is_compiled_here(BoringModel())


def test_weight_norm_multiplies_unit_vectors_by_gains():
    gains, v = torch.rand(3, 1), torch.rand(3, 4)
    torch.testing.assert_close(compat.TorchWeightNorm()(gains, v), gains * v / v.norm(dim=1, keepdim=True))


def test_spectral_norm_calls_its_power_method_in_training_and_keeps_its_vectors():
    calls = []

    class Counting(compat.TorchSpectralNorm):
        def _power_method(self, weight_mat, n_power_iterations):
            calls.append(n_power_iterations)
            super()._power_method(weight_mat, n_power_iterations)

    weight = torch.rand(3, 4)
    norm = Counting(weight)
    made = len(calls)
    norm(weight)
    norm.eval()(weight)
    assert calls[made:] == [1]
    assert [name for name, _ in norm.named_buffers()] == ["_u", "_v"]


def test_cached_weights_are_computed_again_once_the_cache_is_clear():
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", nn.Tanh())
    with parametrize.cached(), torch.no_grad():
        before = layer.weight.clone()
        layer.parametrizations.weight.original.zero_()
        assert torch.equal(layer.weight, before)
        compat.clear_cached_weights()
        assert not layer.weight.any()


@pytest.mark.parametrize(
    ("register", "hooks", "function"),
    [
        pytest.param(
            "register_load_state_dict_pre_hook", compat.hooks_before_load, lambda hook: hook.hook, id="before"
        ),
        pytest.param("register_load_state_dict_post_hook", compat.hooks_after_load, lambda hook: hook, id="after"),
    ],
)
def test_hooks_on_loading_are_found_and_can_be_taken_away(register, hooks, function):
    layer, calls = nn.Linear(2, 2), []

    def note(*_):
        calls.append(1)

    getattr(layer, register)(note)
    layer.load_state_dict(layer.state_dict())
    ((key, hook),) = hooks(layer).items()
    assert function(hook) is note
    del hooks(layer)[key]
    layer.load_state_dict(layer.state_dict())
    assert len(calls) == 1


def test_a_parametrized_recurrent_layer_reads_weights_anew_that_are_dropped():
    layer, inputs = nn.GRU(3, 2), torch.rand(4, 3)
    assert compat.flat_weight_names(layer) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert compat.flat_weight_names(nn.Linear(2, 2)) == []
    expected = layer(inputs)[0]
    for name in compat.flat_weight_names(layer):
        parametrize.register_parametrization(layer, name, nn.Hardtanh(-9, 9))
    vars(layer).update(compat.without_flat_weights(layer, {}))
    assert torch.equal(layer(inputs)[0], expected)
    plain = nn.GRU(3, 2)
    vars(plain).update(compat.without_flat_weights(plain, {}))
    with pytest.raises(RuntimeError):
        plain(inputs)


def test_versions_of_modules_lie_beside_a_state_dict():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert compat.module_versions(model.state_dict())["1"] == {"version": nn.BatchNorm1d._version}
    assert compat.module_versions(dict(model.state_dict())) == {}


def test_leaves_of_nested_outputs_are_found():
    assert compat.tree_leaves({"a": [1, (2, None)], "b": 3}) == [1, 2, None, 3]


@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        pytest.param({}, False, id="one process"),
        pytest.param({"devices": 2, "strategy": "ddp"}, False, id="ddp"),
        pytest.param({"devices": 2, "strategy": "ddp_spawn"}, True, id="ddp_spawn"),
    ],
)
def test_processes_that_lightning_starts_from_this_one_are_known(settings, starts):
    assert compat.starts_processes(Trainer(**{"accelerator": "cpu", "devices": 1, **settings, **QUIET})) == starts


@pytest.mark.parametrize("checkpointed", [0, 2], ids=["before", "after"])
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_checkpoint_says_how_many_batches_were_trained(checkpointed, tmp_path):
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, limit_train_batches=checkpointed, **QUIET)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert compat.num_trained_batches(torch.load(tmp_path / "run.ckpt")) == checkpointed
    assert compat.num_trained_batches({"state_dict": {}}) == 0


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_fit_can_be_ended_at_once_and_without_an_error():
    ended = []

    class Ending(Callback):
        def on_train_batch_end(self, trainer, *_):
            compat.end_fit()

        def on_train_epoch_end(self, *_):
            ended.append("epoch")

        def on_validation_start(self, trainer, *_):
            ended.append("validation")

    trainer = Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=0, callbacks=[Ending()], **QUIET)
    trainer.fit(BoringModel())
    assert trainer.global_step == 1
    assert not ended
    assert trainer.interrupted is False


class Asking(LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        self.by_cli = compat.is_made_by_cli()


def test_a_module_knows_whether_the_command_line_makes_it():
    settings = {"save_config_callback": None, "seed_everything_default": False, "run": False}
    trainer = {"accelerator": "cpu", "devices": 1, **QUIET}
    assert LightningCLI(Asking, trainer_defaults=trainer, args=[], **settings).model.by_cli
    assert not Asking().by_cli


def test_parsers_of_subcommands_and_their_options_are_found():
    class StopError(Exception):
        pass

    class ParsingOnly(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser):
            assert compat.option(parser, "--trainer.max_epochs").dest == "trainer.max_epochs"
            assert "--trainer.max_epochs" in compat.option_names(parser)

        def parse_arguments(self, parser, args):
            compat.subcommand_parser(self, "fit").set_defaults({"trainer.max_epochs": 7})
            super().parse_arguments(parser, args)
            raise StopError(self.config.fit.trainer.max_epochs)

    with pytest.raises(StopError, match="7"):
        ParsingOnly(Asking, args=["fit"])


REGISTER_ON_ALL = [
    "register_module_forward_pre_hook",
    "register_module_forward_hook",
    "register_module_full_backward_pre_hook",
    "register_module_full_backward_hook",
]


@pytest.mark.parametrize("register", REGISTER_ON_ALL)
def test_hooks_on_the_calls_of_all_modules_are_seen(register):
    handle = getattr(nn.modules.module, register)(lambda *_: None)
    try:
        assert compat.global_module_hooks()
    finally:
        handle.remove()
    assert not compat.global_module_hooks()


REGISTER = [
    "register_forward_pre_hook",
    "register_forward_hook",
    "register_full_backward_pre_hook",
    "register_full_backward_hook",
]


@pytest.mark.parametrize("register", REGISTER)
def test_hooks_on_the_calls_of_one_module_are_seen(register):
    layer = nn.Linear(2, 2)
    handle = getattr(layer, register)(lambda *_: None)
    assert compat.module_hooks(layer)
    handle.remove()
    assert not compat.module_hooks(layer)


def test_a_module_compiled_in_place_is_seen():
    layer = nn.Linear(2, 2)
    layer.compile(backend="eager")
    assert compat.module_hooks(layer)


@pytest.mark.parametrize("named", [[], [(nn.Linear(2, 2), "weight")]], ids=["all", "named"])
def test_the_parameters_that_a_pruning_callback_was_given_are_found(named):
    from lightning.pytorch.callbacks import ModelPruning

    callback = ModelPruning("l1_unstructured", parameters_to_prune=named)
    assert compat.pruned_parameters(callback) == named


def test_hooks_before_saving_are_found_and_can_be_taken_away():
    layer, calls = nn.Linear(2, 2), []

    def note(*_):
        calls.append(1)

    layer.register_state_dict_pre_hook(note)
    ((key, hook),) = compat.hooks_before_saving(layer).items()
    assert hook is note
    del compat.hooks_before_saving(layer)[key]
    layer.state_dict()
    assert calls == []


def test_a_block_that_caches_weights_is_seen():
    assert not compat.is_cached()
    with parametrize.cached():
        assert compat.is_cached()


def test_symbolic_tracing_by_fx_is_seen():
    seen = []

    class Noting(nn.Module):
        def forward(self, inputs):
            seen.append(compat.is_traced_by_fx())
            return inputs

    torch.fx.symbolic_trace(Noting())
    assert seen == [True]
    assert not compat.is_traced_by_fx()


def trainer_on_slurm(folder, monkeypatch):
    for name, value in {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(name, value)
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        **QUIET,
    )


def test_the_method_that_requeues_is_called_at_slurms_signal(tmp_path, monkeypatch):
    trainer, signals = trainer_on_slurm(tmp_path, monkeypatch), []
    instance, name = compat.requeue_method(trainer)
    assert callable(getattr(instance, name))
    vars(instance)[name] = lambda signum, frame: signals.append(signum)

    class Signalled(BoringModel):
        def on_train_start(self):
            os.kill(os.getpid(), signal.SIGUSR1)

    trainer.fit(Signalled())
    assert signals == [signal.SIGUSR1]


@pytest.mark.parametrize("found", [None, "own.ckpt"])
def test_fit_alone_goes_on_from_the_checkpoint_that_is_found(found, tmp_path, monkeypatch):
    trainer = trainer_on_slurm(tmp_path, monkeypatch)
    trainer.fit(BoringModel())
    for name in ("hpc_ckpt_1.ckpt", "own.ckpt"):
        trainer.save_checkpoint(tmp_path / name)
    path = found and str(tmp_path / found)
    for replaced in (False, True):
        if replaced:
            compat.find_requeued_by(trainer, lambda: path)
        trainer.fit(BoringModel())
        assert trainer.ckpt_path == (path if replaced else str(tmp_path / "hpc_ckpt_1.ckpt"))
        trainer.test(BoringModel(), verbose=False)
        assert trainer.ckpt_path == (None if replaced else str(tmp_path / "hpc_ckpt_1.ckpt"))
        trainer.test(BoringModel(), ckpt_path="hpc", verbose=False)
        assert trainer.ckpt_path == str(tmp_path / "hpc_ckpt_1.ckpt")
