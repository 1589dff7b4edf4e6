"""Chains of straight segments."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmc.curve.chain import Chain
from lmc.curve.fitted import Fitted


@dataclass(frozen=True, kw_only=True)
class PolygonalChain(Fitted):
    """phi(t) = sum_i max(0, 1 - |n t - i|) P_i with n = bends + 1 segments (Garipov et al. 2018, Eq. 3 for n = 2)."""

    def weights(self, t: float) -> list[float]:
        """Return the hat functions at `t`: at most two are not zero."""
        return Chain(self.bends + 1).weights(t)

    def arc_length(self, gram: NDArray[np.float64], grid: Sequence[float]) -> list[float]:
        """Return the lengths, exact: each segment takes the same share of t."""
        return Chain(self.bends + 1).arc_length(gram, grid)
