"""``lcw`` in a process that ends with its parent, and a callback that keeps each epoch's numbers in the checkpoints.

python -m tools.reproduce.training fit --config FILE --trainer.callbacks+=tools.reproduce.training.EpochRecorder ...
"""

import logging
import math
import os
import threading
import time
import warnings

import torch
from lightning.pytorch import Callback

from lcw_lightning.cli import main

LOOK_EVERY = 50  # batches; each look makes the processor wait for a GPU


class EpochRecorder(Callback):
    """Keeps each epoch's numbers in the checkpoint, and prints them.

    It also keeps the state of the random number generators, which Lightning does not: a resumed run draws the same
    dropout as an unbroken one.

    It ends a run soon after a batch whose loss is not finite, since the weights never recover. It sets that epoch's
    training loss to nan, since torchmetrics' mean would ignore such batches.

    Args:
        name: The run's name, which is printed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.epochs: list[dict[str, float]] = []
        self._random: dict | None = None
        self._start = 0.0
        self._finite = torch.tensor(True)

    def on_train_epoch_start(self, *_) -> None:
        """Continue the random numbers of the checkpoint."""
        if self._random:
            torch.set_rng_state(self._random["cpu"])
            if self._random["cuda"] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(self._random["cuda"])
            self._random = None
        self._finite = torch.tensor(True)
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx: int) -> None:  # noqa: ARG002
        """Note whether the loss is finite; every LOOK_EVERY batches, end training if it was not."""
        self._finite = self._finite.to(outputs["loss"].device) & outputs["loss"].isfinite()
        if batch_idx % LOOK_EVERY == LOOK_EVERY - 1 and not self._finite:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer, *_) -> None:
        """Keep the epoch's numbers; Lightning writes the checkpoint after this."""
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if not self._finite:
            trainer.should_stop = True
            values["train/loss"] = math.nan
        self.epochs.append({**values, "seconds": time.perf_counter() - self._start})
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.epochs[-1].items())
        print(f"{self.name}: epoch {len(self.epochs)} of {trainer.max_epochs}: {numbers}", flush=True)

    def state_dict(self) -> dict:
        """Return the state for a checkpoint."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"epochs": self.epochs, "random": {"cpu": torch.get_rng_state(), "cuda": cuda}}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take the state from a checkpoint."""
        self.epochs, self._random = state_dict["epochs"], state_dict["random"]


def end_with_parent() -> None:
    """Exit when standard input is closed, which happens when the parent ends, even if it is killed."""
    os.read(0, 1)  # a thread that waits in sys.stdin would make the interpreter's exit a fatal error
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is deprecated|.*resuming from a checkpoint")
    main()
