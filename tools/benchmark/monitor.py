"""What ShiftMonitor costs: in steps without it, between its samples, in a sampled step, in one that is drawn."""

import gc
import statistics
import time
from collections.abc import Iterator
from functools import partial
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import MLP, ConstraintCallback, ImageClassifier, MinibatchInitCallback, ShiftMonitor
from lcw_lightning.callbacks.sample_log import PLOTTED_SAMPLES
from tools.benchmark.timing import FEWEST, Settings

EVERY = 10  # steps between samples here, so that few steps have enough samples
STEPS = 6 * EVERY
USUAL = 50  # ShiftMonitor's own period
CASE = "50 x 256 MLP, batch 128"


class Clock(Callback):
    """Times whole steps, from one batch's start to the next, and counts the bytes held between them."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.held: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        """Count the bytes, then read the clock."""
        if trainer.global_step % EVERY == EVERY // 2:
            gc.collect()
            tensors = [held for held in gc.get_objects() if type(held) in (torch.Tensor, torch.nn.Parameter)]
            self.held.append(sum(tensor.nbytes for tensor in tensors))
        self.starts.append(time.perf_counter())

    def seconds(self) -> dict[int, float]:
        """Return the seconds of each step but the first, which is a warm-up."""
        pairs = zip(self.starts, self.starts[1:], strict=False)
        return {step: end - start for step, (start, end) in enumerate(pairs) if step > 0}


def train(monitors: list[Callback], folder: str, device: str) -> tuple[Clock, LightningModule]:
    """Train for some steps; return the clock and the trained module."""
    torch.manual_seed(0)
    images, labels = torch.rand(128 * 16, 3072), torch.randint(10, (128 * 16,))
    network = MLP(in_features=3072, num_classes=10, depth=50, width=256)
    module = ImageClassifier(network, partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    clock = Clock()
    trainer = Trainer(
        max_steps=STEPS,
        accelerator=device,
        devices=1,
        callbacks=[clock, ConstraintCallback(), MinibatchInitCallback(), *monitors],
        logger=TensorBoardLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=128))
    return clock, module


def measure(settings: Settings) -> Iterator[list[dict]]:
    """Yield the rows."""
    if not settings.wants(CASE):
        return
    names = ("plain", "between samples", "sampled", "sampled and drawn")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    held: dict[str, list[int]] = {name: [] for name in names}
    equal = []
    with TemporaryDirectory() as folder:
        for _ in range(settings.rounds or FEWEST):
            plain, bare = train([], folder, settings.device)
            watched, seen = train([ShiftMonitor(every_n_steps=EVERY)], folder, settings.device)
            weights = zip(bare.state_dict().values(), seen.state_dict().values(), strict=True)
            equal.append(all(torch.equal(one, other) for one, other in weights))
            seconds["plain"] += plain.seconds().values()
            held["plain"] += plain.held
            held["between samples"] += watched.held
            for name, took in by_kind(watched.seconds()):
                seconds[name].append(took)
    between, sampled = (statistics.median(seconds[name]) for name in ("between samples", "sampled"))
    rows = [{"method": name, "seconds": seconds[name], "held_bytes": max(held[name], default=None)} for name in names]
    plain = statistics.median(seconds["plain"])
    # The time that a sample adds to a step; drawings (at samples 0, 4, 16, 64 and so on) are left out.
    mixed = {"method": f"a sample every {USUAL} steps, not drawn", "seconds": [plain + (sampled - between) / USUAL]}
    yield [{"case": CASE, "same_weights": all(equal), **row} for row in (*rows, mixed)]


def by_kind(seconds: dict[int, float]) -> list[tuple[str, float]]:
    """Sort the steps; a sample's cost includes that of the next step, where TensorBoard's writer is still at work."""
    between = {step: took for step, took in seconds.items() if step % EVERY > 1}
    usual = statistics.median(between.values())
    found = [("between samples", took) for took in between.values()]
    for step, took in seconds.items():
        if step % EVERY == 0 and step + 1 in seconds:
            drawn = step // EVERY in PLOTTED_SAMPLES or step + EVERY >= STEPS
            found.append(("sampled and drawn" if drawn else "sampled", took + seconds[step + 1] - usual))
    return found
