"""Mixtures of permutations, and what a network is under them: multilinear in one matrix for each group."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from lmc.alignment.assignment import flat, matched
from lmc.alignment.problem import Problem
from lmc.state import State
from lmc.symmetry.structure import Axis, Factor, Symmetry

Mixture = Mapping[str, Tensor]
"""Group to the mean of its permutation matrices in a mixture: (units, units), doubly stochastic.

Units are all combinations with those of its outer groups, row-major, as for `lmc.alignment.assignment.assign_family`.
"""

_NEGLIGIBLE = 1e-30
"""Weight of a pair of blocks below which nothing is known of what is inside them."""


def centre(symmetry: Symmetry, like: Tensor) -> Mixture:
    """Return the uniform mixture of all permutations, of the kind and on the device of `like`."""
    units = {name: symmetry.units(name) for name in symmetry.groups}
    return {name: like.new_full((n, n), 1 / n) for name, n in units.items()}


def towards(mixture: Mixture, symmetry: Symmetry, permutation: Mapping[str, Tensor], size: float) -> Mixture:
    """Return `mixture`, with the share `size` of it replaced by `permutation`."""
    moved = {}
    for name, matrix in mixture.items():
        index = flat(symmetry, symmetry.chain(name), permutation).to(matrix.device)
        moved[name] = matrix * (1 - size)
        moved[name][torch.arange(len(index), device=matrix.device), index] += size
    return moved


def rise(gradient: Mixture, mixture: Mixture, symmetry: Symmetry, permutation: Mapping[str, Tensor]) -> float:
    """Return by how much the objective would rise, to first order, if `mixture` became `permutation`."""
    total = 0.0
    for name, slope in gradient.items():
        reached = matched(slope, flat(symmetry, symmetry.chain(name), permutation)).sum()
        total += (reached - (slope * mixture[name]).sum(dtype=torch.float64)).item()
    return total


def highest(at: Callable[[float], float], value: float, slope: float, end: float, degree: int | None) -> float:
    """Return where in [0, 1] a function is highest.

    Args:
        at: the function.
        value: at 0.
        slope: at 0.
        end: its value at 1.
        degree: of the polynomial that it is at most; None if it is none, and has to be searched.
    """
    if degree is None:
        found = minimize_scalar(lambda size: -at(size), bounds=(0, 1), method="bounded")
        return max((value, 0.0), (-float(found.fun), float(found.x)), (end, 1.0))[1]
    # As many values in between as the degree asks for: none up to 2.
    between = [place / (degree - 1) for place in range(1, degree - 1)]
    powers = np.arange(max(2, degree) + 1)
    conditions = np.stack([powers == 0, powers == 1, *(np.power(t, powers) for t in (*between, 1.0))])
    values = [value, slope, *map(at, between), end]
    polynomial = np.polynomial.Polynomial(np.linalg.solve(conditions.astype(float), values))
    turns = [complex(turn) for turn in polynomial.deriv().roots().tolist()]
    inside = [turn.real for turn in turns if abs(turn.imag) < 1e-9 and 0 < turn.real < 1]
    return max((0.0, *inside, 1.0), key=polynomial)


def zero_like(states: Sequence[State], problem: Problem) -> Tensor:
    """Return a zero on the problem's device, float64 if a tensor that is compared is, else float32."""
    names = problem.symmetry.axes_of.keys() & problem.symmetry.parameters
    wide = any(state[name].dtype == torch.float64 for name in names for state in states)
    return torch.zeros((), dtype=torch.float64 if wide else torch.float32, device=problem.device)


class SoftNetwork:
    """The trainable tensors of a network on which some group acts, as a function of a mixture of permutations.

    Every tensor is cut into parts, one segment of each of its axes at a time; the sum of the inner products of the
    parts of two networks is that of their tensors. A mixture is drawn independently for every group at every place
    where it acts; a group inside others, independently in every pair of their units.

    Args:
        state: the network.
        symmetry: its groups.
        like: the kind of number and the device to compute with; see `zero_like`.

    Attributes:
        parts: unmixed, with a dimension for each factor of each axis.
        degree: of the polynomial that the inner product with fixed tensors is along a segment of mixtures; None if it
            is a quotient of polynomials.
    """

    def __init__(self, state: State, symmetry: Symmetry, like: Tensor) -> None:
        axes = {name: found for name, found in symmetry.axes_of.items() if name in symmetry.parameters}
        cut = [part for name in axes for part in _parts(state[name].to(like), axes[name], symmetry)]
        self._symmetry = symmetry
        self._factors = [factors for _, factors in cut]
        self.parts = [part for part, _ in cut]
        polynomial = all(factor.is_joint for factors in self._factors for factor in factors)
        self.degree = max(map(len, self._factors), default=0) if polynomial else None

    def mixed(self, mixture: Mixture) -> Iterator[Tensor]:
        """Yield the parts under a mixture, one at a time, differentiable by its matrices."""
        for part, factors in zip(self.parts, self._factors, strict=True):
            operands: list[Tensor | list[int]] = [part, [*range(part.ndim)]]
            letters = [*range(part.ndim)]
            for factor in factors:
                lattice = self._symmetry.lattice(factor.group)
                matrix = mixture[factor.group]
                if not factor.is_joint:
                    matrix = _inside(matrix, lattice[-1])
                rows = [place + part.ndim for place in factor.places]
                operands += [matrix.reshape(*lattice, *lattice), [*rows, *factor.places]]
                for place, row in zip(factor.places, rows, strict=True):
                    letters[place] = row
            yield torch.einsum(*operands, letters)

    def product(self, mixture: Mixture, others: Iterable[Tensor]) -> float:
        """Return the inner product of the mixed parts with `others`."""
        return sum(_product(part, other).item() for part, other in zip(self.mixed(mixture), others, strict=True))

    def gradient(self, mixture: Mixture, others: Iterable[Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Return the inner product of the mixed parts with `others`, and its derivative by the matrices."""
        leaves = {name: matrix.detach().requires_grad_() for name, matrix in mixture.items()}
        value = 0.0
        for part, other in zip(self.mixed(leaves), others, strict=True):
            term = _product(part, other)
            value += term.item()
            if term.requires_grad:  # some segments hold no group
                torch.autograd.backward(term)
        return value, {n: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for n, leaf in leaves.items()}

    def step_size(
        self,
        mixture: Mixture,
        vertex: Mapping[str, Tensor],
        others: Sequence[Tensor],
        value: float,
        slope: float,
        end: float,
    ) -> float:
        """Return the share of `vertex` in [0, 1] at which the inner product with `others` is highest.

        Args:
            mixture: where it is `value` and rises by `slope`.
            vertex: a permutation, where it is `end`.
            others: the parts of another network.
        """

        def at(share: float) -> float:
            return self.product(towards(mixture, self._symmetry, vertex, share), others)

        return highest(at, value, slope, end, self.degree)


def _product(part: Tensor, other: Tensor) -> Tensor:
    return (part * other).sum(dtype=torch.float64)


@dataclass(frozen=True)
class _Factor:
    """What a group multiplies in a part: its own dimension, with those of its outer groups in front."""

    group: str
    places: tuple[int, ...]
    is_joint: bool
    """Whether the outer groups are multiplied too, by the same matrix; else it is that inside their pairs of units."""


def _parts(tensor: Tensor, axes: Sequence[Axis], symmetry: Symmetry) -> Iterator[tuple[Tensor, list[_Factor]]]:
    """Cut a tensor along the axes on which groups act, one segment of each at a time; yield parts and their factors."""
    pieces: list[tuple[Tensor, dict[int, tuple[Factor, ...]]]] = [(tensor, {})]
    for axis in axes:
        lengths = [math.prod(factor.size for factor in segment) for segment in axis.segments]
        pieces = [
            (cut, {**segments, axis.dim: segment})
            for piece, segments in pieces
            for cut, segment in zip(
                torch.split(axis.concatenation(piece), lengths, axis.dim), axis.segments, strict=True
            )
        ]
    for piece, segments in pieces:
        dims = [
            (dim, factor) for dim, size in enumerate(piece.shape) for factor in segments.get(dim, (Factor(None, size),))
        ]
        yield piece.reshape([factor.size for _, factor in dims]), list(_factors(dims, symmetry))


def _factors(dims: Sequence[tuple[int, Factor]], symmetry: Symmetry) -> Iterator[_Factor]:
    """What multiplies a part; `dims` are its dimensions, each with the axis that it is cut from."""
    chains = {place: _chain(place, dims, symmetry) for place, (_, factor) in enumerate(dims) if factor.group}
    done: set[int] = set()
    # The joint matrix of an inner group holds those of its outer groups; but a shared one is independent of them.
    for place in sorted(chains, key=lambda p: (dims[p][1].group in symmetry.shared, -len(chains[p]))):
        left = [p for p in chains[place] if p not in done]
        is_joint = len(left) == len(chains[place])
        for p in left[-1:] if is_joint else left:
            yield _Factor(str(dims[p][1].group), chains[p], is_joint)
        done.update(left)


def _chain(place: int, dims: Sequence[tuple[int, Factor]], symmetry: Symmetry) -> tuple[int, ...]:
    """The dimensions that a factor lives inside, on its own axis where they are there, and its own."""
    axis, factor = dims[place]
    chain = []
    for outer in symmetry.outer.get(str(factor.group), ()):
        places = [p for p, (_, other) in enumerate(dims) if other.group == outer]
        chain.append(max(places, key=lambda p: (dims[p][0] == axis, p)))
    return (*chain, place)


def _inside(matrix: Tensor, size: int) -> Tensor:
    """Divide the mixture of an inner group by the weights of its pairs of blocks; uniform where these are 0."""
    blocks = matrix.reshape(len(matrix) // size, size, len(matrix) // size, size)
    weight = blocks.sum((1, 3), keepdim=True) / size
    known = weight > _NEGLIGIBLE
    return torch.where(known, blocks / torch.where(known, weight, 1.0), 1 / size)
