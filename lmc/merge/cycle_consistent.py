"""C2M3: Frank-Wolfe for the permutations of all networks at once, through mixtures of them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from lmc.alignment.assignment import assign_all
from lmc.alignment.frank_wolfe import ascend
from lmc.alignment.problem import Alignment, OnStep, Problem, until_interrupted
from lmc.alignment.similarity.mixture import Mixture, SoftNetwork, centre, highest, rise, towards, zero_like
from lmc.alignment.weight_matching import WeightMatching
from lmc.merge.base import Frame, rebased, refuse_soft
from lmc.merge.many import rounds
from lmc.merge.placed import Placed
from lmc.merge.reference import Reference
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry


@dataclass(frozen=True, kw_only=True)
class CycleConsistent:
    """Maximises the agreement of all networks by Frank-Wolfe over mixtures of permutations (Crisostomi et al. 2024).

    Every network has a permutation into a common universe, P_i for network i, so that what brings j to i is P_i^-1 P_j
    and every cycle closes. Maximised is the sum over all pairs of networks of <P_i W_i, P_j W_j>, over all trainable
    tensors on which some group acts, as a polynomial in one doubly stochastic matrix for each network and group. A step
    takes the gradient for all of them at once (each network is compared with the sum of the others), finds the
    permutations that are best for it (one assignment for each network and group), and goes towards them by one step
    size for all: the best on the segment. When several steps have gained next to nothing, every mixture is rounded to a
    permutation near to it, and the universe is turned into the frame of the first network.

    C2M3 ends there. By default rounds of weight matching follow (those of merge=many, one descent from where a network
    is), without which the rounded permutations need not be a local optimum. If permutations that the search began at
    are better than the rounded ones, they are kept in their place.

    Units inside blocks are mixed as `lmc.alignment.frank_wolfe.FrankWolfe` mixes them.

    Trace: the records of `Reference` if the search begins there; for each step {"step", "objective" (of the mixtures,
    before the step), "gap" (the rise that the gradient promises), "step_size", "seconds"}; one record {"objective" (of
    the permutations), "rounded" (as the mixtures were rounded), "seconds"}; the records of the rounds that follow (see
    `MergeMany`). The objective of `Frame` is that of its permutations.

    Memory: for each network, three (units, units) matrices for each group, as all groups of all networks move at once:
    the mixture, its gradient, and the next mixture. Beside them five copies of all networks.

    Args:
        start: "centre" (every unit of a network is mixed from all of its group equally, so that the order of the units
            does not matter; but the first network stays as it is, throughout: its gradient is 0 where all others are at
            their centres), "identity" (the networks as they are; C2M3) or "reference" (all aligned to the first by
            `alignment`, which is not used otherwise).
        max_steps: of the search.
        patience: steps without gain after which it ends (C2M3: 5).
        tolerance: gain that counts, as a share of the objective's bound, the sum over all pairs of ||W_i|| ||W_j||.
        finish: what follows the rounding: "weight_matching" or "none" (C2M3).
        max_rounds: of all networks, in what follows.
    """

    needs_data: ClassVar[bool] = False

    start: Literal["identity", "centre", "reference"] = "centre"
    max_steps: PositiveInt = 100
    patience: PositiveInt = 5
    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    finish: Literal["none", "weight_matching"] = "weight_matching"
    max_rounds: PositiveInt = 100

    def check(self, symmetry: Symmetry, alignment: Alignment) -> None:
        """Raise a `UserError` if `alignment` gives no permutation."""
        refuse_soft(alignment, "cycle_consistent")

    def __call__(
        self, states: Sequence[State], alignment: Alignment, problem: Problem, on_step: OnStep | None = None
    ) -> Frame:
        """Return the rounded permutations; see `lmc.merge.base.JointMerge`."""
        self.check(problem.symmetry, alignment)
        placed = Placed(states, problem)
        trace: list[dict[str, float]] = []
        if self.start == "reference":
            begun = Reference()(states, alignment, problem, on_step)
            if not begun.complete:
                return begun
            trace += begun.trace
            placed = Placed(states, problem, begun.permutations)

        def note(record: dict[str, float]) -> None:
            trace.append(record)
            if on_step is not None:
                on_step(record)

        universe = _Universe(states, problem, first_stays=self.start == "centre")
        mixtures = universe.begin(placed.permutations)
        threshold = self.tolerance * placed.bound
        climb = ascend(universe, mixtures, max_steps=self.max_steps, patience=self.patience, threshold=threshold)
        with until_interrupted() as search:
            for record, reached in climb:
                mixtures = reached
                note(record)
        started = time.perf_counter()
        rounded = Placed(states, problem, [Permutation(problem.symmetry, found) for found in universe.best(mixtures)])
        value = rounded.objective
        if value > placed.objective or self.start == "centre":
            placed = rounded
        record = {"objective": placed.objective, "rounded": value, "seconds": time.perf_counter() - started}
        with until_interrupted() as rest:
            if search.complete:
                note(record)
                for record in self._finished(placed, problem):
                    note(record)
        return Frame(rebased(placed.permutations), placed.objective, trace, search.complete and rest.complete)

    def _finished(self, placed: Placed, problem: Problem) -> Iterator[dict[str, float]]:
        if self.finish == "weight_matching":
            descent = WeightMatching(restarts=1, start="identity")
            yield from rounds(placed, descent, problem, max_rounds=self.max_rounds, tolerance=1e-9)


_Mixtures = Sequence[Mixture]
"""A mixture of permutations for each network."""

_Vertex = Sequence[Mapping[str, Tensor]]
"""A permutation for each network."""


class _Universe:
    """The sum over all pairs of <P_i W_i, P_j W_j> for mixtures of permutations, and its gradient.

    A mixture acts on its network alone, so that the gradient for one network is that of its inner product with the sum
    of all the others.
    """

    def __init__(self, states: Sequence[State], problem: Problem, *, first_stays: bool) -> None:
        self._symmetry = problem.symmetry
        self._like = zero_like(states, problem)
        self._networks = [SoftNetwork(state, problem.symmetry, self._like) for state in states]
        self._first_stays = first_stays

    def begin(self, permutations: Sequence[Permutation]) -> _Mixtures:
        """Return mixtures of one permutation each; if the first network stays, the others begin at the centre."""
        middle = centre(self._symmetry, self._like)
        hard = [towards(middle, self._symmetry, permutation, 1.0) for permutation in permutations]
        return [hard[0], *(middle for _ in hard[1:])] if self._first_stays else hard

    def at(self, mixtures: _Mixtures) -> float:
        """Return the objective."""
        total = 0.0
        for before, *rest in zip(*self._mixed(mixtures), strict=True):
            for part in rest:
                total += (before * part).sum(dtype=torch.float64).item()
                before = before + part
        return total

    def gradient(self, mixtures: _Mixtures) -> tuple[float, list[dict[str, Tensor]]]:
        """Return the objective, and its derivative by every matrix of every mixture."""
        mixed = [list(parts) for parts in self._mixed(mixtures)]
        total = [torch.stack(parts).sum(0) for parts in zip(*mixed, strict=True)]
        value, gradients = 0.0, list[dict[str, Tensor]]()
        for network, mixture, mine in zip(self._networks, mixtures, mixed, strict=True):
            others = (whole - part for whole, part in zip(total, mine, strict=True))
            product, gradient = network.gradient(mixture, others)
            value += product / 2  # every pair is met twice
            gradients.append(gradient)
        return value, gradients

    def _mixed(self, mixtures: _Mixtures) -> list[Iterator[Tensor]]:
        return [network.mixed(mixture) for network, mixture in zip(self._networks, mixtures, strict=True)]

    def best(self, gradients: _Mixtures) -> list[dict[str, Tensor]]:
        """Return the permutations that are best for the gradient; of mixtures, the nearest to them."""
        return [assign_all(self._symmetry, gradient) for gradient in gradients]

    def rise(self, gradients: _Mixtures, mixtures: _Mixtures, vertex: _Vertex) -> float:
        """Return by how much the objective would rise, to first order, if the mixtures that move became `vertex`."""
        sides = list(zip(gradients, mixtures, vertex, strict=True))[self._first_stays :]
        return sum(rise(gradient, mixture, self._symmetry, end) for gradient, mixture, end in sides)

    def towards(self, mixtures: _Mixtures, vertex: _Vertex, size: float) -> _Mixtures:
        """Return the mixtures with the share `size` of each that moves replaced by a permutation."""
        moved = [towards(mixture, self._symmetry, end, size) for mixture, end in zip(mixtures, vertex, strict=True)]
        return [mixtures[0], *moved[1:]] if self._first_stays else moved

    def step_size(self, mixtures: _Mixtures, vertex: _Vertex, value: float, slope: float) -> float:
        """Return the share of `vertex` in [0, 1] at which the objective, `value` and rising by `slope`, is highest."""

        def at(size: float) -> float:
            return self.at(self.towards(mixtures, vertex, size))

        degree = self._networks[0].degree  # with fixed tensors; here both sides move
        return highest(at, value, slope, at(1.0), None if degree is None else 2 * degree)
