"""Vanilla deep convolutional network: no norms, no skip connections, one width."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from lcw_lightning.models.activation import make_activation
from lcw_lightning.models.norms import check_settings

__all__ = ["DeepCNN"]

# Of the first layers; all others have stride 1.
STRIDES = (1, 2, 2)


class DeepCNN(nn.Sequential):
    """Vanilla CNN: ``depth`` convolutions of ``channels`` channels, then logits (Price et al., ICLR 2024).

    Kernels are 3 x 3, every layer has a bias, and there are no norms. The paper gives depth and channels; the rest is
    our choice, based on public code for the vanilla CNNs of Xiao et al., ICML 2018 (arXiv 1806.05393): the second and
    third convolution have stride 2, which takes 32 x 32 pixels to 8 x 8, and the mean over positions goes into one
    linear layer. At 32 x 32 pixels this takes 2.7 billion multiplications per image, a fifteenth of the number without
    strides. Images may have any size; the output has shape ``(batch, num_classes)``.

    Padding is circular. Every position then sees nine inputs, so that the variance map of the theory holds at borders
    too and q is the same everywhere; zero padding would lower q there: at a corner of the first layer, to four ninths
    of the weights' part.

    Convolutions are named ``hidden.0.conv``, ``hidden.1.conv``, ..., the last layer is ``output``. Weights have torch's
    default initialization, with which so deep a network does not train, so draw them anew. Delta-orthogonal kernels
    initially use their centre only, so that with the strides only 8 x 8 of 32 x 32 pixels have an effect until training
    changes the other taps.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        depth: Number of convolutions.
        channels: Channels of each convolution.
        activation: Makes one activation module: a module class, or its class path on the command line.

    Raises:
        ValueError: A size below 1, or an activation that makes no module.

    Example:
        >>> import torch
        >>> DeepCNN(in_channels=3, num_classes=10, depth=4, channels=8)(torch.rand(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        depth: int = 50,
        channels: int = 300,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        sizes = {"in_channels": in_channels, "num_classes": num_classes, "depth": depth, "channels": channels}
        check_settings(self, "none", **sizes)
        hidden = nn.Sequential()
        for number in range(depth):
            inputs = channels if number else in_channels
            stride = STRIDES[number] if number < len(STRIDES) else 1
            conv = nn.Conv2d(inputs, channels, kernel_size=3, stride=stride, padding=1, padding_mode="circular")
            hidden.append(nn.Sequential(OrderedDict(conv=conv, activation=make_activation(activation))))
        output = nn.Linear(channels, num_classes)
        super().__init__(OrderedDict(hidden=hidden, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), output=output))
