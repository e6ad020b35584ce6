import importlib.util
from pathlib import Path

import pytest

import lcw_lightning

PATH = Path(__file__).with_name("typed_user.py")


@pytest.fixture
def user():
    spec = importlib.util.spec_from_file_location("typed_user", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", lcw_lightning.__all__)
def test_the_typed_users_file_uses_every_public_name(name):
    assert PATH.read_text().count(name) >= 2  # imported and used


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_the_typed_users_file_runs(user, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    user.make_classifier()
    user.make_sparse_network()
    user.train(user.Autoencoder(), "run.ckpt")
    assert sorted(user.plain_autoencoder("run.ckpt").state_dict())[0] == "decoder.bias"
