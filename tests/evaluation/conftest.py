from collections.abc import Callable

import pytest
import torch
from torch import nn

from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images
from lmc.seeding import generator, isolated
from lmc.state import State, interpolate


class Line:
    """The straight path, with its length written out."""

    def __init__(self, fixed: State, moving: State) -> None:
        self.fixed, self.moving = fixed, moving

    def state(self, t: float) -> State:
        return interpolate(self.fixed, self.moving, t)

    def distance(self, grid) -> list[float]:
        whole = sum(((self.moving[n] - self.fixed[n]).double() ** 2).sum() for n in self.fixed if "running" not in n)
        return [t * float(whole) ** 0.5 for t in grid]


@pytest.fixture
def line() -> type[Line]:
    return Line


@pytest.fixture
def dataset() -> Dataset:
    def images(count: int, label: str) -> Images:
        labels = torch.randint(0, 3, (count,), generator=generator(2, label))
        noise = torch.randint(0, 100, (count, 1, 4, 4), generator=generator(1, label))
        return Images((noise + 50 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)

    splits = [images(count, label) for count, label in ((120, "train"), (6, "validation"), (47, "test"))]
    return Dataset("bright", *splits, 3, (0.4,), (0.2,), Augmentation(flip=True), "-")


@pytest.fixture
def seeded() -> Callable[..., nn.Module]:
    """A small network with dropout; in training mode, so that forgetting `eval` would show. `norm`: with BatchNorm."""

    def build(seed: int, *, norm: bool = False) -> nn.Module:
        with isolated(seed, "weights"):
            inner = [nn.BatchNorm1d(12)] if norm else []
            layers = [nn.Flatten(), nn.Linear(16, 12), *inner, nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3)]
            return nn.Sequential(*layers)

    return build
