import pytest
import torch

from lcw_lightning import CIFAR10, MNIST, Digits
from lcw_lightning.data.sequences import Reader

IMAGES = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_rows_run_from_top_to_bottom():
    steps = Reader("rows")(IMAGES)
    assert steps.shape == (5, 4, 18)
    for row in range(4):
        expected = torch.stack([IMAGES[:, :, row, column] for column in range(6)], dim=1)
        assert torch.equal(steps[:, row].view(5, 6, 3), expected)


def test_pixels_run_row_by_row():
    steps = Reader("pixels")(IMAGES)
    assert steps.shape == (5, 24, 3)
    for step in range(24):
        assert torch.equal(steps[:, step], IMAGES[:, :, step // 6, step % 6])


@pytest.mark.parametrize("sequence", ["rows", "pixels"])
def test_one_permutation_moves_the_pixels_of_all_images(sequence):
    places = torch.arange(24.0).view(1, 1, 4, 6)
    (order,) = Reader(sequence, permuted=True)(places).flatten(1).long()
    assert sorted(order.tolist()) == list(range(24))
    assert order.tolist() != list(range(24))
    permuted = Reader(sequence, permuted=True)(IMAGES).reshape(5, 24, 3)
    assert torch.equal(permuted, Reader("pixels")(IMAGES)[:, order])


def test_images_stay_images_by_default():
    assert Reader()(IMAGES) is IMAGES


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"sequence": "columns"}, "got 'columns'"), ({"permuted": True}, "give sequence='rows' or 'pixels'")],
    ids=["unknown", "permuted-images"],
)
@pytest.mark.parametrize("module", [Digits, MNIST])
def test_settings_that_give_no_sequence_are_refused_where_they_are_given(module, settings, says):
    with pytest.raises(ValueError, match=says):
        module(**settings)


SETTINGS = [("rows", False), ("pixels", False), ("pixels", True)]
every_reading = pytest.mark.parametrize(("sequence", "permuted"), SETTINGS, ids=["rows", "pixels", "permuted"])


@every_reading
def test_digits_are_read_as_sequences_in_all_stages(sequence, permuted):
    images, sequences = Digits(), Digits(sequence=sequence, permuted=permuted)
    for data in (images, sequences):
        data.setup("fit")
    for stage in ("train", "val", "test", "predict"):
        (seen, labels), (read, same) = (next(iter(getattr(d, f"{stage}_dataloader")())) for d in (images, sequences))
        assert torch.equal(read, Reader(sequence, permuted)(seen))
        assert torch.equal(labels, same)


@every_reading
@pytest.mark.parametrize("module", [MNIST, CIFAR10])
def test_augmented_images_are_read_as_sequences(module, sequence, permuted, published, tmp_path):
    batches = []
    for settings in ({}, {"sequence": sequence, "permuted": permuted}):
        data = module(tmp_path, batch_size=16, augment=True, **settings)
        data.prepare_data()
        data.setup("fit")
        batches.append([next(iter(loader())) for loader in (data.train_dataloader, data.test_dataloader)])
    for (seen, labels), (read, same) in zip(*batches, strict=True):
        assert torch.equal(read, Reader(sequence, permuted)(seen))
        assert torch.equal(labels, same)
