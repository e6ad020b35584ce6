"""A pre-flight check: do gradients and preactivations survive the depth, over many random draws of the weights?"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lcw_lightning.analysis.depth_profile import DepthProfile

__all__ = ["Preflight", "failed_is_infinite", "monte_carlo", "quantile"]


@dataclass(frozen=True, eq=False)
class Preflight:
    r"""What many random draws of the weights do to q and to gradients.

    Growth is that of the median sample of the batch: over a whole batch the norms would be those of its worst samples,
    and grow with their number. A draw whose numbers are not finite counts as infinite: it has failed, and is never left
    out.

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
        """Put draws together, each of them what :meth:`DepthProfile.rows` returns for these layers."""
        q, growth = zip(*(_of_batch(*rows) for rows in draws), strict=True)
        return cls(layers, torch.stack(q), torch.stack(growth))

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(self.q_by_layer)

    @property
    def last_q(self) -> Tensor:
        """Return q at the last hidden layer, one a draw."""
        return self.q_by_layer[:, -1]

    @property
    def gradient_growth(self) -> Tensor:
        """Decades by which the norm of dL/dz grows from the last hidden layer back to the first, one a draw."""
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
    r"""Draw the weights of a network again and again, and see what q and gradients do over depth.

    Args:
        layers: The hidden layers by name, from first to last: those whose preactivations z an activation takes.
        redraw: Draws all weights anew.
        step: Runs one batch through the network, forward and backward.
        draws: How many times.

    Raises:
        ValueError: No draws.

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


def quantile(values: Tensor, fraction: float) -> float:
    """Return a quantile, linear between neighbours; infinite numbers have their place in the order.

    Example:
        >>> quantile(torch.tensor([3.0, torch.inf, 1.0]), 0.5), quantile(torch.tensor([1.0, torch.inf]), 0.5)
        (3.0, inf)
    """
    ordered: list[float] = sorted(values.tolist())
    place = fraction * (len(ordered) - 1)
    below = math.floor(place)
    weight = place - below
    if weight == 0 or ordered[below] == ordered[below + 1]:
        return ordered[below]  # torch.quantile would make NaN of zero times infinity
    between = (1 - weight) * ordered[below] + weight * ordered[below + 1]
    return math.inf if math.isnan(between) else between


def _of_batch(q: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Return q and gradient growth by layer, from ``(layers, samples)``."""
    if not norms[-1].any():
        return failed_is_infinite(q.mean(1)), torch.full_like(norms[:, 0], -math.inf)  # nothing arrives
    growth = failed_is_infinite((norms / norms[-1]).log10())
    growth[:, norms[-1] == 0] = math.nan  # samples without any gradient, such as padding, say nothing
    return failed_is_infinite(q.mean(1)), failed_is_infinite(growth.nanmedian(1).values)


def failed_is_infinite(numbers: Tensor) -> Tensor:
    """Return the numbers with infinity in the place of NaN."""
    return numbers.masked_fill(numbers.isnan(), math.inf)
