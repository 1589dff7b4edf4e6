"""Spherical linear interpolation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmc.curve.linear import is_running, on_line
from lmc.state import State, check_fits
from lmc.training.recipe import Training

_COLLINEAR = 1e-6
"""Sine of an angle below which two tensors count as collinear: its square is below what float32 can tell from 1."""
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True, kw_only=True)
class Spherical:
    """phi(t) = (sin((1 - t) w) * fixed + sin(t w) * moving) / sin(w), w the angle between them (Shoemake 1985).

    Nothing is trained. Networks of one norm keep it all the way, which the straight line does not. Where fixed and
    moving are collinear the line is taken: that is the limit for one direction, and between opposite directions no arc
    is the shortest.

    Args:
        per: "tensor": each parameter tensor turns by its own angle; "network": all parameters are one vector.
    """

    per: Literal["tensor", "network"] = "tensor"

    training: ClassVar[Training | None] = None

    def path(
        self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None
    ) -> "SphericalPath":
        """Return the path from `fixed` to `moving`; `folder` is not looked at.

        Raises:
            UserError: the two are of different architectures.
        """
        return SphericalPath(fixed, moving, whole=self.per == "network")


class SphericalPath:
    """Arcs between two networks; a `Path`.

    Every floating-point tensor but the running statistics of normalisation layers turns: two networks of one
    architecture differ in no other buffer.

    Args:
        fixed: the network at t = 0.
        moving: the network at t = 1.
        whole: all of them turn as one vector.
    """

    def __init__(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], *, whole: bool) -> None:
        check_fits(moving, fixed, "the moving network")
        self._fixed, self._moving, self._whole = fixed, moving, whole
        self._turning = [name for name, t in fixed.items() if t.is_floating_point() and not is_running(name)]

    def state(self, t: float) -> State:
        """Return the network at `t` (see `Path.state`)."""
        state = on_line(self._fixed, self._moving, t)
        if t in (0, 1):
            return state
        for name, angle in zip(self._turning, self._angles, strict=True):
            if angle:
                first, second = (math.sin(part * angle) / math.sin(angle) for part in (1 - t, t))
                state[name] = first * self._fixed[name].detach() + second * self._moving[name].detach()
        return state

    def distance(self, grid: Sequence[float]) -> list[float]:
        """Return the lengths by Gauss-Legendre quadrature of ||phi'(t)||, 64 nodes between neighbours of the grid."""
        stops = np.unique(np.concatenate([[0.0], np.asarray(grid, dtype=np.float64)]))
        starts, widths = stops[:-1], np.diff(stops)
        nodes = starts[:, None] + widths[:, None] * (_NODES + 1) / 2
        pieces = self._speeds(nodes) @ _NODE_WEIGHTS * widths / 2
        lengths = np.concatenate([[0.0], np.cumsum(pieces)])
        return [float(lengths[i]) for i in np.searchsorted(stops, np.asarray(grid, dtype=np.float64))]

    def _speeds(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """||phi'(t)||, of the shape of `t`."""
        squares = np.zeros_like(t)
        for (first, second, product), angle in zip(self._products, self._angles, strict=True):
            start, end = np.full_like(t, -1.0), np.ones_like(t)
            if angle:
                start = -angle * np.cos((1 - t) * angle) / math.sin(angle)
                end = angle * np.cos(t * angle) / math.sin(angle)
            squares += start**2 * first + 2 * start * end * product + end**2 * second
        return np.asarray(np.sqrt(squares.clip(min=0)))

    @cached_property
    def _products(self) -> list[tuple[float, float, float]]:
        """||fixed||^2, ||moving||^2 and <fixed, moving> of every tensor that turns."""
        pairs = [
            (self._fixed[name].double().flatten(), self._moving[name].double().flatten()) for name in self._turning
        ]
        return [(float(a @ a), float(b @ b), float(a @ b)) for a, b in pairs]

    @cached_property
    def _angles(self) -> list[float]:
        """By which each of them turns; 0 for those that stay on the line."""
        if self._whole:
            first, second, product = np.array(self._products).reshape(-1, 3).sum(axis=0).tolist()
            return [_angle(first, second, product)] * len(self._turning)
        return [_angle(*products) for products in self._products]


def _angle(first: float, second: float, product: float) -> float:
    scale = math.sqrt(first * second)
    if scale == 0:
        return 0.0
    cosine = product / scale
    sine = math.sqrt(max(0.0, 1 - cosine**2))
    return math.atan2(sine, cosine) if sine > _COLLINEAR else 0.0
