"""VGG19 for small images (Simonyan & Zisserman, 2015)."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from lcw_lightning.models.norms import Norm, check_settings, normed_activation

__all__ = ["VGG19"]

# Before each of the five poolings: channels, in units of the width, and number of convolutions.
BLOCKS = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))


class VGG19(nn.Sequential):
    """VGG19 for 32 x 32 images: 16 convolutions, three fully connected layers with dropout (paper, Section 6.2).

    There is a BatchNorm between each convolution and its ReLU; with ``hidden_norm="batch"`` there is one before each of
    the 18 ReLUs, as in the paper. With it the loss rises at first at the paper's learning rate of 0.1: on CIFAR-10 with
    plain weights from 2.45 over steps 1 to 5 to 2.81 over steps 16 to 20, and from 2.34 to 2.41 without it (means of
    seeds 0 and 1). Five poolings take 32 x 32 pixels to 8 ``width`` x 1 x 1 features. Images of other sizes work too:
    odd sizes are rounded up, and the remaining positions are averaged. The output has shape ``(batch, num_classes)``.

    Convolutions are named ``features.conv3_1`` (the first of the third block), the fully connected layers
    ``hidden.linear1``, ``hidden.linear2`` and ``output``. Weights have torch's default initialization, since the paper
    gives none.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Channels of the first block; the last two have eight times as many.
        hidden_width: Units of each hidden fully connected layer; 4096 in the network for large images.
        dropout: Probability that a hidden fully connected unit is dropped in training.
        activation: Makes one activation module: a module class, or its class path on the command line.
        norm: Norm of the convolutions: ``batch`` (on the preactivation; the paper's BN), ``standardization`` (BatchNorm
            on the activation; the paper's SL), ``batch+standardization`` (both), ``layer`` (on the preactivation, over
            all channels and positions of a sample), or ``none``.
        hidden_norm: Norm of the two hidden fully connected layers, by the same names.

    Raises:
        ValueError: Unknown norm, an activation that makes no module, a size below 1, or a dropout outside [0, 1].

    Example:
        >>> import torch
        >>> VGG19(num_classes=100, width=4, hidden_width=16)(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 100])
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        hidden_width: int = 512,
        dropout: float = 0.5,
        activation: Callable[[], nn.Module] = nn.ReLU,
        norm: Norm = "batch",
        hidden_norm: Norm = "none",
    ) -> None:
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "hidden_width": hidden_width}
        check_settings(self, norm, **sizes)
        check_settings(self, hidden_norm)
        super().__init__(
            OrderedDict(
                features=_features(in_channels, width, activation, norm),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                hidden=_hidden_layers(BLOCKS[-1][0] * width, hidden_width, dropout, activation, hidden_norm),
                output=nn.Linear(hidden_width, num_classes),
            )
        )


def _features(in_channels: int, width: int, activation: Callable[[], nn.Module], norm: Norm) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for block, (multiple, convolutions) in enumerate(BLOCKS, start=1):
        for number in range(1, convolutions + 1):
            layers[f"conv{block}_{number}"] = nn.Conv2d(channels, multiple * width, kernel_size=3, padding=1)
            channels = multiple * width
            layers[f"activation{block}_{number}"] = nn.Sequential(normed_activation(channels, activation, norm))
        # Rounding up leaves at least one position, for 28 x 28 pixels too.
        layers[f"pool{block}"] = nn.MaxPool2d(kernel_size=2, ceil_mode=True)
    return nn.Sequential(layers)


def _hidden_layers(
    fan_in: int, width: int, dropout: float, activation: Callable[[], nn.Module], norm: Norm
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, inputs in enumerate((fan_in, width), start=1):
        layers[f"linear{number}"] = nn.Linear(inputs, width)
        normed = normed_activation(width, activation, norm, images=False)
        layers.update({f"{name}{number}": module for name, module in normed.items()})
        layers[f"dropout{number}"] = nn.Dropout(dropout)
    return nn.Sequential(layers)
