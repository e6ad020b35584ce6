"""The sparse activations' grid: its methods are the paper's and ours, and what their flags do."""

import pytest

from lcw_lightning.cli.app import LCWCLI, CommandTrainer
from lcw_lightning.cli.parser import LCWParser
from tools.records import ROOT
from tools.reproduce.sparse.grid import METHODS, NETWORKS, PAPER_TABLE_2, Method
from tools.reproduce.sparse.stages import at


@pytest.fixture
def parser():
    """The parser of ``lcw fit``, without what follows on parsing."""

    class ParsingOnly(LCWCLI):
        def instantiate_classes(self):
            pass

        def _run_subcommand(self, subcommand):
            pass

    config = str(ROOT / "configs" / "digits_mlp50.yaml")
    settings = {"trainer_class": CommandTrainer, "parser_class": LCWParser, "auto_configure_optimizers": False}
    return ParsingOnly(args=["fit", "--config", config], **settings)._subcommand_parsers["fit"]


@pytest.mark.parametrize(("network", "every"), [("sparse_mlp100", 1), ("sparse_cnn50", 7)], ids=["MLP", "CNN"])
def test_every_methods_flags_give_its_activation_and_its_weights(parser, network, every):
    config = ROOT / "configs" / f"{network}_{NETWORKS[network]}.yaml"
    classes = {"ReLU_tau": "ShiftedReLU", "ST": "SoftThreshold"}
    classes |= {"CReLU": "ClippedShiftedReLU", "CST": "ClippedSoftThreshold"}
    for name, method in list(METHODS.items())[::every]:
        run = at((network, name), 3e-5, 4, 1)
        settings = parser.parse_args(["--config", str(config), *run.flags])
        activation = settings.model.init_args.network.init_args.activation
        assert activation.class_path == f"lcw_lightning.{classes[method.activation]}"
        assert activation.init_args.sparsity == method.sparsity
        assert getattr(activation.init_args, "slope", None) == method.slope
        assert not getattr(activation.init_args, "zero_sum", False)  # the same activation with LCW
        assert settings.constraint.kind == ("lcw" if name.endswith("+LCW") else "none")
        assert settings.model.init_args.optimizer.init_args.lr == 3e-5
        assert settings.trainer.max_epochs == 4
        assert settings.edge_of_chaos_init.weights != "none"
        assert settings.minibatch_init.granularity == "none"
        assert settings.shift_monitor.sparsity
        assert settings.shift_monitor.every_n_steps == 0  # statistics of training steps cost time
        assert settings.trainer.gradient_clip_val == 1.0
    unclipped = at((network, name), 3e-5, 4, 1, clipping=False)
    assert unclipped.name == run.name.replace("_4epochs", "_noclipping_4epochs")
    assert parser.parse_args(["--config", str(config), *unclipped.flags]).trainer.gradient_clip_val is None


def test_the_grid_is_the_papers_table_2_and_ours_each_with_lcw():
    methods, paper = METHODS, PAPER_TABLE_2
    assert len(paper) == 33
    assert {"ReLU_tau_0.6", "ReLU_tau_0.9+LCW", "CReLU_0.9_0.7", "CReLU_0.85_0.7+LCW", "CST_0.85_0.9"} <= set(methods)
    settings = {(method.activation, method.sparsity, method.slope) for method in methods.values()}
    assert settings >= set(paper)
    assert len(methods) == 2 * len(settings) == 2 * 37
    # Clipped: sparsities .6 to .85 (CST also .5) by slopes .5, .7, .9; unclipped: .5, .6, .7.
    for odd, lowest in (("CReLU", 0.6), ("CST", 0.5)):
        found = sorted((sparsity, slope) for name, sparsity, slope in paper if name == odd)
        sparsities = [s for s in (0.5, 0.6, 0.7, 0.8, 0.85) if s >= lowest]
        assert found == [(sparsity, slope) for sparsity in sparsities for slope in (0.5, 0.7, 0.9)]
    # What the paper says of its table: only slope .7 never fails, and no clip fails from .7 on (ST: always).
    failed = {key for key, row in paper.items() if row[0] < 0.8 or row[4] < 0.5}
    assert {slope for _, _, slope in failed} == {None, 0.5, 0.9}


@pytest.mark.parametrize(
    ("setting", "plain", "lcw"),
    [
        (("ReLU_tau", 0.6), 1.0, 0.725),
        (("ReLU_tau", 0.9), 1.0, 0.917),
        (("ST", 0.5), 1.0, 1.0),
        (("CST", 0.7, 0.7), 0.7, 0.7),
    ],
    ids=["ReLU_tau 0.6", "ReLU_tau 0.9", "ST", "CST"],
)
def test_the_slope_of_a_methods_variance_map_is_that_of_its_weights(setting, plain, lcw):
    assert Method(*setting).map_slope == pytest.approx(plain, abs=1e-9)
    assert Method(*setting, lcw=True).map_slope == pytest.approx(lcw, abs=5e-4)
