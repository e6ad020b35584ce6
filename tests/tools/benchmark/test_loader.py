import json
import sys

import pytest
import torch

from tools.benchmark import __main__ as benchmark
from tools.benchmark import loader

# torch warns where there is one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")


def test_loaders_are_measured_and_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loader, "IMAGES", 300)
    path = tmp_path / "loader.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", "loader", "--rounds=1", f"--json={path}"])
    benchmark.main()
    rows = json.loads(path.read_text())
    assert [row["method"].partition(",")[0] for row in rows] == ["DataLoader"] * 2 + ["BatchLoader"] * 2
    assert rows[0]["workload"] == "loader"
    assert rows[0]["case"] == "epoch of 300 images of 3 x 32 x 32"
    assert all(row["median_seconds"] > 0 for row in rows)
    assert "BatchLoader, resident" in capsys.readouterr().out


def test_all_loaders_give_the_same_images_but_for_chance():
    images, labels = torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8), torch.arange(256) % 10
    for made in loader.loaders(images, labels, "cpu").values():
        batches = list(made)
        assert [batch.shape for batch, _ in batches] == [(128, 3, 32, 32)] * 2
        assert sorted(torch.cat([label for _, label in batches]).tolist()) == sorted(labels.tolist())
        batch = torch.cat([batch for batch, _ in batches])
        assert batch.dtype == torch.float32
        # Uniform bytes have mean 0 after normalization and a standard deviation of 1; black borders come by cropping.
        assert -0.35 < batch.mean() < 0.1
        assert 0.9 < batch.std() < 1.2
