import json
import pickle
from hashlib import md5

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from tools.records import ROOT
from tools.reproduce import __main__ as reproduce
from tools.reproduce.paper import figures


def entries(folder):
    return json.loads((folder / "figures.json").read_text())


def test_all_figures_are_drawn_on_the_digits_where_no_data_is_given(tmp_path, capsys):
    reproduce.main(["figures", "--output", str(tmp_path), "--epochs", "1"])
    names = ["figure1_random", "figure2_digits", "figure3_digits", "figure4_digits"]
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))
    assert sorted(entries(tmp_path)) == names
    assert all({"data", "git", "versions", "hardware"} <= set(entry) for entry in entries(tmp_path).values())
    assert "Images: digits, since no folder of CIFAR-10 was given" in capsys.readouterr().out


def test_a_figure_alone_leaves_the_others_numbers(tmp_path):
    (tmp_path / "figures.json").write_text('{"figure9": 1}')
    reproduce.main(["figures", "1", "--output", str(tmp_path)])
    assert list(entries(tmp_path)) == ["figure9", "figure1_random"]


def test_stripes_vanish_with_zero_sum_weights():
    _, numbers = figures.figure_1(None, 0)
    standard, lcw = numbers["row_mean_std_over_std_within"].values()
    # Of w uniform in (-1, 1) and a in (0, 1): sqrt(m E[w^2]) E[a] over sqrt(m E[w^2] V[a]); then what m samples leave.
    assert standard == pytest.approx([3**0.5] * 5, rel=0.2)
    assert lcw == pytest.approx([0.1] * 5, rel=0.3)


def test_activations_spread_through_all_layers_with_lcw_and_shrink_without():
    data = figures.digits()
    _, lcw = figures.figure_2(data, epochs=1)
    _, glorot = figures.figure_3(data, 0)
    quantiles = lcw["quantiles"] | glorot["quantiles"]
    spread = {title: (boxes[:, 4] - boxes[:, 0]).mean() for title, boxes in quantiles.items()}
    assert all(boxes.shape == (20, 5) for boxes in quantiles.values())
    assert [spread[f"digits, start, layer {layer}"] > 0.6 for layer in (1, 5, 9)] == [True] * 3
    assert [spread[f"digits, layer {layer}"] < 0.1 for layer in (1, 5, 9)] == [False, True, True]
    assert not torch.equal(quantiles["digits, start, layer 1"], quantiles["digits, 1 epochs, layer 1"])
    assert lcw["train_accuracy"] > 0.5


def test_the_gradient_vanishes_with_standard_weights_alone():
    figure, numbers = figures.figure_4(figures.digits(), 0)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["standard weights, digits", "LCW, digits"]
    assert min(numbers["standard weights"]["decades_of_fall"]) > 7
    assert all(1 < ratio < 5 for ratio in numbers["LCW"]["gradient_std_of_layer_1_over_20"])
    for method in ("standard weights", "LCW"):
        stds = torch.tensor([run["preactivation"] for run in numbers[method]["std_by_layer"]])
        torch.testing.assert_close(stds, torch.ones(5, 20), atol=1e-4, rtol=0)


def test_cifar10_is_read_and_normalized_by_channel(tmp_path, monkeypatch):
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)

    def written(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, md5((folder / name).read_bytes()).hexdigest()

    pixels = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
    monkeypatch.setattr(CIFAR10, "train_list", [written("data_batch_1", {"data": pixels, "labels": [3] * 20})])
    monkeypatch.setattr(CIFAR10, "test_list", [])
    meta, digest = written("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta, "key": "label_names", "md5": digest})
    data = figures.cifar10(tmp_path)
    assert data.images.shape == (20, 3, 32, 32)
    channel = pixels.reshape(20, 3, 32, 32)[:, 1]
    np.testing.assert_allclose(data.images[:, 1], (channel - channel.mean()) / channel.std(), atol=1e-3)
    assert data.labels.tolist() == [3] * 20


def test_a_folder_without_cifar10_is_one_message(tmp_path):
    with pytest.raises(SystemExit, match="needs a folder that holds a whole cifar-10-batches-py"):
        reproduce.main(["figures", "--data", str(tmp_path)])


def test_an_unknown_figure_is_one_message(capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["figures", "7"])
    assert "the figures are 1, 2, 3, 4, not 7" in capsys.readouterr().err


def test_the_stored_numbers_say_what_the_paper_says():
    stored = entries(ROOT / "results" / "figures")
    cifar10 = stored["figure4_cifar10"]
    assert min(cifar10["standard weights"]["decades_of_fall"]) >= 7
    assert all(1 < ratio < 5 for ratio in cifar10["LCW"]["gradient_std_of_layer_1_over_20"])
    for name in stored:
        assert (ROOT / "results" / "figures" / f"{name}.png").stat().st_size > 10_000
