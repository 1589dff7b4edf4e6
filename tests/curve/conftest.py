"""Small networks to join."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images, checksum
from lmc.seeding import generator, isolated
from lmc.state import State, of_model
from lmc.training.recipe import Training
from lmc.training.schedule.constant import Constant
from lmc.training.sgd import SGD


@pytest.fixture
def convnet() -> nn.Module:
    """A convolution with BatchNorm, a parameter that is not trained, a buffer of integers and one of floats."""
    with isolated(0, "model"):
        net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    net[0].bias.requires_grad_(False)
    net.register_buffer("scale", torch.tensor(1.0))
    return net


@pytest.fixture
def ends(convnet: nn.Module) -> tuple[State, State]:
    """Two networks that differ in every tensor, running statistics and counters included."""
    states = []
    for seed in (1, 2):
        rng = generator(seed, "end")
        state = of_model(convnet)
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                state[name] = torch.tensor(10 * seed)
            elif name.endswith("running_var"):
                state[name] = torch.rand(tensor.shape, generator=rng) + 0.5
            else:
                state[name] = 0.3 * torch.randn(tensor.shape, generator=rng)
        state["4.bias"][0] = -0.0
        states.append(state)
    return states[0], states[1]


@pytest.fixture
def dataset() -> Dataset:
    """64 noisy images of three patterns, (2, 4, 4)."""
    rng = generator(0, "images")
    labels = torch.randint(0, 3, (64,), generator=rng)
    patterns = torch.randint(60, 200, (3, 2, 4, 4), generator=rng)
    noise = torch.randint(-50, 50, (64, 2, 4, 4), generator=rng)
    train = Images((patterns[labels] + noise).to(torch.uint8), labels)
    empty = train.select(torch.tensor([], dtype=torch.int64))
    return Dataset("patterns", train, empty, train, 3, (0.5, 0.5), (0.25, 0.25), Augmentation(), checksum(train))


@pytest.fixture
def settings() -> Callable[..., Training]:
    """Training in float32; keyword arguments replace some settings."""

    def make(**changed: object) -> Training:
        plain: dict[str, object] = {
            "schedule": Constant(),
            "epochs": 3,
            "batch_size": 16,
            "learning_rate": 0.05,
            "weight_decay": 1e-2,
            "precision": "float32",
        }
        return SGD(**{**plain, **changed})  # type: ignore[arg-type] # a test may hand in anything

    return make


class Landscape(nn.Module):
    """A network without images: its parameters are coordinates, and its cross-entropy for class 0 is the potential."""

    def __init__(self, potential: Callable[[Tensor], Tensor], dimensions: int) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(dimensions))
        self.potential = potential

    def forward(self, images: Tensor) -> Tensor:
        # -log softmax_0 of (0, z) is log(1 + exp z), which is the potential V > 0 if z = log(exp V - 1).
        other = self.potential(self.point).expm1().log()
        return torch.stack([torch.zeros_like(other), other]).expand(len(images), 2)


@pytest.fixture
def landscape() -> type[Landscape]:
    return Landscape


@pytest.fixture
def blank() -> Callable[[int], Dataset]:
    """Images of one pixel, all black and of class 0 of 2; in batches of 2 they make half as many steps."""

    def make(count: int) -> Dataset:
        train = Images(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))
        empty = train.select(torch.tensor([], dtype=torch.int64))
        return Dataset("blank", train, empty, train, 2, (0.5,), (0.25,), Augmentation(), checksum(train))

    return make
