"""Random crops and flips of a whole batch, and its normalization: tensors in, tensors out."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import Self

from lcw_lightning.data.sequences import Reader

__all__ = ["ImageTransform", "channel_mean_and_std", "crop_and_flip"]

PADDING = 4  # the paper's


def crop_and_flip(images: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Pad each image with zeros, crop it to the old size, and flip the crops that are to be flipped.

    Args:
        images: ``(batch, channels, height, width)``, of any type.
        tops: ``(batch,)``, the first row of each window in the padded image, from 0 to twice the padding.
        lefts: ``(batch,)``, the first column likewise.
        flips: ``(batch,)``, nonzero for the windows to flip from left to right.
        padding: Rows and columns of zeros on each side.

    Example:
        >>> image = torch.arange(4).view(1, 1, 2, 2)
        >>> one = torch.tensor([1])
        >>> crop_and_flip(image, tops=0 * one, lefts=one, flips=one, padding=1).tolist()
        [[[[0, 0], [1, 0]]]]
    """
    _, channels, height, width = images.shape
    padded = pad(images, [padding] * 4)
    columns = torch.arange(width, device=images.device)
    columns = lefts[:, None] + torch.where(flips[:, None] != 0, width - 1 - columns, columns)
    rows = tops[:, None] + torch.arange(height, device=images.device)
    pixels = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1)
    return padded.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1)).view_as(images)


def channel_mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and standard deviation over all pixels, exact up to the last rounding.

    Args:
        images: uint8, ``(images, channels, height, width)``.

    Returns:
        Two float32 tensors ``(channels, 1, 1)``, in grey levels from 0 to 255.

    Example:
        >>> mean, std = channel_mean_and_std(torch.tensor([1, 3], dtype=torch.uint8).view(2, 1, 1, 1))
        >>> mean.item(), std.item()
        (2.0, 1.0)
    """
    # Sums over a histogram are integers below 2^53, so they are exact in float64.
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    levels = torch.arange(256).double()
    pixels = counts[0].sum()
    mean = counts @ levels / pixels
    variance = (counts * (levels - mean[:, None]).square()).sum(1) / pixels
    return mean.float().view(-1, 1, 1), variance.sqrt().float().view(-1, 1, 1)


class ImageTransform:
    """Normalize uint8 images to float32 per channel, after random crops (padding 4) and flips (probability 1/2).

    They are read as sequences at the end, if there is a reader for it.
    """

    def __init__(self, mean: Tensor, std: Tensor, augment: bool, read: Reader | None = None) -> None:
        self.mean = mean
        self.std = std
        self.augment = augment
        self.read = read or Reader()

    def to(self, device: torch.device) -> Self:
        """Return a copy that works on the device."""
        return type(self)(self.mean.to(device), self.std.to(device), self.augment, self.read)

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """Return ``(samples, 3)``: the first row of each crop, its first column, and whether it is flipped."""
        offsets = torch.randint(2 * PADDING + 1, (samples, 2), generator=generator)
        return torch.cat((offsets, torch.randint(2, (samples, 1), generator=generator)), dim=1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return normalized images or sequences, cropped and flipped first by rows of draws if ``augment`` is set."""
        if self.augment:
            tops, lefts, flips = draws.unbind(1)
            images = crop_and_flip(images, tops, lefts, flips, PADDING)
        return self.read((images - self.mean) / self.std)
