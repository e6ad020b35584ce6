import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from lcw_lightning.cli import main

SIGMA_B = {1.0: 0.18028, 4.0: 0.77708}  # of a sigmoid with zero-sum weights by q, by scipy's quadrature
DRAW = ["--minibatch_init.granularity=none", "--edge_of_chaos_init.weights=gaussian"]

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def first_layer_mean_square():
    """E[(W a)^2] of the first layer, by what analyze wrote of it."""
    layers = json.loads(Path("analysis/analysis.json").read_text())["layers"]
    first = layers["network.hidden.0.linear"]
    return first["preactivation_std"] ** 2 * (1 + first["shift_ratio"] ** 2)


def states():
    paths = sorted(Path().glob("lightning_logs/*/checkpoints/*.ckpt"))
    return [torch.load(path)["state_dict"] for path in paths]


def biases():
    return [torch.cat([value for key, value in state.items() if key.endswith("bias")]) for state in states()]


def test_it_is_off_unless_asked_for(lcw, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", lcw.config, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["edge_of_chaos_init"] == {
        "weights": "none",
        "q": 1.0,
        "include": ["*"],
        "exclude": [],
    }


def test_fit_trains_what_it_draws(lcw):
    untrained = ["--model.network.width=300", "--model.optimizer.lr=1e-9"]
    lcw("fit", *DRAW, "--edge_of_chaos_init.q=4.0", *untrained)
    lcw("fit", *untrained)
    drawn, zero = biases()
    assert drawn.std().item() == pytest.approx(SIGMA_B[4.0], rel=5 / math.sqrt(2 * len(drawn)))
    assert zero.abs().max() < 1e-6  # as minibatch initialization leaves them


def test_it_refuses_to_run_beside_minibatch_initialization(lcw):
    with pytest.raises(SystemExit) as exit_:
        lcw("fit", "--edge_of_chaos_init.weights=gaussian")
    assert "--minibatch_init.granularity=none" in str(exit_.value)


def test_a_config_that_was_saved_before_it_existed_runs_as_it_did(lcw, small_checkpoint):
    saved = Path("lightning_logs/version_0/config.yaml")
    config = yaml.safe_load(saved.read_text())
    assert config.pop("edge_of_chaos_init")["weights"] == "none"
    saved.with_name("old.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(saved.with_name("old.yaml")), *lcw.quiet])
    first, again = states()
    assert all(torch.equal(first[key], value) for key, value in again.items())


def test_analyze_looks_at_what_it_draws(lcw):
    lcw("analyze", *DRAW)
    assert first_layer_mean_square() == pytest.approx(1 - SIGMA_B[1.0] ** 2, rel=0.01)
    lcw("analyze")
    assert first_layer_mean_square() == pytest.approx(1, rel=0.01)  # minibatch initialization
