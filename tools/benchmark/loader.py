"""Epochs of images of CIFAR-10's size, cropped with padding 4, flipped and normalized, by several loaders."""

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from lcw_lightning.data.augmentation import ImageTransform, channel_mean_and_std
from lcw_lightning.data.batches import BatchLoader
from tools.benchmark.timing import FEWEST, Settings

BATCH = 128
IMAGES = 20_000


class Photos(CIFAR10):
    """torchvision's CIFAR10 with the images that are given."""

    def __init__(self, images: Tensor, labels: Tensor, transform: v2.Transform) -> None:
        self.data, self.targets = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
        self.transform, self.target_transform = transform, None


def loaders(images: Tensor, labels: Tensor, device: str) -> dict[str, Iterable]:
    """Return loaders by name, rivals first."""
    mean, std = channel_mean_and_std(images)
    scale = [(value / 255).flatten().tolist() for value in (mean, std)]
    augment = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    normalize = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*scale)]
    orders = {
        "DataLoader, v2 on tensors, 2 workers": [v2.ToImage(), *augment, *normalize],
        "DataLoader, v2 on PIL images, 2 workers": [*augment, v2.ToImage(), *normalize],
    }
    made: dict[str, Iterable] = {
        name: DataLoader(Photos(images, labels, v2.Compose(steps)), BATCH, shuffle=True, drop_last=True, num_workers=2)
        for name, steps in orders.items()
    }
    resident = TensorDataset(images.to(device), labels.to(device))
    for name, held, workers in (
        ("BatchLoader, resident", resident, 0),
        ("BatchLoader, 2 workers", TensorDataset(images, labels), 2),
    ):
        transform = ImageTransform(mean, std, augment=True).to(held.tensors[0].device)
        made[name] = BatchLoader(held, BATCH, shuffle=True, drop_last=True, transform=transform, workers=workers)
    return made


def epoch(loader: Iterable, device: str) -> float:
    """Return the seconds of an epoch; each batch is moved to the device."""
    begin = time.perf_counter()
    for images, labels in loader:
        images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(settings: Settings) -> Iterator[list[dict]]:
    """Yield the rows, one for each loader; the first is torchvision's transforms on tensors."""
    case = f"epoch of {IMAGES} images of 3 x 32 x 32"
    if not settings.wants(case):
        return
    images = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (IMAGES,))
    made = loaders(images, labels, settings.device)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(settings.rounds or FEWEST):
        for name, loader in made.items():
            seconds[name].append(epoch(loader, settings.device))
    yield [{"case": case, "method": name, "seconds": times} for name, times in seconds.items()]
