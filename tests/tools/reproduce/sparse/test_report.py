import pytest

from tools.reproduce.sparse.grid import Method
from tools.reproduce.sparse.report import paper


@pytest.mark.parametrize(
    ("network", "method", "expected"),
    [
        ("sparse_mlp100", ("CReLU", 0.85, 0.9), ("0.28 ± 0.37", "0.79 ± 0.04")),
        ("sparse_cnn50", ("CReLU", 0.85, 0.9), ("0.66", "0.83")),
        ("sparse_mlp100", ("CReLU", 0.85, 0.9, True), ("-", "-")),
        ("sparse_mlp100", ("CReLU", 0.9, 0.7), ("-", "-")),
    ],
    ids=["MLP", "CNN", "with LCW", "not the paper's"],
)
def test_the_papers_numbers_stand_beside_those_of_its_own_rows(network, method, expected):
    assert paper(network, Method(*method)) == expected
