"""``lcw predict --output``: what an image classifier says of each sample, as a table."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lcw_lightning.classifier import ImageClassifier
from lcw_lightning.files import written_atomically

__all__ = ["PredictionsFile", "check_suffix"]

SUFFIXES = (".csv", ".pt")


def check_suffix(output: str) -> None:
    """Raise unless the suffix of a file for predictions is known.

    Raises:
        ValueError: It is another.
    """
    if Path(output).suffix not in SUFFIXES:
        raise ValueError(f"predict writes files that end in {' or '.join(SUFFIXES)}, got --output={output}.")


class PredictionsFile(Callback):
    """Write label and probabilities of each sample, in the order of the data, and the true label where there is one.

    A ``.csv`` file has the columns ``sample, label, probability_0, probability_1, ..., true_label``, a ``.pt`` file
    ``label`` ``(samples,)``, ``probabilities`` ``(samples, classes)`` and ``true_label`` ``(samples,)`` by name.

    Args:
        output: The file to write.

    Raises:
        ValueError: At the start, if the module is no ImageClassifier, or several processes share the samples.
    """

    def __init__(self, output: str) -> None:
        check_suffix(output)
        self.output = output
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, ImageClassifier):
            raise ValueError(
                f"predict --output writes the classes of an ImageClassifier, got {type(pl_module).__name__}; without "
                "--output its predictions are written as it returns them."
            )
        if trainer.world_size > 1:
            raise ValueError(
                f"predict --output writes samples in their order, which {trainer.world_size} processes do not keep; "
                "take one: --trainer.devices=1."
            )

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._logits.append(outputs.cpu())
        if isinstance(batch, tuple | list) and len(batch) > 1:
            self._labels.append(batch[1].cpu())

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        probabilities = torch.cat(self._logits).double().softmax(dim=1)
        table = {"label": probabilities.argmax(dim=1), "probabilities": probabilities.float()}
        if self._labels:
            table["true_label"] = torch.cat(self._labels)
        with written_atomically(self.output) as temporary:
            if temporary.suffix == ".pt":
                torch.save(table, temporary)
            else:
                _write_csv(temporary, table)


def _write_csv(path: Path, table: dict[str, Tensor]) -> None:
    names = [f"probability_{number}" for number in range(table["probabilities"].shape[1])]
    header, true = ["sample", "label", *names], table.get("true_label")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header if true is None else [*header, "true_label"])
        for sample, (label, row) in enumerate(
            zip(table["label"].tolist(), table["probabilities"].tolist(), strict=True)
        ):
            known = [] if true is None else [true[sample].item()]
            writer.writerow([sample, label, *(f"{probability:.6g}" for probability in row), *known])
