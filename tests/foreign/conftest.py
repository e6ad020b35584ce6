"""A run of the README's three callbacks on somebody's module, and a table of what came of each at the end."""

import csv
from pathlib import Path

import lightning.pytorch
import pytest
import torch

from lcw_lightning import (
    ConstraintCallback,
    MinibatchInitCallback,
    ShiftMonitor,
    fold,
    load_from_checkpoint,
    plan_constraints,
)
from lcw_lightning.constraints.constrain import constrained_weights
from lcw_lightning.weights.weight_ref import named_weights

HEADER = ("network", "constrained", "of numbers", "fold difference", "load difference")


def pytest_terminal_summary(terminalreporter):
    properties = [found for report in terminalreporter.getreports("passed") for found in report.user_properties]
    if rows := [row for name, row in properties if name == "row"]:
        terminalreporter.section("the three callbacks on networks of others")
        for row in [HEADER, *rows]:
            terminalreporter.write_line("{:<24}{:>14}{:>12}{:>18}{:>18}".format(*row[:5]))
        for row in rows:
            if left_out := row[5]:
                terminalreporter.write_line(f"{row[0]}: {left_out}")


@pytest.fixture
def make_trainer(tmp_path):
    """Return a function that makes the trainer of the README, for three steps on the CPU."""

    def make(lightning=lightning.pytorch):
        return lightning.Trainer(
            max_steps=3,
            callbacks=[ConstraintCallback(), MinibatchInitCallback(), ShiftMonitor(every_n_steps=1)],
            logger=lightning.loggers.CSVLogger(tmp_path),
            log_every_n_steps=1,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    return make


@pytest.fixture
def check(make_trainer, residual, record_property):
    """Return a function that trains, saves, loads and folds the module ``make()``, and compares what comes out.

    ``output(module)`` is what it computes of one batch. Folded weights must load into a module that was never
    constrained. ``lightning`` is the package of the trainer. At least ``share`` of the numbers in the matrices must be
    constrained.
    """

    def run(name, make, loader, output, share=0.0, weights_only=True, **packages):
        module, plain = make(), make()
        plan = plan_constraints(plain)
        untrained = evaluate(plain, output)
        trainer = make_trainer(**packages)
        trainer.fit(module, loader, loader)
        trainer.validate(module, loader, verbose=False)
        trained = evaluate(module, output)
        path = trainer.checkpoint_callback.best_model_path
        loaded = load_from_checkpoint(type(module), path, weights_only=weights_only)
        folded = fold(loaded)
        plain.load_state_dict(folded.state_dict())
        outputs = [evaluate(other, output) for other in (loaded, folded, plain)]
        load, folding, ordinary = ((other - trained).abs().max().item() for other in outputs)

        constrained = f"{len(constrained_weights(module))} of {len(named_weights(module))}"
        left_out = plan.summary.partition("left out: ")[2]
        record_property("row", (name, constrained, f"{plan.share:.2%}", f"{folding:.1e}", f"{load:.1e}", left_out))
        assert trained.isfinite().all()
        assert (trained - untrained).abs().max() > 1e-3  # so what is compared depends on what was trained
        assert load == 0
        assert max(folding, ordinary) < 1e-5 * max(1, trained.abs().max().item())
        assert plan.share >= share
        check_weights(module, plan, trainer.logger)
        assert residual(module, constrained_weights(module)) < 1e-5

    return run


@torch.no_grad()
def evaluate(module, output):
    torch.manual_seed(0)
    return output(module.eval())


def check_weights(module, plan, logger):
    """Look whether all that moves was constrained, but for what the plan leaves out, and rescaled."""
    weights, constrained = named_weights(module), constrained_weights(module)
    moving = {name: ref for name, ref in weights.items() if any(held.requires_grad for held in ref.parameters)}
    assert moving
    assert set(moving) <= set(constrained) | set(plan.left_out)
    assert set(constrained) == set(plan.weights)
    layers = [name.rpartition(".")[0] for name, ref in moving.items() if ref.is_observable]
    assert share_of_unit_preactivations(logger, layers) > 0.9


def share_of_unit_preactivations(logger, layers):
    """Return the share of layers whose preactivations the monitor saw with standard deviation 1 in the first step.

    Over all units together, as minibatch initialization has it: that variance lies between a unit's mean variance v and
    its mean square, v (1 + shift_ratio^2). In a layer that is called several times, the first call was rescaled alone.
    """
    rows = csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines())
    first = next(row for row in rows if any(row[tag] for tag in row if tag.startswith("shift_ratio/")))
    assert first["step"] == "0"
    seen = [
        (float(first[f"preactivation_std/{layer}"]), float(first[f"shift_ratio/{layer}"]))
        for layer in layers
        if f"shift_ratio/{layer}" in first
    ]
    return sum(std < 1.001 and std * (1 + ratio**2) ** 0.5 > 0.999 for std, ratio in seen) / len(seen)
