"""The plane through three networks: its axes, the network at each of its points, and where other networks lie."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc.curve.flat import Layout
from lmc.errors import UserError
from lmc.state import State

_COLLINEAR = 1e-5
"""Closer to a line, in shares of the largest distance, the second axis would be little but the rounding of float32."""


@dataclass(frozen=True)
class Place:
    """Where a network lies: its coordinates on the plane, and how far it is from the plane (Euclidean)."""

    x: float
    y: float
    distance: float


class Span:
    """The plane through three networks in the space of all parameters.

    With u = second - first and v = (third - first) - <third - first, u> u / |u|^2, both divided by their norms, the
    point (x, y) is first + x u + y v (Garipov et al. 2018, section 3): one unit of x or y is one unit of Euclidean
    distance between networks.

    Buffers have no place in that space. A point is a merger of the networks that the three come from (`ends`), and has
    the buffers that this merger has, so that the points of a curve have those that they have on the curve. Beyond the
    ends there is no merger: a point there counts as the nearest one (an extrapolated variance could be negative).

    Args:
        model: the architecture.
        networks: the three, on one device.
        ends: what they were merged from.
        shares: for each of the three, how much of each end it is; its own sum is 1.
        names: what the three are called in messages.

    Raises:
        UserError: the three lie on one line.
    """

    def __init__(
        self,
        model: nn.Module,
        networks: Sequence[State],
        ends: Sequence[State],
        shares: Sequence[Sequence[float]],
        names: Sequence[str],
    ) -> None:
        self._shares = shares
        names_of = {id(parameter): name for name, parameter in model.named_parameters()}
        tied = {name: names_of[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
        self._aliases = {alias: name for alias, name in tied.items() if alias != name}
        own = {name: ends[0][name] for name in names_of.values()}
        rest = {name: tensor for name, tensor in ends[0].items() if name not in tied}
        self._layout = Layout(own)
        self._corners = torch.stack([self._layout.flatten(network) for network in networks])
        self._whole = {name: tensor for name, tensor in rest.items() if not tensor.is_floating_point()}
        self._buffers = Layout({name: tensor for name, tensor in rest.items() if tensor.is_floating_point()})
        self._of_ends = [self._buffers.flatten(end) for end in ends]
        self._edges = self._corners[1:] - self._corners[0]
        along, across = self._corners[1:].double() - self._corners[0].double()
        self.length = float(along.norm())
        self._aside = float(across @ along) / self.length if self.length else 0.0
        self.height = float((across - along * (self._aside / self.length)).norm()) if self.length else 0.0
        if self.height <= _COLLINEAR * max(self.length, float(across.norm())):
            raise UserError(
                f"no plane: {names[0]}, {names[1]} and {names[2]} lie on one line, {self.height:.1e} from it at most; "
                "give networks that differ, or train the curve for longer"
            )

    @property
    def corners(self) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
        """(x, y) of the three networks."""
        return (0.0, 0.0), (self.length, 0.0), (self._aside, self.height)

    def mixture(self, x: float, y: float) -> tuple[float, float, float]:
        """Return the weights of the three networks, with the sum 1, that give the point; exact at the three."""
        third = y / self.height
        second = (x - third * self._aside) / self.length
        return 1.0 - second - third, second, third

    def weights(self, x: float, y: float) -> list[float]:
        """Return the convex weights of the ends for a point: those that make it up, or the nearest that are convex."""
        mixture = self.mixture(x, y)
        of_ends = zip(*self._shares, strict=True)
        return nearest_convex([math.fsum(m * s for m, s in zip(mixture, shares, strict=True)) for shares in of_ends])

    def state(self, x: float, y: float) -> State:
        """Return the network at a point, fresh tensors; those that are not floating point come from the first end."""
        mixture = torch.tensor(self.mixture(x, y), dtype=self._corners.dtype, device=self._corners.device)
        state = self._layout.views(mixture @ self._corners)
        state |= {alias: state[name].clone() for alias, name in self._aliases.items()}
        state |= self._buffers.views(_merged(self._of_ends, self.weights(x, y)))
        return state | {name: tensor.clone() for name, tensor in self._whole.items()}

    def place(self, state: Mapping[str, Tensor]) -> Place:
        """Return where a network lies; to the accuracy of float32."""
        step = self._layout.flatten(state).to(self._edges.device).sub_(self._corners[0])
        along, across = (self._edges @ step).tolist()
        x = along / self.length
        y = (across - x * self._aside) / self.height
        shares = torch.tensor(self.mixture(x, y)[1:], dtype=step.dtype, device=step.device)
        return Place(x, y, float(torch.addmv(step, self._edges.T, shares, alpha=-1).norm()))


def nearest_convex(weights: Sequence[float]) -> list[float]:
    """Return the non-negative weights with the sum 1 that are nearest to `weights`, whose sum is 1.

    The projection onto the simplex (Duchi et al. 2008, fig. 1); weights that are convex come back as they are.
    """
    if min(weights) >= 0:
        return list(weights)
    ordered = sorted(weights, reverse=True)
    excess = [(total - 1) / count for count, total in enumerate(itertools.accumulate(ordered), 1)]
    threshold = max(cut for value, cut in zip(ordered, excess, strict=True) if value > cut)
    return [max(0.0, weight - threshold) for weight in weights]


def _merged(rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i weights[i] * rows[i] as repeated interpolation: as on a line for two, and exact where one weight is 1."""
    total, share = rows[0].clone(), weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        share += weight
        if weight:
            total = torch.lerp(total, row, weight / share)
    return total
