"""Networks that nobody here wrote: how each is built, small and with random weights, and what it trains on.

Whatever package is missing skips its networks.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Foreign"]


class Foreign(NamedTuple):
    """A network, a batch, what they make of each other, and the least share of the matrices that is constrained."""

    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    output: Callable[[nn.Module, Any], Tensor]
    share: float = 0.0


def transformer(kind: str, batch: Callable[[], Any], **config: Any) -> Foreign:
    """One of transformers' models."""

    def build() -> nn.Module:
        model = getattr(pytest.importorskip("transformers"), kind)
        return model(model.config_class(**config))

    return Foreign(build, batch, own_loss, logits, share=0.99)


def own_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return network(**batch).loss


def logits(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    outputs = network(**batch)
    return outputs.logits if "logits" in outputs else outputs.logits_per_image


def lora() -> nn.Module:
    """Adapters on a BERT."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=4, init_lora_weights=False)
    return peft.get_peft_model(NETWORKS["bert"].build(), config)


def words(*names: str) -> dict[str, Tensor]:
    return {name: torch.randint(2, 64, (8, 12)) for name in names}


def texts() -> dict[str, Tensor]:
    return {**words("input_ids"), "labels": torch.randint(3, (8,))}


def pictures() -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(8, 3, 32, 32), "labels": torch.randint(3, (8,))}


def captions() -> dict[str, Any]:
    return {**words("input_ids"), "pixel_values": torch.rand(8, 3, 32, 32), "return_loss": True}


def classifier(
    build: Callable[[], nn.Module], batch: Callable[[], Any], read: Callable[[Any], Tensor] = lambda scores: scores
) -> Foreign:
    """A network of any inputs, whose outputs hold scores of four classes."""

    def output(network: nn.Module, batch: Any) -> Tensor:
        return read(network(*batch[0]))

    return Foreign(
        build, batch, lambda network, batch: nn.functional.cross_entropy(output(network, batch), batch[1]), output
    )


def timm(name: str, **settings: Any) -> Foreign:
    """One of timm's networks, its last layer drawn as torch does: in some it is zero, which cannot be rescaled."""

    def build() -> nn.Module:
        network = pytest.importorskip("timm").create_model(name, **settings)
        network.reset_classifier(4)
        return network

    return classifier(build, images)


def images() -> Any:
    return (torch.rand(8, 3, 64, 64),), torch.randint(4, (8,))


def segmentation() -> nn.Module:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    return lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4)


def masks() -> Any:
    return (torch.rand(4, 3, 64, 64),), torch.randint(4, (4, 64, 64))


def detection() -> nn.Module:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    settings = {"min_size": 64, "max_size": 64, "box_score_thresh": 0.0}
    return fasterrcnn_mobilenet_v3_large_320_fpn(weights_backbone=None, num_classes=4, **settings)


def boxes() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    return [torch.rand(3, 64, 64), torch.rand(3, 64, 64)], [target, target]


def graph_network(inputs: str, layers: Callable[[Any], list[nn.Module]]) -> Foreign:
    """Layers of torch_geometric and a classifier of nodes, as its tutorials have it."""

    def build() -> nn.Module:
        geometric = pytest.importorskip("torch_geometric.nn")
        steps = [step for layer in layers(geometric) for step in ((layer, f"{inputs} -> x"), nn.ReLU())]
        return geometric.Sequential(inputs, [*steps, nn.Linear(16, 4)])

    def graph() -> Any:
        numbers = {"x": torch.rand(40, 8), "positions": torch.rand(40, 3), "edges": torch.randint(40, (2, 120))}
        return [numbers[name] for name in inputs.split(", ")], torch.randint(4, (40,))

    return classifier(build, graph)


def perceptron(size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, 16))


BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT, IMAGE = {**BODY, "vocab_size": 64}, {**BODY, "image_size": 32, "patch_size": 8}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
CLIP = {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 16}
SWIN = {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1), "embed_dim": 24}

NETWORKS: dict[str, Foreign] = {
    "bert": transformer("BertForSequenceClassification", texts, num_labels=3, **TEXT),
    # All its layers but the classifier are transformers' Conv1D, whose units are columns.
    "gpt2": transformer("GPT2ForSequenceClassification", texts, num_labels=3, pad_token_id=0, **GPT2),
    # Its last layer is tied to the embedding.
    "t5": transformer(
        "T5ForConditionalGeneration",
        lambda: words("input_ids", "labels"),
        decoder_start_token_id=0,
        **T5,
    ),
    "llama": transformer("LlamaForCausalLM", lambda: words("input_ids", "labels"), **TEXT),
    "vit": transformer("ViTForImageClassification", pictures, num_labels=3, **IMAGE),
    "clip": transformer("CLIPModel", captions, **CLIP),
    "lora": Foreign(lora, texts, own_loss, logits),
    "resnet10t": timm("resnet10t"),
    "mobilenetv3": timm("mobilenetv3_small_050"),
    "convnext": timm("convnext_atto"),
    "vit_tiny": timm("vit_tiny_patch16_224", img_size=64, depth=3),
    "mixer": timm("mixer_s32_224", img_size=64),
    "swin": timm("swin_tiny_patch4_window7_224", **SWIN),
    "segmentation": classifier(segmentation, masks, read=itemgetter("out")),
    "detection": Foreign(
        detection,
        boxes,
        loss=lambda network, batch: sum(network(*batch).values()),
        output=lambda network, batch: torch.cat([found["boxes"][:8] for found in network(batch[0])]),
    ),
    # Their layers hold torch_geometric's own Linear.
    "gcn": graph_network("x, edges", lambda geometric: [geometric.GCNConv(8, 16), geometric.GCNConv(16, 16)]),
    "graph_sage": graph_network("x, edges", lambda geometric: [geometric.SAGEConv(8, 16), geometric.SAGEConv(16, 16)]),
    "gin": graph_network("x, edges", lambda geometric: [geometric.GINConv(perceptron(size)) for size in (8, 16)]),
    "point_net": graph_network(
        "x, positions, edges", lambda geometric: [geometric.PointNetConv(perceptron(size + 3)) for size in (8, 16)]
    ),
}
