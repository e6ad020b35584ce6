import math

from tools.records import write_json
from tools.reproduce import __main__ as reproduce
from tools.reproduce import runs
from tools.reproduce.paper import report
from tools.reproduce.paper.grids import GRIDS
from tools.reproduce.paper.train import wanted


def test_a_diverged_run_is_a_result(tmp_path):
    logged = [dict.fromkeys(runs.QUANTITIES.values(), value) for value in (1.0, math.inf, math.nan)]
    epochs = [{**values, "seconds": 1.0} for values in logged]
    run = runs.Run("vgg19", "cifar10", "plain", 0, [])
    record = runs.record(run, "cpu", epochs)
    write_json(tmp_path / f"{run.name}.json", record)  # which takes no nan
    groups = report.load([run], tmp_path)
    assert groups["vgg19", "cifar10"]["plain"][0]["epochs"]["test/loss"] == [1.0, None, None]
    assert record["diverged"]
    grid = GRIDS["table1"]
    table = report.tables("table1", grid, groups)
    assert "| plain | 1 | 3 | diverged | 0.936 | diverged | 0.354 | 1.0 |" in table
    (path,) = report.draw(grid, groups, tmp_path, "")
    assert path.name == "vgg19_cifar10.png"


def test_a_scaled_schedule_and_the_flags_of_speed_are_stated(tmp_path):
    epoch = {**dict.fromkeys(runs.QUANTITIES.values(), 1.0), "seconds": 1.0}
    command = ("table1", "--networks=vgg19", "--methods=LCW", "--data", "cifar10", "cifar100", "--precision=bf16-mixed")
    for epochs, said in ((60, "means of the last 2 epochs"), (30, "the last epoch's")):
        grid_runs, _ = wanted(reproduce.parse([*command, f"--epochs={epochs}"]))
        for run in grid_runs:
            write_json(tmp_path / f"{run.name}.json", runs.record(run, "cpu", [epoch] * epochs))
        table = report.tables("table1", GRIDS["table1"], report.load(grid_runs, tmp_path))
        every = 3 * epochs / 300
        assert (
            f"VGG19, CIFAR-10, {epochs} epochs in place of 300, the learning rate falling as far: times 0.95 every "
            f"{every:.3g} epochs in place of 3; values are {said}:"
        ) in table
        assert f"VGG19, CIFAR-100, {epochs} epochs in place of 500" in table
        assert "with validation; run with --trainer.precision=bf16-mixed." in table


def test_tables_hold_the_mean_of_last_epochs_and_the_spread_over_seeds():
    records = [{"epochs": {"test/loss": [9.0] * 5 + [start + i for i in range(10)]}} for start in (0.0, 2.0)]
    assert report.spread(records[:1], "test/loss", 10) == "4.500"
    assert report.spread(records, "test/loss", 10) == "5.500 ± 1.414"
    assert report.spread(records, "test/loss", 1) == "10.000 ± 1.414"
