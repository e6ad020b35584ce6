"""Calls that differ between Lightning's loggers: many scalars at once, images, histograms, charts of many lines."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor

from lcw_lightning.callbacks.twins import is_a

__all__ = ["lay_out_charts", "log_histograms", "log_images", "log_scalars", "takes_images"]


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


def takes_images(logger: Logger) -> bool:
    """Return whether :func:`log_images` supports the logger: TensorBoard, MLflow, or any with W&B's ``log_image``."""
    return _writer(logger) is not None or is_a(logger, MLFlowLogger) or hasattr(logger, "log_image")


def log_images(logger: Logger, images: Mapping[str, NDArray[np.uint8]], step: int) -> None:
    """Log images ``(height, width, 3)`` by tag, if the logger takes images."""
    writer = _writer(logger)
    for tag, image in images.items():
        if writer is not None:
            writer.add_image(tag, image, step, dataformats="HWC")
        elif is_a(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, image, key=tag, step=step)
        elif hasattr(logger, "log_image"):
            logger.log_image(tag, [image], step=step)


def log_histograms(logger: Logger, values: Mapping[str, Tensor], step: int) -> None:
    """Log a histogram of each tensor's finite values, by tag, if the logger is TensorBoard's."""
    writer = _writer(logger)
    for tag, tensor in values.items() if writer is not None else ():
        finite = tensor[tensor.isfinite()]
        if len(finite):  # empty for a layer that was not called
            writer.add_histogram(tag, finite, step)


def lay_out_charts(logger: Logger, statistics: Iterable[str]) -> None:
    """Make TensorBoard's custom scalars show one chart per statistic, with one line per layer ``statistic/layer``."""
    writer = _writer(logger)
    if writer is not None:
        prefix = re.escape(_prefix(logger))
        charts = {statistic: ["Multiline", [f"^{prefix}{statistic}/"]] for statistic in statistics}
        writer.add_custom_scalars({"activation shift": charts})


def _prefix(logger: Logger) -> str:
    """Return the prefix that TensorBoard's logger puts before the names of metrics."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{TensorBoardLogger.LOGGER_JOIN_CHAR}" if prefix else ""


def _writer(logger: Logger) -> Any:
    """Return the SummaryWriter of TensorBoard or tensorboardX; None for other loggers."""
    return logger.experiment if is_a(logger, TensorBoardLogger) else None
