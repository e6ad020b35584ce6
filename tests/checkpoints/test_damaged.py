"""Damaged checkpoints load wholly as they were written, or not at all, and run no code."""

import pickle
import random
import zipfile

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lcw_lightning import constrain, load_from_checkpoint
from lcw_lightning.checkpoints import AtomicCheckpointIO
from lcw_lightning.checkpoints.read import read_checkpoint
from lcw_lightning.checkpoints.record import save_record


class Project(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(32, 16), nn.Linear(16, 4)


class Payload:
    """Runs code when it is unpickled: it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def content():
    project = Project()
    constrain(project)
    checkpoint = {"state_dict": project.state_dict(), "pytorch-lightning_version": "2.6.4", "hyper_parameters": {}}
    save_record(project, checkpoint)
    return checkpoint


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.ckpt"
    torch.save(content(), path)
    return path.read_bytes()


def flip_in_tensors(data, rng, path):
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        records = [info for info in archive.infolist() if "/data/" in info.filename and info.file_size > 8]
    info = rng.choice(records)
    name_length, extra_length = (int.from_bytes(data[info.header_offset + at :][:2], "little") for at in (26, 28))
    start = info.header_offset + 30 + name_length + extra_length
    return flipped(data, start + rng.randrange(info.file_size), rng)


def flipped(data, position, rng):
    changed = bytearray(data)
    changed[position] ^= 1 << rng.randrange(8)
    return bytes(changed)


def resaved(change):
    def damage(data, rng, path):
        checkpoint = content()
        change(checkpoint, rng, path)
        torch.save(checkpoint, path)
        return path.read_bytes()

    return damage


KEY = "head.parametrizations.weight.original"
RECORD = ["constraints", "basis_version", "projected"]
DAMAGES = {
    "bit in a tensor": flip_in_tensors,
    "bit anywhere": lambda data, rng, path: flipped(data, rng.randrange(len(data)), rng),
    "truncated": lambda data, rng, path: data[: rng.randrange(len(data))],
    "shape": resaved(lambda c, rng, path: c["state_dict"].update({KEY: torch.zeros(4, rng.choice([1, 14, 17]))})),
    "type": resaved(lambda c, rng, path: c["state_dict"].update({KEY: rng.choice(["text", 3, None, [1.0]])})),
    "record": resaved(lambda c, rng, path: c["lcw_lightning"].update({rng.choice(RECORD): rng.choice(["x", 7, [3]])})),
    "entry": resaved(
        lambda c, rng, path: c["lcw_lightning"]["constraints"].update({"head.weight": rng.choice([1, {}, {"kind": 3}])})
    ),
    "payload": resaved(lambda c, rng, path: c.update(extra=Payload(path.parent / "ran"))),
    "pickle": lambda data, rng, path: pickle.dumps(Payload(path.parent / "ran")),
    "no state": resaved(lambda c, rng, path: c.update(state_dict=rng.choice([None, 3, {}, []]))),
}


def outcomes(whole, tmp_path, number):
    """How many files of each damage were refused, loaded as they were written, or otherwise."""
    rng, counts, wrong = random.Random(0), {}, []
    expected = Project()
    constrain(expected)
    path = tmp_path / "damaged.ckpt"
    for name, damage in DAMAGES.items():
        for _ in range(number):
            path.write_bytes(damage(whole, rng, tmp_path / "made.ckpt"))
            try:
                loaded = load_from_checkpoint(Project, path)
            except ValueError:
                outcome = "refused"
            except Exception as error:  # not ours
                outcome = f"{type(error).__name__}: {error}"
            else:
                state = expected.state_dict()
                same = all(torch.equal(state[key], value) for key, value in loaded.state_dict().items())
                outcome = "as written" if same else "changed"
            counts[name, outcome] = counts.get((name, outcome), 0) + 1
            if outcome not in ("refused", "as written") or (tmp_path / "ran").exists():
                wrong.append((name, outcome))
    return counts, wrong


@pytest.mark.parametrize("number", [4, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*missing from the state dict", "ignore::FutureWarning")
def test_none_loads_with_changed_tensors_and_none_runs_code_and_every_message_is_ours(whole, tmp_path, number):
    counts, wrong = outcomes(whole, tmp_path, number)
    print(len(DAMAGES) * number, "files:", {f"{name}, {outcome}": count for (name, outcome), count in counts.items()})
    assert not wrong


def test_control_torch_alone_loads_a_changed_tensor(whole, tmp_path):
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(flip_in_tensors(whole, random.Random(1), path))
    torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=r"is damaged: the check sum .*set_crc32_options"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="is damaged"):
        AtomicCheckpointIO().load_checkpoint(path)
