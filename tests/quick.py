"""Cases of which the fast suite runs some, and the slow suite all."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest


def quick(names: Sequence[str], cases: Mapping[str, Any] | Sequence[str]) -> list[Any]:
    """Return parameters by name for ``parametrize``; those that ``names`` leaves out are slow."""
    values = cases if isinstance(cases, Mapping) else {name: name for name in cases}
    assert values.keys() >= {*names}
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), id=name, marks=marks)
        for name, value in values.items()
        for marks in [() if name in names else pytest.mark.slow]
    ]
