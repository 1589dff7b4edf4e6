"""A plane of 21 x 21 points costs what 441 plain evaluations cost (at most 1.05)."""

import resource
import time
from pathlib import Path
from statistics import median

import pytest

from lmc.analysis.plane import Plane
from lmc.seeding import isolated
from lmc.state import State, interpolate, of_model
from tests.analysis.subjects import data, subject
from tests.benchmarks.test_evaluation import CASES, evaluation_of

pytestmark = pytest.mark.usefixtures("one_thread")

GRID, WHOLE = 5, 21**2
"""Fewer points are measured than a whole plane has, which would take minutes."""


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
    dataset = data(shape, 10, train, test)
    networks = []
    for seed in range(3):
        with isolated(seed, "init"):
            model = architecture()
        networks.append(of_model(model))
    of = subject(model, networks[:2], Bent(networks), dataset)

    ends, plain, ours = [time.process_time()], [], []

    def on_step(numbers: object) -> None:
        """Between any two points a plain evaluation: both then suffer alike from what else the machine does."""
        start = time.process_time()
        ours.append(start - ends[-1])
        for split in (dataset.train, dataset.test):
            evaluation_of(model, dataset.batches(split, 500))
        ends.append(time.process_time())
        plain.append(ends[-1] - start)

    Plane(grid=GRID)(of, tmp_path, on_step)
    once = ours[0] - median(ours) + time.process_time() - ends[-1]  # the axes and the curve, before the first point
    ratio = (once + WHOLE * median(ours)) / (WHOLE * median(plain))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    benchmark.name = f"{name}: plane of {WHOLE} points, {ratio:.3f} of plain evaluations, peak {peak} MiB"
    benchmark.extra_info.update(ratio=ratio, once=once, ours=ours, plain=plain, peak_mib=peak)
    benchmark.pedantic(of.splits.measure, args=(model, networks[0]), rounds=1)
    assert ratio <= 1.05
