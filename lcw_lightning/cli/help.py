"""The help of ``lcw`` in its users' words, with our own flags before those of the model, the data and the Trainer."""

import re

__all__ = ["COMMAND_HELP", "DESCRIPTION", "FLAG_HELP", "GROUP_TITLES", "group_rank", "without_markup"]

DESCRIPTION = (
    "Train deep networks with linearly constrained weights (LCW) or their rivals, watch every layer, and judge a "
    "network before its first step. Any LightningModule, data module and logger works, by flags or by a YAML file: "
    "lcw fit --config configs/digits_mlp50.yaml --constraint.kind=lcw"
)

COMMAND_HELP = {
    "fit": "Train a network; with --ckpt_path go on with a run.",
    "validate": "Evaluate a checkpoint on the validation data.",
    "test": "Evaluate a checkpoint on the test data.",
    "predict": "Write what a checkpoint says of each sample, as a table: --output=predictions.csv.",
    "export": "Write a checkpoint's network with plain weights: .safetensors, .pt, .pt2 or .onnx.",
    "analyze": "Report on every layer before the first step; nothing is trained and nothing logged.",
}

FLAG_HELP = {
    "--ckpt_path": (
        "The checkpoint that holds the weights, and for fit the state of the run to go on with: a path, a URL, or one "
        "of Lightning's words best, last and hpc. In a run's folder it needs no --config: the run's own is used."
    ),
    "--weights_only": "False unpickles the whole checkpoint, which may run code that it contains.",
}
"""In place of Lightning's own words."""

_LAST = {
    "model": "Model, a LightningModule by its class path (--model.help=ImageClassifier lists the flags of one)",
    "data": "Data, a LightningDataModule by its class path (--data.help=Digits lists the flags of one)",
    "trainer": "Lightning's Trainer: devices, length of the run, logger, checkpoints",
    "optimizer": "Optimizer",
    "lr_scheduler": "Schedule of the learning rate",
}

GROUP_TITLES = {
    **{command: f"This command, {command}" for command in COMMAND_HELP},
    "constraint": "Constraint on the weights: which kind, on which layers",
    "minibatch_init": "Initial weights: rescale each layer on the first batch",
    "edge_of_chaos_init": "Initial weights: draw them at the edge of chaos, in place of the above",
    "shift_monitor": "Monitor: statistics of every layer in the log",
    "loss_watch": "Watch: what a loss that is not finite does to the run",
    **_LAST,
}


def group_rank(name: str | None) -> int:
    """Return the place of a group of flags: the general ones, those of the command, our callbacks', all others."""
    if name is None:
        return 0
    return 1 if name in COMMAND_HELP else 2 + ([*_LAST].index(name) + 1 if name in _LAST else 0)


def without_markup(text: str) -> str:
    """Return a text without the markup of docstrings.

    Example:
        >>> without_markup("``none``; see :func:`~lcw_lightning.constrain`")
        'none; see constrain'
    """
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")
