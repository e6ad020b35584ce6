"""Two processes train as one does, on the whole digits config."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcw_lightning.cli import main

SCRIPT = Path(__file__).with_name("rank_results.py")
TWO_RANKS = ["--data.batch_size=64", "--trainer.strategy=ddp"]
# Where the loss jumps differences are multiplied by hundreds: with this seed it does not in the first epochs.
CALM = ["--seed_everything=3"]


def arguments(folder, *flags):
    config = Path(__file__).parents[2] / "configs" / "digits_mlp50.yaml"
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    quiet += ["--shift_monitor.figures=false"]
    kept = ["--trainer.callbacks=rank_results.RankResults", f"--trainer.callbacks.folder={folder}"]
    folder.mkdir()
    return ["fit", "--config", str(config), *quiet, *kept, f"--trainer.default_root_dir={folder}", *flags]


def results(folder):
    """What RankResults of each rank wrote."""
    return [torch.load(path) for path in sorted(folder.glob("rank*.pt"))]


def start(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-W", "ignore", *map(str, command)], env=environment)


def train_on_one_and_two(folder, *flags):
    """Run the same training with one process and with two, into ``folder/one`` and ``folder/two``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        main(arguments(folder / "one", *flags))
    # Lightning starts the second rank as a process of its own, with the command line of the first.
    two = start(SCRIPT, *arguments(folder / "two", *TWO_RANKS, "--trainer.devices=2", *flags))
    assert two.wait() == 0
    return folder


def bit_equal(state, other):
    return state.keys() == other.keys() and all(torch.equal(other[key], value) for key, value in state.items())


def loss_differences(folder):
    """The largest difference of a step's loss between one process and two, epoch by epoch."""
    (one,) = results(folder / "one")
    first, second = results(folder / "two")
    differences = one["losses"] - (first["losses"] + second["losses"]) / 2
    return differences.abs().view(-1, 11).amax(dim=1)


@pytest.fixture(scope="module")
def trained(once):
    return once("one_and_two", lambda folder: train_on_one_and_two(folder, *CALM, "--trainer.max_epochs=2"))


@pytest.mark.parametrize("moment", ["initial", "final"])
def test_ranks_hold_bit_equal_weights(moment, trained):
    first, second = (rank[moment] for rank in results(trained / "two"))
    assert bit_equal(first, second)


def test_ranks_see_different_halves_of_the_batch(trained):
    first, second = (rank["losses"] for rank in results(trained / "two"))
    assert (first != second).all()


def test_two_ranks_initialize_as_one_process_does(trained):
    one, two = (results(trained / name)[0]["initial"] for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7)


def test_two_ranks_walk_the_loss_curve_of_one_process(trained):
    # A loss near 1, rounded to a relative 6e-8 in each of 50 layers: 3e-6 in the first epoch. Each epoch of training
    # multiplies it by two to four. The limits are ten times what was seen.
    assert (loss_differences(trained) < torch.tensor([3e-5, 6e-5])).all()


def test_two_ranks_log_the_statistics_of_their_union(trained):
    statistics = []
    for name in ("one", "two"):
        events = EventAccumulator(str(trained / name / "lightning_logs" / "version_0"), size_guidance={"scalars": 0})
        events.Reload()
        tags = [tag for tag in events.Tags()["scalars"] if "/network." in tag and "residual" not in tag]
        statistics.append({tag: events.Scalars(tag)[0].value for tag in tags})
    assert len(statistics[0]) == 51 * 10 + 50  # and the zeros that each hidden layer gives on, in the test
    assert statistics[1] == pytest.approx(statistics[0], rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_what_one_process_and_two_differ_by_is_rounding(tmp_path):
    differences = {}
    for precision in ("32-true", "64-true"):
        (tmp_path / precision).mkdir()
        flags = [*CALM, "--trainer.max_epochs=20", f"--trainer.precision={precision}"]
        differences[precision] = loss_differences(train_on_one_and_two(tmp_path / precision, *flags))
        sys.stdout.write(f"{precision}: {[f'{value:.1e}' for value in differences[precision].tolist()]}\n")
        first, second = results(tmp_path / precision / "two")
        assert bit_equal(first["final"], second["final"])
    # In the seventh epoch the loss jumps, which multiplies differences by some 400: then float32 shares no digit.
    assert (differences["64-true"] < 1e-5).all()
    ratio = differences["32-true"][:6] / differences["64-true"][:6]
    unit = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
    assert ((ratio > unit / 10) & (ratio < unit * 10)).all()


@pytest.mark.slow
def test_torchrun_on_two_nodes_trains_as_two_devices_do(trained, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    flags = [*TWO_RANKS, *CALM, "--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.max_epochs=2"]
    run = [SCRIPT, *arguments(tmp_path / "nodes", *flags)]
    nodes = [start(*torchrun, f"--master_port={port}", f"--node_rank={rank}", *run) for rank in (0, 1)]
    assert [node.wait() for node in nodes] == [0, 0]
    (logs,) = (tmp_path / "nodes" / "lightning_logs").iterdir()
    assert sorted(path.name.split(".")[0] for path in logs.iterdir()) == [
        "checkpoints", "config", "events", "events", "hparams"
    ]  # fmt: skip
    (checkpoint,) = (logs / "checkpoints").iterdir()
    devices = results(trained / "two")[0]["final"]
    assert bit_equal(torch.load(checkpoint)["state_dict"], devices)
    assert all(bit_equal(rank["final"], devices) for rank in results(tmp_path / "nodes"))
