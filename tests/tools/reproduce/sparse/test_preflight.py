"""tools.reproduce preflight: what it measures, what it keeps, what it shows."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from tools import readme
from tools.records import RESULTS
from tools.reproduce import __main__ as reproduce
from tools.reproduce.sparse import preflight
from tools.reproduce.sparse.grid import PAPER_TABLE_2, Method


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Nets of 6 layers x 20 units, 8 draws, two methods; return the command."""
    for name, number in (("DEPTH", 6), ("WIDTH", 20), ("DRAWS", 8), ("METHODS", preflight.METHODS[2:4])):
        monkeypatch.setattr(preflight, name, number)
    return ["preflight", f"--output={tmp_path}"]


def test_rows_are_drawn_once_and_reported_from_the_json(small, tmp_path, capsys):
    reproduce.main(small)
    path = tmp_path / "preflight.json"
    rows = json.loads(path.read_text())
    assert list(rows) == ["ReLU_tau_0.6", "ReLU_tau_0.6+LCW"]
    assert {"git", "versions", "hardware", "seed", "depth", "width"} <= set(rows["ReLU_tau_0.6"])
    assert [len(row[name]) for row in rows.values() for name in ("q", "growth")] == [8] * 4
    whole = path.read_bytes()

    del rows["ReLU_tau_0.6+LCW"]
    path.write_text(json.dumps(rows))
    capsys.readouterr()
    reproduce.main(small)
    assert capsys.readouterr().out.count("there already") == 1
    # The same numbers, whatever was drawn before.
    assert json.loads(path.read_text()) == json.loads(whole)

    readme.README.write_text("<!-- preflight: made by python -m tools.reproduce -->\n<!-- /preflight -->\n")
    reproduce.main([*small, "--report"])
    text = readme.README.read_text()
    median = np.median(json.loads(whole)["ReLU_tau_0.6"]["growth"])
    assert f"| {median:.1f} (" in text
    assert text.count("| LCW |") == 1
    assert "6 of 20 units" in text


def test_what_is_drawn_is_a_forward_and_a_backward_pass(monkeypatch):
    """Against the same networks written by hand, of which q and the gradient's growth have the same distribution."""
    for name, number in (("DEPTH", 5), ("WIDTH", 40), ("DRAWS", 300)):
        monkeypatch.setattr(preflight, name, number)
    method = Method("CReLU", 0.85, 0.7)
    (q, growth), _ = np.split(preflight.statistics(preflight.draw(method, seed=0))[0], 2), None
    tau, clip, sigma_w, sigma_b = 1.0364, 1.1704, 2.7083, 0.7716  # of a reference table
    torch.manual_seed(1)
    squares, ratios = [], []
    for _ in range(300):
        # q of the first layer is q* = 1 but for the draw of its biases and what they have in common with the weights.
        weighted = torch.randn(40)
        weighted *= math.sqrt(40 * (1 - sigma_b**2)) / weighted.norm()
        z = (weighted + sigma_b * torch.randn(40)).requires_grad_()
        first = z
        for _ in range(4):
            z = sigma_w * torch.randn(40, 40) / 40**0.5 @ (z - tau).clamp(0, clip) + sigma_b * torch.randn(40)
        delta = torch.randn(40)
        (back,) = torch.autograd.grad(z, first, delta)
        squares.append(z.square().mean().log10().item())
        ratios.append((back.norm() / delta.norm()).log10().item())
    assert q == pytest.approx(np.quantile(squares, [0.5, 0.9]), abs=0.05)
    assert growth == pytest.approx(np.quantile(ratios, [0.5, 0.9]), abs=0.1)


def test_lcw_networks_have_zero_sum_weights_and_the_same_activation(small):
    plain, lcw = (preflight.network(method) for method in preflight.METHODS)
    assert lcw.hidden[1].linear.weight.sum(1).abs().max() < 1e-5
    assert plain.hidden[1].linear.weight.sum(1).abs().max() > 0.1
    assert isinstance(lcw.hidden[0].activation, nn.Module)
    assert lcw.hidden[0].activation.tau == plain.hidden[0].activation.tau


def test_statistics_are_quantiles_and_what_is_not_finite_counts_as_huge():
    row = {"q": [10.0**k for k in range(11)], "growth": [float(k) for k in range(9)] + [None, None]}
    found, resampled = preflight.statistics(row)
    assert found.tolist() == pytest.approx([5, 9, 5, 300])
    assert resampled.shape == (preflight.RESAMPLES, 4)
    assert np.isfinite(resampled).all()
    assert (np.quantile(resampled[:, 0], [0.025, 0.975]) == [2, 8]).all()  # of the sign test: order statistics 3 and 9


@pytest.mark.parametrize(
    ("reference", "is_log", "expected"),
    [
        ("0.0", False, False),
        ("0.2", False, False),
        ("0.4", False, True),
        ("-0.4", False, True),
        ("0", False, False),
        ("1.0", True, False),
        ("2e2", True, True),
        ("1", True, False),
    ],
)
def test_a_reference_differs_if_two_samples_would_not_differ_so_much(reference, is_log, expected):
    resampled = np.random.default_rng(0).normal(0, 0.1, 2000)  # two such samples: within 1.96 * 0.141 = 0.277
    assert preflight.differs(reference, 0.0, resampled, is_log) is expected


def test_the_reference_is_of_the_papers_activations():
    paper, reference = PAPER_TABLE_2, preflight.REFERENCE
    unknown = {("ReLU_tau", sparsity, None) for sparsity in (0.8, 0.85, 0.9)}
    assert {setting for setting, numbers in reference.items() if "-" in numbers.split()} == unknown
    assert len(reference) == 14 + 3
    assert set(reference) - set(paper) == {("CReLU", 0.9, slope) for slope in (0.5, 0.7, 0.9)} | unknown


def test_the_stored_draws_agree_with_the_reference():
    rows = json.loads((RESULTS / "sparse" / "preflight.json").read_text())
    assert list(rows) == [method.name for method in preflight.METHODS]
    assert {(row["depth"], row["width"], len(row["q"]), len(row["growth"])) for row in rows.values()} == {
        (100, 300, 100, 100)
    }
    found = preflight.table(rows)
    number = int(re.search(r"(\d+) of 56 \(marked \*\) differ", found)[1])
    assert number == found.count("* |") <= 3  # of 56, 5 in 100 would by chance


def test_the_stored_draws_say_that_lcw_tames_relu_without_a_clip_and_does_nothing_for_soft_thresholds():
    rows = json.loads((RESULTS / "sparse" / "preflight.json").read_text())
    growth = {name: preflight.statistics(row)[0][3] for name, row in rows.items()}
    assert growth["ReLU_tau_0.7"] > 8
    assert growth["ReLU_tau_0.7+LCW"] < 1
    assert growth["ReLU_tau_0.9+LCW"] > 8  # the fixed point that repels is near
    assert growth["ST_0.5"] == pytest.approx(growth["ST_0.5+LCW"], abs=1)
