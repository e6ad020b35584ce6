"""What the doctor says of sixty architectures of timm as they are built, and of networks that are ill.

The answers are those of the architectures' own code: which start branches or heads at zero, and which read weights
without a call of their layers. Of all others nothing is the matter: each has normalization, and is trained as it is.
"""

import pytest
import torch
from torch import nn

from lcw_lightning import MLP, analyze
from tests.foreign.test_timm_families import FAMILIES, build

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

ZERO_GAIN = {  # the last norm of each residual block starts at zero, or the gain of its branch
    *("botnet26t_256", "cspresnet50", "efficientvit_m0", "gernet_s", "levit_128s", "mobilevit_xxs", "nf_regnet_b0"),
    *("regnetx_002", "repvit_m0_9", "res2net50_26w_4s", "resnest14d", "resnet18", "seresnet18"),
    *("tiny_vit_5m_224", "tresnet_m"),
}
ZERO_HEAD = {"hiera_tiny_224", "mixer_s32_224"}
ZERO_GAIN_AND_READ = {"swinv2_tiny_window8_256"}
READ = {"beit_base_patch16_224", "eva02_tiny_patch14_224"}  # F.linear(x, self.qkv.weight, ...)
FALSE_AT_MOST = 2
HEADER = ("architecture", "expected", "said")


def expected_of(name):
    answers = {
        "zero gain": ZERO_GAIN,
        "zero head": ZERO_HEAD,
        "read": READ,
        "zero gain and read": ZERO_GAIN_AND_READ,
    }
    return next((answer for answer, names in answers.items() if name in names), "nothing")


def answer(says):
    """Return the answer that one sentence of a verdict gives."""
    if "because the gains" in says:
        return "zero gain"
    if "because the weights of" in says:
        return "zero head"
    return "read" if "read without a call" in says else says.split(":")[0]


def findings_of(network, sizes=(64, 224, 256)):
    for size in sizes:
        images = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            return [finding.says for finding in analyze(network, (images, torch.arange(16) % 10)).findings]
        except (AssertionError, RuntimeError):  # it takes images of one size
            continue
    raise AssertionError(f"{type(network).__name__} takes none of {sizes}")


@pytest.mark.timeout(3600)
def test_of_healthy_architectures_at_most_two_are_called_ill():
    rows = []
    for name in FAMILIES:
        answers = dict.fromkeys(answer(says) for says in findings_of(build(name)))
        rows.append((name, expected_of(name), " and ".join(answers) or "nothing"))
    for row in (HEADER, *rows):
        print("{:32}{:20}{}".format(*row))
    wrong = [row for row in rows if row[1] != row[2]]
    assert len(wrong) <= FALSE_AT_MOST, wrong


def sigmoid_network():
    return MLP(in_features=64, num_classes=10, depth=50, activation=nn.Sigmoid)


def relu_network():
    layers = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def dead_layer():
    network = relu_network()
    nn.init.constant_(network[4].bias, -100.0)
    return network


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right, self.head = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, inputs):
        hidden = self.stem(inputs).relu()
        return self.head(self.left(hidden).relu() + self.right(hidden).relu().detach())


def overflow():
    network = relu_network()
    nn.init.constant_(network[6].weight, 1e18)
    nn.init.constant_(network[8].weight, 1e18)
    nn.init.constant_(network[10].weight, 1e18)
    return network


ILL = {
    "50 sigmoid layers": (sigmoid_network, "Gradients vanish", "hidden.0"),
    "dead layer": (dead_layer, "No signal", "'6'"),
    "detached branch": (Detached, "The loss does not depend on 'right'", "right"),
    "overflow": (overflow, "Not finite: the output of '10'", "10"),
}


@pytest.mark.parametrize("case", ILL)
def test_what_is_the_matter_is_found_and_the_layer_named(case):
    make, says, layer = ILL[case]
    torch.manual_seed(0)
    inputs, labels = torch.rand(32, 64), torch.arange(32) % 10
    found = [finding.says for finding in analyze(make(), (inputs, labels)).findings]
    assert any(said.startswith(says) and layer in said for said in found), found


def test_vgg16_without_normalization_has_activation_shift():
    vgg16 = pytest.importorskip("torchvision").models.vgg16
    torch.manual_seed(0)
    (finding,) = findings_of(vgg16(num_classes=10))
    assert finding.startswith("Activation shift")
    assert "'classifier.0'" in finding  # behind the average over positions


def test_control_a_healthy_network_gets_no_finding():
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU())]
    network = nn.Sequential(*layers, nn.Linear(64, 10))
    assert analyze(network, (torch.randn(32, 64), torch.arange(32) % 10)).findings == []
