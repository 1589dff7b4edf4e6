"""Weight matching: coordinate descent over one linear assignment for each group."""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from lmc.alignment.assignment import assign, assign_family
from lmc.alignment.problem import AnySymmetry, Matching, OnStep, Problem, check_pair
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

log = logging.getLogger(__name__)

Order = Literal["random", "forward", "backward", "alternating"]
Start = Literal["centre", "identity", "random"]


@dataclass(frozen=True, kw_only=True)
class WeightMatching(AnySymmetry):
    """Maximises <fixed, P moving> over all permutations P (Ainsworth et al. 2023, Git Re-Basin, Algorithm 1).

    The objective is the inner product of all trainable tensors on which some group acts; maximising it minimises the
    Euclidean distance between the networks. A sweep solves one linear assignment for each group, the others held
    still; a group is solved again only if a neighbour of it has moved since. When nothing moves, no single group can
    be improved: a local optimum. Several descents are made and the best is kept.

    By default a descent begins at the *centre*, where nothing is matched yet: an unmatched group is taken as the mean
    over all of its permutations, and groups are matched one by one, outwards from the network's input and output in a
    random order. So the arbitrary order of the units has no part in the first assignments; on residual networks this
    ends in better optima, after fewer sweeps, than beginning at the identity or at random. Where there are several
    descents the first begins at the identity, so that units which correspond already (networks with a common past)
    are not lost.

    Trace: one record for each sweep, {"restart", "sweep", "objective", "seconds", "moved" (groups)}; sweep 0 is the
    start. The objective of `Matching` is that of the best descent, the first of equals.

    Args:
        restarts: number of descents.
        start: where they begin; "identity" with one descent is Git Re-Basin's algorithm.
        order: of the groups in a sweep, "forward" being the network's own; "random" draws anew for every sweep.
        max_sweeps: of a descent.
        tolerance: smallest gain for which a group is moved, as a share of ||fixed|| ||moving||, the objective's bound.

    Raises:
        UserError: several descents from the identity in one and the same order, which would be equal.
    """

    needs_data: ClassVar[bool] = False

    restarts: PositiveInt = 5
    start: Start = "centre"
    order: Order = "random"
    max_sweeps: PositiveInt = 100
    tolerance: Annotated[float, Field(ge=0)] = 1e-9

    def __post_init__(self) -> None:
        if self.restarts > 1 and self.start == "identity" and self.order != "random":
            raise UserError(
                f"alignment.restarts={self.restarts}: from the identity in order {self.order!r} all descents are the "
                "same; set alignment.restarts=1, alignment.order=random or alignment.start=centre"
            )

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the best matching found; see `lmc.alignment.problem.Alignment`."""
        check_pair(fixed, moving, problem.symmetry)
        weights = WeightSimilarity(fixed, moving, problem.symmetry, problem.device)
        threshold = self.tolerance * weights.bound
        trace: list[dict[str, float]] = []
        best: Descent | None = None
        for restart in range(self.restarts):
            draw = generator(problem.seed, "weight_matching", restart)
            start = "identity" if restart == 0 and self.restarts > 1 else self.start
            descent = Descent(weights, problem.symmetry, threshold, _begin(start, problem, draw))
            for record in descent.run(self._orders(problem.symmetry, weights, draw), self.max_sweeps):
                trace.append({"restart": restart, **record})
                if on_step is not None:
                    on_step(trace[-1])
            if best is None or descent.objective > best.objective + threshold:
                best = descent
        assert best is not None  # restarts is positive
        permutation = Permutation(problem.symmetry, best.permutation)
        return Matching(permutation, weights.objective(best.permutation), trace)

    def _orders(self, symmetry: Symmetry, weights: WeightSimilarity, draw: torch.Generator) -> Iterator[list[str]]:
        """The order of the groups in sweep 0 (which matches what is unmatched), 1, 2, ..."""
        names = list(symmetry.families)
        yield outwards(_shuffled(names, draw), symmetry, weights.neighbours)
        for sweep in itertools.count():
            if self.order == "random":
                yield _shuffled(names, draw)
            else:
                forward = self.order == "forward" or (self.order == "alternating" and sweep % 2 == 0)
                yield names if forward else names[::-1]


def _begin(start: Start, problem: Problem, draw: torch.Generator) -> dict[str, Tensor]:
    if start == "centre":
        return {}
    of = problem.symmetry
    begin = Permutation.random(of, draw) if start == "random" else Permutation.identity(of)
    return {name: value.to(problem.device) for name, value in begin.items()}


class Descent:
    """Coordinate descent (upwards: the objective is maximised) from one starting point.

    Args:
        weights: the objective.
        threshold: smallest gain for which a group is moved.
        permutation: the starting point; groups that are absent are unmatched.
    """

    def __init__(
        self, weights: WeightSimilarity, symmetry: Symmetry, threshold: float, permutation: Mapping[str, Tensor]
    ) -> None:
        self.permutation = dict(permutation)
        self.objective = weights.objective(permutation)
        self._weights = weights
        self._symmetry = symmetry
        self._threshold = threshold
        self._stale = set(weights.neighbours)  # families that may not be at their best

    def run(self, orders: Iterator[Sequence[str]], max_sweeps: int) -> Iterator[dict[str, float]]:
        """Sweep until no group can be improved, and yield a record after each; record 0 is the starting point.

        The first of `orders` is that in which unmatched groups are matched; the objective of record 0 is taken after.
        """
        for sweep, order in zip(range(max_sweeps + 1), orders, strict=False):
            started = time.perf_counter()
            unmatched = [name for name in order if name not in self.permutation]
            moved = sum(self._improve(name) for name in (order if sweep else unmatched) if name in self._stale)
            seconds = time.perf_counter() - started
            yield {"sweep": sweep, "objective": self.objective, "seconds": seconds, "moved": moved}
            if not self._stale:
                return
        log.warning("weight matching has not converged after %d sweeps; raise alignment.max_sweeps", max_sweeps)

    def _improve(self, root: str) -> bool:
        """Give a family its best permutations, the others held still; return whether it moved."""
        self._stale.discard(root)
        moved = self._improve_alone(root) if self._is_plain(root) else self._improve_family(root)
        if moved:
            self._stale |= self._weights.neighbours[root]
        return moved

    def _is_plain(self, root: str) -> bool:
        return not self._symmetry.inside(root)

    def _improve_alone(self, group: str) -> bool:
        similarity = self._weights.of(group, self.permutation)
        value = assign(similarity).to(similarity.device)
        gain = self._weights.gain(group, similarity, self.permutation, value)
        if group in self.permutation and not gain > self._threshold:
            return False
        self.permutation[group] = value
        self.objective += gain
        return True

    def _improve_family(self, root: str) -> bool:
        """Move blocks with what is inside them, then what is inside them alone, until neither gains."""
        members = self._symmetry.families[root]
        similarities = {name: self._weights.of(name, self.permutation) for name in members}
        device = similarities[root].device
        found = assign_family(self._symmetry, members, similarities)
        changes = {name: value.to(device) for name, value in found.items()}
        for name in self._symmetry.inside(root):
            if name not in members and set(self._symmetry.groups[name].outer) <= {*self.permutation, *changes}:
                changes[name] = self._inside(name, {**self.permutation, **changes})
        moved = self._take(changes, always=root not in self.permutation)
        inner = [name for name in self._symmetry.inside(root) if name in self.permutation and self._is_plain(name)]
        while any(self._take({name: self._inside(name, self.permutation)}) for name in inner):
            moved = True
        return moved

    def _inside(self, name: str, permutation: Mapping[str, Tensor]) -> Tensor:
        """The best permutations of an inner group, its outer groups and all others held still."""
        similarity = self._weights.inside(name, permutation)
        rows = [assign(each) for each in similarity]
        return torch.stack(rows).reshape(self._symmetry.lattice(name)).to(similarity.device)

    def _take(self, changes: Mapping[str, Tensor], *, always: bool = False) -> bool:
        """Accept new values if the objective rises by them."""
        gain = self._weights.difference(self.permutation, changes)
        if not always and not gain > self._threshold:
            return False
        self.permutation.update(changes)
        self.objective += gain
        return True


def outwards(order: Sequence[str], symmetry: Symmetry, neighbours: Mapping[str, frozenset[str]]) -> list[str]:
    """Return the groups of `order` such that each, where possible, touches what is known before its turn.

    Known are the network's input and output (a tensor of several dimensions, of which the group moves only one) and
    the groups that came earlier; among the groups that touch them `order` decides.
    """
    ready = {
        group
        for tensor, axes in symmetry.axes_of.items()
        if len(axes) == 1 and len(symmetry.shapes[tensor]) > 1
        for group in axes[0].groups
    }
    left, found = list(order), list[str]()
    while left:
        name = next((name for name in left if name in ready), left[0])
        left.remove(name)
        found.append(name)
        ready |= neighbours[name]
    return found


def _shuffled(names: Sequence[str], draw: torch.Generator) -> list[str]:
    return [names[i] for i in torch.randperm(len(names), generator=draw).tolist()]
