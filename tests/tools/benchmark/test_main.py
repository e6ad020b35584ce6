"""tools.benchmark: its rows, made of seconds and bytes, and each workload, small."""

import json
import time

import pytest
import torch
from torch import nn

from tools.benchmark import __main__ as benchmark
from tools.benchmark import methods

KEYS = {"workload", "case", "method", "median_seconds", "ratio_to_plain", "spread", "peak_bytes"}
KEYS |= {"device", "threads", "git", "versions", "hardware"}
METHODS = ["plain", "LCW", "LCW, project", "weight_norm", "spectral_norm", "CWN", "dense QR basis"]


def by_case(rows):
    cases = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["method"]] = row
    return cases


def test_rows_have_medians_and_ratios_to_the_first_method():
    times = {"plain": [1.0, 2.0, 9.0], "other": [5.0, 7.0, 1.0, 3.0], "single": [8.0]}
    measured = [{"method": name, "seconds": seconds, "held_bytes": 7} for name, seconds in times.items()]
    plain, other, single = benchmark.rows(measured, "step", "cpu")
    assert [row["median_seconds"] for row in (plain, other, single)] == [2.0, 4.0, 8.0]
    assert [row["ratio_to_plain"] for row in (plain, other, single)] == [1.0, 2.0, 4.0]
    assert [row["repeats"] for row in (plain, other, single)] == [3, 4, 1]
    assert other["spread"] == 5.0  # quartiles of 1, 3, 5, 7 by the exclusive method: 1.5 and 6.5
    assert single["spread"] == 0.0
    assert "seconds" not in other
    assert KEYS - {"case"} | {"held_bytes"} <= set(other)
    json.dumps([plain, other, single], allow_nan=False)


def test_rows_without_times_compare_the_memory():
    plain, other = benchmark.rows([{"peak_bytes": 8}, {"peak_bytes": 12}], "memory", "cpu")
    assert (plain["ratio_to_plain"], other["ratio_to_plain"]) == (1.0, 1.5)
    assert (other["median_seconds"], other["spread"], other["peak_bytes"]) == (None, None, 12)


@pytest.mark.parametrize(
    ("workload", "methods"),
    [
        ("map", METHODS),
        ("step", METHODS),
        ("evaluation", METHODS),
        ("memory", METHODS),
        ("init", ["plain", *(f"minibatch_init_, {name}" for name in ("plain", "LCW", "LCW, project", "CWN"))]),
    ],
)
def test_every_workload_writes_a_row_for_each_method_of_each_case(small, capsys, workload, methods):
    rows = small(workload)
    cases = by_case(rows)
    assert len(cases) == {"map": 2, "step": 2, "evaluation": 4, "memory": 2, "init": 1}[workload]
    for case, found in cases.items():
        expected = [name for name in methods if not (case == "5 x 9000" and name == "dense QR basis")]
        assert [name for name in found if name != "geotorch sphere"] == expected
        assert found["plain"]["ratio_to_plain"] == 1.0
        assert case in capsys.readouterr().out or len(cases) > 1
    for row in rows:
        assert set(row) >= KEYS
        assert row["workload"] == workload
        assert row["peak_bytes"] > 0
        assert workload == "memory" or (row["median_seconds"] > 0 and row["repeats"] == 1)


def test_a_rival_that_is_left_out_is_named(small, capsys):
    geotorch = "geotorch sphere" in by_case(small("map", "--cases=5*"))["5 x 9000"]
    said = capsys.readouterr().out
    assert "dense QR basis: left out for 9000 inputs" in said
    assert ("geotorch: left out" in said) is not geotorch


def test_half_precision_stands_in_the_case(small):
    (case,) = by_case(small("step", "--precision=bf16-mixed", "--cases=50*"))
    assert case == "50 x 256 MLP, batch 4, bf16-mixed"


@pytest.mark.slow
def test_compiled_networks_have_code_of_their_own(small, monkeypatch):
    for name in METHODS[3:]:
        monkeypatch.delitem(methods.METHODS, name)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()  # of what other tests have compiled in this process
    (found,) = by_case(small("step", "--compile", "--cases=50*")).values()
    assert list(found) == METHODS[:3]
    assert next(iter(found.values()))["case"].endswith(", compiled")
    compiled = torch._dynamo.utils.counters["frames"]
    assert compiled["ok"] == compiled["total"] == 3


def test_a_slowed_method_is_found_to_be_slow(small, monkeypatch):
    def slow(network):
        network.register_forward_pre_hook(lambda *_: time.sleep(0.1))

    monkeypatch.setitem(methods.METHODS, "slowed", slow)
    for workload in ("step", "evaluation"):
        for found in by_case(small(workload, "--cases=50*", rounds=3)).values():
            assert found["slowed"]["ratio_to_plain"] > 1
            assert found["slowed"]["median_seconds"] > found["plain"]["median_seconds"] + 0.09


def test_a_greedy_method_is_found_to_take_memory(small, monkeypatch):
    def greedy(network):
        network.register_buffer("hoard", torch.zeros(250_000))

    monkeypatch.setitem(methods.METHODS, "greedy", greedy)
    for case, found in by_case(small("memory")).items():
        assert found["greedy"]["extra_peak_bytes"] == found["greedy"]["extra_checkpoint_bytes"] == 1_000_000
        assert found["plain"]["extra_peak_bytes"] == found["plain"]["extra_checkpoint_bytes"] == 0
        assert found["LCW, project"]["extra_checkpoint_bytes"] == 0
        modules = methods.NETWORKS[case.partition(",")[0]]().modules()
        layers = [layer for layer in modules if isinstance(layer, (nn.Linear, nn.Conv2d))]
        units = sum(len(layer.weight) for layer in layers)  # for each one number less, and one less of momentum
        assert found["plain"]["checkpoint_bytes"] - found["LCW"]["checkpoint_bytes"] == 2 * 4 * units
        assert found["plain"]["weights_bytes"] == sum(layer.weight.nbytes for layer in layers)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--report"], "holds no measurements"),
        ([], "name a workload"),
        (["map", "--cases", "nothing", "of this"], "map has no case nothing or of this"),
    ],
    ids=["no JSONs", "no workload", "no case"],
)
def test_a_mistake_ends_in_one_message(capsys, flags, said):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(flags)
    assert stopped.value.code
    assert said in f"{stopped.value.code} {capsys.readouterr().err}"
