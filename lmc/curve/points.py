"""The trained inner points of a curve in a file, and the path through them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path as FilePath
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmc.curve.linear import on_line
from lmc.errors import UserError
from lmc.state import State, check_fits, load, save

BENDS_FILE = "bends.safetensors"


def write_points(points: Sequence[Mapping[str, Tensor]], folder: FilePath) -> None:
    """Write `points` in order to bends.safetensors in `folder`: tensors "bend1.<name>", "bend2.<name>", ..."""
    save({f"bend{i}.{name}": t for i, point in enumerate(points, 1) for name, t in point.items()}, folder / BENDS_FILE)


def read_points(
    folder: FilePath | None, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], count: int | None, setting: str
) -> list[State]:
    """Read what `write_points` wrote; the tensors are on the device of `fixed`.

    Args:
        folder: where the file is.
        fixed: the network at t = 0.
        moving: the network at t = 1.
        count: how many points there have to be; None: as many as there are.
        setting: what sets their number, for messages ("curve.bends").

    Raises:
        UserError: the file is missing or damaged, holds another number of points, or is of another architecture; or the
            two networks are.
        ValueError: no folder is given.
    """
    if folder is None:
        raise ValueError("a fitted curve needs the folder of its bends")
    check_fits(moving, fixed, "the moving network")
    file = folder / BENDS_FILE
    found: dict[int, State] = {}
    for name, tensor in load(file).items():
        number, _, inner = name.removeprefix("bend").partition(".")
        if not number.isdecimal() or not 1 <= int(number) <= (count or int(number)):
            raise UserError(f"{file} holds {name!r}, but the curve has {count} bends; set {setting} to match")
        if inner not in fixed:
            raise UserError(f"{file} is of another architecture: the networks have no tensor {inner!r}")
        found.setdefault(int(number), {})[inner] = tensor.to(fixed[inner].device)
    points = [found.get(number, {}) for number in range(1, (count or max(found)) + 1)]
    for index, point in enumerate(points, 1):
        check_fits(point, {name: fixed[name] for name in points[0]}, f"{file}, bend {index},")
    return points


class Shape(Protocol):
    """How a path lies between its control points."""

    def weights(self, t: float) -> list[float]:
        """Return the weight of every control point at `t`; see `lmc.curve.fitted.Fitted.weights`."""
        ...

    def arc_length(self, gram: NDArray[np.float64], grid: Sequence[float]) -> list[float]:
        """Return the length from 0 to each t of `grid`; see `lmc.curve.fitted.Fitted.arc_length`."""
        ...


class PointsPath:
    """A curve between two networks; a `Path`.

    Args:
        shape: whose weights combine the control points.
        fixed: the network at t = 0.
        moving: the network at t = 1.
        points: the inner control points in order, each with the tensors that bend.
    """

    def __init__(
        self, shape: Shape, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], points: Sequence[State]
    ) -> None:
        self._shape, self._fixed, self._moving, self._points = shape, fixed, moving, points

    def state(self, t: float) -> State:
        """Return the network at `t` (see `Path.state`)."""
        state = on_line(self._fixed, self._moving, t)
        if t in (0, 1):
            return state
        weights = self._shape.weights(t)
        for name in self._points[0]:
            controls = (self._fixed[name], *(point[name] for point in self._points), self._moving[name])
            state[name] = combine(weights, controls)
        return state

    def distance(self, grid: Sequence[float]) -> list[float]:
        """Return the lengths (see `Path.distance`)."""
        return self._shape.arc_length(self._gram, grid)

    @cached_property
    def _gram(self) -> NDArray[np.float64]:
        gram = torch.zeros(len(self._points) + 1, len(self._points) + 1, dtype=torch.float64)
        for name in self._points[0]:
            controls = (self._fixed[name], *(point[name] for point in self._points), self._moving[name])
            steps = torch.stack([control.double().flatten() for control in controls]).diff(dim=0)
            gram += (steps @ steps.T).cpu()
        return gram.numpy()


def combine(weights: Sequence[float], controls: Sequence[Tensor]) -> Tensor:
    """sum_i weights[i] * controls[i]; a weight of 0 adds nothing, so that a control point alone comes out unchanged."""
    terms = [(weight, control) for weight, control in zip(weights, controls, strict=True) if weight != 0]
    total = terms[0][1] * terms[0][0]
    for weight, control in terms[1:]:
        total.add_(control, alpha=weight)
    return total
