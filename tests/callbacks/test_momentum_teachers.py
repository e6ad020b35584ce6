"""Frozen copies of a student (BYOL, DINO, MoCo) stay its copies under the callbacks, and follow it by averaging."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lcw_lightning import (
    ConstraintCallback,
    EdgeOfChaosInitCallback,
    MinibatchInitCallback,
    ShiftMonitor,
    constrain,
    convert_,
    edge_of_chaos_init_,
    minibatch_init_,
    plan_constraints,
)
from lcw_lightning.constraints.constrain import constrained_weights

IMAGES = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
CONSTRAINTS = [("lcw", "parametrize"), ("lcw", "project"), ("cwn", "parametrize"), ("wn", "parametrize")]
constraints = pytest.mark.parametrize(("kind", "method"), CONSTRAINTS, ids=["lcw", "project", "cwn", "wn"])


def encoder(norm=nn.BatchNorm2d):
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), norm(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def byol():
    student = nn.ModuleDict({"encoder": encoder(), "projector": nn.Linear(8, 6), "predictor": nn.Linear(6, 6)})
    teacher = nn.ModuleDict({"encoder": student["encoder"], "projector": student["projector"]})
    return student, copy.deepcopy(teacher)


def dino():
    student = nn.ModuleDict(
        {"encoder": encoder(nn.Identity), "projector": nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6))}
    )
    return student, copy.deepcopy(student)


def moco():
    student = nn.ModuleDict({"encoder": encoder(), "projector": nn.Linear(8, 6)})
    teacher = nn.ModuleDict({"encoder": encoder(), "projector": nn.Linear(8, 6)})
    teacher.load_state_dict(student.state_dict())
    return student, teacher


SHAPES = {"byol": byol, "dino": dino, "moco": moco}
shapes = pytest.mark.parametrize("shape", SHAPES)


def embed(network, images):
    return network["projector"](network["encoder"](images))


@pytest.fixture
def make_learner(lightning):
    class Learner(lightning.LightningModule):
        """Notes the cosine of student and teacher in its first step, and how far the teacher is from its average."""

        def __init__(self, shape, order):
            super().__init__()
            torch.manual_seed(0)
            self.student, self.teacher = SHAPES[shape]()
            self.teacher.requires_grad_(False)
            self.order, self.cosine, self.averaged = order, None, []

        def embeddings(self, images):
            if self.order == "student first":
                ours = embed(self.student, images)
            with torch.no_grad():
                theirs = embed(self.teacher, images)
            return (ours if self.order == "student first" else embed(self.student, images)), theirs

        def training_step(self, batch, batch_idx):
            ours, theirs = self.embeddings(batch[0])
            cosine = functional.cosine_similarity(ours, theirs)
            self.cosine = cosine.min().item() if self.cosine is None else self.cosine
            ours = self.student["predictor"](ours) if "predictor" in self.student else ours
            return ours.sub(theirs + 1).square().mean()

        @torch.no_grad()
        def on_train_batch_end(self, *_):
            pairs = list(zip(self.student.parameters(), self.teacher.parameters(), strict=False))
            before = [theirs.clone() for _, theirs in pairs]
            for ours, theirs in pairs:
                theirs.data.mul_(0.9).add_(ours.data, alpha=0.1)
            self.averaged.append(
                max((t - 0.9 * b - 0.1 * o).abs().max() for (o, t), b in zip(pairs, before, strict=True)).item()
            )

        def configure_optimizers(self):
            return torch.optim.SGD(self.student.parameters(), lr=0.001)

    return Learner


def batches():
    return DataLoader(TensorDataset(IMAGES), 16)


@constraints
@shapes
@pytest.mark.parametrize("order", ["student first", "teacher first"])
def test_student_and_teacher_agree_at_step_zero_and_the_average_goes_on(
    order, shape, kind, method, make_learner, make_trainer, residual
):
    module = make_learner(shape, order)
    callbacks = [ConstraintCallback(kind, method), MinibatchInitCallback(), ShiftMonitor(figures=False)]
    make_trainer(*callbacks).fit(module, batches())
    assert module.cosine == pytest.approx(1, abs=1e-5)
    assert len(module.averaged) == 4
    assert max(module.averaged) < 1e-5
    held = constrained_weights(module)
    assert {name.removeprefix("teacher.") for name in held if name.startswith("teacher.")} == {
        name.removeprefix("student.") for name in held if name.startswith("student.") and "predictor" not in name
    }
    if method == "project" or kind == "lcw":
        assert residual(module) < 1e-5


@shapes
def test_control_a_teacher_that_is_left_out_ends_apart(shape, make_learner, make_trainer):
    module = make_learner(shape, "student first")
    callbacks = [
        ConstraintCallback(method="project", exclude=["teacher.*"]),
        MinibatchInitCallback(exclude=["teacher.*"]),
    ]
    make_trainer(*callbacks).fit(module, batches())
    assert module.cosine < 0.99


@shapes
@pytest.mark.parametrize("order", ["student first", "teacher first"])
def test_weights_at_the_edge_of_chaos_are_drawn_for_both(order, shape, make_learner, make_trainer):
    module = make_learner(shape, order)
    drawn = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    make_trainer(EdgeOfChaosInitCallback(), max_steps=1).fit(module, batches())
    assert module.cosine == pytest.approx(1, abs=1e-5)
    assert not torch.equal(module.teacher.state_dict()["projector.weight" if shape != "dino" else "projector.0.weight"],
                           drawn["projector.weight" if shape != "dino" else "projector.0.weight"])  # fmt: skip


class Both(nn.Module):
    """A student and its teacher, which both see the inputs."""

    def __init__(self, first="student"):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.first = first

    def forward(self, inputs):
        parts = [self.student(inputs), self.teacher(inputs)]
        return parts if self.first == "student" else [self.student(inputs), parts[1]]


def are_equal(model):
    pairs = zip(model.student.parameters(), model.teacher.parameters(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


VERBS = {
    "constrain": lambda model, inputs: constrain(model),
    "minibatch_init_": minibatch_init_,
    "minibatch_init_ of constrained ones": lambda model, inputs: (
        constrain(model, "cwn"),
        minibatch_init_(model, inputs),
    ),
    "edge_of_chaos_init_": lambda model, inputs: edge_of_chaos_init_(model, inputs, activation=torch.relu),
    "convert_": convert_,
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_teacher_follows_its_student_in_every_verb(verb):
    model, inputs = Both(), torch.rand(32, 12)
    before = copy.deepcopy(model.teacher.state_dict())
    with pytest.warns(UserWarning, match=r"copies of trained ones: 'teacher.0.weight'.*exclude leaves them alone"):
        VERBS[verb](model, inputs)
    assert are_equal(model)
    after = model.teacher.state_dict()
    assert any(name not in after or not torch.equal(value, after[name]) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


@pytest.mark.parametrize("verb", VERBS)
def test_control_a_frozen_part_that_is_no_copy_is_left_alone(verb):
    model, inputs = Both(), torch.rand(32, 12)
    nn.init.uniform_(model.teacher[0].weight)
    nn.init.uniform_(model.teacher[2].weight)
    before = copy.deepcopy(model.teacher.state_dict())
    with pytest.warns(UserWarning, match="frozen"):
        VERBS[verb](model, inputs)
    after = model.teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("pattern", ["student.0.*", "teacher.0.*"])
def test_a_copy_is_left_out_with_its_original_and_where_exclude_names_it(pattern):
    plan = plan_constraints(Both(), exclude=[pattern])
    taken = ["student.0.weight"] * ("student" not in pattern) + ["student.2.weight", "teacher.2.weight"]
    assert list(plan.weights) == taken


@pytest.mark.parametrize("verb", ["minibatch_init_", "constrain"])
def test_a_copy_follows_its_original_unless_exclude_names_it(verb):
    inputs, call = (
        torch.rand(32, 12),
        {"minibatch_init_": minibatch_init_, "constrain": lambda m, _, **k: constrain(m, **k)},
    )
    both = Both()
    with pytest.warns(UserWarning, match="copies of trained ones"):
        call[verb](both, inputs, include=["student.*"])
    assert are_equal(both)
    alone = Both()
    before = copy.deepcopy(alone.teacher.state_dict())
    call[verb](alone, inputs, include=["student.*"], exclude=["teacher.*"])
    assert all(torch.equal(value, alone.teacher.state_dict()[name]) for name, value in before.items())
    assert not are_equal(alone)


def test_a_teacher_of_a_student_with_tied_weights_stays_its_copy():
    model, inputs = Both(), torch.rand(32, 12)
    model.student = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.Linear(12, 5))
    model.student[2].weight = model.student[0].weight
    model.teacher = copy.deepcopy(model.student).requires_grad_(False)
    with pytest.warns(UserWarning, match="copies of trained ones"):
        minibatch_init_(model, inputs)
    ours, theirs = model(inputs)
    torch.testing.assert_close(ours, theirs)
    assert are_equal(model)
