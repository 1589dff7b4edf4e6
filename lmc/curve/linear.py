"""The straight line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import ClassVar

import torch
from torch import Tensor

from lmc.state import State, check_fits, interpolate
from lmc.training.recipe import Training

_RUNNING = frozenset({"running_mean", "running_var"})


@dataclass(frozen=True, kw_only=True)
class Linear:
    """(1 - t) * fixed + t * moving; nothing is trained."""

    training: ClassVar[Training | None] = None

    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> "LinearPath":
        """Return the line from `fixed` to `moving`; `folder` is not looked at.

        Raises:
            UserError: the two are of different architectures.
        """
        return LinearPath(fixed, moving)


class LinearPath:
    """A straight line between two networks; a `Path`.

    Its length counts every floating-point tensor but the running statistics of normalisation layers: two networks of
    one architecture differ in no other buffer.
    """

    def __init__(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor]) -> None:
        check_fits(moving, fixed, "the moving network")
        self._fixed, self._moving = fixed, moving

    def state(self, t: float) -> State:
        """Return the network at `t` (see `Path.state`)."""
        return on_line(self._fixed, self._moving, t)

    def distance(self, grid: Sequence[float]) -> list[float]:
        """Return the lengths (see `Path.distance`)."""
        return [t * self._length for t in grid]

    @cached_property
    def _length(self) -> float:
        squares = [
            (self._moving[name].double() - tensor.double()).square().sum()
            for name, tensor in self._fixed.items()
            if tensor.is_floating_point() and not is_running(name)
        ]
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def is_running(name: str) -> bool:
    """Tell whether a tensor is a running statistic of a normalisation layer, by its name."""
    return name.rpartition(".")[2] in _RUNNING


def on_line(fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], t: float) -> State:
    """Return `lmc.state.interpolate`, but whole copies of the endpoints at t = 0 and t = 1, integers included."""
    if t in (0, 1):
        return {name: tensor.detach().clone() for name, tensor in (moving if t else fixed).items()}
    return interpolate(fixed, moving, t)
