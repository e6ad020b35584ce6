"""The help says what lcw is, and shows its own flags before Lightning's."""

import pytest

from lcw_lightning.cli import main
from lcw_lightning.cli.help import COMMAND_HELP

LIGHTNINGS_OWN = ["Lightning Trainer command line tool", "<class '", "Base class for all optimizers", "``"]


@pytest.fixture
def help_of(capsys):
    def show(*command):
        with pytest.raises(SystemExit) as exit_:
            main([*command, "--help"])
        assert exit_.value.code == 0
        return capsys.readouterr().out

    return show


def test_the_help_of_lcw_says_what_it_is_and_what_each_command_does(help_of):
    said = " ".join(help_of().split())
    assert "Train deep networks with linearly constrained weights (LCW)" in said
    assert all(f"{command} {words}" in said for command, words in COMMAND_HELP.items())
    assert not any(words in said for words in LIGHTNINGS_OWN)


@pytest.mark.parametrize("command", COMMAND_HELP)
def test_our_flags_stand_before_those_of_model_data_and_trainer(command, help_of):
    said = help_of(command)
    flags = [
        "--ckpt_path",
        *(["--output"] if command in ("predict", "export", "analyze") else []),
        *("--constraint.kind", "--minibatch_init.granularity", "--shift_monitor.every_n_steps"),
        *("--model ", "--data ", "--trainer.max_epochs"),
    ]
    places = [said.index(f"  {flag}") for flag in flags]
    assert places[-6:] == sorted(places[-6:])
    assert max(places[:-6]) < places[-6]
    assert said.index("Constraint on the weights: ") < places[-6]
    assert said.startswith(f"usage: lcw {command} [--config FILE] [flags]\n")
    assert not any(words in said for words in LIGHTNINGS_OWN)
