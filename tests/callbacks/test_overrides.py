import copy
import pickle

import pytest

from lcw_lightning.callbacks.overrides import override_method, restore_method


class Counter:
    def __init__(self):
        self.count = 0

    def add(self, number=1):
        self.count += number


def test_overrides_nest_and_one_restore_takes_all_away():
    counter = Counter()
    override_method(counter, "add", lambda add, number=1: add(10 * number))
    override_method(counter, "add", lambda add, number=1: add(number + 1))
    counter.add(1)
    assert counter.count == 20
    restore_method(counter, "add")
    counter.add(1)
    assert counter.count == 21
    assert vars(counter) == {"count": 21}


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda counter: pickle.loads(pickle.dumps(counter))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_has_the_method_itself_bound_to_the_copy(copied):
    counter = Counter()
    override_method(counter, "add", lambda add, number=1: add(10 * number))  # a function that no pickle can hold
    twin = copied(counter)
    twin.add(1)
    assert (twin.count, counter.count) == (1, 0)


def test_a_method_that_the_user_set_on_the_instance_comes_back():
    counter, calls = Counter(), []
    counter.add = calls.append
    override_method(counter, "add", lambda add, number: add(10 * number))
    counter.add(1)
    restore_method(counter, "add")
    counter.add(1)
    assert calls == [10, 1]


def test_restoring_what_was_not_overridden_changes_nothing():
    counter = Counter()
    restore_method(counter, "add")
    counter.add()
    assert counter.count == 1
