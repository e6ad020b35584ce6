"""A grid of settings, tried in short runs and extended as long as the best of them lies at an edge."""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

BEYOND = 2  # the most steps by which a grid is extended at either end

Point = tuple[int, ...]


class Axis(NamedTuple):
    """A geometric sequence of values of one setting.

    Attributes:
        name: Of the setting.
        first: The lowest value of the grid.
        factor: From one value to the next.
        number: How many values the grid has before it is extended.

    Example:
        >>> [Axis("rate", 0.1, 2.0).value(step) for step in (-1, 0, 2)]
        [0.05, 0.1, 0.4]
    """

    name: str
    first: float
    factor: float
    number: int = 3

    def value(self, step: int) -> float:
        """Return the value so many steps above the first."""
        return self.first * self.factor**step

    def values(self) -> list[float]:
        """Return the values of the grid before it is extended."""
        return [self.value(step) for step in range(self.number)]


def choose(axes: tuple[Axis, ...], attempt: Callable[[dict[str, float]], dict]) -> list[dict]:
    """Try the whole grid, then the neighbours of the best, until they are no better; return all records, best first.

    ``attempt`` takes the settings and returns the record of a run. All axes are stepped along one at a time. A method
    that cannot run anywhere on the grid is tried no further.
    """
    tried: dict[Point, dict] = {}

    def add(points: list[Point]) -> None:
        for point in points:
            settings = {axis.name: axis.value(step) for axis, step in zip(axes, point, strict=True)}
            tried[point] = {**settings, **attempt(settings)}

    add(list(product(*(range(axis.number) for axis in axes))))
    if not all("cannot" in record for record in tried.values()):
        while new := [point for point in neighbours(best(tried), axes) if point not in tried]:
            add(new)
    first = best(tried)
    return [tried[first], *(record for point, record in tried.items() if point != first)]


def best(tried: dict[Point, dict]) -> Point:
    """Return where the held-out accuracy is highest; of equal ones, where the held-out loss is lowest."""
    return max(tried, key=lambda point: score(tried[point]))


def score(record: dict) -> tuple[float, float]:
    """Return what the best run has the most of; a run that diverged or cannot be done is below all others."""
    if "cannot" in record or record["diverged"]:
        return -1.0, 0.0
    return record["held_out_accuracy"][-1], -record["held_out_loss"][-1]


def neighbours(point: Point, axes: tuple[Axis, ...]) -> list[Point]:
    """Return the points one step away along one axis, at most BEYOND steps outside of the grid."""
    moved = [
        (*point[:place], point[place] + step, *point[place + 1 :]) for place in range(len(axes)) for step in (-1, 1)
    ]
    return [new for new in moved if all(map(within, new, axes))]


def within(step: int, axis: Axis) -> bool:
    """Return whether the grid may be extended as far as this."""
    return -BEYOND <= step < axis.number + BEYOND
