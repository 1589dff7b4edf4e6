import copy
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images
from lmc.seeding import generator, isolated
from lmc.state import State
from lmc.symmetry.structure import Axis, Factor, Group, Symmetry


@pytest.fixture
def dataset() -> Dataset:
    """Images that are sorted by class and much brighter in the last class, so that batches in order would differ."""

    def images(count: int, label: str) -> Images:
        labels = torch.arange(count) * 3 // count
        noise = torch.randint(0, 120, (count, 2, 6, 6), generator=generator(1, label))
        return Images((noise + 60 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)

    splits = [images(count, label) for count, label in ((101, "train"), (6, "validation"), (31, "test"))]
    return Dataset("bright", *splits, 3, (0.4, 0.5), (0.2, 0.3), Augmentation(), "-")


@pytest.fixture
def seeded() -> Callable[[Callable[[], nn.Module], int], nn.Module]:
    """Build a network with weights that depend on the seed, and biases and norms that are not trivial."""

    def build(architecture: Callable[[], nn.Module], seed: int) -> nn.Module:
        with isolated(seed, "weights"):
            model = architecture()
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor.data += 0.3 * torch.randn(tensor.shape, generator=generator(seed, name))
        return model.eval()

    return build


@pytest.fixture
def hidden() -> Callable[[nn.Module, Iterable[str]], Symmetry]:
    """The part of a symmetry that corrections ask for: which layers have hidden outputs."""

    def symmetry(model: nn.Module, layers: Iterable[str]) -> Symmetry:
        tensors = model.state_dict()
        groups = {}
        for name in layers:
            size = len(tensors[f"{name}.weight"])
            axes = [Axis(f"{name}.{t}", 0, ((Factor(name, size),),)) for t in ("weight", "bias")]
            groups[name] = Group(name, size, tuple(axes))
        parameters = frozenset(name for name, _ in model.named_parameters())
        return Symmetry(groups, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, parameters)

    return symmetry


@pytest.fixture
def observed() -> Callable[[nn.Module, State, torch.Tensor], dict[str, np.ndarray]]:
    """What leaves every linear, convolutional or BatchNorm layer: name to (channels, values) in float64."""

    def run(model: nn.Module, state: State, inputs: torch.Tensor) -> dict[str, np.ndarray]:
        network, found = copy.deepcopy(model), {}
        network.load_state_dict(state)

        def note(name: str, layer: nn.Module, entering: object, leaving: torch.Tensor) -> None:
            channels = leaving.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
            found[name] = channels.flatten(1).numpy().astype(np.float64)

        for name, layer in network.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
                layer.register_forward_hook(partial(note, name))
        with torch.no_grad():
            network.eval()(inputs)
        return found

    return run


def mlp() -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


def batch_norm_net() -> nn.Module:
    first = [nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)]
    second = [nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Flatten()]
    last = [nn.Linear(32, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*first, *second, *last)


def layer_norm_net() -> nn.Module:
    first = [nn.Conv2d(2, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, nn.Linear(128, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


NETWORKS = {
    "mlp": (mlp, ("1", "3")),
    "batch_norm": (batch_norm_net, ("0", "4", "8")),
    "layer_norm": (layer_norm_net, ("0", "4")),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[Callable[[], nn.Module], tuple[str, ...]]:
    """An architecture and the names of its hidden layers."""
    return NETWORKS[request.param]


@pytest.fixture
def plain() -> tuple[Callable[[], nn.Module], tuple[str, ...]]:
    """The MLP alone."""
    return NETWORKS["mlp"]


@pytest.fixture
def normed() -> tuple[Callable[[], nn.Module], tuple[str, ...]]:
    """The BatchNorm network alone."""
    return NETWORKS["batch_norm"]
