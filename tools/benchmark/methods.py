"""The networks of the paper, and the methods that constrain their weights."""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lcw_lightning import MLP, VGG19, PreActResNet18, constrain

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "50 x 256 MLP": partial(MLP, in_features=3 * 32 * 32, num_classes=10),
    "VGG19": VGG19,
    "PreActResNet18": PreActResNet18,
}
LARGEST_DENSE = 8192  # inputs, for which a dense basis takes 256 MiB


class DenseBasis(nn.Module):
    """The paper's map (Section 3.1, Appendix B): ``w = Q v``, Q a dense orthonormal basis from a QR decomposition."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        # All layers of this fan_in share it, and no checkpoint holds it: a dense basis cannot be cheaper.
        self.register_buffer("basis", dense_basis(weight[0].numel(), weight.device), persistent=False)

    def forward(self, v: Tensor) -> Tensor:
        """Return the weight for coordinates of shape ``(units, fan_in - 1)``."""
        return (v @ self.basis.T).view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the coordinates of the nearest zero-sum weight."""
        return weight.flatten(1) @ self.basis


@cache
def dense_basis(fan_in: int, device: torch.device) -> Tensor:
    """Return orthonormal columns that sum to zero: those of Q after the first, a multiple of the ones."""
    columns = torch.eye(fan_in, device=device).roll(1, dims=1)
    columns[:, 0] = 1.0
    return torch.linalg.qr(columns).Q[:, 1:].contiguous()


def each_layer(register: Callable[[nn.Module], object]) -> Callable[[nn.Module], None]:
    """Return a function that constrains each layer of a network by the one that is given."""

    def register_all(network: nn.Module) -> None:
        for layer in list(network.modules()):
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                register(layer)

    return register_all


def densely_constrained(layer: nn.Module) -> None:
    """Constrain a layer as the paper does."""
    parametrize.register_parametrization(layer, "weight", DenseBasis(layer.weight.detach()))


METHODS: dict[str, Callable[[nn.Module], object]] = {
    "plain": lambda network: network,
    "LCW": constrain,
    "LCW, project": partial(constrain, method="project"),
    "weight_norm": each_layer(weight_norm),
    "spectral_norm": each_layer(spectral_norm),
    "CWN": partial(constrain, kind="cwn"),
    "dense QR basis": each_layer(densely_constrained),
}


def constrained(network: Callable[[], nn.Module], method: str, device: str) -> nn.Module:
    """Return a network under a method; all methods start from the same weights."""
    torch.manual_seed(0)
    made = network().to(device)
    METHODS[method](made)
    return made
