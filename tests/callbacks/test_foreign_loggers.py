"""What W&B and MLflow themselves are given, where they are installed; both write to disk."""

import json
import math
import struct

import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from lcw_lightning import ShiftMonitor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # theirs
]


def records(path):
    """Yield the records of W&B's file, which is a log as LevelDB writes it: records in parts, in blocks of 32 KiB."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (room := 2**15 - place % 2**15) < 7:
            place += room
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_gets_one_row_a_step_with_figures_histograms_and_the_verdict(
    make_project, make_trainer, loader, tmp_path, monkeypatch
):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="lcw")
    monitor = ShiftMonitor(every_n_steps=2, histograms=True)
    make_trainer(monitor, logger=logger, log_every_n_steps=1).fit(make_project(), loader)
    wandb.teardown()  # waits until all is written
    (path,) = tmp_path.rglob("*.wandb")
    histories = [record.history for record in map(Record.FromString, records(path)) if record.HasField("history")]
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        for history in histories
    ]
    sampled = [row for row in rows if "shift/gradient_decades" in row]
    assert [row["trainer/global_step"] for row in sampled] == [0, 2]
    assert all(math.isfinite(row["shift_ratio/head"]) for row in sampled)
    first, last = sampled
    assert first["depth/shift_ratio/_type"] == "image-file"
    assert sum(first["preactivation/head/values"]) == 4096
    assert first["preactivation/head/_type"] == last["preactivation/head/_type"] == "histogram"
    assert "is the matter" in first["verdict"]
    assert not any("depth/shift_ratio/_type" in row for row in rows if row not in sampled)


def test_mlflow_gets_scalars_figures_and_the_verdict(make_project, make_trainer, loader, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    pytest.importorskip("mlflow")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'mlruns'}")
    with caplog.at_level("INFO"):
        make_trainer(ShiftMonitor(every_n_steps=2, histograms=True), logger=logger, log_every_n_steps=1).fit(
            make_project(), loader
        )
    client, run = logger.experiment, logger.run_id
    assert [point.step for point in client.get_metric_history(run, "shift/gradient_decades")] == [0, 2]
    assert [point.step for point in client.get_metric_history(run, "shift_ratio/head")] == [0, 2]
    texts = {file.path for file in client.list_artifacts(run, "verdict")}
    assert texts == {"verdict/step_0.md", "verdict/step_2.md"}
    assert any("depth" in file.path for file in client.list_artifacts(run, "images"))
    assert "MLFlowLogger is given scalars, but no histograms." in caplog.text
