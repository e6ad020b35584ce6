"""A key that stands twice in YAML is named with its lines; all else passes."""

import pytest
import yaml

from lcw_lightning.cli.yaml_keys import check_keys

TWICE = {
    "top": ("a: 1\nb: 2\na: 3\n", "'a' stands twice, in lines 1 and 3"),
    "nested": ("a:\n  b: 1\n  b: 1\n", "'b' stands twice, in lines 2 and 3"),
    "list": ("- {a: 1}\n- a: 1\n  a: 2\n", "'a' stands twice, in lines 2 and 3"),
    "quoted": ("a: 1\n'a': 2\n", "'a' stands twice, in lines 1 and 2"),
}
ONCE = {
    "levels": "a: {a: {a: 1}}\nb: {a: 1}\n",
    "anchors": "a: &x {c: 1}\nb: *x\nd: {<<: *x, e: 2}\n",
    "cycle": "a: &x [*x]\n",
    "scalar": "3",
    "empty": "",
}


@pytest.mark.parametrize(("text", "says"), TWICE.values(), ids=TWICE)
def test_a_repeated_key_is_refused(text, says):
    with pytest.raises(yaml.YAMLError, match=says):
        check_keys(text)


@pytest.mark.parametrize("text", ONCE.values(), ids=ONCE)
def test_keys_of_different_mappings_may_be_alike(text):
    check_keys(text)
