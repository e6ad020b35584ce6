import math

import pytest

from lcw_lightning.theory.fixed_points import fixed_points


def of_polynomial(roots, lowest=0.1, highest=100.0):
    """The map q + c prod(q - root), which crosses the diagonal at each root and touches it at double ones."""

    def distance(q):
        return 0.01 * math.prod(q - root for root in roots)

    def slope(q):
        others = [math.prod(q - other for j, other in enumerate(roots) if j != i) for i in range(len(roots))]
        return 1 + 0.01 * sum(others)

    return fixed_points(lambda q: q + distance(q), slope, lowest, highest)


@pytest.mark.parametrize(
    "roots",
    [
        (1.0,),
        (0.37, 2.0, 2.05, 31.0),
        (0.1, 100.0),
        (3.0, 3.0),
        (0.5, 3.0, 3.0, 7.0),
        (1.7, 1.7, 1.7),
        (-1.0, 200.0),
    ],
    ids=str,
)
def test_all_crossings_and_touching_points_in_the_range_are_found_once(roots):
    expected = sorted({root for root in roots if 0.1 <= root <= 100})
    assert of_polynomial(roots) == pytest.approx(expected, rel=1e-4 if len(set(roots)) < len(roots) else 1e-12)


def test_a_map_that_misses_the_diagonal_by_a_millionth_has_no_fixed_point():
    assert fixed_points(lambda q: (1 + q * q) / 2, lambda q: q, 0.1, 10) == pytest.approx([1.0], rel=1e-12)
    assert fixed_points(lambda q: (1 + q * q) / 2 + 1e-6, lambda q: q, 0.1, 10) == []


def test_a_map_that_is_the_identity_on_an_interval_is_refused():
    with pytest.raises(ValueError, match=r"Every q from .* to .* is a fixed point"):
        fixed_points(lambda q: max(q, 2.0), lambda q: float(q > 2), 0.1, 10)


@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_an_empty_range_is_refused(lowest, highest):
    with pytest.raises(ValueError, match=f"0 < lowest < highest, but {lowest} to {highest} was given"):
        fixed_points(lambda q: 1.0, lambda q: 0.0, lowest, highest)
