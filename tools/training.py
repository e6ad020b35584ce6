"""``lcw`` as tools/reproduce.py starts it: each epoch's numbers are in its checkpoints, and it ends with its parent.

python tools/training.py fit --config FILE --trainer.callbacks+=training.EpochRecorder ...
"""

import logging
import os
import threading
import time
import warnings

import torch
from lightning.pytorch import Callback

from lcw_lightning.cli import main


class EpochRecorder(Callback):
    """Keeps every epoch's numbers in the checkpoint, with which they are written or lost, and prints them.

    The state of the random number generators is kept too, which Lightning does not do: with it a resumed run draws the
    same dropout as an unbroken one.

    Args:
        name: Of the run, to be printed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.epochs: list[dict[str, float]] = []
        self._random: dict | None = None
        self._start = 0.0

    def on_train_epoch_start(self, *_) -> None:
        """Go on with the random numbers where the checkpoint left them."""
        if self._random:
            torch.set_rng_state(self._random["cpu"])
            if self._random["cuda"] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(self._random["cuda"])
            self._random = None
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer, *_) -> None:
        """Note the epoch; the checkpoint is written after this."""
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        self.epochs.append({**values, "seconds": time.perf_counter() - self._start})
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.epochs[-1].items())
        print(f"{self.name}: epoch {len(self.epochs)} of {trainer.max_epochs}: {numbers}", flush=True)

    def state_dict(self) -> dict:
        """Return what a checkpoint holds."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"epochs": self.epochs, "random": {"cpu": torch.get_rng_state(), "cuda": cuda}}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take what a checkpoint holds."""
        self.epochs, self._random = state_dict["epochs"], state_dict["random"]


def end_with_parent() -> None:
    """Exit when the other end of standard input is closed: a parent that is killed cannot end its children."""
    os.read(0, 1)  # not sys.stdin: a thread that waits in it makes the interpreter's end a fatal error
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is deprecated|.*resuming from a checkpoint")
    main()
