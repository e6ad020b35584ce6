"""What analyze says of recurrent layers: their gates, and their gradients over time."""

import json
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lcw_lightning import RecurrentClassifier, analyze, constrain, minibatch_init_
from lcw_lightning.analysis.findings import CONSTRAIN
from lcw_lightning.analysis.over_time import decades_over_time, findings_over_time, sentence_over_time
from lcw_lightning.analysis.report import Report, render
from lcw_lightning.analysis.verdict import Condition, findings
from lcw_lightning.observation.recurrences import UNKNOWN, Recurrence


def seen(**norms):
    return Recurrence(gradients={"rnn": norms})


def steps(decades, number=11):
    """Norms that fall by so many decades from the last step back to the first."""
    return [10.0 ** (decades * (step / (number - 1) - 1)) for step in range(number)]


@pytest.mark.parametrize(
    ("norms", "decades"),
    [
        (steps(3.0), 3.0),
        (steps(-4.0), -4.0),
        ([*steps(3.0), 0.0, 0.0], 3.0),
        ([0.0, *steps(3.0)], math.inf),
        ([0.0, 0.0], math.nan),
        ([1.0, math.inf, 1.0], math.nan),
        ([math.nan, 1.0], math.nan),
    ],
    ids=["falls", "grows", "padded", "to-zero", "unreached", "infinite", "nan"],
)
def test_decades_are_between_the_first_step_and_the_last_that_is_reached(norms, decades):
    assert decades_over_time(norms) == pytest.approx(decades, nan_ok=True)


@pytest.mark.parametrize(("decades", "does"), [(2.4, None), (2.6, "vanish"), (-2.4, None), (-2.6, "explode")])
def test_a_change_of_more_than_two_and_a_half_decades_is_a_finding(decades, does):
    found = list(findings_over_time(seen(h_l0=steps(decades))))
    change = f"{'falls' if decades > 0 else 'grows'} by {abs(decades)} decades"
    assert [finding.says for finding in found] == (
        []
        if does is None
        else [
            f"Gradients {does} over time: norm(dL/dh_t) {change} from the last of 11 steps back to the first in "
            "'rnn.h_l0'."
        ]
    )
    assert sentence_over_time(seen(h_l0=steps(decades))) == (
        f"from the last step back to the first norm(dL/dh_t) {change} in 'rnn.h_l0' (11 steps)"
    )


def test_the_worst_of_several_states_comes_first_and_the_sentence_is_short():
    norms = {f"h_l{number}": steps(decades) for number, decades in enumerate((3.0, 0.1, 9.0, 2.0, 1.0))}
    (found,) = findings_over_time(seen(**norms, h_l5=[0.0]))
    assert found.says.endswith(
        "falls by 9.0 decades from the last of 11 steps back to the first in 'rnn.h_l2', and by more than 2.5 in "
        "'rnn.h_l0'."
    )
    assert sentence_over_time(seen(**norms)).endswith("falls by 2.0 decades in 'rnn.h_l3' (11 steps) and 1 more")


def test_nothing_is_said_of_a_single_step_and_of_no_recurrent_layer():
    for recurrence in (Recurrence(), seen(h=[0.1])):
        assert list(findings_over_time(recurrence)) == []
        assert sentence_over_time(recurrence) == ""


@pytest.mark.parametrize(
    ("shift", "zero_sum", "advised"), [(9.0, (), True), (9.0, ("rnn",), False), (0.1, (), False)], ids=str
)
def test_the_constraint_is_advised_where_gates_have_activation_shift(shift, zero_sum, advised):
    gates = {"rnn": {"hidden_gate_l0": {"shift_ratio": shift}}}
    (found,) = findings_over_time(Recurrence(gates, {"rnn": {"h_l0": steps(5.0)}}), zero_sum)
    assert (CONSTRAIN in found.advice) == advised


def test_activation_shift_is_judged_by_gates_where_they_are_seen():
    row = {"shift_ratio": 7.0, "preactivation_std": 1.0}
    assert "Activation shift in 2 of 2" in findings({"rnn": row, "out": row})[0].says
    assert findings({"rnn": row, "out": {**row, "shift_ratio": 0.1}}, Condition(gate_shift={"rnn": 0.2})) == []
    said = findings({"rnn": {**row, "shift_ratio": 0.1}}, Condition(gate_shift={"rnn": 4.0}))[0].says
    assert "up to 4 times their std" in said


@pytest.fixture(scope="module")
def pixels():
    images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    images = images[:64].float()
    images = (images - images.mean(0)) / images.std()
    return images.unsqueeze(2), labels[:64]


def sigmoid_rnn(kind, pixels, initialized=True):
    torch.manual_seed(0)
    network = RecurrentClassifier(in_features=1, num_classes=10, cell="sigmoid", width=128)
    if kind == "lcw":
        constrain(network, include=("*_hh_*", "output.*"))
    if initialized:
        minibatch_init_(network, pixels[0], recurrent_share=0.9)
    return network


def said_over_time(report):
    return [finding for finding in report.findings if "over time" in finding.says]


def test_the_gradient_of_a_plain_sigmoid_rnn_vanishes_over_64_pixels(pixels):
    report = analyze(sigmoid_rnn("none", pixels), pixels)
    norms = report.recurrence.gradients["recurrent"]["h_l0"]
    decades = math.log10(norms[-1] / norms[0])
    assert decades > 10
    (found,) = said_over_time(report)
    assert found.says == (
        f"Gradients vanish over time: norm(dL/dh_t) falls by {decades:.1f} decades from the last of 64 steps back to "
        "the first in 'recurrent.h_l0'."
    )
    assert CONSTRAIN in found.advice


def test_a_gradient_below_what_float32_holds_falls_to_zero(pixels):
    (found,) = said_over_time(analyze(sigmoid_rnn("none", pixels, initialized=False), pixels))
    assert "norm(dL/dh_t) falls to exactly zero from the last of 64 steps back to the first" in found.says


def test_the_gradient_under_lcw_and_minibatch_initialization_does_not_vanish(pixels):
    report = analyze(sigmoid_rnn("lcw", pixels), pixels)
    norms = report.recurrence.gradients["recurrent"]["h_l0"]
    assert abs(math.log10(norms[-1] / norms[0])) < 2.5
    assert report.findings == []
    # What the initialization has set, and the constraint.
    (gate,) = report.recurrence.gates["recurrent"].values()
    assert gate["preactivation_std"] == pytest.approx(1.0, abs=1e-2)
    assert gate["shift_ratio"] < 0.1
    assert "recurrent" in report.condition.zero_sum  # its input weight has one number a unit, so no constraint


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_gates_stand_in_the_report_below_the_layers(cell):
    torch.manual_seed(0)
    network = RecurrentClassifier(in_features=3, num_classes=4, cell=cell, layers=2, width=8)
    report = analyze(network, (torch.randn(16, 9, 3), torch.arange(16) % 4))
    names = list(report.recurrence.gates["recurrent"])
    assert len(names) == 2 * {"lstm": 4, "gru": 3, "tanh": 1}[cell]
    text = str(report)
    for name, row in report.recurrence.gates["recurrent"].items():
        (line,) = [line.split() for line in text.splitlines() if line.startswith(f"recurrent.{name} ")]
        assert line[1:] == [f"{number:.3g}" for number in row.values()]
    assert list(report.statistics) == ["recurrent", "output"]


def test_gates_and_gradients_are_saved(tmp_path):
    gates = {"rnn": {"hidden_gate_l0": {"preactivation_mean": 0.5, "preactivation_std": 1.5, "shift_ratio": 2.5}}}
    recurrence = Recurrence(gates, {"rnn": {"h_l0": steps(3.0)}})
    report = Report({"rnn": {"shift_ratio": 1.0}}, Condition(), recurrence=recurrence)
    written = json.loads((report.save(tmp_path, figures="svg") / "analysis.json").read_text())["recurrence"]
    assert written["gates"] == gates
    assert written["gradients"] == {"rnn": {"h_l0": steps(3.0)}}
    assert written["decades"] == {"rnn.h_l0": pytest.approx(3.0)}
    assert "norm of dL/dh_t" in (tmp_path / "gradient_over_time.svg").read_text()


def test_networks_side_by_side_show_the_gates_of_each():
    gates = {"rnn": {"hidden_gate_l0": {"preactivation_mean": 0.5, "preactivation_std": 1.5, "shift_ratio": 2.5}}}
    row = {"rnn": {"shift_ratio": 1.0}}
    plain = Report(row, Condition(), recurrence=Recurrence(gates, {"rnn": {"h_l0": steps(1.0)}}))
    text = render({"none": plain, "lcw": Report(row, Condition(), recurrence=Recurrence(left={"rnn": UNKNOWN}))})
    (line,) = [line.split() for line in text.splitlines() if line.startswith("rnn.hidden_gate_l0")]
    assert line[1:] == ["0.5", "-", "1.5", "-", "2.5", "-"]
    assert "none: from the last step back to the first norm(dL/dh_t) falls by 1.0 decades" in text
    assert f"lcw: not seen inside of recurrent layers: 'rnn' ({UNKNOWN})." in text


def test_a_network_without_recurrent_layers_says_nothing_of_gates_and_time():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    report = analyze(network, (torch.randn(16, 4), torch.arange(16) % 3))
    assert "gate" not in str(report)
    assert "over time" not in str(report)
    assert report.recurrence == Recurrence()


def test_without_a_loss_gates_are_seen_and_no_gradient():
    report = analyze(RecurrentClassifier(in_features=3, num_classes=4, width=8), torch.randn(16, 9, 3))
    assert list(report.recurrence.gates) == ["recurrent"]
    assert report.recurrence.gradients == {}
    assert "over time" not in str(report)


def test_a_gate_that_does_not_vary_hides_no_shift_of_the_others():
    torch.manual_seed(0)
    network = nn.Sequential(nn.LSTM(4, 8, batch_first=True))
    with torch.no_grad():
        network[0].weight_ih_l0[:8], network[0].weight_hh_l0[:8] = 0, 0  # the input gate
    report = analyze(network, torch.rand(16, 6, 4) + 10)
    assert math.isnan(report.recurrence.gates["0"]["input_gate_l0"]["shift_ratio"])
    assert report.condition.gate_shift["0"] > 1


def test_a_gated_cell_is_not_advised_to_a_gated_cell():
    vanishing = {"rnn": {"h_l0": [1e-12, 1e-2]}}
    row = {"preactivation_mean": 0.0, "preactivation_std": 1.0, "shift_ratio": 0.1}
    for gates, advised in (({"hidden_gate_l0": row}, True), ({"reset_gate_l0": row, "update_gate_l0": row}, False)):
        (finding,) = findings_over_time(Recurrence({"rnn": gates}, vanishing))
        assert ("a gated cell (LSTM, GRU)" in finding.advice) == advised


def test_the_shift_of_another_layer_does_not_advise_the_constraint():
    shifted = {"hidden_gate_l0": {"preactivation_mean": 9.0, "preactivation_std": 1.0, "shift_ratio": 9.0}}
    vanishing = {"enc.inner": {"h_l0": [1e-12, 1e-2]}, "enc": {"h_l0": [1e-2, 1e-2]}}
    (finding,) = findings_over_time(Recurrence({"enc": shifted}, vanishing))
    assert CONSTRAIN not in finding.advice


def test_gradients_over_time_that_follow_from_broken_numbers_are_not_a_finding():
    exploding = Recurrence(gradients={"rnn": {"h_l0": [1e12, 1e-2]}})
    assert len(Report({"rnn": {"preactivation_std": 1.0}}, Condition(), recurrence=exploding).findings) == 1
    (only,) = Report({"rnn": {"preactivation_std": math.nan}}, Condition(), recurrence=exploding).findings
    assert only.says.startswith("Not finite")
