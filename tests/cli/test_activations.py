"""Sparse activations by class path, in every network."""

from pathlib import Path

import pytest
import torch
import yaml

from lcw_lightning import ClippedShiftedReLU, ClippedSoftThreshold, ImageClassifier, ShiftedReLU, SoftThreshold

ACTIVATION = "--model.network.activation"
NETWORKS = {
    "MLP": ["--model.network.in_features=64", "--model.network.num_classes=10", "--model.network.depth=2"],
    "VGG19": ["--model.network.in_channels=1", "--model.network.width=2", "--model.network.hidden_width=8"],
    "PreActResNet18": ["--model.network.in_channels=1", "--model.network.width=2"],
    "DeepCNN": ["--model.network.in_channels=1", "--model.network.depth=3", "--model.network.channels=8"],
}


@pytest.fixture
def lcw_on_digits(lcw):
    """Run ``lcw fit`` for a step on digits with a network by class path."""

    def fit(network, *flags):
        model = ["--model=ImageClassifier", f"--model.network=lcw_lightning.{network}", *NETWORKS[network]]
        steps = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=1"]
        optimizer = ["--model.optimizer=SGD", "--model.optimizer.lr=0.01"]
        lcw.args = [*model, *optimizer, "--data=Digits", *steps, *lcw.quiet]
        lcw("fit", *flags)

    return fit


def sparse_modules(model):
    kinds = (ClippedShiftedReLU, ClippedSoftThreshold, ShiftedReLU, SoftThreshold)
    return [module for module in model.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_takes_it_and_a_checkpoint_restores_tau_and_max(network, lcw_on_digits):
    lcw_on_digits(
        network,
        f"{ACTIVATION}=lcw_lightning.ClippedShiftedReLU",
        f"{ACTIVATION}.sparsity=0.85",
        f"{ACTIVATION}.slope=0.5",
    )
    (path,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    assert torch.load(path, weights_only=True)["hyper_parameters"]
    model = ImageClassifier.load_from_checkpoint(path, map_location="cpu")
    expected = ClippedShiftedReLU(sparsity=0.85, slope=0.5)
    restored = sparse_modules(model)
    assert {(type(module), module.tau, module.max) for module in restored} == {
        (ClippedShiftedReLU, expected.tau, expected.max)
    }
    assert len(restored) == {"MLP": 2, "VGG19": 18, "PreActResNet18": 17, "DeepCNN": 3}[network]


@pytest.mark.parametrize("name", ["ShiftedReLU", "SoftThreshold", "ClippedShiftedReLU", "ClippedSoftThreshold"])
def test_every_activation_goes_by_its_name_alone(name, lcw_on_digits):
    lcw_on_digits("MLP", f"{ACTIVATION}={name}", f"{ACTIVATION}.sparsity=0.7")
    config = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    activation = config["model"]["init_args"]["network"]["init_args"]["activation"]
    assert activation["class_path"] == f"lcw_lightning.{name}"
    assert activation["init_args"]["sparsity"] == 0.7


MISTAKES = {
    "unknown-argument": (["sparsty=0.7"], 2, "ShiftedReLU has no option 'sparsty'; near it is 'sparsity'"),
    "unclipped-has-no-slope": (["sparsity=0.7", "slope=0.7"], 2, "has no option 'slope'; it has 'tau', 'sparsity'"),
    "no-number": (["sparsity=much"], 2, "sparsity"),
    "missing": ([], 1, "ShiftedReLU needs either tau or sparsity, got tau=None, sparsity=None"),
    "both": (["tau=1", "sparsity=0.7"], 1, "ShiftedReLU needs either tau or"),
    "sparsity": (["sparsity=70"], 1, "between 0 and 1, but 70.0 was given"),
}


@pytest.mark.parametrize(("arguments", "status", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_says_what_is_needed(arguments, status, says, lcw_on_digits, capsys):
    with pytest.raises(SystemExit) as exit_:
        lcw_on_digits("MLP", f"{ACTIVATION}=ShiftedReLU", *(f"{ACTIVATION}.{argument}" for argument in arguments))
    code = exit_.value.code
    message = capsys.readouterr().err + str(code)
    assert (1 if isinstance(code, str) else code) == status  # Python exits with status 1 after a message
    assert says in message
    assert "Traceback" not in message
