import math

from tools.records import write_json
from tools.reproduce import runs
from tools.reproduce.paper import report
from tools.reproduce.paper.grids import GRIDS


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


def test_tables_hold_the_mean_of_last_epochs_and_the_spread_over_seeds():
    records = [{"epochs": {"test/loss": [9.0] * 5 + [start + i for i in range(10)]}} for start in (0.0, 2.0)]
    assert report.spread(records[:1], "test/loss", 10) == "4.500"
    assert report.spread(records, "test/loss", 10) == "5.500 ± 1.414"
    assert report.spread(records, "test/loss", 1) == "10.000 ± 1.414"
