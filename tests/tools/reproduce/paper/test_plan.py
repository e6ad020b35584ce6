import re

import pytest
import torch

from tools.records import write_json
from tools.reproduce import __main__ as reproduce
from tools.reproduce.paper.plan import Cell, Pace, ends_of, epochs_left, most_epochs, pace, table
from tools.reproduce.runs import Run

FAST, SLOW = Pace(start=30.0, step=0.01), Pace(start=60.0, step=0.02)  # an epoch: 3.9 s and 7.8 s
CELLS = [Cell("fast", 100, FAST), Cell("slow", 100, SLOW), Cell("fast again", 100, FAST)]


def test_a_run_takes_its_start_and_390_steps_an_epoch():
    assert FAST.seconds(100) == pytest.approx(30 + 100 * 3.9)
    assert SLOW.seconds(0) == 60


def test_the_pace_is_that_of_later_epochs_and_the_rest_is_the_start():
    # 100 steps an epoch; the first epoch compiles for 9 s, and 5 s pass before it.
    found = pace(whole=5 + 10 + 1 + 1, seconds=[10.0, 1.0, 1.0], steps=100)
    assert found == pytest.approx((14.0, 1 / 100))
    assert found.start + 3 * 100 * found.step == pytest.approx(17)


@pytest.mark.parametrize(("devices", "expected"), [(1, [3, 5, 9, 10]), (2, [3, 2, 6, 4]), (9, [3, 2, 4, 1])], ids=str)
def test_a_free_device_takes_the_next_run(devices, expected):
    assert ends_of([3, 2, 4, 1], devices) == expected


def test_the_table_says_which_runs_fit_in_their_order():
    # 420, 840 and 420 s.
    text = table(CELLS, minutes=21, devices=1)
    assert "| fast | 100 | 0.01 | 7.0 | 7.0 | yes |" in text
    assert "| slow | 100 | 0.02 | 14.0 | 21.0 | yes |" in text
    assert "| fast again | 100 | 0.01 | 7.0 | 28.0 | no |" in text
    assert "2 of 3 runs fit into 21 minutes on 1 device. All fit with --epochs=73." in text
    assert "3 of 3 runs fit into 21 minutes on 2 devices." in table(CELLS, minutes=21, devices=2)


@pytest.mark.parametrize("minutes", [3, 10, 21])
def test_all_runs_fit_with_the_most_epochs_and_not_with_one_more(minutes):
    epochs = most_epochs(CELLS, minutes, devices=1)
    whole = [sum(cell.pace.seconds(count) for cell in CELLS) / 60 for count in (epochs, epochs + 1)]
    assert whole[0] <= minutes < whole[1]


def test_where_even_one_epoch_is_too_much_no_number_is_named():
    assert most_epochs(CELLS, 2, devices=1) == 0
    assert table(CELLS, minutes=2, devices=1).endswith("0 of 3 runs fit into 2 minutes on 1 device.")


def test_epochs_of_a_checkpoint_are_not_left(tmp_path):
    run = Run("vgg19", "cifar10", "LCW", 0, [], "_30epochs")
    assert epochs_left(run, tmp_path, 30) == 30
    assert epochs_left(run, tmp_path, None) == 300
    folder = tmp_path / "unfinished" / run.name
    folder.mkdir(parents=True)
    torch.save({"callbacks": {"EpochRecorder": {"epochs": [{"train/loss": 1.0}] * 12}}}, folder / "last.ckpt")
    assert epochs_left(run, tmp_path, 30) == 18


@pytest.mark.slow
def test_a_plan_measures_what_is_not_finished_and_trains_nothing(small_grid, capfd):
    output = small_grid / "out"
    write_json(output / "mlp_digits_plain_5epochs_seed0.json", {})
    command = ["small", "--networks=mlp", "--epochs=5", f"--output={output}", "--device=cpu"]
    reproduce.main([*command, "--plan", "--minutes=600"])
    said = capfd.readouterr().out
    step, minutes = map(float, re.search(r"\| mlp_digits_lcw_5epochs_seed0 \| 5 \| (\S+) \| (\S+) \|", said).groups())
    assert 0 < 5 * 390 * step / 60 < minutes + 0.05
    assert "mlp_digits_plain" not in said
    assert "1 of 1 runs fit into 600 minutes on 1 device." in said
    assert [path.name for path in output.iterdir()] == ["mlp_digits_plain_5epochs_seed0.json"]


@pytest.mark.parametrize("flag", ["--plan", "--minutes=3"])
def test_a_plan_needs_its_minutes(flag):
    with pytest.raises(SystemExit, match="--plan and --minutes belong together"):
        reproduce.main(["table1", flag])
