"""Whole runs, killed at random moments and resumed."""

import os
import shutil
import signal
import sys
import time
from random import Random

import pytest
import torch

from lcw_lightning.checkpoints.atomic_io import AtomicCheckpointIO
from lcw_lightning.cli import main


class Run:
    """``lcw fit`` of the digits config in a folder of its own, each start of it in a process of its own."""

    def __init__(self, lcw, forkserver, folder, *flags):
        self.folder, self.forkserver = folder, forkserver
        # An interrupt amid a write of TensorBoard's can let its thread sleep on for two minutes.
        logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder}"]
        self.arguments = ["fit", "--config", lcw.config, *lcw.quiet, *logger, *flags]

    def start(self, *flags):
        """Start anew, or from the newest checkpoint where there is one."""
        if path := self.newest_checkpoint():
            flags = (*flags, f"--ckpt_path={path}")
        process = self.forkserver.Process(target=main, args=([*self.arguments, *flags],))
        process.start()
        return process

    def finish(self):
        process = self.start()
        process.join()
        assert process.exitcode == 0
        return self

    def files(self, pattern):
        return set(self.folder.glob(f"lightning_logs/*/checkpoints/{pattern}"))

    def newest_checkpoint(self):
        return max(self.files("epoch=*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)

    def unfinished_writes(self):
        return self.files(".epoch=*")

    def state(self):
        """The newest checkpoint, its tensors as bytes; the paths in it differ from run to run."""
        path = self.newest_checkpoint()
        checkpoint = torch.load(path)
        del checkpoint["callbacks"]
        return {"file name": path.name, **{key: as_bytes(value) for key, value in checkpoint.items()}}


def as_bytes(value):
    if isinstance(value, dict):
        return {key: as_bytes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_bytes(item) for item in value]
    return (value.dtype, value.shape, value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value


def differences(run, other):
    state, expected = run.state(), other.state()
    assert state.keys() == expected.keys()
    return [key for key in state if state[key] != expected[key]]


def wait_for_write(process, run, number):
    """Wait until the process begins to write its checkpoint of that number."""
    old, seen = run.unfinished_writes(), set()
    while process.is_alive() and len(seen) < number:
        seen |= run.unfinished_writes() - old
        time.sleep(0.001)


def kill_and_resume(run, random, seconds, writes):
    """Kill the run at random moments or in random writes, then let it end; count the kills, and those amid a write."""
    kills = 0
    while kills == 0 or random.random() < 0.4:
        process = run.start()
        if random.random() < 0.5:
            process.join(random.uniform(0, seconds))
        else:
            wait_for_write(process, run, random.randint(1, writes))
            process.join(random.uniform(0, 0.05))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        for path in run.files("*.ckpt"):
            assert "state_dict" in torch.load(path)
    run.finish()
    return kills, len(run.unfinished_writes())


@pytest.fixture
def make_run(lcw, forkserver, tmp_path):
    return lambda name, *flags: Run(lcw, forkserver, tmp_path / name, *flags)


@pytest.fixture
def small():
    return ["--model.network.depth=3", "--model.network.width=16", "--trainer.max_epochs=6"]


def killed_runs(make_run, flags, runs, epochs):
    """Compare runs, each killed at least once, with the unbroken one; return the number of kills amid a write."""
    begin = time.perf_counter()
    unbroken = make_run("unbroken", *flags).finish()
    seconds = time.perf_counter() - begin
    counts = []
    for number in range(runs):
        run = make_run(f"killed_{number}", *flags)
        counts.append(kill_and_resume(run, Random(number), seconds, epochs))
        assert differences(run, unbroken) == [], number
        shutil.rmtree(run.folder)
    kills, amid_writes = map(sum, zip(*counts, strict=True))
    sys.stdout.write(f"{runs} runs of {seconds:.1f} s: {kills} kills, {amid_writes} amid a write\n")
    return amid_writes


def test_killed_runs_end_like_the_unbroken_one(make_run, small):
    killed_runs(make_run, small, runs=2, epochs=6)


@pytest.mark.slow
def test_fifty_killed_runs_end_like_the_unbroken_one(make_run):
    assert killed_runs(make_run, ["--trainer.max_epochs=3"], runs=50, epochs=3) >= 5


def test_a_checkpoint_without_its_momentum_does_not_lead_to_the_same_end(make_run, small):
    unbroken, run = make_run("unbroken", *small).finish(), make_run("killed", *small, "--trainer.max_epochs=3").finish()
    path = run.newest_checkpoint()
    checkpoint = torch.load(path)
    for state in checkpoint["optimizer_states"][0]["state"].values():
        state["momentum_buffer"].zero_()
    torch.save(checkpoint, path)
    run.arguments.append("--trainer.max_epochs=6")
    assert differences(run.finish(), unbroken) == ["state_dict", "optimizer_states"]


@pytest.mark.slow
def test_an_interrupted_run_exits_and_resumes(make_run, small):
    flags = [*small, "--trainer.max_epochs=40"]  # enough that it does not end before it is interrupted
    unbroken, run = make_run("unbroken", *flags).finish(), make_run("interrupted", *flags)
    process = run.start()
    wait_for_write(process, run, 2)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130  # as a shell says of Ctrl-C
    assert run.newest_checkpoint() is not None
    assert not run.unfinished_writes()
    assert differences(run.finish(), unbroken) == []


def save_large(save, path):
    save({"state_dict": {"weight": torch.ones(2**26)}}, path)  # 256 MiB, which take a while


def kill_amid_write(save, forkserver, folder):
    """Begin to overwrite a small checkpoint by a large one, kill the writer and return the path."""
    path = folder / "last.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(3.0)}}, path)
    process = forkserver.Process(target=save_large, args=(save, path))
    process.start()
    while process.is_alive() and bytes_in(folder) < 2**20:
        time.sleep(0.001)
    process.kill()
    process.join()
    assert 2**20 <= bytes_in(folder) < 2**28
    return path


def bytes_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.ckpt") if path.is_file())


def test_a_kill_amid_a_write_leaves_the_old_checkpoint(forkserver, tmp_path):
    path = kill_amid_write(AtomicCheckpointIO().save_checkpoint, forkserver, tmp_path)
    assert torch.equal(torch.load(path)["state_dict"]["weight"], torch.arange(3.0))


def test_a_kill_amid_a_write_in_place_leaves_a_file_that_does_not_load(forkserver, tmp_path):
    path = kill_amid_write(torch.save, forkserver, tmp_path)
    with pytest.raises(RuntimeError, match="failed finding central directory"):
        torch.load(path)
