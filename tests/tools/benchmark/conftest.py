import json
from functools import partial

import pytest

from lcw_lightning import MLP, VGG19
from tools.benchmark import __main__ as benchmark
from tools.benchmark import maps, methods, timing


@pytest.fixture(autouse=True)
def _own_results(monkeypatch, tmp_path):
    """Reports read a folder of the test's own."""
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Run a workload on small weights and networks, one run a sample; return its rows, from the JSON."""
    monkeypatch.setattr(maps, "SIZES", ((4, 6), (5, 9000)))
    monkeypatch.setattr(timing, "SHORTEST", 1e-9)
    networks = methods.NETWORKS
    monkeypatch.setitem(networks, "50 x 256 MLP", partial(MLP, in_features=3072, num_classes=10, depth=2, width=8))
    monkeypatch.setitem(networks, "VGG19", partial(VGG19, width=2, hidden_width=8))
    monkeypatch.delitem(networks, "PreActResNet18")

    def run(workload, *flags, rounds=1):
        path = benchmark.RESULTS / "benchmark" / f"{workload}.json"
        benchmark.main([workload, f"--rounds={rounds}", "--batch=4", f"--json={path}", *flags])
        return json.loads(path.read_text())

    return run
