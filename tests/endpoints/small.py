"""Small data and networks of which endpoints are made, and how they are made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmc.architecture.mlp import MLP
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images, checksum
from lmc.endpoints.base import WEIGHTS_FILE, Endpoints, Ingredients
from lmc.seeding import generator
from lmc.state import State, load
from lmc.training.recipe import Training
from lmc.training.schedule.cosine import Cosine
from lmc.training.sgd import SGD


class Stop(Exception):
    """Ends a run from within."""


def _images(count: int, label: str) -> Images:
    labels = torch.randint(0, 4, (count,), generator=generator(0, label))
    patterns = torch.randint(60, 200, (4, 1, 6, 6), generator=generator(0, "patterns"))
    noise = torch.randint(-50, 50, (count, 1, 6, 6), generator=generator(0, label, "noise"))
    return Images((patterns[labels] + noise).to(torch.uint8), labels)


def data() -> Dataset:
    train, test = _images(90, "train"), _images(20, "test")
    moved = Augmentation(flip=True)
    return Dataset("patterns", train, test, test, 4, (0.5,), (0.25,), moved, checksum(train, test))


def mlp() -> nn.Module:
    return MLP(input_shape=(1, 6, 6), classes=4, width=8, depth=2, norm="batch")


def convnet() -> nn.Module:
    """BatchNorm, dropout, biases that are not zero, a tied weight and one that is not trained."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.Dropout(0.2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 6),
        nn.Linear(6, 6, bias=False),
        nn.Linear(6, 4),
        nn.Linear(4, 4),
    )
    net[9].weight = net[8].weight
    net[11].weight.requires_grad_(False)
    return net


def sgd(**changed: Any) -> Training:
    """Momentum, weight decay, a warm-up and a schedule that falls; keyword arguments replace some of it."""
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 20, "learning_rate": 0.05, "warmup_epochs": 0.5}
    settings |= {"schedule": Cosine(), "weight_decay": 1e-3, "nesterov": True, "precision": "float32"}
    return SGD(**{**settings, **changed})


def make(
    kind: Endpoints, label: int, ingredients: Ingredients, folder: Path, stop_after: int | None = None
) -> tuple[State, list[Mapping[str, float]]]:
    """Make a network as the pipeline does, its trunk first; ends with `Stop` after so many epochs of its own."""
    before = None
    if (trunk := kind.trunk(label)) is not None:
        before = folder / f"trunk{label}"
        if not before.exists():
            before.mkdir(parents=True)
            trunk.make(ingredients, before, lambda record: None)
    own = folder / f"network{label}"
    own.mkdir(parents=True, exist_ok=True)
    seen: list[Mapping[str, float]] = []

    def on_epoch(record: Mapping[str, float]) -> None:
        seen.append(record)
        if len(seen) == stop_after:
            raise Stop

    kind.make(label, ingredients, own, on_epoch, before)
    return load(own / WEIGHTS_FILE), seen


def contents(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in state.items()}
