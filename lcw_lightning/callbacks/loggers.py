"""Calls that differ between Lightning's loggers: many scalars at once, images, histograms, text, charts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from lcw_lightning.callbacks.charts import Charts
from lcw_lightning.callbacks.twins import is_a

__all__ = [
    "Shown",
    "lay_out_charts",
    "log_scalars",
    "log_settings",
    "log_shown",
    "say_what_is_not_taken",
    "show_settings",
    "takes",
]

NUM_BINS = 64  # TensorBoard shows 30, and its own 1,500 take nine tenths of a run's disk space


class Shown(NamedTuple):
    """What a sampled step shows, by tag."""

    scalars: Mapping[str, float]
    bands: Mapping[str, float] = {}
    """Scalars for the charts of TensorBoard alone."""
    images: Mapping[str, NDArray[np.uint8]] = {}
    """Of shape ``(height, width, 3)``."""
    histograms: Mapping[str, Tensor] = {}
    """The values to count; those that are not finite are left out."""
    texts: Mapping[str, str] = {}
    """Markdown."""


def takes(logger: Logger) -> set[str]:
    """Return what a logger takes beside scalars: ``images``, ``histograms``, ``texts``.

    TensorBoard and W&B take all, MLflow images and texts, others images if they have W&B's ``log_image``.
    """
    if is_a(logger, TensorBoardLogger, WandbLogger):
        return {"images", "histograms", "texts"}
    if is_a(logger, MLFlowLogger):
        return {"images", "texts"}
    return {"images"} if hasattr(logger, "log_image") else set()


def say_what_is_not_taken(loggers: Sequence[Logger], wanted: Sequence[str]) -> None:
    """Say what each logger is not given of what is wanted, or that there is no logger.

    Nothing is said of the DummyLogger that Lightning makes for ``fast_dev_run``.
    """
    if not loggers:
        rank_zero_info("ShiftMonitor: without a logger it gives callbacks the metrics shift/..., and nothing else.")
    for logger in loggers:
        missing = [name for name in wanted if name not in takes(logger)]
        if missing and not is_a(logger, DummyLogger):
            rank_zero_info(
                f"ShiftMonitor: {type(logger).__name__} is given scalars, but no {' and no '.join(missing)}."
            )


def log_shown(logger: Logger, shown: Shown, step: int) -> None:
    """Log what the logger takes; to W&B as one row of its history."""
    if is_a(logger, WandbLogger):
        logger.log_metrics(_as_row(shown), step=step)
        return
    writer = _writer(logger)
    log_scalars(logger, {**shown.scalars, **({} if writer is None else shown.bands)}, step)
    for tag, image in shown.images.items():
        _log_image(logger, tag, image, step)
    if writer is not None:
        for tag, values in _finite(shown.histograms).items():
            writer.add_histogram(tag, values, step, bins=NUM_BINS)
    for tag, text in shown.texts.items():
        if writer is not None:
            writer.add_text(tag, text, step)
        elif is_a(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text, f"{tag}/step_{step}.md")


def log_scalars(logger: Logger, scalars: Mapping[str, float], step: int) -> None:
    """Log scalars by tag; to TensorBoard as one event, because one per scalar takes longer than a training step."""
    # TensorBoard takes long to import, so it is imported only when something is logged, as Lightning does.
    from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    writer = _writer(logger)
    if isinstance(writer, SummaryWriter) and writer.file_writer is not None:
        values = [Summary.Value(tag=_prefix(logger) + tag, simple_value=value) for tag, value in scalars.items()]
        writer.file_writer.add_summary(Summary(value=values), step)
    else:
        logger.log_metrics(dict(scalars), step=step)


def lay_out_charts(logger: Logger, charts: Charts) -> None:
    """Make TensorBoard's custom scalars show these charts."""
    if (writer := _writer(logger)) is not None:
        prefix = _prefix(logger)
        layout = {
            category: {
                title: [kind, [f"^{re.escape(prefix + tag)}" if kind == "Multiline" else prefix + tag for tag in tags]]
                for title, (kind, tags) in by_title.items()
            }
            for category, by_title in charts.items()
        }
        writer.add_custom_scalars(layout)


def log_settings(logger: Logger, settings: Mapping[str, Any]) -> None:
    """Log hyperparameters; TensorBoard's, which need the names of metrics, only to ``hparams.yaml``."""
    if is_a(logger, TensorBoardLogger):
        logger.hparams.update(settings)
    else:
        logger.log_hyperparams(dict(settings))


def show_settings(logger: Logger, settings: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Let TensorBoard's HParams tab show hyperparameters beside metrics, which are logged as scalars of these names."""
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415

    writer = _writer(logger)
    if isinstance(writer, SummaryWriter) and writer.file_writer is not None:
        # torch writes a truth value as a number, which TensorBoard shows as 1.0000.
        words = {name: str(value).lower() if isinstance(value, bool) else value for name, value in settings.items()}
        # Lightning's own way would log each metric at step 0, with a value made up.
        for summary in hparams(words, {_prefix(logger) + name: 0 for name in metrics}):
            writer.file_writer.add_summary(summary)


def _log_image(logger: Logger, tag: str, image: NDArray[np.uint8], step: int) -> None:
    if (writer := _writer(logger)) is not None:
        writer.add_image(tag, image, step, dataformats="HWC")
    elif is_a(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, image, key=tag, step=step)
    elif hasattr(logger, "log_image"):
        logger.log_image(tag, [image], step=step)


def _as_row(shown: Shown) -> dict[str, Any]:
    import wandb  # noqa: PLC0415 (whoever has made a WandbLogger has it)

    counts = {tag: np.histogram(values, NUM_BINS) for tag, values in _finite(shown.histograms).items()}
    return {
        **shown.scalars,
        **{tag: wandb.Image(image) for tag, image in shown.images.items()},
        **{tag: wandb.Histogram(np_histogram=count) for tag, count in counts.items()},
        **shown.texts,
    }


def _finite(histograms: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    finite = {tag: values[values.isfinite()].cpu().numpy() for tag, values in histograms.items()}
    return {tag: values for tag, values in finite.items() if len(values)}  # empty for a layer that was not called


def _prefix(logger: Logger) -> str:
    """Return the prefix that TensorBoard's logger puts before the names of metrics."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{TensorBoardLogger.LOGGER_JOIN_CHAR}" if prefix else ""


def _writer(logger: Logger) -> Any:
    """Return the SummaryWriter of TensorBoard or tensorboardX; None for other loggers."""
    return logger.experiment if is_a(logger, TensorBoardLogger) else None
