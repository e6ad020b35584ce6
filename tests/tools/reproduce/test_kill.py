"""Runs that are killed and started again end with the results of unbroken ones."""

import shutil
import signal
import sys
import time
from random import Random

import pytest


def wait_at_random(process, random, seconds):
    """Wait for some time, or, since most of this is the start of Python, until some epochs are over."""
    if random.random() < 0.5:
        time.sleep(random.uniform(0, seconds))
        return
    for _ in range(random.randint(1, 8)):
        while (line := process.stdout.readline()) and "epoch " not in line:
            pass
    time.sleep(random.uniform(0, 0.3))


@pytest.mark.slow
def test_a_grid_killed_ten_times_ends_like_an_unbroken_one(small, tmp_path):
    long = "--epochs=10"
    begin = time.perf_counter()
    small.run("unbroken", long)
    seconds = time.perf_counter() - begin
    random, kills, resumable = Random(0), 0, 0
    while kills < 10:
        process = small.start("killed", long)
        wait_at_random(process, random, seconds / 4)
        small.kill(process)
        if process.returncode == 0:  # it was faster than that: once more
            assert small.results("killed") == small.results("unbroken")
            shutil.rmtree(tmp_path / "killed")
            continue
        assert process.returncode == -signal.SIGKILL
        kills += 1
        resumable += any(small.epochs(path) for path in (tmp_path / "killed").glob("unfinished/*/last.ckpt"))
    small.run("killed", long)
    sys.stdout.write(f"grid of {seconds:.1f} s: {kills} kills, {resumable} with a checkpoint to go on from\n")
    assert small.results("killed") == small.results("unbroken")
    assert len(small.results("killed")) == 4
    assert resumable >= 3


@pytest.mark.slow
def test_a_killed_run_ends_like_an_unbroken_one(small, tmp_path):
    small.run("unbroken", "--networks=vgg", "--methods=LCW")
    process = small.start("killed", "--networks=vgg", "--methods=LCW")
    while "epoch 1 of 3" not in process.stdout.readline():
        assert process.poll() is None
    said = small.kill(process)
    assert small.results("killed") == {}
    # The checkpoint comes after the words, so the kill may have come between them.
    epochs = [len(small.epochs(path)) for path in (tmp_path / "killed").glob("unfinished/*/last.ckpt")]
    assert max(epochs, default=0) in (said.count("of 3: "), said.count("of 3: ") + 1)
    small.run("killed", "--networks=vgg", "--methods=LCW")
    assert small.results("killed") == small.results("unbroken")
    assert len(small.results("killed")) == 1
