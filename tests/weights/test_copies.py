"""Frozen copies of a trained submodule, as momentum teachers are, are found; others are not."""

import copy

import pytest
from torch import nn

from lcw_lightning.weights.copies import momentum_copies


def encoder():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6))


def frozen_copy(module):
    return copy.deepcopy(module).requires_grad_(False)


def byol():
    model = nn.Module()
    model.student = nn.Sequential(encoder(), nn.Linear(6, 6))
    model.predictor = nn.Linear(6, 6)
    model.teacher = frozen_copy(model.student)
    return model


def test_the_weights_of_a_teacher_are_paired_with_those_of_its_student():
    assert momentum_copies(byol()) == {
        "teacher.0.0.weight": "student.0.0.weight",
        "teacher.0.4.weight": "student.0.4.weight",
        "teacher.1.weight": "student.1.weight",
    }


def test_a_teacher_of_a_part_of_the_student_is_paired():
    model = byol()
    model.teacher = nn.ModuleDict({"encoder": frozen_copy(model.student[0])})
    assert momentum_copies(model)["teacher.encoder.4.weight"] == "student.0.4.weight"


def test_several_teachers_of_one_student_are_paired():
    model = byol()
    model.second = frozen_copy(model.student)
    assert sorted(momentum_copies(model)) == [f"{name}.{w}" for name in ("second", "teacher") for w in WEIGHTS]


WEIGHTS = ["0.0.weight", "0.4.weight", "1.weight"]


def other_values(model):
    nn.init.ones_(model.teacher[1].bias)
    model.teacher[0][1].running_mean += 1
    nn.init.ones_(model.teacher[0][0].bias)
    nn.init.ones_(model.teacher[0][4].bias)


def no_frozen(model):
    model.teacher.requires_grad_()


def all_frozen(model):
    model.requires_grad_(False)


def two_students(model):
    model.second = copy.deepcopy(model.student)


def other_shapes(model):
    model.teacher = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6)).requires_grad_(False)


def another_class(model):
    class Head(nn.Linear):
        pass

    model.teacher = Head(6, 6).requires_grad_(False)
    model.teacher.load_state_dict(model.predictor.state_dict())


UNPAIRED = [other_values, no_frozen, all_frozen, two_students, other_shapes, another_class]


@pytest.mark.parametrize("change", UNPAIRED, ids=[change.__name__ for change in UNPAIRED])
def test_what_is_no_copy_of_exactly_one_is_paired_with_nothing(change):
    model = byol()
    change(model)
    assert momentum_copies(model) == {}


def test_another_buffer_leaves_the_parts_that_are_equal():
    model = byol()
    model.teacher[0][1].running_mean += 1
    assert sorted(momentum_copies(model)) == [f"teacher.{name}" for name in WEIGHTS]
    model.teacher[0] = nn.Sequential(model.teacher[0])
    nn.init.ones_(model.teacher[1].bias)
    assert sorted(momentum_copies(model)) == ["teacher.0.0.0.weight", "teacher.0.0.4.weight"]


def test_the_equal_layers_of_a_new_transformer_are_copies_of_none():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    model.layers[0].requires_grad_(False)
    assert momentum_copies(model) == {}


def test_a_backbone_of_no_one_is_paired_with_nothing():
    model = nn.Sequential(encoder().requires_grad_(False), encoder())
    assert momentum_copies(model) == {}


def test_lazy_and_meta_weights_are_not_compared():
    model = byol()
    model.lazy = nn.LazyLinear(3)
    model.meta = nn.Linear(2, 2, device="meta").requires_grad_(False)
    assert sorted(momentum_copies(model)) == [f"teacher.{name}" for name in WEIGHTS]
