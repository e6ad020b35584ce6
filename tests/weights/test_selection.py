import pytest
from torch import nn

from lcw_lightning.weights.selection import select_weights


@pytest.fixture
def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        pytest.param(["*"], [], ["0.weight", "1.weight", "2.weight"], id="all"),
        pytest.param(["0.*", "2.weight"], [], ["0.weight", "2.weight"], id="include"),
        pytest.param(["*"], ["[01].*"], ["2.weight"], id="exclude"),
    ],
)
def test_globs_select(network, include, exclude, expected):
    assert list(select_weights(network, include, exclude)) == expected


@pytest.mark.parametrize("patterns", [{"include": ["1.wieght"]}, {"exclude": ["1.wieght"]}], ids=["include", "exclude"])
def test_a_pattern_without_a_match_names_near_ones(network, patterns):
    with pytest.raises(ValueError, match=r"'1\.wieght' matches no weight of Sequential; near it are '1\.weight'"):
        select_weights(network, **patterns)


def test_nothing_left_is_an_error(network):
    with pytest.raises(ValueError, match="leave no weight of Sequential"):
        select_weights(network, exclude=["*"])


def test_a_model_without_weights_says_what_is_needed():
    with pytest.raises(ValueError, match="needs a layer of Linear, Conv1d, Conv2d, Conv3d"):
        select_weights(nn.ReLU())


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_string_in_place_of_a_list_is_refused(network, argument):
    with pytest.raises(ValueError, match=rf"{argument} is a list of patterns, got the string '0\.\*'"):
        select_weights(network, **{argument: "0.*"})
