"""Chains of straight segments."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmc.curve.fitted import Fitted


@dataclass(frozen=True, kw_only=True)
class PolygonalChain(Fitted):
    """phi(t) = sum_i max(0, 1 - |n t - i|) P_i with n = bends + 1 segments (Garipov et al. 2018, Eq. 3 for n = 2)."""

    def weights(self, t: float) -> list[float]:
        """Return the hat functions at `t`: at most two are not zero."""
        segments = self.bends + 1
        return [max(0.0, 1.0 - abs(t * segments - i)) for i in range(segments + 1)]

    def arc_length(self, gram: NDArray[np.float64], grid: Sequence[float]) -> list[float]:
        """Return the lengths, exact: each segment takes the same share of t."""
        ends = np.concatenate([[0.0], np.cumsum(np.sqrt(np.diagonal(gram).clip(min=0)))])
        places = np.asarray(grid, dtype=np.float64) * (self.bends + 1)
        return [float(length) for length in np.interp(places, np.arange(len(ends)), ends)]
