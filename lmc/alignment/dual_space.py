"""Matching in two spaces at once: by the weights, and by the activations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lmc.alignment.assignment import flat, matched
from lmc.alignment.problem import Matching, OnStep, Problem, check_pair, until_interrupted
from lmc.alignment.similarity.correlation import PairMoments
from lmc.alignment.similarity.observed import ByActivations
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.alignment.weight_matching import Descent, Descents, starting_point
from lmc.seeding import generator
from lmc.state import State
from lmc.symmetry.permutation import Permutation


@dataclass(frozen=True, kw_only=True)
class DualSpace(ByActivations, Descents):
    """Maximises a weighted mean of what weight matching and activation matching maximise (after Xu et al. 2024, MuDSC).

    The objective is (1 - a) W(P) + a A(P), with a = `activation_share`:

    - W is <fixed, P moving> / (||fixed|| ||moving||) over all trainable tensors on which some group acts: a cosine.
    - A is the mean similarity of matched units, over all units and all places where they are observed: for "pearson"
      the mean correlation. For "product" it is the sum of the products E[a b] over the sum, for every place, of
      sqrt(sum E[a^2] sum E[b^2]).

    Both are at most 1, and the constants belong to the pair of networks and not to single groups, so that a = 0 ranks
    permutations as weight matching does and a = 1 as activation matching does. The search is weight matching's
    coordinate descent, with the same starts; the similarity of activations is added to that of the weights, computed
    once: it does not depend on how other groups are matched.

    MuDSC mixes matrices rather than objectives: in every group the correlations of its units' weight vectors with those
    of their activations, a from 0.1 to 0.9. Weights that are scaled differently in every group belong to no common
    objective; its sweeps need not rise, and end when their mean has not risen five times. Here they rise and converge.

    Trace: one record for each sweep, {"restart", "sweep", "objective", "seconds", "moved" (groups)}; sweep 0 is the
    start. The objective of `Matching` is that of the best descent, the first of equals. `on_step` is also called for
    each batch of images, {"pass", "images" (so far)}.

    Memory: what weight matching holds, and 8 n^2 bytes for each group of n units (while the networks run, for each
    place at which it is observed, of as many groups as `memory` has room for).

    Args:
        activation_share: a, from 0 (the weights alone; no data are read) to 1 (the activations alone).
        similarity: of activations: "pearson" (pooled correlation) or "product" (uncentred E[a b]).
        images, kind, batch_size, memory: of the activations; see `ByActivations`.
        restarts, start, order, max_sweeps: of the descents; see `Descents`.
        tolerance: smallest gain for which a group is moved, in units of the objective, which is at most 1.

    Raises:
        UserError: several descents from the identity in one and the same order, which would be equal.
    """

    activation_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    similarity: Literal["pearson", "product"] = "pearson"

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the best matching found; see `lmc.alignment.problem.Alignment`.

        Raises:
            UserError: also if a group cannot be observed, or an activation is not finite.
        """
        check_pair(fixed, moving, problem.symmetry)
        activations = self._activations(fixed, moving, problem, on_step) if self.activation_share else {}
        both = _BothSpaces(fixed, moving, problem, activations, 1 - self.activation_share)
        trace: list[dict[str, float]] = []
        ends: list[Descent] = []
        with until_interrupted() as run:
            for restart in range(self.restarts):
                draw = generator(problem.seed, "dual_space", restart)
                start = "identity" if restart == 0 and self.restarts > 1 else self.start
                ends.append(Descent(both, problem.symmetry, self.tolerance, starting_point(start, problem, draw)))
                for record in ends[-1].run(self.orders(problem.symmetry, both, draw), self.max_sweeps):
                    trace.append({"restart": restart, **record})
                    if on_step is not None:
                        on_step(trace[-1])
        # A descent that is interrupted at its very beginning has not matched all groups.
        identity = starting_point("identity", problem, generator(problem.seed, "dual_space"))
        best = max(({**identity, **end.permutation} for end in ends), key=both.objective, default=identity)
        return Matching(Permutation(problem.symmetry, best), both.objective(best), trace, run.complete)

    def _activations(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None) -> dict[str, Tensor]:
        """The activations' share of the objective: group to (units, units), whose matched pairs are to be summed."""
        found, most = dict[str, Tensor](), 0.0
        for name, places in self.observe(fixed, moving, problem, joint=False, on_step=on_step):
            for place in places.values():
                similarity = place.pearson() if self.similarity == "pearson" else place.product()
                found[name] = found[name].add_(similarity) if name in found else similarity
                most += len(similarity) if self.similarity == "pearson" else _most(place)
        scale = self.activation_share / most if most else 0.0
        return {name: similarity.mul_(scale) for name, similarity in found.items()}


class _BothSpaces(WeightSimilarity):
    """The similarity of the weights and of the activations, and their weighted mean as an objective.

    A group that is unmatched, or lives inside one that is, counts with the mean over all pairs of its units.

    Args:
        fixed: the network that stays.
        moving: the network that is permuted.
        problem: their symmetry, and the device.
        activations: group to its term, (units, units), to be summed over matched pairs; some groups may be absent.
        weight_share: of the weights' cosine in the mean.
    """

    def __init__(
        self, fixed: State, moving: State, problem: Problem, activations: Mapping[str, Tensor], weight_share: float
    ) -> None:
        super().__init__(fixed, moving, problem.symmetry, problem.device)
        norms = super().bound
        self._weight_scale = weight_share / norms if norms else 0.0
        self._activations = activations

    @property
    def bound(self) -> float:
        """What the objective cannot exceed."""
        return 1.0

    def of(self, name: str, permutation: Mapping[str, Tensor]) -> Tensor:
        """Return the similarity of a group in both spaces, (units, units)."""
        total = super().of(name, permutation) * self._weight_scale
        return total + self._activations[name] if name in self._activations else total

    def inside(self, name: str, permutation: Mapping[str, Tensor]) -> Tensor:
        """Return the similarity of an inner group with its outer groups held, (places, size, size)."""
        total = super().inside(name, permutation) * self._weight_scale
        if name not in self._activations:
            return total
        held = flat(self._symmetry, self._symmetry.groups[name].outer, permutation)
        size = self._symmetry.groups[name].size
        blocks = self._activations[name].reshape(len(held), size, len(held), size)
        return total + torch.stack([blocks[i, :, j, :] for i, j in enumerate(held.tolist())])

    def difference(self, permutation: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> float:
        """Return by how much the objective rises from `permutation` if some groups are given new values."""
        names = list(dict.fromkeys(other for name in changes for other in (name, *self._symmetry.inside(name))))
        rise = self._by_activations(names, {**permutation, **changes}) - self._by_activations(names, permutation)
        return super().difference(permutation, changes) * self._weight_scale + rise

    def objective(self, permutation: Mapping[str, Tensor]) -> float:
        """Return the weighted mean, computed anew."""
        by_activations = self._by_activations(list(self._symmetry.groups), permutation)
        return super().objective(permutation) * self._weight_scale + by_activations

    def _by_activations(self, names: list[str], permutation: Mapping[str, Tensor]) -> float:
        total = 0.0
        for name in names:
            if name not in self._activations:
                continue
            similarity, chain = self._activations[name], self._symmetry.chain(name)
            if permutation.keys() >= set(chain):
                total += matched(similarity, flat(self._symmetry, chain, permutation)).sum().item()
            else:
                total += (similarity.sum() / len(similarity)).item()
        return total


def _most(moments: PairMoments) -> float:
    """What the sum of the products of matched units cannot exceed (Cauchy-Schwarz)."""
    fixed, moving = (
        (squares / moments.count + mean.square()).sum().item()
        for squares, mean in zip(moments.squares, moments.means, strict=True)
    )
    return math.sqrt(fixed * moving)
