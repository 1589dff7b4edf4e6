"""Small data and networks on which the loop is checked."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images, checksum
from lmc.seeding import generator, isolated
from lmc.training.recipe import Training
from lmc.training.schedule.cosine import Cosine
from lmc.training.sgd import SGD


def _images(count: int, label: str) -> Images:
    rng = generator(0, label)
    labels = torch.randint(0, 3, (count,), generator=rng)
    patterns = torch.randint(60, 200, (3, 1, 6, 6), generator=generator(0, "patterns"))
    noise = torch.randint(-50, 50, (count, 1, 6, 6), generator=rng)
    return Images((patterns[labels] + noise).to(torch.uint8), labels)


@pytest.fixture
def dataset() -> Dataset:
    """101 noisy training images of three patterns, 20 validation images."""
    train, validation = _images(101, "train"), _images(20, "validation")
    return Dataset(
        "patterns", train, validation, validation, 3, (0.5,), (0.25,), Augmentation(), checksum(train, validation)
    )


@pytest.fixture
def mlp() -> nn.Module:
    with isolated(0, "mlp"):
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def convnet() -> nn.Module:
    """Two convolutions with BatchNorm; a parameter that is not trained."""
    with isolated(0, "convnet"):
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    net[0].bias.requires_grad_(False)
    return net


@pytest.fixture
def sgd() -> Callable[..., Training]:
    """Settings in float32 with everything on; keyword arguments replace some of them."""

    def make(**changed: object) -> Training:
        settings: dict[str, object] = {
            "schedule": Cosine(),
            "epochs": 3,
            "batch_size": 20,
            "learning_rate": 0.05,
            "weight_decay": 1e-3,
            "warmup_epochs": 0.5,
            "nesterov": True,
            "precision": "float32",
        }
        return SGD(**{**settings, **changed})  # type: ignore[arg-type] # a test may hand in anything

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"
