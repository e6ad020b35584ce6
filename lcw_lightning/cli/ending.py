"""How ``lcw`` ends: with one message for an error, and with the way to go on for a signal."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lcw_lightning.cli.error_message import message_of

__all__ = ["ends_in_one_message", "says_how_to_go_on", "without_advertisements"]

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


@contextmanager
def ends_in_one_message() -> Iterator[None]:
    """End the process with one message on stderr after an error within the block, or after a signal.

    The exit status is 1 for an error, 143 for SIGTERM and 130 for Ctrl-C. ``JSONARGPARSE_DEBUG=true`` in the
    environment shows the traceback of an error instead.
    """
    is_debugging = os.environ.get("JSONARGPARSE_DEBUG") == "true"
    before = threading.excepthook
    threading.excepthook = before if is_debugging else _SaysOnce()
    try:
        yield
    except (SIGTERMException, KeyboardInterrupt, SystemExit) as end:
        if (received := _signal_of(end)) is None:
            raise
        _end(received, "")
    except Exception as error:
        if is_debugging:
            raise
        sys.exit(f"lcw: error: {message_of(error)}\n(JSONARGPARSE_DEBUG=true shows where)")
    finally:
        threading.excepthook = before


@contextmanager
def says_how_to_go_on(trainer: Trainer) -> Iterator[None]:
    """End the process after a signal within the block, and name the checkpoint to resume from."""
    try:
        yield
    except (SIGTERMException, KeyboardInterrupt, SystemExit) as end:
        if (received := _signal_of(end)) is None:
            raise
        last = _last_checkpoint(trainer)
        _end(received, f"; go on with: lcw fit --ckpt_path={last}" if last else " before the first checkpoint")


@contextmanager
def without_advertisements() -> Iterator[None]:
    """Leave out Lightning's tips to install its other products; all else that it says is said."""

    def is_no_tip(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("💡 Tip")

    # Of these packages the one that was imported last names the logger.
    packages = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    loggers = [logging.getLogger(f"{package}.utilities.rank_zero") for package in packages]
    for logger in loggers:
        logger.addFilter(is_no_tip)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_no_tip)


class _SaysOnce:
    """Say in one line what ended a thread, such as that of a logger: Python would print its traceback."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, failed: threading.ExceptHookArgs) -> None:
        message = message_of(failed.exc_value) if failed.exc_value else ""
        if message and message not in self._said and failed.exc_type is not SystemExit:
            sys.stderr.write(f"lcw: a thread ended: {message}\n")
            self._said.add(message)


def _signal_of(end: BaseException) -> signal.Signals | None:
    if isinstance(end, SIGTERMException):
        return signal.SIGTERM
    # Lightning turns Ctrl-C into an exit.
    was_interrupted = isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt)
    return signal.SIGINT if was_interrupted else None


def _end(received: signal.Signals, how_to_go_on: str) -> NoReturn:
    sys.stderr.write(f"lcw: ended by {_NAMES[received]}{how_to_go_on}\n")
    sys.exit(128 + received)


def _last_checkpoint(trainer: Trainer) -> str:
    """Return the newest file that the run's checkpoint callbacks know of; an empty string before the first."""
    known = [
        getattr(c, name, "") for c in trainer.checkpoint_callbacks for name in ("last_model_path", "best_model_path")
    ]
    written = [path for path in known if path and Path(path).exists()]
    return max(written, key=lambda path: Path(path).stat().st_mtime, default="")
