"""Reports as text, JSON and figures."""

import base64
import json
import math
import os
import struct
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from torch import nn

from lcw_lightning import analyze
from lcw_lightning.analysis.report import Report, render, save
from lcw_lightning.analysis.verdict import Condition

ROW = {"shift_ratio": 0.5, "preactivation_std": 1.0, "gradient_std": 1.234e-5, "sparsity": 0.0043, "dead_units": 0.1}
NAMES = ["blocks[0]", "[red]x[/red]", "[/]", ":smile:", "a" * 100]


def report_of(*names, **changes):
    return Report({name: {**ROW, **changes} for name in names}, Condition(), loss=2.25)


@pytest.fixture(scope="module")
def analyzed():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    return analyze(network, (torch.randn(32, 8), torch.randint(3, (32,))))


def numbers_in(text):
    return [word for line in text.splitlines() for word in line.split() if word[0].isdigit()]


def test_without_a_terminal_a_line_is_160_columns_at_most(analyzed):
    lines = render(
        {"": replace(analyzed, condition=Condition(frozen=[f"layer{n}" * 9 for n in range(5)]))}
    ).splitlines()
    assert max(map(len, lines)) <= 160
    assert max(map(len, lines)) > 80


@pytest.mark.parametrize("columns", [200, 100, 40])
def test_a_terminal_of_any_width_cuts_no_number_and_no_short_name(columns, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    text = render({"": report_of(*NAMES)})
    assert text.count("1.23e-05") == len(NAMES)
    assert "0.4%" in text
    assert "…" not in text
    assert all(name in text for name in NAMES if len(name) < 13)
    assert (
        sum(line.count("a") for line in text.splitlines() if set(line.split()[:1] or [""]).pop().strip("a") == "")
        == 100
    )
    verdict = text.partition("loss")[2].splitlines()
    assert max(map(len, verdict)) <= columns


def test_text_is_plain_whatever_the_environment_says(analyzed, monkeypatch):
    expected = str(analyzed)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "DATABRICKS_RUNTIME_VERSION"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(analyzed) == expected
    assert expected.isascii()
    assert "\x1b" not in expected


def test_the_table_has_a_row_a_layer_and_says_what_is_left_out():
    condition = Condition(unreached=["spare"], frozen=["spare", "first"], zero=["last"])
    lines = str(Report({"first": ROW, "last": {}}, condition)).splitlines()
    (first,) = [line for line in lines if line.startswith("first ")]
    (spare,) = [line for line in lines if line.startswith("spare ")]
    (last,) = [line for line in lines if line.startswith("last ")]
    assert numbers_in(first) == ["0.5", "1", "1.23e-05", "0.4%", "10%"]
    assert first.rstrip().endswith("frozen")
    assert spare.rstrip().endswith("never reached, frozen")
    assert last.split()[1:] == ["-"] * 8 + ["zero", "weights"]


def test_the_verdict_is_the_findings_and_each_advice_once(analyzed):
    change = {"shift_ratio": 9.0, "dead_units": 0.0}
    sick = Report({f"l{n}": ROW | change | {"gradient_std": 10.0 ** (n - 9)} for n in range(9)}, Condition())
    text = " ".join(str(sick).split())
    assert len(sick.findings) == 2
    assert all(" ".join(finding.says.split()) in text for finding in sick.findings)
    assert text.count("constrain the weights:") == 1
    assert f"loss {analyzed.loss:.4g}; nothing is the matter." in str(analyzed)


def test_a_loss_that_is_nan_reaches_the_verdict():
    assert "the loss is nan" in str(replace(report_of("first"), loss=math.nan))


def test_several_reports_stand_side_by_side():
    text = render({"none": report_of("first", gradient_std=1e-5), "lcw": report_of("first", gradient_std=2e-5)})
    lines = text.splitlines()
    assert lines[2].split() == ["layer", "none", "lcw", "none", "lcw", "none", "lcw"]
    assert next(line for line in lines if line.startswith("first")).split()[-2:] == ["1e-05", "2e-05"]
    assert "none: loss 2.25" in text
    assert "lcw: loss 2.25" in text


def strict(constant):
    raise AssertionError(f"{constant} is no JSON")


def read_json(path):
    return json.loads(path.read_text(), parse_constant=strict)


def test_json_holds_the_numbers_and_the_verdict(analyzed, tmp_path):
    assert analyzed.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    content = read_json(tmp_path / "new" / "folder" / "analysis.json")
    assert content["layers"] == analyzed.statistics
    assert content["loss"] == analyzed.loss
    assert content["verdict"] == []
    assert content["condition"]["frozen"] == []


def test_json_is_strict_json_also_of_numbers_that_are_not_finite(tmp_path):
    report = Report({"l": {"shift_ratio": math.inf, "input_mean": math.nan}}, Condition(unreached=["m"]), -math.inf)
    report.save(tmp_path)
    content = read_json(tmp_path / "analysis.json")
    assert content["layers"]["l"] == {"shift_ratio": "inf", "input_mean": "nan"}
    assert content["loss"] == "-inf"
    assert content["verdict"][0]["says"].startswith("Not finite")


def test_json_of_several_reports_is_by_label(tmp_path):
    save({"none": report_of("a"), "lcw": report_of("b")}, tmp_path)
    content = read_json(tmp_path / "analysis.json")
    assert {label: list(report["layers"]) for label, report in content.items()} == {"none": ["a"], "lcw": ["b"]}


@pytest.fixture(scope="module")
def saved(analyzed, tmp_path_factory):
    """Return a function of a format: the folder of a report whose figures have it."""
    return cache(lambda figures: analyzed.save(tmp_path_factory.mktemp(figures), figures))


@pytest.mark.parametrize(("figures", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_are_saved_in_the_format_that_is_asked_for(figures, start, saved):
    files = [path for path in saved(figures).rglob("*") if path.is_file() and path.name != "analysis.json"]
    assert {path.suffix for path in files} == {f".{figures}"}
    assert all(path.read_bytes().startswith(start) for path in files)


def test_text_in_figures_stays_text(saved):
    assert ">preactivation z</text>" in (saved("svg") / "boxes/by_layer.svg").read_text()
    assert b"/Type3" not in (saved("pdf") / "boxes/by_layer.pdf").read_bytes()


def test_pngs_have_the_resolution_of_print(saved):
    with Image.open(saved("png") / "depth/shift_ratio.png") as picture:
        assert picture.size == (1050, 810)


def test_a_format_that_is_none_is_refused_before_anything_is_written(analyzed, tmp_path):
    with pytest.raises(ValueError, match="figures are saved as png, svg, pdf, not as 'jpg'; name one of these"):
        analyzed.save(tmp_path / "new", "jpg")
    assert not (tmp_path / "new").exists()


def test_figures_are_whole_pngs_and_nothing_else_is_left(analyzed, saved):
    folder = saved("png")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    depth = {f"depth/{name}.png" for name in analyzed.statistics["0"]}
    assert files == {"analysis.json", "boxes/by_layer.png", "units/2.png", *depth}
    for path in folder.rglob("*.png"):
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert content.endswith(b"IEND\xaeB`\x82")
        assert 300 < width < 2000
        assert 200 < height < 2000


def test_a_report_of_numbers_that_are_not_finite_is_plotted(tmp_path):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    analyze(network, (torch.full((8, 4), torch.nan), torch.zeros(8, dtype=torch.int64))).save(tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 13


def test_a_notebook_shows_the_printed_report_and_its_figures(analyzed, saved):
    class Parts(HTMLParser):
        def __init__(self):
            super().__init__()
            self.text, self.images = "", {}

        def handle_data(self, data):
            self.text += data

        def handle_starttag(self, tag, attrs):
            if tag == "img":
                self.images[dict(attrs)["alt"]] = dict(attrs)["src"]

    parts = Parts()
    parts.feed(replace(analyzed, statistics={"<b>": ROW, **analyzed.statistics})._repr_html_())
    assert "<b>" in parts.text  # a name, not a tag
    parts = Parts()
    parts.feed(analyzed._repr_html_())
    assert parts.text.strip() == str(analyzed).strip()
    folder = saved("png")
    assert parts.images.keys() == {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.png")}
    for source in parts.images.values():
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")


def test_a_failed_write_leaves_the_old_report(analyzed, tmp_path, monkeypatch):
    analyzed.save(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space is left"):
        replace(analyzed, loss=0.0).save(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_file_in_the_place_of_the_folder_is_named_and_kept(folder, analyzed, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file"):
        analyzed.save(tmp_path / folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(analyzed):
    with pytest.raises(OSError, match="/proc/"):
        analyzed.save("/proc/analysis")
