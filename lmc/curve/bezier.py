"""Bezier curves of any degree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmc.curve.fitted import Fitted

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True, kw_only=True)
class Bezier(Fitted):
    """phi(t) = sum_i C(n, i) (1 - t)^(n - i) t^i P_i with n = bends + 1 (Garipov et al. 2018, Eq. 4 for n = 2)."""

    def weights(self, t: float) -> list[float]:
        """Return the Bernstein polynomials of degree bends + 1 at `t`."""
        return _bernstein(self.bends + 1, t)

    def arc_length(self, gram: NDArray[np.float64], grid: Sequence[float]) -> list[float]:
        """Return the lengths by Gauss-Legendre quadrature of ||phi'(t)||, 64 nodes between neighbours of the grid.

        phi' = n sum_i B_{i, n-1} (P_{i+1} - P_i), so that its norm needs the Gram matrix alone.
        """
        stops = np.unique(np.concatenate([[0.0], np.asarray(grid, dtype=np.float64)]))
        starts, widths = stops[:-1], np.diff(stops)
        nodes = starts[:, None] + widths[:, None] * (_NODES + 1) / 2
        basis = np.stack([_bernstein(self.bends, float(t)) for t in nodes.ravel()])
        squares = np.einsum("ti,ij,tj->t", basis, gram, basis).clip(min=0).reshape(nodes.shape)
        pieces = (self.bends + 1) * np.sqrt(squares) @ _NODE_WEIGHTS * widths / 2
        lengths = np.concatenate([[0.0], np.cumsum(pieces)])
        return [float(lengths[i]) for i in np.searchsorted(stops, np.asarray(grid, dtype=np.float64))]


def _bernstein(degree: int, t: float) -> list[float]:
    return [math.comb(degree, i) * (1 - t) ** (degree - i) * t**i for i in range(degree + 1)]
