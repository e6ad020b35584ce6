import copy
import pickle

import pytest

from lcw_lightning.callbacks.overrides import Overrides


class Counter:
    def __init__(self):
        self.count = 0

    def add(self, number=1):
        self.count += number


def ten_times(add, number=1):
    add(10 * number)


def one_more(add, number=1):
    add(number + 1)


def test_overrides_nest_and_one_restore_takes_all_away():
    counter, overrides = Counter(), Overrides()
    overrides.add(counter, "add", ten_times)
    overrides.add(counter, "add", one_more)
    counter.add(1)
    assert counter.count == 20
    overrides.restore()
    counter.add(1)
    assert counter.count == 21
    assert vars(counter) == {"count": 21}


@pytest.mark.parametrize("first", [True, False], ids=["the-first-ends-first", "the-last-ends-first"])
def test_overrides_of_two_owners_end_in_any_order(first):
    counter, lower, upper = Counter(), Overrides(), Overrides()
    lower.add(counter, "add", ten_times)
    upper.add(counter, "add", one_more)
    (lower if first else upper).restore()
    counter.add(1)
    assert counter.count == (2 if first else 10)
    (upper if first else lower).restore()
    assert list(vars(counter)) == ["count"]


def test_an_error_in_the_block_restores_too():
    counter = Counter()

    def fail():
        with Overrides() as overrides:
            overrides.add(counter, "add", ten_times)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert vars(counter) == {"count": 0}


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_has_the_method_itself_bound_to_the_copy(copied):
    counter, overrides = Counter(), Overrides()
    overrides.add(counter, "add", lambda add, number=1: add(10 * number))  # a function that no pickle can hold
    twin = copied(counter)
    twin.add(1)
    assert (twin.count, counter.count) == (1, 0)
    copied(overrides).restore()  # holds nothing
    counter.add(1)
    assert counter.count == 10


def test_a_method_that_the_user_set_on_the_instance_comes_back():
    counter, calls = Counter(), []
    counter.add = calls.append
    with Overrides() as overrides:
        overrides.add(counter, "add", ten_times)
        counter.add(1)
    counter.add(1)
    assert calls == [10, 1]


def test_restoring_what_was_not_overridden_changes_nothing():
    overrides = Overrides()
    overrides.restore()
