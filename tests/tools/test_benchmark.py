"""tools/benchmark.py: what it makes of seconds, and both workloads, small."""

import json
import statistics
import sys
from types import SimpleNamespace

import pytest
import torch

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes"),  # where there is one core
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
]


@pytest.fixture
def bench(tools, monkeypatch):
    """The modules of tools/benchmark.py; ``tools`` has put their folder on the path and off it again."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tools.runs.ROOT / "tools"))
        import benchmark
        import benchmark_loader
        import benchmark_monitor
    yield SimpleNamespace(main=benchmark, loader=benchmark_loader, monitor=benchmark_monitor)
    torch.set_flush_denormal(False)


def test_rows_have_medians_and_ratios_to_the_first_method(bench):
    times = {"plain": [1.0, 2.0, 9.0], "other": [5.0, 7.0, 1.0, 3.0], "single": [8.0]}
    measured = [{"method": name, "seconds": seconds, "held_bytes": 7} for name, seconds in times.items()]
    plain, other, single = bench.main.rows(measured, "cpu")
    assert [row["median_seconds"] for row in (plain, other, single)] == [2.0, 4.0, 8.0]
    assert [row["ratio_to_plain"] for row in (plain, other, single)] == [1.0, 2.0, 4.0]
    assert [row["repeats"] for row in (plain, other, single)] == [3, 4, 1]
    assert other["spread"] == 5.0  # quartiles of 1, 3, 5, 7 by the exclusive method: 1.5 and 6.5
    assert single["spread"] == 0.0
    assert "seconds" not in other
    assert {"method", "held_bytes", "device", "threads", "git", "versions", "hardware"} <= set(other)
    json.dumps([plain, other, single], allow_nan=False)


def test_steps_are_sorted_by_what_the_monitor_did(bench):
    monitor = bench.monitor
    assert (monitor.EVERY, monitor.STEPS) == (10, 60)
    seconds = dict.fromkeys(range(1, 60), 1.0)  # the first step, a warm-up, is left out
    seconds |= {10: 3.0, 11: 1.5, 20: 4.0, 40: 30.0, 41: 2.0, 50: 40.0}
    found = {}
    for name, took in monitor.by_kind(seconds):
        found.setdefault(name, []).append(took)
    assert found["sampled"] == [3.5, 4.0, 1.0]  # samples 1, 2, 3, each with what the step after it takes longer
    assert found["sampled and drawn"] == [31.0, 40.0]  # sample 4, and the last, 5
    steps = [step for step in range(1, 60) if step % 10 > 1]
    assert found["between samples"] == [1.0] * len(steps)


def test_a_sample_that_the_monitor_draws_counts_as_drawn(bench, monkeypatch):
    monkeypatch.setattr(bench.monitor, "DRAWN", (0, 2))
    seconds = dict.fromkeys(range(1, 60), 1.0) | {20: 5.0}
    assert ("sampled and drawn", 5.0) in bench.monitor.by_kind(seconds)


def test_the_monitors_costs_are_measured_and_change_no_weight(bench, monkeypatch):
    network = bench.monitor.MLP
    monkeypatch.setattr(bench.monitor, "MLP", lambda **sizes: network(**{**sizes, "depth": 2, "width": 8}))
    monkeypatch.setattr(bench.monitor, "EVERY", 4)
    monkeypatch.setattr(bench.monitor, "STEPS", 16)
    rows = bench.monitor.measure("cpu", rounds=1)
    names = ["plain", "between samples", "sampled", "sampled and drawn", "a sample every 50 steps, not drawn"]
    assert [row["method"] for row in rows] == names
    assert [len(row["seconds"]) for row in rows] == [14, 7, 2, 1, 1]
    assert all(row["same_weights"] for row in rows)
    drawn, sampled = (statistics.median(rows[number]["seconds"]) for number in (3, 2))
    assert drawn > sampled > 0
    assert rows[0]["held_bytes"] > 0


def test_loaders_are_measured_and_written(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.loader, "IMAGES", 300)
    path = tmp_path / "loader.json"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "loader", "--rounds=1", f"--json={path}"])
    bench.main.main()
    rows = json.loads(path.read_text())
    assert [row["method"].partition(",")[0] for row in rows] == ["DataLoader"] * 2 + ["BatchLoader"] * 2
    assert rows[0]["workload"] == "epoch of 300 images of 3 x 32 x 32"
    assert all(row["median_seconds"] > 0 for row in rows)
    assert "BatchLoader, resident" in capsys.readouterr().out


def test_all_loaders_give_the_same_images_but_for_chance(bench):
    images, labels = torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8), torch.arange(256) % 10
    for loader in bench.loader.loaders(images, labels, "cpu").values():
        batches = list(loader)
        assert [batch.shape for batch, _ in batches] == [(128, 3, 32, 32)] * 2
        assert sorted(torch.cat([label for _, label in batches]).tolist()) == sorted(labels.tolist())
        batch = torch.cat([batch for batch, _ in batches])
        assert batch.dtype == torch.float32
        # Uniform bytes have mean 0 after normalization and a standard deviation of 1; black borders come by cropping.
        assert -0.35 < batch.mean() < 0.1
        assert 0.9 < batch.std() < 1.2
