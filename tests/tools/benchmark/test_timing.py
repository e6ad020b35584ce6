import time
from functools import partial

import torch

from tools.benchmark import timing


def test_in_each_round_each_method_has_one_turn_in_an_order_of_chance(monkeypatch):
    turns = []
    tasks = {name: timing.Task(partial(turns.append, name)) for name in "abcd"}
    monkeypatch.setattr(timing, "SHORTEST", 1e-9)
    rows = timing.interleaved(tasks, timing.Settings(rounds=6))
    assert [(row["method"], len(row["seconds"])) for row in rows] == [(name, 6) for name in "abcd"]
    assert turns[:12] == list("aaabbbcccddd")  # warm up, memory, how long a run takes
    rounds = ["".join(turns[start : start + 4]) for start in range(12, len(turns), 4)]
    assert len(rounds) == 6
    assert {"".join(sorted(order)) for order in rounds} == {"abcd"}
    assert len(set(rounds)) > 1


def test_rounds_go_on_until_the_time_is_up_but_there_are_some(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 1e-9)
    tasks = {"plain": timing.Task(partial(time.sleep, 0.01))}
    counts = []
    for seconds in (0.0, 0.3):
        (row,) = timing.interleaved(tasks, timing.Settings(seconds=seconds))
        counts.append(len(row["seconds"]))
    assert counts[0] == timing.FEWEST
    assert counts[0] < counts[1] <= 31


def test_a_sample_of_a_fast_run_is_a_mean_over_several(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 0.1)
    turns = []
    fast = timing.Task(lambda: (time.sleep(0.01), turns.append("fast")))
    slow = timing.Task(lambda: (time.sleep(0.1), turns.append("slow")))
    rows = timing.interleaved({"fast": fast, "slow": slow}, timing.Settings(rounds=1))
    assert turns.count("slow") == 4
    assert 6 <= turns.count("fast") <= 14  # ten, and one before them that is not timed
    assert 0.01 <= rows[0]["seconds"][0] < 0.1


def test_what_is_prepared_is_not_timed():
    timed = timing.seconds_a_run(timing.Task(lambda: None, partial(time.sleep, 0.05)), 2, "cpu")
    assert timed < 0.05
    assert timing.seconds_a_run(timing.Task(partial(time.sleep, 0.05)), 2, "cpu") >= 0.05


def test_memory_is_the_most_held_at_once():
    held = torch.zeros(1000)

    def together():
        copy = held.clone()
        torch.cat([copy, copy])

    def one_after_the_other():
        held.clone()
        torch.cat([held, held])

    numbers = [timing.memory_of_a_run(timing.Task(run), "cpu") for run in (together, one_after_the_other)]
    assert numbers == [{"peak_bytes": 12_000, "largest_bytes": 8000}, {"peak_bytes": 8000, "largest_bytes": 8000}]
