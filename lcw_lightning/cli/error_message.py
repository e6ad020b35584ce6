"""What ``lcw`` says of an error: in the words of its own, for errors of torch, Lightning, Python and the system too."""

import errno
import os
import re
import sysconfig
import traceback
from pathlib import Path

from lcw_lightning.cli.plain_words import in_one_sentence
from lcw_lightning.weights.failing_layer import describe_failing_layer

__all__ = ["message_of"]

TRANSLATIONS = {
    "device-side assert": (  # CUDA does not say which, and no later call succeeds
        "the GPU met a number that is out of bounds, most often a label beyond the number of classes; the same command "
        "with --trainer.accelerator=cpu says which."
    ),
    r"`(\w+)Accelerator` can not run on your system.*: (\[.*\])": (
        r"this machine has no accelerator {0}: give one of {1} by --trainer.accelerator, or auto."
    ),
    "No supported gpu backend found": "this machine has no gpu: leave out --trainer.accelerator=gpu, or give cpu.",
    r"`devices` selected with `(\w+)Accelerator`": "--trainer.devices is a number of devices above 0, or auto.",
    r"`(max_epochs|max_steps|min_epochs|min_steps)` must be .* You passed in (.*)\.": (
        "--trainer.{0} is a whole number of 0 or more, or -1 for no limit; got {1}."
    ),
    r"You have passed invalid value (\S+) for (\w+), it has to be in": (
        "--trainer.{1} is a fraction from 0.0 to 1.0, or a whole number of batches; got {0}."
    ),
    r"You selected an invalid strategy name: `strategy='([^']*)'`": (
        "there is no strategy {0}: give auto, ddp, ddp_spawn or another of Lightning's by --trainer.strategy."
    ),
    r"(\S+) is not in bounds, numpy accepts from (\d+) to (\d+)": (
        "--seed_everything is a whole number from {1} to {2}; got {0}."
    ),
    r"`(\w+)_dataloader` must be implemented": (
        "this command has no data: name a data module by --data, or define {0}_dataloader() in the model."
    ),
    r"No `(\w+)\(\)` method defined\.": "the model has no {0}(), which this command calls; define it in its class.",
    r"Invalid (learning rate|momentum value|weight_decay value): (\S+)": (
        "the optimizer takes no {0} of {1}; it is 0 or more."
    ),
    r"Early stopping conditioned on metric `([^`]*)` which is not available.*following: (.*)": (
        "EarlyStopping has no metric {0} to monitor; logged are {1}."
    ),
    r"`ModelCheckpoint\(monitor='([^']*)'\)` could not find the monitored key in the returned metrics: (\[.*\])": (
        "ModelCheckpoint has no metric {0} to monitor; logged are {1}."
    ),
    r"cannot assign '(\w+)' as child module '(\w+)'": (
        "'{1}' must be a module, got a {0}. If it comes from constrain(network): that changes the network in place and "
        "returns the names of its weights, so it is called without an assignment."
    ),
}
"""Patterns of what torch and Lightning say, and what is said instead."""

PYTHONS = (AttributeError, NameError, TypeError, LookupError, ArithmeticError, AssertionError, ImportError)
_PACKAGE = Path(__file__).parents[1]
_PLACES = [_PACKAGE, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "scripts"))]
"""Of code that is not the user's."""


def message_of(error: BaseException) -> str:
    """Return what happened, and what to do where that is known.

    Example:
        >>> message_of(ValueError("`max_epochs` must be a non-negative integer or -1. You passed in -5."))
        '--trainer.max_epochs is a whole number of 0 or more, or -1 for no limit; got -5.'
        >>> message_of(FileNotFoundError(2, "No such file or directory", "/nowhere/x.csv"))
        "'/nowhere/x.csv' cannot be read or written: No such file or directory."
    """
    message = re.sub(r"\[Errno \d+\] ", "", str(error)) or type(error).__name__
    message = in_one_sentence(message) if "Does not validate against" in message else message
    whose = (_of_the_system(error), _translated(message), _of_checkpoint(error), _of_code(error))
    return describe_failing_layer(error) or next(filter(None, whose), message)


def _of_the_system(error: BaseException) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    if error.errno == errno.ENOSPC:
        if error.strerror != os.strerror(errno.ENOSPC):  # words of our own, which name the file
            return f"{error.strerror}."
        return "no space is left on the disk; free some, or write the run elsewhere: --trainer.default_root_dir=FOLDER."
    return f"{error.filename!r} cannot be read or written: {error.strerror}." if error.filename else ""


def _translated(message: str) -> str:
    for pattern, words in TRANSLATIONS.items():
        if found := re.search(pattern, message, re.DOTALL):
            return words.format(*found.groups())
    return ""


def _of_checkpoint(error: BaseException) -> str:
    """Return why a checkpoint cannot be restored; an empty string for errors that come from elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    restores = ["checkpoint_connector" in frame.filename for frame in frames]  # Lightning's file
    if not any(restores) or restores[-1] or not _is_installed(frames[-1].filename):
        return ""
    if found := re.search(r"Weights only load failed.*GLOBAL (\S+)", str(error), re.DOTALL):
        return (  # as read_checkpoint says of a local file
            f"the checkpoint holds {found[1]}, which is more than tensors and plain values and may run code, so it was "
            "not loaded. If you trust the file, load it with --weights_only=false."
        )
    if isinstance(error, PYTHONS) or type(error).__name__ == "InvalidVersion":
        said = f"{type(error).__name__}: {error}"
        return f"the checkpoint cannot be restored ({said}): it is broken; take another one of the run."
    return ""


def _of_code(error: BaseException) -> str:
    """Return where code met an error of Python's, whose words alone say little; an empty string for other errors."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not isinstance(error, PYTHONS):
        return ""
    said = f"{type(error).__name__}: {error}"
    if not str(error) or _PACKAGE in Path(frames[-1].filename).parents:
        return ""
    users = [frame for frame in frames if not _is_installed(frame.filename)]
    return f"{said} ({users[-1].filename}, line {users[-1].lineno})" if users else said


def _is_installed(filename: str) -> bool:
    path = Path(filename)
    installed = any(place in path.parents for place in _PLACES) or {"site-packages", "dist-packages"} & {*path.parts}
    return bool(installed) or filename.startswith("<")
