"""Measured paths as curves: every pair's, and their mean."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmc.results import PathPoint, group_paths

Metric = Literal["loss", "accuracy"]


@dataclass(frozen=True)
class Line:
    """The curves of one path name and split.

    Attributes:
        t: (points,) positions on the path.
        loss: (pairs, points) in nats.
        accuracy: (pairs, points) fraction.
    """

    t: NDArray[np.float64]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    def of(self, metric: Metric) -> NDArray[np.float64]:
        """Return (pairs, points) of one metric."""
        return self.loss if metric == "loss" else self.accuracy

    def mean(self, metric: Metric) -> NDArray[np.float64]:
        """Return (points,) the mean over pairs."""
        return np.asarray(self.of(metric).mean(0))

    def deviation(self, metric: Metric) -> NDArray[np.float64] | None:
        """Return (points,) the sample standard deviation over pairs; None of a single pair."""
        values = self.of(metric)
        return np.asarray(values.std(0, ddof=1)) if len(values) > 1 else None


def lines(runs: Iterable[Iterable[PathPoint]]) -> dict[tuple[str, str], Line]:
    """Return (path, split) to its `Line`; a path that several runs share (the same experiment twice) counts once.

    Runs with different grids are brought to the union of their positions by linear interpolation.
    """
    curves: dict[tuple[str, str], dict[tuple[object, ...], list[PathPoint]]] = {}
    for points in runs:
        for (pair, path, split), members in group_paths(points):
            identity = (pair, *((point.t, point.loss) for point in members))
            curves.setdefault((path, split), {})[identity] = members
    return {name: _line(list(found.values())) for name, found in curves.items()}


def _line(curves: list[list[PathPoint]]) -> Line:
    grid = np.unique([point.t for curve in curves for point in curve])

    def values(metric: Metric) -> NDArray[np.float64]:
        on_grid = [np.interp(grid, [p.t for p in curve], [getattr(p, metric) for p in curve]) for curve in curves]
        return np.stack(on_grid)

    return Line(grid, values("loss"), values("accuracy"))
