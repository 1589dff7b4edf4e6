"""Weight matching beside a plain sequential loop, in time, objective and memory; ratios within one run.

The numbers of all runs are in the `extra_info` of the benchmark: see them with --benchmark-json=FILE.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lmc.alignment.problem import Problem
from lmc.alignment.weight_matching import WeightMatching
from lmc.architecture.resnet import ResNet
from lmc.seeding import generator, isolated
from lmc.state import State, of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Axis, Symmetry, permute

PAGE = 4096


def plain(fixed: State, moving: State, symmetry: Symmetry, order: Callable[[], list[str]]) -> dict[str, Tensor]:
    """Git Re-Basin's Algorithm 1 as its authors wrote it: every group in every sweep, whole tensors permuted."""
    found = {name: torch.arange(group.size) for name, group in symmetry.groups.items()}
    for _ in range(100):
        progress = False
        for name in order():
            group = symmetry.groups[name]
            similarity = torch.zeros(group.size, group.size)
            for axis in group.axes:
                if axis.tensor in symmetry.parameters:
                    others = [other for other in symmetry.axes_of[axis.tensor] if other != axis]
                    theirs = permute(moving[axis.tensor], others, found)
                    similarity += rows_of(fixed[axis.tensor], axis) @ rows_of(theirs, axis).T
            columns = torch.from_numpy(linear_sum_assignment(similarity.numpy(), maximize=True)[1])
            rows = torch.arange(group.size)
            progress |= bool(similarity[rows, columns].sum() > similarity[rows, found[name]].sum() + 1e-12)
            found[name] = columns
        if not progress:
            break
    return found


def rows_of(tensor: Tensor, axis: Axis) -> Tensor:
    return tensor.movedim(axis.dim, 0).reshape(tensor.shape[axis.dim], -1)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """MiB by which the process grew at most while the block ran, sampled every 5 ms; filled in at its end (Linux)."""
    done = threading.Event()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], resident())

    before, grown = resident(), list[float]()
    most = [before]
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()
        grown.append((most[0] - before) / 2**20)


@pytest.mark.parametrize("width", [4, 16, 32])
def test_weight_matching_of_a_random_resnet20(benchmark: BenchmarkFixture, width: int) -> None:
    """From the identity and in the same orders, which must end in the same optimum; and from the centre."""
    fixed, moving, symmetry = networks(width)
    names = list(symmetry.groups)
    draw = generator(0, "weight_matching", 0)

    def shuffled() -> list[str]:
        return [names[i] for i in torch.randperm(len(names), generator=draw).tolist()]

    def reference() -> Permutation:
        shuffled()  # as the method does, for what is unmatched at the start
        return Permutation(symmetry, plain(fixed, moving, symmetry, shuffled))

    def ours(start: Literal["identity", "centre"]) -> Permutation:
        problem = Problem(None, symmetry, 0, torch.device("cpu"), None)
        return WeightMatching(restarts=1, start=start)(fixed, moving, problem).permutation

    def objective(permutation: Permutation) -> float:
        aligned, tensors = permutation.apply(moving), symmetry.axes_of.keys() & symmetry.parameters
        return sum((fixed[name] * aligned[name]).sum(dtype=torch.float64).item() for name in tensors)

    runs = {
        "plain": reference,
        "identity": lambda: ours("identity"),
        "centre": lambda: benchmark.pedantic(ours, ("centre",), rounds=1),
    }
    seconds, value = dict[str, float](), dict[str, float]()
    for name, run in runs.items():
        with peak_memory() as grown:
            started = time.perf_counter()
            permutation = run()
            seconds[name] = time.perf_counter() - started
        value[name] = objective(permutation)
        benchmark.extra_info[name] = {"seconds": seconds[name], "objective": value[name], "MiB": grown[0]}
    assert value["identity"] == pytest.approx(value["plain"], rel=1e-6)
    assert value["centre"] > value["plain"]
    if width >= 16:
        assert seconds["identity"] < 0.8 * seconds["plain"]
        assert seconds["centre"] < 0.5 * seconds["plain"]


def networks(width: int) -> tuple[State, State, Symmetry]:
    states = []
    for seed in (0, 1):
        with isolated(seed, "benchmark"):
            model = ResNet(input_shape=(3, 32, 32), classes=10, width=width)
        states.append(of_model(model))
    return states[0], states[1], discover(model, torch.zeros(2, 3, 32, 32))
