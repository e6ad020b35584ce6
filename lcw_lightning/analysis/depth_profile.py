"""What one forward and backward pass shows against depth: the size of preactivations and of their gradients."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lcw_lightning.observation.hooks import Quantity, observe
from lcw_lightning.weights.selection import listed

__all__ = ["DepthProfile"]


class DepthProfile:
    r"""What one step shows of each layer: q, the mean of :math:`z^2` (bias included), and the norm of dL/dz.

    Sums are taken in float64, over all calls of a layer, for each sample by itself. Where layers disagree on the number
    of samples, as those that take whole sequences do, the whole batch counts as one.

    Args:
        layers: The modules to watch, by name.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> profile = DepthProfile({"first": network[0], "last": network[2]})
        >>> with profile.watching():
        ...     network(torch.rand(5, 3)).sum().backward()
        >>> profile.rows(["first", "last"]).shape
        torch.Size([2, 2, 5])
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self._squares: dict[tuple[str, Quantity], list[Tensor]] = {}
        self._numbers: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the layers within the block."""
        with observe(self.layers, self._observe):
            yield

    def hidden_layers(self, chosen: Collection[str] | None = None) -> list[str]:
        """Return the layers that were called before the last one, the output layer, and that the loss depends on.

        Args:
            chosen: Names of layers to choose from; of all unless given.

        Raises:
            ValueError: There are fewer than two.
        """
        names = [
            name
            for name in list(self._numbers)[:-1]
            if (name, "preactivation_gradient") in self._squares and (chosen is None or name in chosen)
        ]
        if len(names) < 2:
            raise ValueError(
                "the pre-flight check follows gradients from the last hidden layer back to the first, so it needs a "
                f"loss and at least two hidden layers before the output layer, got {len(names)}."
            )
        return names

    def rows(self, names: Sequence[str]) -> Tensor:
        """Return q and the gradient norms, shape ``(2, layers, samples)``, NaN where nothing was seen.

        Raises:
            ValueError: None of these layers was called.
        """
        found = {key: calls for key, calls in self._squares.items() if key[0] in names}
        if not found:
            raise ValueError(f"a step through the network called none of the layers {listed(names)}.")
        if len({len(squares) for calls in found.values() for squares in calls}) > 1:
            found = {key: [squares.sum(0, keepdim=True) for squares in calls] for key, calls in found.items()}
        sums = {key: torch.stack(calls).sum(0) for key, calls in found.items()}
        unseen = torch.full_like(next(iter(sums.values())), math.nan)
        z, dz = (
            torch.stack([sums.get((name, quantity), unseen) for name in names])
            for quantity in ("preactivation", "preactivation_gradient")
        )
        numbers = torch.tensor([self._numbers.get(name, 1) for name in names], device=z.device)
        return torch.stack([z * z.shape[1] / numbers[:, None], dz.sqrt()]).cpu()

    def _observe(self, name: str, quantity: Quantity, values: Tensor) -> None:
        if quantity.startswith("preactivation"):
            samples = values.reshape(len(values) if values.dim() > 1 else 1, -1)
            squares = torch.linalg.vector_norm(samples, dim=1, dtype=torch.float64).square()
            self._squares.setdefault((name, quantity), []).append(squares)
        if quantity == "preactivation":
            self._numbers[name] = self._numbers.get(name, 0) + values.numel()
