import statistics

import pytest

from tools.benchmark import monitor, timing

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


def test_steps_are_sorted_by_what_the_monitor_did():
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


def test_a_sample_that_the_monitor_draws_counts_as_drawn(monkeypatch):
    monkeypatch.setattr(monitor, "PLOTTED_SAMPLES", (0, 2))
    seconds = dict.fromkeys(range(1, 60), 1.0) | {20: 5.0}
    assert ("sampled and drawn", 5.0) in monitor.by_kind(seconds)


def test_the_monitors_costs_are_measured_and_change_no_weight(monkeypatch):
    network = monitor.MLP
    monkeypatch.setattr(monitor, "MLP", lambda **sizes: network(**{**sizes, "depth": 2, "width": 8}))
    monkeypatch.setattr(monitor, "EVERY", 4)
    monkeypatch.setattr(monitor, "STEPS", 16)
    (rows,) = monitor.measure(timing.Settings(rounds=1))
    names = ["plain", "between samples", "sampled", "sampled and drawn", "a sample every 50 steps, not drawn"]
    assert [row["method"] for row in rows] == names
    assert [len(row["seconds"]) for row in rows] == [14, 7, 2, 1, 1]
    assert all(row["same_weights"] for row in rows)
    drawn, sampled = (statistics.median(rows[number]["seconds"]) for number in (3, 2))
    assert drawn > sampled > 0
    assert rows[0]["held_bytes"] > 0
