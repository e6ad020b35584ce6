"""Images read as sequences: of rows, or of pixels, in their own order or a permuted one."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Reader", "SequenceOf"]

SequenceOf = Literal["rows", "pixels"]


@dataclass(frozen=True)
class Reader:
    """How a data module gives its images to a network.

    Args:
        sequence: ``rows`` from top to bottom, each a step of ``width * channels`` features, ``pixels`` row by row, each
            a step of ``channels`` features, or None for images as they are.
        permuted: Whether the pixels of every image change their places first, by one permutation, which is always the
            same. Neighbours are then far from each other, which makes sequences harder to classify.

    Raises:
        ValueError: Unknown name of a sequence, or a permutation without one.

    Example:
        >>> images = torch.arange(4.0).view(1, 1, 2, 2)
        >>> Reader("rows")(images).tolist(), Reader("pixels")(images).tolist()
        ([[[0.0, 1.0], [2.0, 3.0]]], [[[0.0], [1.0], [2.0], [3.0]]])
    """

    sequence: SequenceOf | None = None
    permuted: bool = False

    def __post_init__(self) -> None:
        if self.sequence is not None and self.sequence not in get_args(SequenceOf):
            raise ValueError(f"Images are read as a sequence of rows or pixels, or as None; got {self.sequence!r}.")
        if self.permuted and self.sequence is None:
            raise ValueError("Pixels are permuted in sequences only: with permuted, give sequence='rows' or 'pixels'.")

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(batch, steps, features)`` for images ``(batch, channels, height, width)``, or the images."""
        if self.sequence is None:
            return images
        pixels = images.flatten(2).transpose(1, 2)
        if self.permuted:
            order = torch.randperm(pixels.shape[1], generator=torch.Generator().manual_seed(0))
            pixels = pixels[:, order.to(images.device)]
        if self.sequence == "pixels":
            return pixels
        _, channels, height, width = images.shape
        return pixels.reshape(len(images), height, width * channels)
