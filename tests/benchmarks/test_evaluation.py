"""The path evaluation costs what that many plain evaluations cost (at most 1.05); time of a reset pass beside it."""

import resource
import time
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc.architecture.mlp import MLP
from lmc.architecture.resnet import ResNet
from lmc.curve.linear import Linear
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images
from lmc.evaluation.path import PathEvaluation
from lmc.seeding import generator, isolated
from lmc.state import State, interpolate, of_model
from lmc.statistics.none import NoCorrection
from lmc.statistics.reset import Reset

pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDS = 5


def pictures(shape: tuple[int, int, int], train: int, test: int) -> Dataset:
    def images(count: int, label: str) -> Images:
        draw = generator(0, label)
        pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=draw)
        return Images(pixels, torch.randint(0, 10, (count,), generator=draw))

    levels = (0.5,) * shape[0]
    splits = images(train, "train"), images(10, "validation"), images(test, "test")
    return Dataset("noise", *splits, 10, levels, levels, Augmentation(), "-")


def two_networks(architecture: Callable[[], nn.Module]) -> tuple[nn.Module, State, State]:
    built = []
    for seed in (0, 1):
        with isolated(seed, "init"):
            built.append(architecture())
    return built[0], of_model(built[0]), of_model(built[1])


def plain_evaluation(model: nn.Module, state: State, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """What anyone would write."""
    model.load_state_dict(state)
    return evaluation_of(model, batches)


def evaluation_of(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """What anyone would write, of a network that is there already."""
    model.eval()
    loss = correct = count = 0.0
    with torch.inference_mode():
        for inputs, labels in batches:
            logits = model(inputs)
            loss += functional.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(1) == labels).sum().item()
            count += len(labels)
    return loss / count


CASES = {
    "resnet20": (lambda: ResNet(input_shape=(3, 32, 32), classes=10), (3, 32, 32), 250, 125),
    "mlp": (lambda: MLP(input_shape=(1, 28, 28), classes=10), (1, 28, 28), 4000, 2000),
}


def clock(work: Callable[[], object]) -> float:
    """Processor seconds: unlike wall time, other processes on the machine change them little."""
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize("name", CASES)
def test_path_evaluation_over_plain_evaluations(benchmark, name):
    architecture, shape, train, test = CASES[name]
    dataset = pictures(shape, train, test)
    model, fixed, moving = two_networks(architecture)
    evaluation, path = PathEvaluation(grid=3), Linear().path(fixed, moving, None)
    correction = NoCorrection().bind(model, None, (fixed, moving), dataset)

    def plain() -> None:
        for t in evaluation.points:
            for split in (dataset.train, dataset.test):
                plain_evaluation(model, interpolate(fixed, moving, t), dataset.batches(split, evaluation.batch_size))

    def ours() -> None:
        evaluation.measure(model, path, correction, dataset)

    plain()
    ours()
    times = [(clock(plain), clock(ours)) for _ in range(ROUNDS)]
    ratio = min(mine for _, mine in times) / min(reference for reference, _ in times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    benchmark.name = f"{name}: path evaluation, {ratio:.3f} of plain ones, peak {peak} MiB"
    benchmark.extra_info.update(ratio=ratio, times=times, peak_mib=peak)
    benchmark.pedantic(ours, rounds=1)
    assert ratio <= 1.05


def test_reset_over_a_forward_pass(benchmark):
    """Not a bound of the specification: it shows what the moments add to the forward pass that they need."""
    architecture, shape, train, test = CASES["resnet20"]
    dataset = pictures(shape, train, test)
    model, fixed, moving = two_networks(architecture)
    correction = Reset().bind(model, None, (fixed, moving), dataset)
    merged = interpolate(fixed, moving, 0.5)

    def reset() -> None:
        correction(merged, (0.5, 0.5))

    def forward() -> None:
        plain_evaluation(model, merged, dataset.batches(dataset.train, 512))

    reset()
    forward()
    times = [(clock(forward), clock(reset)) for _ in range(ROUNDS)]
    ratio = min(mine for _, mine in times) / min(reference for reference, _ in times)
    benchmark.name = f"resnet20: reset pass, {ratio:.3f} of a forward pass"
    benchmark.extra_info.update(ratio=ratio, times=times)
    benchmark.pedantic(reset, rounds=1)
    assert ratio <= 2
