"""A plane of 21 x 21 points costs what 441 plain evaluations cost (at most 1.05)."""

import resource
import time
from pathlib import Path
from statistics import median

import pytest
import torch

from lmc.analysis.base import Subject
from lmc.analysis.plane import Plane
from lmc.curve.linear import Linear
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images
from lmc.evaluation.measure import Splits
from lmc.seeding import generator, isolated
from lmc.state import State, interpolate, of_model
from lmc.statistics.none import NoCorrection
from tests.benchmarks.test_evaluation import CASES, evaluation_of

pytestmark = pytest.mark.usefixtures("one_thread")

GRID, WHOLE = 5, 21**2
"""Fewer points are measured than a whole plane has, which would take minutes."""


def pictures(shape: tuple[int, int, int], train: int, test: int) -> Dataset:
    def images(count: int, label: str) -> Images:
        draw = generator(0, label)
        pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=draw)
        return Images(pixels, torch.randint(0, 10, (count,), generator=draw))

    levels = (0.5,) * shape[0]
    splits = images(train, "train"), images(10, "validation"), images(test, "test")
    return Dataset("noise", *splits, 10, levels, levels, Augmentation(), "-")


class Bent:
    """From the first network over the third to the second, by two straight segments."""

    def __init__(self, networks: list[State]) -> None:
        self.networks = networks

    def state(self, t: float) -> State:
        first, second, third = self.networks
        return interpolate(first, third, 2 * t) if t <= 0.5 else interpolate(third, second, 2 * t - 1)


@pytest.mark.parametrize("name", CASES)
def test_plane_over_plain_evaluations(benchmark, name, tmp_path: Path):
    architecture, shape, train, test = CASES[name]
    dataset = pictures(shape, train, test)
    networks = []
    for seed in range(3):
        with isolated(seed, "init"):
            model = architecture()
        networks.append(of_model(model))
    subject = Subject(
        model=model, symmetry=None, dataset=dataset, splits=Splits(dataset), curve=Linear(), labels=(0, 1),
        networks=networks[:2], path=Bent(networks), seed=0,
        correction=NoCorrection().bind(model, None, networks[:2], dataset),
    )  # fmt: skip

    ends, plain, ours = [time.process_time()], [], []

    def on_step(numbers: object) -> None:
        """Between any two points a plain evaluation: both then suffer alike from what else the machine does."""
        start = time.process_time()
        ours.append(start - ends[-1])
        for split in (dataset.train, dataset.test):
            evaluation_of(model, dataset.batches(split, 500))
        ends.append(time.process_time())
        plain.append(ends[-1] - start)

    Plane(grid=GRID)(subject, tmp_path, on_step)
    once = ours[0] - median(ours) + time.process_time() - ends[-1]  # the axes and the curve, before the first point
    ratio = (once + WHOLE * median(ours)) / (WHOLE * median(plain))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    benchmark.name = f"{name}: plane of {WHOLE} points, {ratio:.3f} of plain evaluations, peak {peak} MiB"
    benchmark.extra_info.update(ratio=ratio, once=once, ours=ours, plain=plain, peak_mib=peak)
    benchmark.pedantic(subject.splits.measure, args=(model, networks[0]), rounds=1)
    assert ratio <= 1.05
