"""A method is one flag away: fit, resume, test and export of every kind of constraint."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lcw_lightning import MLP, ImageClassifier
from lcw_lightning.cli import main
from lcw_lightning.constraints.constrain import constrained_weights
from tests.quick import quick

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
kinds = pytest.mark.parametrize("kind", ["cwn", "wn", "sn"])


def checkpoint(version):
    """The path of a run's last checkpoint."""
    return max(Path(f"lightning_logs/version_{version}/checkpoints").glob("*.ckpt"), key=lambda path: path.name)


@pytest.mark.parametrize("kind", quick(["cwn"], ["cwn", "wn", "sn"]))
def test_fit_resumes_bit_for_bit_and_exports_the_same_network(kind, lcw):
    flag = f"--constraint.kind={kind}"
    lcw("fit", flag)
    lcw("fit", flag, "--trainer.max_epochs=3")
    lcw("fit", flag, "--trainer.max_epochs=3", "--ckpt_path", str(checkpoint(0)))
    whole, resumed = (torch.load(checkpoint(version))["state_dict"] for version in (1, 2))
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())

    loaded = ImageClassifier.load_from_checkpoint(checkpoint(2), map_location="cpu").eval()
    assert set(constrained_weights(loaded).values()) == {kind}
    assert all(torch.equal(value, whole[key]) for key, value in loaded.state_dict().items())
    main(["export", "--ckpt_path", str(checkpoint(2)), "--output=model.safetensors"])
    plain = MLP(in_features=64, num_classes=10, depth=3, width=16)
    plain.load_state_dict(load_file("model.safetensors"))
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(plain(images), loaded(images))


def test_centered_weight_normalization_trains_where_weight_normalization_does_not(lcw, capsys):
    accuracies = {}
    deep = ["--model.network.depth=30", "--model.network.width=64", "--trainer.max_epochs=10"]
    for kind in ("cwn", "wn"):
        lcw("fit", f"--constraint.kind={kind}", "--shift_monitor.every_n_steps=0", *deep)
        accuracies[kind] = float(re.search(r"test/accuracy\W+([\d.]+)", capsys.readouterr().out)[1])
    assert accuracies["cwn"] > 0.8
    assert accuracies["wn"] < 0.3


def test_test_follows_the_checkpoint_whatever_kind_the_flags_say(lcw, capsys):
    lcw("fit", "--constraint.kind=cwn")
    capsys.readouterr()
    printed = []
    for kind in ("cwn", "lcw", "none"):
        lcw("test", "--ckpt_path", str(checkpoint(0)), f"--constraint.kind={kind}")
        printed.append([line for line in capsys.readouterr().out.splitlines() if "test/" in line])
    assert printed[0] == printed[1] == printed[2]


def test_an_unknown_kind_lists_the_known_ones(lcw, capsys):
    with pytest.raises(SystemExit):
        lcw("fit", "--constraint.kind=cnw")
    assert "'none', 'lcw', 'cwn', 'wn', 'sn'" in capsys.readouterr().err.replace("\n", "")
