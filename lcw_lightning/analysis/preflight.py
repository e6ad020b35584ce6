"""The pre-flight check: do gradients and preactivations survive the depth, over many random draws of the weights?"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lcw_lightning.observation.hooks import Quantity, observe
from lcw_lightning.plotting.preflight import quantile
from lcw_lightning.weights.selection import listed

__all__ = ["DepthProfile", "Preflight", "failed_is_infinite", "monte_carlo"]


class DepthProfile:
    r"""The values of q, the mean of :math:`z^2` (bias included), and of the norm of dL/dz in each layer in one step.

    Sums are taken in float64, over all calls of a layer, separately for each sample. If layers disagree on the number
    of samples, because some of them take whole sequences, the whole batch counts as one sample.

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
        """Return the layers on which the loss depends and that were called before the last one, the output layer.

        Args:
            chosen: Names of the layers to choose from; all of them unless given.

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
        """Return q and the gradient norms, shape ``(2, layers, samples)``, NaN for layers that were not called.

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


@dataclass(frozen=True, eq=False)
class Preflight:
    r"""The values of q and of gradients over many random draws of the weights.

    Growth is that of the median sample of the batch. (Norms over the whole batch would be dominated by its worst
    samples, and grow with the size of the batch.) A draw whose numbers are not finite has failed: it is not left out,
    but counts as infinite.

    Attributes:
        layers: Names of the hidden layers, from first to last.
        q_by_layer: Mean of :math:`z_l^2` over units and samples, bias included, shape ``(draws, layers)``.
        growth_by_layer: Decades by which the gradient's norm has grown from the last hidden layer back to this one,
            :math:`\log_{10}(\|\partial L / \partial z_l\| / \|\partial L / \partial z_L\|)`, of the same shape.

    Example:
        >>> growth = torch.tensor([[0.0, 0.0], [1.0, 0.0], [torch.inf, torch.inf]])
        >>> found = Preflight(["first", "last"], torch.ones(3, 2), growth)
        >>> found.gradient_growth.tolist(), found.growth_median
        ([0.0, 1.0, inf], 1.0)
    """

    layers: Sequence[str]
    q_by_layer: Tensor
    growth_by_layer: Tensor

    @classmethod
    def of(cls, draws: Iterable[Tensor], layers: Sequence[str]) -> "Preflight":
        """Return the check of several draws, for each of which :meth:`DepthProfile.rows` of these layers is given."""
        q, growth = zip(*(_of_batch(*rows) for rows in draws), strict=True)
        return cls(layers, torch.stack(q), torch.stack(growth))

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(self.q_by_layer)

    @property
    def last_q(self) -> Tensor:
        """The value of q at the last hidden layer, one per draw."""
        return self.q_by_layer[:, -1]

    @property
    def gradient_growth(self) -> Tensor:
        """Decades by which the norm of dL/dz grows from the last hidden layer back to the first, one per draw."""
        return self.growth_by_layer[:, 0]

    @property
    def q_median(self) -> float:
        """Median of :attr:`last_q`."""
        return quantile(self.last_q, 0.5)

    @property
    def q_90th_percentile(self) -> float:
        """90th percentile of :attr:`last_q`."""
        return quantile(self.last_q, 0.9)

    @property
    def growth_median(self) -> float:
        """Median of :attr:`gradient_growth`."""
        return quantile(self.gradient_growth, 0.5)

    @property
    def growth_90th_percentile(self) -> float:
        """90th percentile of :attr:`gradient_growth`."""
        return quantile(self.gradient_growth, 0.9)

    def as_dict(self) -> dict[str, object]:
        """Return the numbers of the last hidden layer's q and of the gradient growth, for JSON."""
        return {
            "draws": self.draws,
            "first_layer": self.layers[0],
            "last_layer": self.layers[-1],
            "q": self.last_q.tolist(),
            "q_median": self.q_median,
            "q_90th_percentile": self.q_90th_percentile,
            "gradient_growth": self.gradient_growth.tolist(),
            "growth_median": self.growth_median,
            "growth_90th_percentile": self.growth_90th_percentile,
        }

    def __str__(self) -> str:
        return (
            f"pre-flight, {self.draws} draws of the weights: q at {self.layers[-1]!r} has the median "
            f"{self.q_median:.3g} (90th percentile {self.q_90th_percentile:.3g}); gradients grow from there back to "
            f"{self.layers[0]!r} by {self.growth_median:.1f} decades ({self.growth_90th_percentile:.1f})"
        )


def monte_carlo(
    layers: Mapping[str, nn.Module], redraw: Callable[[], object], step: Callable[[], object], draws: int = 100
) -> Preflight:
    r"""Draw the weights of a network many times, and measure q and the growth of gradients over depth.

    Args:
        layers: The hidden layers by name, from first to last, each of which is followed by an activation.
        redraw: Draws all weights anew.
        step: Runs one batch through the network, forward and backward.
        draws: Number of draws.

    Raises:
        ValueError: ``draws`` is less than 1.

    Example:
        >>> network = nn.Sequential(*[nn.Linear(50, 50, bias=False) for _ in range(10)])
        >>> def gain_two() -> None:
        ...     for layer in network:
        ...         nn.init.normal_(layer.weight, std=2 / 50**0.5)
        >>> inputs = torch.rand(8, 50)
        >>> layers = dict(network.named_children())
        >>> found = monte_carlo(layers, gain_two, lambda: network(inputs).sum().backward(), draws=20)
        >>> f"{found.growth_median:.0f}"  # nine times a factor of two
        '3'
    """
    if draws < 1:
        raise ValueError(f"a pre-flight check needs at least one draw of the weights, got draws={draws}.")
    names = list(layers)

    def draw() -> Tensor:
        redraw()
        profile = DepthProfile(layers)
        with profile.watching():
            step()
        return profile.rows(names)

    return Preflight.of((draw() for _ in range(draws)), names)


def _of_batch(q: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Return q and gradient growth by layer, from ``(layers, samples)``."""
    if not norms[-1].any():
        return failed_is_infinite(q.mean(1)), torch.full_like(norms[:, 0], -math.inf)  # no gradient arrives
    growth = failed_is_infinite((norms / norms[-1]).log10())
    growth[:, norms[-1] == 0] = math.nan  # nanmedian leaves out samples without any gradient, such as padding
    return failed_is_infinite(q.mean(1)), failed_is_infinite(growth.nanmedian(1).values)


def failed_is_infinite(numbers: Tensor) -> Tensor:
    """Return the numbers with NaN replaced by infinity."""
    return numbers.masked_fill(numbers.isnan(), math.inf)
