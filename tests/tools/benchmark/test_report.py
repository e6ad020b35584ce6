import json

import torch

from tools import readme
from tools.benchmark import __main__ as benchmark
from tools.benchmark import report


def test_the_report_needs_the_jsons_alone(small, monkeypatch, capsys):
    made = [
        *small("init"),
        *(row | {"device": "cuda", "hardware": row["hardware"] | {"gpu": "H100"}} for row in small("memory")),
    ]
    (benchmark.RESULTS / "benchmark" / "memory.json").write_text(json.dumps(made[5:]))
    begin, end = "<!-- benchmark: made by python -m tools.benchmark -->", "<!-- /benchmark -->"
    readme.README.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(benchmark, "WORKLOADS", dict.fromkeys(benchmark.WORKLOADS))  # nothing can be measured
    capsys.readouterr()
    benchmark.main(["--report"])
    text = readme.README.read_text()
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
    benchmark.main(["--report"])
    assert readme.README.read_text() == text


def test_a_cell_is_left_out_where_a_method_was():
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
    table = report.tables(rows).splitlines()
    assert table[:2] == ["| `map` | plain | dense |", "|---|---|---|"]
    assert table[2:4] == ["| a, 2 threads | 2 ms | 7.12 |", "| b, 2 threads | 2 ms | - |"]
    assert "c0ffee" in table[-1]
    assert "20% apart" in table[-1]


def test_a_readme_without_a_place_is_left_alone(small, capsys):
    small("init")
    readme.README.write_text("<!-- benchmark: made by python -m tools.reproduce -->\n<!-- /benchmark -->\n")
    before = readme.README.read_text()
    benchmark.main(["--report"])
    assert readme.README.read_text() == before
    assert "No page has a place" in capsys.readouterr().out
