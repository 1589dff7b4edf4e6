"""Weight matching: coordinate descent over one linear assignment for each group."""

import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from lmc.alignment.assignment import assign, assign_family, in_place
from lmc.alignment.problem import (
    AnySymmetry,
    Matching,
    OnStep,
    Problem,
    check_pair,
    chosen_groups,
    refuse_no_patterns,
    until_interrupted,
)
from lmc.alignment.similarity.weights import WeightSimilarity, biases, normalisation
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

log = logging.getLogger(__name__)

Order = Literal["random", "forward", "backward", "alternating"]
Start = Literal["centre", "identity", "random"]


@dataclass(frozen=True, kw_only=True)
class Descents(AnySymmetry):
    """What methods share that search by coordinate descent, from several starting points.

    Args:
        restarts: number of descents, of which the best is kept.
        start: where they begin.
        order: of the groups in a sweep, "forward" being the network's own; "random" draws anew for every sweep.
        max_sweeps: of a descent.
        tolerance: smallest gain for which a group is moved.

    Raises:
        UserError: several descents from the identity in one and the same order, which would be equal.
    """

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

    def orders(
        self, symmetry: Symmetry, weights: WeightSimilarity, draw: torch.Generator, roots: Sequence[str] | None = None
    ) -> Iterator[list[str]]:
        """The order of the families in sweep 0 (which matches what is unmatched), 1, 2, ...; `roots`: None for all."""
        names = list(symmetry.families if roots is None else roots)
        held = [root for root in symmetry.families if root not in names]
        yield outwards(_shuffled(names, draw), symmetry, weights.neighbours, held)
        for sweep in itertools.count():
            if self.order == "random":
                yield _shuffled(names, draw)
            else:
                forward = self.order == "forward" or (self.order == "alternating" and sweep % 2 == 0)
                yield names if forward else names[::-1]


@dataclass(frozen=True, kw_only=True)
class WeightMatching(Descents):
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

    What is compared (Sharma et al. 2024 have both kernels, the bias as an option, and stacked checkpoints):

    - "inner_product" is the objective above.
    - "cosine" is the sum, over all tensors and all of their axes on which groups act, of the cosines of the vectors of
      matched units along the axis: incoming weights of a unit, outgoing weights, each in every layer, whatever their
      length. A tensor between two groups counts with both. A bias or a scale, of which the cosine would be a sign, is
      divided by its root mean square over the units. This is a sum of inner products of tensors that are normalised
      once, so that all that is said about the descent holds for it; what makes it differ from assigning each group by
      its own cosines is that the cosines of its neighbours count too.
    - Without `biases`, vectors (tensors of one dimension) that belong to no normalisation layer take no part, without
      `normalisation`, scales and shifts of normalisation layers. Layers are told apart by the names and shapes of
      tensors, see `lmc.alignment.similarity.weights.normalisation`.
    - With `stacked`, the objective is the sum over so many pairs of earlier checkpoints, beside the networks
      themselves; cosines are then those of the vectors of all checkpoints together.

    Trace: one record for each sweep, {"restart", "sweep", "objective", "seconds", "moved" (groups)}; sweep 0 is the
    start. The objective of `Matching` is that of the best descent, the first of equals.

    Memory: copies of both networks (of every pair, if stacked; of every tensor for each of its axes, for cosines), and
    4 n^2 bytes for each group of n units and each of its neighbours.

    Args:
        restarts: number of descents.
        start: where they begin; "identity" with one descent is Git Re-Basin's algorithm.
        order: of the groups in a sweep, "forward" being the network's own; "random" draws anew for every sweep.
        max_sweeps: of a descent.
        tolerance: smallest gain for which a group is moved, as a share of ||fixed|| ||moving||, the objective's bound.
        similarity: "inner_product" or "cosine".
        biases: whether biases take part.
        normalisation: whether scales and shifts of normalisation layers take part.
        stacked: how many of the last earlier checkpoints (`Problem.earlier`) the permutation has to suit too.
        groups: names or patterns (*, ?, [...]) of the groups that are matched; the others keep the identity. None for
            all.

    Raises:
        UserError: several descents from the identity in one and the same order, which would be equal; no pattern.
    """

    needs_data: ClassVar[bool] = False

    similarity: Literal["inner_product", "cosine"] = "inner_product"
    biases: bool = True
    normalisation: bool = True
    stacked: NonNegativeInt = 0
    groups: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_no_patterns(self.groups)

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` if a pattern of `groups` fits no group."""
        chosen_groups(symmetry, self.groups)

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the best matching found; see `lmc.alignment.problem.Alignment`.

        Raises:
            UserError: also if there are fewer earlier checkpoints than `stacked`, or one of them is unfit.
        """
        symmetry = problem.symmetry
        chosen = chosen_groups(symmetry, self.groups)
        check_pair(fixed, moving, symmetry)
        held = frozenset(symmetry.groups) - frozenset(chosen)
        weights = WeightSimilarity(
            fixed,
            moving,
            symmetry,
            problem.device,
            earlier=self._earlier(problem),
            leave_out=self._left_out(symmetry),
            cosine=self.similarity == "cosine",
            held=held,
        )
        within = replace(problem, symmetry=weights.symmetry)
        families = within.symmetry.families
        roots = [root for root in families if not {*families[root], *within.symmetry.inside(root)} <= held]
        threshold = self.tolerance * weights.bound
        trace: list[dict[str, float]] = []
        best: Descent | None = None
        descent = Descent(weights, within.symmetry, threshold, {}, held)
        with until_interrupted() as run:
            for restart in range(self.restarts):
                draw = generator(problem.seed, "weight_matching", restart)
                start = "identity" if restart == 0 and self.restarts > 1 else self.start
                descent = Descent(weights, within.symmetry, threshold, starting_point(start, within, draw, held), held)
                for record in descent.run(self.orders(within.symmetry, weights, draw, roots), self.max_sweeps):
                    trace.append({"restart": restart, **record})
                    if on_step is not None:
                        on_step(trace[-1])
                if best is None or descent.objective > best.objective + threshold:
                    best = descent
        ends = ([best] if best is not None else []) + ([] if run.complete else [descent])
        # A descent that is interrupted at its very beginning has not matched all groups.
        identity = starting_point("identity", within, generator(problem.seed, "weight_matching"))
        found = [{**identity, **end.permutation} for end in ends]
        objective, permutation = max(((weights.objective(each), each) for each in found), key=lambda pair: pair[0])
        whole = Permutation(symmetry, {**Permutation.identity(symmetry), **permutation})
        return Matching(whole, objective, trace, run.complete)

    def _earlier(self, problem: Problem) -> list[tuple[State, State]]:
        if len(problem.earlier) < self.stacked:
            raise UserError(
                f"alignment.stacked={self.stacked}: there are {len(problem.earlier)} earlier checkpoints of both "
                "networks; stack fewer, or keep more of them"
            )
        found = [problem.earlier[place] for place in range(len(problem.earlier) - self.stacked, len(problem.earlier))]
        for fixed, moving in found:
            check_pair(fixed, moving, problem.symmetry)
        return found

    def _left_out(self, symmetry: Symmetry) -> frozenset[str]:
        without_biases = frozenset[str]() if self.biases else biases(symmetry)
        return without_biases | (frozenset() if self.normalisation else normalisation(symmetry))


def starting_point(
    start: Start, problem: Problem, draw: torch.Generator, held: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """The permutation that a descent begins with; that of the groups in `held` is the identity."""
    of = problem.symmetry
    identity = Permutation.identity(of)
    if start == "centre":
        begin = {name: identity[name] for name in identity if name in held}
    else:
        drawn = Permutation.random(of, draw) if start == "random" else identity
        begin = {name: identity[name] if name in held else value for name, value in drawn.items()}
    return {name: value.to(problem.device) for name, value in begin.items()}


class Descent:
    """Coordinate descent (upwards: the objective is maximised) from one starting point.

    Args:
        weights: the objective.
        threshold: smallest gain for which a group is moved.
        permutation: the starting point; groups that are absent are unmatched.
        held: groups that stay at the identity, at which they have to begin.
    """

    def __init__(
        self,
        weights: WeightSimilarity,
        symmetry: Symmetry,
        threshold: float,
        permutation: Mapping[str, Tensor],
        held: frozenset[str] = frozenset(),
    ) -> None:
        self.permutation = dict(permutation)
        self.objective = weights.objective(permutation)
        self._weights = weights
        self._symmetry = symmetry
        self._threshold = threshold
        self._held = held
        self._stale = set(weights.neighbours)  # families that may not be at their best

    def run(self, orders: Iterator[Sequence[str]], max_sweeps: int) -> Iterator[dict[str, float]]:
        """Sweep until no group can be improved, and yield a record after each; record 0 is the starting point.

        The first of `orders` is that in which unmatched groups are matched; the objective of record 0 is taken after.
        """
        for sweep, order in zip(range(max_sweeps + 1), orders, strict=False):
            started = time.perf_counter()
            unmatched = [root for root in order if not self._is_matched(root)]
            moved = sum(self._improve(name) for name in (order if sweep else unmatched) if name in self._stale)
            seconds = time.perf_counter() - started
            yield {"sweep": sweep, "objective": self.objective, "seconds": seconds, "moved": moved}
            if not self._stale.intersection(order):
                return
        log.warning("weight matching has not converged after %d sweeps; raise alignment.max_sweeps", max_sweeps)

    def _improve(self, root: str) -> bool:
        """Give a family its best permutations, the others held still; return whether it moved."""
        self._stale.discard(root)
        moved = self._improve_alone(root) if self._is_plain(root) else self._improve_family(root)
        if moved:
            self._stale |= self._weights.neighbours[root]
        return moved

    def _is_matched(self, root: str) -> bool:
        """Whether everything of a family has a permutation."""
        return self.permutation.keys() >= set(self._symmetry.families[root])

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
        for name in self._held & similarities.keys():
            similarities[name] = in_place(similarities[name], self._symmetry, name)
        found = assign_family(self._symmetry, members, similarities)
        changes = {name: value.to(device) for name, value in found.items()}
        for name in self._symmetry.inside(root):
            if name in members or name in self._held:
                continue
            if set(self._symmetry.groups[name].outer) <= {*self.permutation, *changes}:
                changes[name] = self._inside(name, {**self.permutation, **changes})
        moved = self._take(changes, always=not changes.keys() <= self.permutation.keys())
        inner = [
            name
            for name in self._symmetry.inside(root)
            if name in self.permutation and name not in self._held and self._is_plain(name)
        ]
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


def outwards(
    order: Sequence[str], symmetry: Symmetry, neighbours: Mapping[str, frozenset[str]], known: Sequence[str] = ()
) -> list[str]:
    """Return the groups of `order` such that each, where possible, touches what is known before its turn.

    Known are the network's input and output (a tensor of several dimensions, of which the group moves only one), the
    groups in `known` and the groups that came earlier; among the groups that touch them `order` decides.
    """
    ready = {
        group
        for tensor, axes in symmetry.axes_of.items()
        if len(axes) == 1 and len(symmetry.shapes[tensor]) > 1
        for group in axes[0].groups
    }
    ready |= {near for name in known for near in neighbours[name]}
    left, found = list(order), list[str]()
    while left:
        name = next((name for name in left if name in ready), left[0])
        left.remove(name)
        found.append(name)
        ready |= neighbours[name]
    return found


def _shuffled(names: Sequence[str], draw: torch.Generator) -> list[str]:
    return [names[i] for i in torch.randperm(len(names), generator=draw).tolist()]
