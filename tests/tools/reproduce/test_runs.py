import json
import math

import pytest

from tools import readme
from tools.records import write_json
from tools.reproduce import __main__ as reproduce
from tools.reproduce.paper.report import PANELS


def test_a_grid_runs_once_and_reports_from_its_jsons(small_grid, tmp_path, capfd):
    readme.README.write_text("<!-- small_2epochs: made by python -m tools.reproduce -->\n<!-- /small_2epochs -->\n")
    command = ["small", "--networks=mlp", "--epochs=2", f"--output={tmp_path / 'out'}"]

    reproduce.main([*command, "--device", "cpu", "cpu"])
    said = capfd.readouterr().out
    assert "mlp_digits_lcw_2epochs_seed0: epoch 2 of 2" in said
    paths = sorted((tmp_path / "out").glob("*"))
    assert [path.name for path in paths if path.is_file()] == [
        "mlp_digits_lcw_2epochs_seed0.json",
        "mlp_digits_plain_2epochs_seed0.json",
    ]
    assert not any((tmp_path / "out" / "unfinished").iterdir())
    record = json.loads(paths[0].read_text())
    assert record["flags"] == ["--constraint.kind=lcw", "--trainer.max_epochs=2"]
    assert {"config", "seed", "git", "versions", "hardware"} <= set(record)
    assert {name: len(values) for name, values in record["epochs"].items()} == dict.fromkeys(PANELS, 2)
    assert len(record["seconds"]) == 2
    assert not record["diverged"]
    assert str(tmp_path) not in paths[0].read_text()

    before = paths[0].read_bytes()
    reproduce.main(command)
    assert capfd.readouterr().out.count("there already") == 2
    assert paths[0].read_bytes() == before

    reproduce.main([*command, "--report"])
    loss = math.fsum(record["epochs"]["test/loss"]) / 2
    assert f"| {loss:.3f} |" in capfd.readouterr().out
    assert f"| {loss:.3f} |" in readme.README.read_text()
    assert (tmp_path / "out" / "mlp_digits_2epochs.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_fails_leaves_the_others_alone(small_grid, tmp_path, capfd):
    config = tmp_path / "vgg_digits.yaml"
    config.write_text(config.read_text().replace("VGG19", "VGG18"))
    write_json(tmp_path / "mlp_digits_plain_1epochs_seed0.json", {})
    command = ["small", "--methods=plain", "--epochs=1", f"--output={tmp_path}", "--networks", "vgg", "mlp"]
    with pytest.raises(SystemExit, match="failed: vgg_digits_plain_1epochs_seed0; what they said"):
        reproduce.main(command)
    assert not (tmp_path / "vgg_digits_plain_1epochs_seed0.json").exists()
    said = capfd.readouterr()
    assert "[2/2] mlp_digits_plain_1epochs_seed0: there already" in said.out
    assert "VGG18" in said.err
