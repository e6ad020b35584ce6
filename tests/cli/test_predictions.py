"""``lcw predict --output`` writes what the checkpoint's network says of each sample."""

import csv
from pathlib import Path

import pytest
import torch

from lcw_lightning import Digits, ImageClassifier
from lcw_lightning.cli import main
from lcw_lightning.cli.predictions import check_suffix

# Lightning says so when a checkpoint is loaded by a run with a folder of its own.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


@pytest.fixture
def predict(lcw, small_checkpoint):
    """Return a function of an output that predicts with the small run's checkpoint, and the expected probabilities."""
    model = ImageClassifier.load_from_checkpoint(small_checkpoint, map_location="cpu").eval()
    data = Digits()
    data.setup("predict")
    images, labels = data.test_dataset.tensors
    with torch.no_grad():
        probabilities = model(images).softmax(dim=1)

    def run(*flags):
        main(["predict", "--ckpt_path", small_checkpoint, *lcw.quiet, *flags])
        return probabilities, labels

    return run


def test_a_csv_file_has_a_row_for_each_sample(predict, capsys):
    probabilities, labels = predict("--output=new/predictions.csv")
    with Path("new/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["sample", "label", *(f"probability_{n}" for n in range(10)), "true_label"]
    assert [int(row["sample"]) for row in rows] == list(range(360))
    assert [int(row["label"]) for row in rows] == probabilities.argmax(dim=1).tolist()
    assert [int(row["true_label"]) for row in rows] == labels.tolist()
    written = torch.tensor([[float(row[f"probability_{n}"]) for n in range(10)] for row in rows])
    torch.testing.assert_close(written, probabilities, rtol=1e-4, atol=1e-6)
    assert "predictions, a row for each sample: new/predictions.csv" in capsys.readouterr().out


def test_a_pt_file_has_tensors_by_name(predict):
    probabilities, labels = predict("--output=predictions.pt")
    table = torch.load("predictions.pt")
    assert set(table) == {"label", "probabilities", "true_label"}
    assert torch.equal(table["label"], probabilities.argmax(dim=1))
    assert torch.equal(table["true_label"], labels)
    torch.testing.assert_close(table["probabilities"], probabilities, rtol=1e-4, atol=1e-6)


UNLABELLED = """
from torch.utils.data import DataLoader
from lcw_lightning import Digits

class Unlabelled(Digits):
    def predict_dataloader(self):
        return DataLoader(self.test_dataset.tensors[0], batch_size=100)
"""


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_images_alone_have_no_true_label(predict):
    Path("unlabelled_images.py").write_text(UNLABELLED)
    probabilities, _ = predict("--output=p.csv", "--data=unlabelled_images.Unlabelled")
    with Path("p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert "true_label" not in rows[0]
    assert [int(row["label"]) for row in rows] == probabilities.argmax(dim=1).tolist()


@pytest.mark.parametrize("output", ["predictions.txt", "predictions"])
def test_another_suffix_is_refused(output):
    with pytest.raises(ValueError, match=rf"files that end in .csv or .pt, got --output={output}\."):
        check_suffix(output)


@pytest.mark.filterwarnings("ignore:lcw predict without --ckpt_path", "ignore:.*are evaluated as they are")
def test_another_module_is_refused_before_it_predicts(lcw):
    boring = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
    with pytest.raises(SystemExit, match="--output writes the classes of an ImageClassifier, got BoringModel"):
        main(["predict", boring, "--output=p.csv", "--trainer.logger=false", *lcw.quiet])
    assert not Path("p.csv").exists()
