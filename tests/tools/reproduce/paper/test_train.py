import pytest

from tools.reproduce import __main__ as reproduce
from tools.reproduce.paper.train import wanted


def names(*flags):
    return [run.name for run in wanted(reproduce.parse(list(flags)))[0]]


def test_a_grid_without_options_is_all_its_combinations():
    assert len(names("fig5")) == 26


@pytest.mark.parametrize("shards", [1, 3, 7, 50])
def test_shards_share_all_runs(shards):
    whole = names("table1", "--seeds", "0", "1")
    parts = [names("table1", "--seeds", "0", "1", f"--shard={i}/{shards}") for i in range(1, shards + 1)]
    assert len(whole) == len(set(whole)) == 40
    assert sorted(name for part in parts for name in part) == sorted(whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_runs_of_other_lengths_and_precisions_have_other_names():
    common = ("fig5", "--data=cifar10", "--methods=BN+LCW")
    assert names(*common) == ["mlp50_cifar10_bn+lcw_seed0"]
    flags = ("--epochs=6", "--precision=bf16-mixed", "--seeds=4")
    assert names(*common, *flags) == ["mlp50_cifar10_bn+lcw_6epochs_bf16-mixed_seed4"]


def test_a_report_without_runs_is_one_message(tmp_path):
    with pytest.raises(SystemExit, match="holds none of these runs; run the grid first"):
        reproduce.main(["fig5", "--report", f"--output={tmp_path}"])
