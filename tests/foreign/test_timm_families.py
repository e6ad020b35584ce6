"""Sixty architectures of timm, each of another family: constrained, rescaled, trained a step, folded, analyzed."""

import re
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.overrides import TorchFunctionMode

from lcw_lightning import analyze, constrain, fold, minibatch_init_
from lcw_lightning.weights.restoring import undisturbed
from lcw_lightning.weights.weight_ref import named_weights

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

FAMILIES = [
    "beit_base_patch16_224",
    "botnet26t_256",
    "cait_xxs24_224",
    "coat_tiny",
    "coatnet_pico_rw_224",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "cspresnet50",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla34",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformerv2_s0",
    "efficientnet_b0",
    "efficientvit_b0",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "gernet_s",
    "ghostnet_100",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "inception_next_atto",
    "levit_128s",
    "mambaout_femto",
    "mixer_s32_224",
    "mobilenetv3_small_100",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nest_tiny",
    "nextvit_small",
    "nf_regnet_b0",
    "pit_ti_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m0_9",
    "res2net50_26w_4s",
    "resnest14d",
    "resnet18",
    "resnetv2_50x1_bit",
    "rexnetr_200",
    "selecsls42",
    "seresnet18",
    "skresnet18",
    "starnet_s1",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "tiny_vit_5m_224",
    "tresnet_m",
    "xcit_nano_12_p16_224",
]
ALLOWED = {
    "zero weights",
    "zero inputs",
    "preactivations that do not vary",
    "scaling it leaves the layer's output unchanged",
}
IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)
HEADER = ("architecture", "layers", "rescaled", "off by a tenth", "said")


class Result(NamedTuple):
    """What came of an architecture: the number of its layers, and the standard deviations of those rescaled."""

    layers: int
    stds: dict[str, float]
    says: str


def build(name: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    try:
        return timm.create_model(name, num_classes=10, img_size=64)
    except TypeError:  # it takes images of any size
        return timm.create_model(name, num_classes=10)


class Products(TorchFunctionMode):
    """Sees the products of weights that a network reads without a call of their layers."""

    def __init__(self, weights: dict[str, Tensor], see) -> None:
        super().__init__()
        self.weights, self.see = weights, see

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
        if function is linear:
            for name, weight in self.weights.items():
                if weight.shape == given["weight"].shape and torch.equal(weight, given["weight"]):
                    self.see(name, linear(given["input"], weight))
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def stds_of(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, float]:
    """The standard deviation of each layer's first output; biases are zero."""
    found: dict[str, float] = {}

    def see(name, output):
        found.setdefault(name, output.double().std(correction=0).item())

    refs = named_weights(network)
    hooks = [refs[name].layer.register_forward_hook(lambda *call, name=name: see(name, call[-1])) for name in weights]
    torch.manual_seed(1)  # as in the initialization
    with undisturbed(network), Products(weights, see):
        network(IMAGES)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def output_of(network: nn.Module) -> Tensor:
    """In training mode: after so few batches, norms with running statistics would let deep networks overflow."""
    torch.manual_seed(1)
    with undisturbed(network):
        output = network(IMAGES)
    return output if isinstance(output, Tensor) else output[0]


def loss_of(output: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    return cross_entropy(output if isinstance(output, Tensor) else output[0], labels)


def initialized(name: str) -> Result:
    """Constrain and rescale; look which weights changed, and what their layers put out; train, fold and analyze."""
    network = build(name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        constrain(network)
        before = {name: ref.value.detach().clone() for name, ref in named_weights(network).items()}
        torch.manual_seed(1)
        minibatch_init_(network, IMAGES)
    after = {name: ref.value.detach() for name, ref in named_weights(network).items()}
    changed = {name: weight for name, weight in after.items() if not torch.equal(weight, before[name])}
    stds = stds_of(network, changed)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    loss_of(network(IMAGES), LABELS).backward()
    optimizer.step()
    torch.testing.assert_close(output_of(fold(network)), output_of(network), rtol=1e-3, atol=1e-3)
    str(analyze(network, (IMAGES, LABELS), loss_of))
    lines = [str(warning.message) for warning in said if "minibatch initialization" in str(warning.message)]
    return Result(len(after), {name: stds.get(name, float("nan")) for name in changed}, "".join(lines))


def reasons(says: str) -> dict[str, int]:
    """How many layers the line names for each reason."""
    groups = re.findall(r"('[^()]*) \(([^()]*)\)", says)
    return {
        reason: names.count("'") // 2 + sum(map(int, re.findall(r"and (\d+) more", names))) for names, reason in groups
    }


def test_of_sixty_families_all_layers_are_rescaled_but_those_that_cannot_be_and_these_are_named(capsys):
    results = {name: initialized(name) for name in FAMILIES}
    off = {name: [std for std in result.stds.values() if not abs(std - 1) < 0.1] for name, result in results.items()}
    layers, rescaled = (sum(map(count, results.values())) for count in (lambda r: r.layers, lambda r: len(r.stds)))
    with capsys.disabled():
        print("\n{:<32}{:>8}{:>10}{:>16}  {}".format(*HEADER))
        for name, (number, stds, says) in results.items():
            print(f"{name:<32}{number:>8}{len(stds):>10}{len(off[name]):>16}  {reasons(says) or ''}")
        print(f"{len(results)} families: {rescaled} of {layers} layers rescaled, {rescaled / layers:.1%}")
    for name, (number, stds, says) in results.items():
        assert sum(reasons(says).values()) == number - len(stds), name
        assert reasons(says).keys() <= ALLOWED, name
    assert not any(off.values())
    assert len(results) == 60
    assert rescaled > 0.95 * layers


def test_without_it_most_layers_are_off_by_more_than_a_tenth():
    network = build("resnet18")
    constrain(network)
    stds = stds_of(network, {name: ref.value for name, ref in named_weights(network).items()})
    assert sum(abs(std - 1) > 0.1 for std in stds.values()) > 0.8 * len(stds)
