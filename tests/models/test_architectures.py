"""Whole architectures under the constraint: every classification network of torchvision, recurrence, attention, U-Net.

Prints a table with a row a network.
"""

import math
import warnings

import pytest
import torch
import torchvision
from torch import nn

from lcw_lightning import constrain, fold
from lcw_lightning.weights.weight_ref import named_weights


class StackedLSTM(nn.Module):
    """Classifies sequences; projections and both directions bring every kind of recurrent weight."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(12, 16, num_layers=3, proj_size=8, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(16, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, sequences):
        return self.head(self.gru(self.lstm(sequences)[0])[0][:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(16, nhead=4, num_encoder_layers=2, num_decoder_layers=2, batch_first=True)
        self.cross = nn.MultiheadAttention(16, num_heads=2, kdim=12, vdim=10, batch_first=True)

    def forward(self, source):
        return (
            self.transformer(source, source[:, :3]) + self.cross(source[:, :3], source[..., :12], source[..., :10])[0]
        )


class UNet3d(nn.Module):
    """Two resolutions; the way down is grouped and depthwise, the way up transposed, grouped and not."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv3d(8, 16, 3, stride=2, padding=1, groups=4), nn.BatchNorm3d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv3d(16, 16, 3, padding=1, groups=16), nn.Conv3d(16, 16, 1), nn.ReLU())
        self.up = nn.ConvTranspose3d(16, 8, 2, stride=2, groups=4)
        self.merge = nn.Sequential(nn.Conv3d(16, 8, 3, padding=1), nn.ReLU())
        self.leave = nn.ConvTranspose3d(8, 3, 3, padding=1)

    def forward(self, volume):
        wide = self.enter(volume)
        return self.leave(self.merge(torch.cat((wide, self.up(self.deep(self.down(wide)))), dim=1)))


OTHERS = {
    "stacked_lstm": (StackedLSTM, (2, 7, 12)),
    "transformer": (Transformer, (2, 7, 16)),
    "unet_3d": (UNet3d, (2, 2, 8, 8, 8)),
}
QUICK = {"mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", *OTHERS}
SIZES = {"alexnet": 224, "maxvit": 224, "vit": 224, "inception": 299}


def make(name):
    """The network and an input batch for it."""
    if name in OTHERS:
        network, shape = OTHERS[name]
        return network(), torch.randn(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # two of them warn that their initialization will change
        network = torchvision.models.get_model(name, weights=None)
    for parameter in network.parameters():
        if (
            parameter.dim() > 1 and not parameter.any()
        ):  # through the zero heads of vision transformers no gradient passes
            nn.init.normal_(parameter, std=0.02)
    size = next((size for prefix, size in SIZES.items() if name.startswith(prefix)), 64)
    return network, torch.randn(2, 3, size, size)


def tensors(output):
    """All tensors of an output: some networks return auxiliary logits in training."""
    return [output] if isinstance(output, torch.Tensor) else [tensor for tensor in output if tensor is not None]


NAMES = [*OTHERS, *torchvision.models.list_models(module=torchvision.models)]
PARAMS = [pytest.param(name, id=name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]


@pytest.fixture(scope="module")
def table(request):
    """Rows that are printed once all networks are done."""
    rows = [("network", "numbers", "weights", "residual", "after a step", "folded", "plain checkpoint")]
    yield rows
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print()
        for row in rows:
            print("{:20} {:>11} {:>8} {:>9} {:>13} {:>8} {:>17}".format(*row))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", PARAMS)
def test_a_network_trains_constrained_folds_and_keeps_its_checkpoints(residual, name, table, tmp_path):
    network, inputs = make(name)
    plain_state = on_disk(network.state_dict(), tmp_path / "plain.pt")
    at_start = residual(network)
    names = constrain(network, exclude=[name for name, ref in named_weights(network).items() if ref.fan_in == 1])
    weights = {key: ref for key, ref in named_weights(network).items() if key in names}
    constrained = residual(network, names)
    assert constrained < 1e-5 < at_start

    train_one_step(network.train(), weights, inputs)
    stepped = residual(network, names)
    assert stepped < 1e-5

    with torch.no_grad():
        live, folded = tensors(network.eval()(inputs)), tensors(fold(network)(inputs))
    assert all(tensor.isfinite().all() for tensor in live)
    difference = max((one - other).abs().max().item() for one, other in zip(live, folded, strict=True))
    assert difference <= 1e-5 * max(tensor.abs().max().item() for tensor in live)

    state = on_disk(network.state_dict(), tmp_path / "constrained.pt")
    network.load_state_dict(plain_state)
    projected = max(far_from_projection(ref, plain_state[key]) for key, ref in weights.items())
    assert projected < 1e-5
    network.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())

    parameters = sum(math.prod(value.shape) for value in plain_state.values())
    errors = [f"{value:.0e}" for value in (constrained, stepped, difference, projected)]
    table.append((name, f"{parameters:,}", len(names), *errors))


def on_disk(state, path):
    """The state dict, read from a file as it is used: copies of the largest networks would fill the memory."""
    torch.save(state, path)
    return torch.load(path, mmap=True, weights_only=True)


def train_one_step(network, weights, inputs):
    """One step of SGD, after which the constrained weights have moved and no gradients are left."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = {key: ref.units[0].detach().clone() for key, ref in weights.items()}
    sum(tensor.square().mean() for tensor in tensors(network(inputs))).backward()
    optimizer.step()
    optimizer.zero_grad()
    still = [key for key, ref in weights.items() if torch.equal(ref.units[0], before[key])]
    assert len(still) < len(weights) / 2, still


@torch.no_grad()
def far_from_projection(ref, plain):
    """Distance of the weight from the plain one with each unit's mean taken away, over its norm."""
    groups = ref.transposed_groups
    rows = plain.view(groups, -1, *plain.shape[1:]).transpose(1, 2) if groups else plain
    rows = rows.reshape(ref.num_units, -1)
    centred = rows - rows.mean(1, keepdim=True)
    return ((ref.units - centred).norm() / centred.norm()).item()
