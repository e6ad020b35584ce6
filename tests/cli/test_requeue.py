"""A SLURM job that is requeued goes on by itself and ends as one that was not; two nodes on one host."""

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcw_lightning.cli import main
from tests.cli.slurm_job import variables
from tests.conftest import CONFIG, QUIET, SMALL
from tests.quick import quick

SCRIPT = Path(__file__).with_name("slurm_job.py")
EPOCH = 11  # batches
ENDED = 128 + signal.SIGTERM
SETTINGS = ["--config", CONFIG, *SMALL, *QUIET]
FLAGS = ["--test_after_fit=true", "--shift_monitor.every_n_steps=0"]
# The step of the signal, the steps that are done when the job saves, and its exit status.
MOMENTS = {
    "in the first epoch": (3, 4, ENDED),
    "in its last step": (EPOCH - 1, EPOCH + 1, ENDED),
    "in the second": (EPOCH + 3, EPOCH + 4, ENDED),
    "at the end": (2 * EPOCH - 1, 2 * EPOCH, 0),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed", "ignore:Checkpoint directory", "ignore:.*smaller than the logging interval"
)


def final(folder, version):
    """The weights that a run ended with, and what its last test logged."""
    logs = folder / "lightning_logs" / f"version_{version}"
    (path,) = logs.glob(f"checkpoints/*step={2 * EPOCH}.ckpt")
    newest = EventAccumulator(str(max(logs.glob("events*"), key=lambda events: events.stat().st_mtime_ns)))
    newest.Reload()
    tested = {tag: newest.Scalars(tag)[-1].value for tag in ("test/loss", "test/accuracy")}
    return torch.load(path)["state_dict"], tested


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(other[name], value) for name, value in state.items())


@pytest.fixture
def job(lcw, tmp_path, monkeypatch):
    """Run ``lcw fit`` as a start of a job that gets the signal at a step, if any: its exit status."""
    monkeypatch.syspath_prepend(SCRIPT.parent)

    def start(*flags, number=17, step=None):
        for name, value in variables(tmp_path, number).items():
            monkeypatch.setenv(name, value)
        signals = [] if step is None else ["--trainer.callbacks=slurm_job.Signal", f"--trainer.callbacks.step={step}"]
        try:
            lcw("fit", *FLAGS, *signals, *flags)
        except SystemExit as exit_:
            return exit_.code
        return 0

    return start


@pytest.fixture(scope="module")
def unbroken(once, _no_command_line):
    """What a run that nobody interrupts ends with."""

    def fit(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            main(["fit", *SETTINGS, *FLAGS])

    return final(once("unbroken_run", fit), 0)


@pytest.mark.parametrize(("step", "done", "status"), quick(["in the second", "at the end"], MOMENTS))
def test_a_requeued_job_goes_on_by_itself_and_ends_as_one_that_was_not(step, done, status, job, unbroken, tmp_path):
    assert job(step=step) == status
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    saved = torch.load(tmp_path / "hpc_ckpt_1.ckpt")
    assert saved["global_step"] == done
    assert job(step=step) == 0
    weights, tested = final(tmp_path, 17)
    assert same(weights, unbroken[0])
    assert tested == unbroken[1]
    assert same(saved["state_dict"], weights) == (done == 2 * EPOCH)


def test_another_job_leaves_the_checkpoint_of_a_requeue_alone(job, unbroken, tmp_path, caplog):
    job(step=3)
    caplog.clear()
    assert job(number=18) == 0
    assert "hpc_ckpt_1.ckpt is of another run, so this run leaves it alone" in caplog.text
    weights, tested = final(tmp_path, 18)
    assert same(weights, unbroken[0])
    assert tested == unbroken[1]


def test_each_job_finds_its_own_checkpoint_among_others(job, tmp_path):
    for number in (17, 18):
        assert job(number=number, step=number - 14) == ENDED
    assert [torch.load(tmp_path / f"hpc_ckpt_{n}.ckpt")["global_step"] for n in (1, 2)] == [4, 5]
    assert job(number=17, step=3) == 0
    assert (tmp_path / "asked").read_text() == "requeue 17\nrequeue 18\n"  # 17 did not repeat the step of its signal


def test_a_requeued_job_goes_on_from_its_own_checkpoint_not_again_from_the_one_it_was_given(job, lcw, tmp_path, caplog):
    lcw("fit", "--trainer.max_epochs=1")
    given = str(next(tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")))
    assert job("--ckpt_path", given, step=EPOCH + 3) == ENDED
    caplog.clear()
    assert job("--ckpt_path", given, step=EPOCH + 3) == 0
    said = caplog.text
    assert "hpc_ckpt_1.ckpt" in said
    assert given not in said


def test_other_settings_in_the_same_job_are_a_conflict(job, tmp_path):
    job(step=3)
    before = (tmp_path / "lightning_logs/version_17/config.yaml").read_text()
    said = job("--model.network.width=8", step=3)
    assert "version_17 holds another run, with its config.yaml: name another" in said
    assert (tmp_path / "lightning_logs/version_17/config.yaml").read_text() == before


def test_the_same_settings_without_a_job_are_a_conflict(lcw, small_checkpoint):
    version = ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=.", "--trainer.logger.version=0"]
    with pytest.raises(SystemExit, match=r"version_0 holds another run, with its config\.yaml: name another"):
        lcw("fit", *version)


def test_evaluation_takes_no_checkpoint_of_a_requeue_by_itself(job, lcw, tmp_path, caplog):
    job(step=3)
    for flags, is_loaded in (([], False), (["--ckpt_path=hpc"], True)):
        caplog.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about freshly drawn weights
            lcw("test", "--trainer.logger=false", *flags)
        assert ("Loaded model weights from the checkpoint at" in caplog.text) is is_loaded


@pytest.fixture
def nodes(tmp_path):
    """Start a job of two nodes on this host, each with one process."""
    running = []

    def start(number, *flags, restarts=0):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free.getsockname()[1])}
        ranks = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.strategy=ddp"]
        ranks += ["--data.batch_size=64"]
        command = [sys.executable, "-W", "ignore", SCRIPT, "fit", *SETTINGS, *FLAGS, *ranks, *flags]
        for rank in range(2):
            environment = {**shared, **variables(tmp_path, number, rank, 2), "SLURM_RESTART_COUNT": str(restarts)}
            running.append(subprocess.Popen(command, env=environment, cwd=tmp_path))
        return running[-2:]

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_requeued_job_of_two_nodes_ends_as_one_that_was_not(nodes, tmp_path):
    assert [process.wait(120) for process in nodes(18)] == [0, 0]
    signals = ["--trainer.callbacks=slurm_job.Signal", "--trainer.callbacks.step=3"]
    first = nodes(17, *signals)  # the signal reaches the second rank a step after the first
    deadline = time.monotonic() + 120
    while not (tmp_path / "asked").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in first:  # as SLURM does in the end
        process.kill()
        process.wait()
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert torch.load(tmp_path / "hpc_ckpt_1.ckpt")["global_step"] == 4
    assert [process.wait(120) for process in nodes(17, *signals, restarts=1)] == [0, 0]
    (weights, tested), (expected, numbers) = (final(tmp_path, number) for number in (17, 18))
    assert same(weights, expected)
    assert tested == numbers
