"""The verdict on a pre-flight check, in plain words."""

from collections.abc import Collection, Iterator

from torch import Tensor

from lcw_lightning.analysis.findings import CONSTRAIN, Finding
from lcw_lightning.analysis.preflight import Preflight, failed_is_infinite
from lcw_lightning.plotting.preflight import quantile

__all__ = ["preflight_findings"]

# Decades of gradient growth at the 90th percentile: deep sparse networks trained up to the first value, and some or all
# of their runs failed from about the second on (Price et al. 2024, Table 2, and our Monte Carlo of the same networks).
TRAINED = 1.2
FAILED = 2.5

CLIP = "an activation with a clip that gives its variance map a smaller slope, or a smaller slope where it has one"
EDGE = "draw weights at the edge of chaos: edge_of_chaos_init_(network, inputs), or EdgeOfChaosInitCallback"
SIZE = "sqrt(q), their root mean square with activation shift,"
SHALLOWER = ("wider layers", "fewer layers")


def preflight_findings(preflight: Preflight, zero_sum: Collection[str] = ()) -> list[Finding]:
    """Return what is the matter over depth; an empty list if all is well.

    Args:
        preflight: The numbers of all draws.
        zero_sum: Layers whose weights already sum to zero, for which the constraint is not advised.

    Example:
        >>> import torch
        >>> growth = torch.tensor([[3.0, 0.0], [2.6, 0.0]])
        >>> print(preflight_findings(Preflight(["first", "last"], torch.ones(2, 2), growth))[0].says)
        Pre-flight: gradients explode: their norm grows by 2.8 decades in the median of 2 draws ...
    """
    constrain = () if set(preflight.layers) <= set(zero_sum) else (CONSTRAIN,)
    first, last = preflight.layers[0], preflight.layers[-1]
    root_mean_square = failed_is_infinite((preflight.last_q / preflight.q_by_layer[:, 0]).log10() / 2)
    return [
        *_gradients(preflight.gradient_growth, f"from {last!r} back to {first!r}", constrain),
        *_preactivations(root_mean_square, f"from {first!r} to {last!r}", constrain),
    ]


def _gradients(growth: Tensor, way: str, constrain: tuple[str, ...]) -> Iterator[Finding]:
    decades = quantile(growth, 0.9)
    if decades > TRAINED:
        yield Finding(
            f"Pre-flight: gradients {'' if decades >= FAILED else 'may '}explode: their norm {_over(growth, 0.9)} "
            f"{way}. Deep sparse networks trained with up to {TRAINED} at this quantile; from about {FAILED} on, some "
            "or all of their runs failed (Price et al. 2024, Table 2).",
            (*constrain, CLIP, *SHALLOWER),
        )
    if quantile(growth, 0.1) <= -FAILED:
        yield Finding(
            f"Pre-flight: gradients vanish: their norm {_over(growth, 0.1)} {way}.", (*constrain, EDGE, *SHALLOWER)
        )


def _preactivations(growth: Tensor, way: str, constrain: tuple[str, ...]) -> Iterator[Finding]:
    if quantile(growth, 0.9) >= FAILED:
        yield Finding(
            f"Pre-flight: preactivations explode: {SIZE} {_over(growth, 0.9)} {way}.", (*constrain, CLIP, EDGE)
        )
    if quantile(growth, 0.1) <= -FAILED:
        yield Finding(f"Pre-flight: preactivations vanish: {SIZE} {_over(growth, 0.1)} {way}.", (EDGE, *SHALLOWER))


def _over(growth: Tensor, fraction: float) -> str:
    failed = int(growth.isposinf().sum())
    return (
        f"{_changes(quantile(growth, 0.5))} decades in the median of {len(growth)} draws of the weights and "
        f"{_changes(quantile(growth, fraction))} at the {fraction:.0%} quantile"
        + (f", where {failed} draws without finite numbers count as infinite," if failed else "")
    )


def _changes(decades: float) -> str:
    return f"{'falls' if decades < 0 else 'grows'} by {abs(decades):.1f}"
