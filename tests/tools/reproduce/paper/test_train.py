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


def flags(*given):
    return [dict(flag.split("=") for flag in run.flags) for run in wanted(reproduce.parse(list(given)))[0]]


@pytest.mark.parametrize(
    ("data", "epochs", "every"),
    [("cifar10", 30, 0.3), ("cifar100", 30, 0.3), ("cifar10", 300, 3), ("cifar100", 50, 0.5)],
)
def test_fewer_epochs_of_table1_scale_the_milestones_of_the_decay(data, epochs, every):
    for given in flags("table1", f"--data={data}", f"--epochs={epochs}"):
        assert given["--trainer.max_epochs"] == str(epochs)
        assert float(given["--model.lr_scheduler.init_args.every_n_epochs"]) == pytest.approx(every)


@pytest.mark.parametrize("command", [("fig5", "--epochs=6"), ("table1",)], ids=["fig5", "whole"])
def test_the_schedules_of_fig5_and_of_whole_runs_are_the_configs(command):
    assert not any("every_n_epochs" in flag for given in flags(*command) for flag in given)


def test_what_makes_a_gpu_fast_is_in_flags_and_names():
    command = ("table1", "--data=cifar10", "--networks=vgg19", "--methods=SN")
    fast = ("--precision=bf16-mixed", "--channels-last", "--compile")
    (slow,), (given,) = flags(*command), flags(*command, *fast)
    assert {key: value for key, value in given.items() if key not in slow} == {
        "--trainer.precision": "bf16-mixed",
        "--model.channels_last": "true",
        "--model.compile": "true",
    }
    assert names(*command, *fast) == ["vgg19_cifar10_sn_bf16-mixed_channels_last_compiled_seed0"]


def test_a_report_without_runs_is_one_message(tmp_path):
    with pytest.raises(SystemExit, match="holds none of these runs; run the grid first"):
        reproduce.main(["fig5", "--report", f"--output={tmp_path}"])
