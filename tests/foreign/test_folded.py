"""Tools that merge, quantize or prune work on a folded network, and not on a constrained one."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lcw_lightning import constrain, fold

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # deprecations of these tools' own
INPUTS = torch.linspace(-1, 1, 4 * 16).view(4, 16)
METHODS = pytest.mark.parametrize("method", ["parametrize", "project"])


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, inputs):
        return self.head(self.body(inputs).sigmoid())


def constrained(method):
    network = Network()
    constrain(network, method=method)
    return network.eval()


def adapted_and_merged(network):
    """Return the outputs with a LoRA adapter, and those after it was merged."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["head"], init_lora_weights=False)
    adapted = peft.get_peft_model(network, config).eval()
    before = adapted(INPUTS)
    return before, adapted.merge_and_unload().eval()(INPUTS)


@METHODS
def test_peft_merges_into_a_folded_network(method):
    plain = fold(constrained(method))
    untouched = plain(INPUTS)
    before, after = adapted_and_merged(plain)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert (after - untouched).abs().max() > 1e-3


def test_control_a_merge_into_a_parametrized_network_is_lost():
    network = constrained("parametrize")
    untouched = network(INPUTS)
    before, after = adapted_and_merged(network)
    assert torch.equal(after, untouched)
    assert (after - before).abs().max() > 1e-3


@METHODS
def test_torchao_quantizes_a_folded_network(method):
    quantization = pytest.importorskip("torchao.quantization")
    plain = fold(constrained(method))
    expected = plain(INPUTS)
    quantization.quantize_(plain, quantization.Int8WeightOnlyConfig())
    assert "Int8" in type(plain.head.weight).__name__ or "Quantized" in type(plain.head.weight).__name__
    torch.testing.assert_close(plain(INPUTS), expected, rtol=0, atol=0.02)


@METHODS
def test_torchs_dynamic_quantization_takes_a_folded_network(method):
    plain = fold(constrained(method))
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear})
    assert "quantized" in type(quantized.head).__module__
    torch.testing.assert_close(quantized(INPUTS), plain(INPUTS), rtol=0, atol=0.05)


@METHODS
def test_torch_prunes_a_folded_network(method):
    plain = fold(constrained(method))
    prune.l1_unstructured(plain.head, "weight", amount=0.5)
    prune.remove(plain.head, "weight")
    plain(INPUTS)
    assert (plain.head.weight == 0).sum() == 64
