"""Straight segments through points, each with the same share of t."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Chain:
    """phi(t) = sum_i max(0, 1 - |n t - i|) P_i with n segments; a `lmc.curve.points.Shape`.

    Args:
        segments: n, at least 1.
    """

    segments: int

    def weights(self, t: float) -> list[float]:
        """Return the hat functions at `t`, n + 1 of them: at most two are not zero."""
        return [max(0.0, 1.0 - abs(t * self.segments - i)) for i in range(self.segments + 1)]

    def arc_length(self, gram: NDArray[np.float64], grid: Sequence[float]) -> list[float]:
        """Return the lengths from 0 to each t of `grid`, exact.

        Args:
            gram: (n, n), inner products of the differences P_{i+1} - P_i.
            grid: positions in [0, 1], in any order.
        """
        ends = np.concatenate([[0.0], np.cumsum(np.sqrt(np.diagonal(gram).clip(min=0)))])
        places = np.asarray(grid, dtype=np.float64) * self.segments
        return [float(length) for length in np.interp(places, np.arange(len(ends)), ends)]
