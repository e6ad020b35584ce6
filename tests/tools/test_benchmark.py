"""tools/benchmark.py: what it makes of seconds and bytes, and every workload, small."""

import json
import statistics
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lcw_lightning import MLP, VGG19

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes"),  # where there is one core
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
]
KEYS = {"workload", "case", "method", "median_seconds", "ratio_to_plain", "spread", "peak_bytes"}
KEYS |= {"device", "threads", "git", "versions", "hardware"}
METHODS = ["plain", "LCW", "LCW, project", "weight_norm", "spectral_norm", "CWN", "dense QR basis"]


@pytest.fixture
def bench(tools, monkeypatch, tmp_path):
    """The modules of tools/benchmark.py; ``tools`` has put their folder on the path and off it again."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tools.runs.ROOT / "tools"))
        import benchmark
        import benchmark_loader
        import benchmark_map
        import benchmark_memory
        import benchmark_methods
        import benchmark_monitor
        import benchmark_step
        import benchmark_timing
    monkeypatch.setattr(benchmark, "README", tmp_path / "README.md")
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results")
    yield SimpleNamespace(
        main=benchmark,
        loader=benchmark_loader,
        map=benchmark_map,
        memory=benchmark_memory,
        methods=benchmark_methods,
        monitor=benchmark_monitor,
        step=benchmark_step,
        timing=benchmark_timing,
    )
    torch.set_flush_denormal(False)


@pytest.fixture
def small(bench, monkeypatch, tmp_path):
    """Run a workload on small weights and networks, one run a sample; return its rows, from the JSON."""
    monkeypatch.setattr(bench.map, "SIZES", ((4, 6), (5, 9000)))
    monkeypatch.setattr(bench.timing, "SHORTEST", 1e-9)
    networks = bench.methods.NETWORKS
    monkeypatch.setitem(networks, "50 x 256 MLP", partial(MLP, in_features=3072, num_classes=10, depth=2, width=8))
    monkeypatch.setitem(networks, "VGG19", partial(VGG19, width=2, hidden_width=8))
    monkeypatch.delitem(networks, "PreActResNet18")

    def run(workload, *flags, rounds=1):
        path = bench.main.RESULTS / "benchmark" / f"{workload}.json"
        bench.main.main([workload, f"--rounds={rounds}", "--batch=4", f"--json={path}", *flags])
        return json.loads(path.read_text())

    return run


def by_case(rows):
    cases = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["method"]] = row
    return cases


def test_rows_have_medians_and_ratios_to_the_first_method(bench):
    times = {"plain": [1.0, 2.0, 9.0], "other": [5.0, 7.0, 1.0, 3.0], "single": [8.0]}
    measured = [{"method": name, "seconds": seconds, "held_bytes": 7} for name, seconds in times.items()]
    plain, other, single = bench.main.rows(measured, "step", "cpu")
    assert [row["median_seconds"] for row in (plain, other, single)] == [2.0, 4.0, 8.0]
    assert [row["ratio_to_plain"] for row in (plain, other, single)] == [1.0, 2.0, 4.0]
    assert [row["repeats"] for row in (plain, other, single)] == [3, 4, 1]
    assert other["spread"] == 5.0  # quartiles of 1, 3, 5, 7 by the exclusive method: 1.5 and 6.5
    assert single["spread"] == 0.0
    assert "seconds" not in other
    assert KEYS - {"case"} | {"held_bytes"} <= set(other)
    json.dumps([plain, other, single], allow_nan=False)


def test_rows_without_times_compare_the_memory(bench):
    plain, other = bench.main.rows([{"peak_bytes": 8}, {"peak_bytes": 12}], "memory", "cpu")
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
def test_compiled_networks_have_code_of_their_own(bench, small, monkeypatch):
    for name in METHODS[3:]:
        monkeypatch.delitem(bench.methods.METHODS, name)
    (found,) = by_case(small("step", "--compile", "--cases=50*")).values()
    assert list(found) == METHODS[:3]
    assert next(iter(found.values()))["case"].endswith(", compiled")
    compiled = torch._dynamo.utils.counters["frames"]
    assert compiled["ok"] == compiled["total"] == 3


def test_in_each_round_each_method_has_one_turn_in_an_order_of_chance(bench, monkeypatch):
    turns = []
    tasks = {name: bench.timing.Task(partial(turns.append, name)) for name in "abcd"}
    monkeypatch.setattr(bench.timing, "SHORTEST", 1e-9)
    rows = bench.timing.interleaved(tasks, bench.timing.Settings(rounds=6))
    assert [(row["method"], len(row["seconds"])) for row in rows] == [(name, 6) for name in "abcd"]
    assert turns[:12] == list("aaabbbcccddd")  # warm up, memory, how long a run takes
    rounds = ["".join(turns[start : start + 4]) for start in range(12, len(turns), 4)]
    assert len(rounds) == 6
    assert {"".join(sorted(order)) for order in rounds} == {"abcd"}
    assert len(set(rounds)) > 1


def test_rounds_go_on_until_the_time_is_up_but_there_are_some(bench, monkeypatch):
    monkeypatch.setattr(bench.timing, "SHORTEST", 1e-9)
    tasks = {"plain": bench.timing.Task(partial(time.sleep, 0.01))}
    counts = []
    for seconds in (0.0, 0.3):
        (row,) = bench.timing.interleaved(tasks, bench.timing.Settings(seconds=seconds))
        counts.append(len(row["seconds"]))
    assert counts[0] == bench.timing.FEWEST
    assert counts[0] < counts[1] <= 31


def test_a_sample_of_a_fast_run_is_a_mean_over_several(bench, monkeypatch):
    monkeypatch.setattr(bench.timing, "SHORTEST", 0.1)
    turns = []
    fast = bench.timing.Task(lambda: (time.sleep(0.01), turns.append("fast")))
    slow = bench.timing.Task(lambda: (time.sleep(0.1), turns.append("slow")))
    rows = bench.timing.interleaved({"fast": fast, "slow": slow}, bench.timing.Settings(rounds=1))
    assert turns.count("slow") == 4
    assert 6 <= turns.count("fast") <= 14  # ten, and one before them that is not timed
    assert 0.01 <= rows[0]["seconds"][0] < 0.1


def test_what_is_prepared_is_not_timed(bench):
    timed = bench.timing.seconds_a_run(bench.timing.Task(lambda: None, partial(time.sleep, 0.05)), 2, "cpu")
    assert timed < 0.05
    assert bench.timing.seconds_a_run(bench.timing.Task(partial(time.sleep, 0.05)), 2, "cpu") >= 0.05


def test_memory_is_the_most_held_at_once(bench):
    held = torch.zeros(1000)

    def together():
        copy = held.clone()
        torch.cat([copy, copy])

    def one_after_the_other():
        held.clone()
        torch.cat([held, held])

    numbers = [bench.timing.memory_of_a_run(bench.timing.Task(run), "cpu") for run in (together, one_after_the_other)]
    assert numbers == [{"peak_bytes": 12_000, "largest_bytes": 8000}, {"peak_bytes": 8000, "largest_bytes": 8000}]


def test_a_slowed_method_is_found_to_be_slow(bench, small, monkeypatch):
    def slow(network):
        network.register_forward_pre_hook(lambda *_: time.sleep(0.1))

    monkeypatch.setitem(bench.methods.METHODS, "slowed", slow)
    for workload in ("step", "evaluation"):
        for found in by_case(small(workload, "--cases=50*", rounds=3)).values():
            assert found["slowed"]["ratio_to_plain"] > 1
            assert found["slowed"]["median_seconds"] > found["plain"]["median_seconds"] + 0.09


def test_a_greedy_method_is_found_to_take_memory(bench, small, monkeypatch):
    def greedy(network):
        network.register_buffer("hoard", torch.zeros(250_000))

    monkeypatch.setitem(bench.methods.METHODS, "greedy", greedy)
    for case, found in by_case(small("memory")).items():
        assert found["greedy"]["extra_peak_bytes"] == found["greedy"]["extra_checkpoint_bytes"] == 1_000_000
        assert found["plain"]["extra_peak_bytes"] == found["plain"]["extra_checkpoint_bytes"] == 0
        assert found["LCW, project"]["extra_checkpoint_bytes"] == 0
        modules = bench.methods.NETWORKS[case.partition(",")[0]]().modules()
        layers = [layer for layer in modules if isinstance(layer, (nn.Linear, nn.Conv2d))]
        units = sum(len(layer.weight) for layer in layers)  # for each one number less, and one less of momentum
        assert found["plain"]["checkpoint_bytes"] - found["LCW"]["checkpoint_bytes"] == 2 * 4 * units
        assert found["plain"]["weights_bytes"] == sum(layer.weight.nbytes for layer in layers)


def test_all_ways_to_hold_zero_sums_take_the_same_steps(bench):
    made = partial(MLP, in_features=3072, num_classes=10, depth=2, width=8, activation=nn.Tanh)
    weights, settings = {}, bench.timing.Settings(batch=16)
    for name in ("plain", "LCW", "LCW, project", "dense QR basis"):
        network = bench.methods.constrained(made, name, "cpu")
        optimizer = bench.step.sgd(network)
        optimizer.param_groups[0]["lr"] = 0.1
        run = bench.step.step(network, optimizer, settings)
        for _ in range(3):
            run()
        weights[name] = network.hidden[1].linear.weight.detach()
    for name in ("LCW, project", "dense QR basis"):
        torch.testing.assert_close(weights[name], weights["LCW"], atol=1e-5, rtol=0)
    assert not torch.allclose(weights["plain"], weights["LCW"], atol=1e-3)
    basis = bench.methods.dense_basis(8, torch.device("cpu"))
    torch.testing.assert_close(basis.T @ basis, torch.eye(7))
    torch.testing.assert_close(basis.sum(0), torch.zeros(7), atol=1e-6, rtol=0)


def test_the_report_needs_the_jsons_alone(bench, small, monkeypatch, capsys):
    made = [
        *small("init"),
        *(row | {"device": "cuda", "hardware": row["hardware"] | {"gpu": "H100"}} for row in small("memory")),
    ]
    (bench.main.RESULTS / "benchmark" / "memory.json").write_text(json.dumps(made[5:]))
    begin, end = "<!-- benchmark: made by tools/benchmark.py -->", "<!-- /benchmark -->"
    bench.main.README.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(bench.main, "WORKLOADS", dict.fromkeys(bench.main.WORKLOADS))  # nothing can be measured
    capsys.readouterr()
    bench.main.main(["--report"])
    text = bench.main.README.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith(f"{end}\nafter\n")
    assert capsys.readouterr().out.strip() in text
    plain, initialized = made[:2]
    head = "| `init` | plain | minibatch_init_, plain |"
    case = f"VGG19, batch 4, {'1 thread' if plain['threads'] == 1 else str(plain['threads']) + ' threads'}"
    assert f"| {case} | {1e3 * plain['median_seconds']:.3g} ms | {initialized['ratio_to_plain']:.2f} |" in text
    assert head in text
    held = next(row["peak_bytes"] for row in made[5:] if row["case"] == "VGG19, batch 4")
    assert f"| VGG19, batch 4, H100 | {held / 1e6:.3g} MB | " in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    bench.main.main(["--report"])
    assert bench.main.README.read_text() == text


def test_a_cell_is_left_out_where_a_method_was(bench):
    row = {"workload": "map", "device": "cpu", "threads": 2, "median_seconds": 0.002, "ratio_to_plain": 1.0}
    row |= {
        "git": "c0ffee",
        "spread": 0.0004,
        "versions": {"torch": "2"},
        "hardware": {"gpu": None, "cores": 2, "machine": "x"},
        "peak_bytes": 1,
    }
    found = [("a", "plain", 1.0), ("a", "dense", 7.125), ("b", "plain", 1.0)]
    rows = [row | {"case": case, "method": method, "ratio_to_plain": ratio} for case, method, ratio in found]
    table = bench.main.benchmark_report.tables(rows).splitlines()
    assert table[:2] == ["| `map` | plain | dense |", "|---|---|---|"]
    assert table[2:4] == ["| a, 2 threads | 2 ms | 7.12 |", "| b, 2 threads | 2 ms | - |"]
    assert "c0ffee" in table[-1]
    assert "20% apart" in table[-1]


def test_a_readme_without_a_place_is_left_alone(bench, small, capsys):
    small("init")
    bench.main.README.write_text("<!-- benchmark: made by tools/reproduce.py -->\n<!-- /benchmark -->\n")
    before = bench.main.README.read_text()
    bench.main.main(["--report"])
    assert bench.main.README.read_text() == before
    assert "has no place" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--report"], "holds no measurements"),
        ([], "name a workload"),
        (["map", "--cases", "nothing", "of this"], "map has no case nothing or of this"),
    ],
    ids=["no JSONs", "no workload", "no case"],
)
def test_a_mistake_ends_in_one_message(bench, capsys, flags, said):
    with pytest.raises(SystemExit) as stopped:
        bench.main.main(flags)
    assert stopped.value.code
    assert said in f"{stopped.value.code} {capsys.readouterr().err}"


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
    (rows,) = bench.monitor.measure(bench.timing.Settings(rounds=1))
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
    assert rows[0]["workload"] == "loader"
    assert rows[0]["case"] == "epoch of 300 images of 3 x 32 x 32"
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
