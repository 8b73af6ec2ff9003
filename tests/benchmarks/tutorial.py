"""What a user would write instead: one Ray Tune trial per training run, in the manner of the tutorials.

A DataLoader over PIL images and torchvision's transforms, an evaluation after every epoch, and
`p.grad.abs().mean().item()` for every layer at every step. The networks, seeds, batches and epochs
are the harness's own, so that only the way of training differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from harness.study.trials import Trial
from harness.training.images import Images, Part
from harness.training.networks import build_network, initialize
from harness.training.optimizers import make_schedule


class PictureDataset(Dataset):
    """A part as tutorials have it: a PIL image per item, transformed one by one."""

    def __init__(self, part: Part, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        # A picture with one channel has no third dimension in PIL.
        self._pictures = [Image.fromarray(x_HWC.squeeze(-1).numpy()) for x_HWC in part.x_NHWC]
        self._labels = part.y_N.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(self._pictures[index]), self._labels[index]


def train_like_the_tutorial(
    trial: Trial, images: Images, report: Callable[[dict[str, Any]], object]
) -> float:
    """Train `trial` and return its test accuracy, reporting after every epoch."""
    normalize = transforms.Normalize((images.mean_C / 255).tolist(), (images.std_C / 255).tolist())
    plain = transforms.Compose([transforms.ToTensor(), normalize])
    augmented = plain
    if trial.augmentation == "crop-flip":
        augmented = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1:], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                normalize,
            ]
        )
    loader = DataLoader(
        PictureDataset(images.train, augmented), trial.batch_size, shuffle=True, drop_last=True
    )
    test_loader = DataLoader(PictureDataset(images.test, plain), trial.batch_size)

    network = build_network(trial, images.shape, images.classes)
    initialize(network, [trial])
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=trial.lr,
        momentum=trial.momentum,
        weight_decay=trial.weight_decay,
        nesterov=True,
    )
    schedule = iter(make_schedule(trial, len(loader)))
    accuracy = 0.0
    for _ in range(trial.epochs):
        network.train()
        grads: dict[str, list[float]] = {}
        losses: list[float] = []
        for x, y in loader:
            optimizer.param_groups[0]["lr"] = next(schedule)
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(x)[:, 0], y)
            loss.backward()
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1:
                    grads.setdefault(name, []).append(parameter.grad.abs().mean().item())
            optimizer.step()
            losses.append(loss.item())
        network.eval()
        hits = 0
        with torch.no_grad():
            for x, y in test_loader:
                hits += (network(x)[:, 0].argmax(1) == y).sum().item()
        accuracy = hits / len(images.test)
        means = {f"grad/{name}": sum(values) / len(values) for name, values in grads.items()}
        report({"accuracy": accuracy, "loss": sum(losses) / len(losses), **means})
    return accuracy
