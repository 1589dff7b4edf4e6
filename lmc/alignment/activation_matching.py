"""Activation matching: units are matched that answer alike to the same images."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lmc.alignment.assignment import assign_family, assign_inside, flat, in_place, matched
from lmc.alignment.problem import AnySymmetry, Matching, OnStep, Problem, check_pair, chosen_groups, refuse_no_patterns
from lmc.alignment.similarity.correlation import PairMoments
from lmc.alignment.similarity.observed import ByActivations
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

Similarity = Literal["pearson", "product", "cosine", "l2"]


@dataclass(frozen=True, kw_only=True)
class ActivationMatching(ByActivations, AnySymmetry):
    """Matches every group on its own by the similarity of its activations (Tatro et al. 2020; Ainsworth et al. 2023).

    The samples of a unit are all images and all positions of its feature map. A group that can be observed at several
    places (the blocks of a residual stage) is matched on the sum of their similarities, as Tatro et al. do. One
    assignment solves a group exactly; for blocks of units (heads) one assignment inside each pair of blocks, and one
    over their results.

    The similarity of two units a and b, with means over all samples; only "pearson" is centred:

    - "pearson": the correlation, with pooled mean and deviation (Tatro et al.; Jordan et al. 2023).
    - "product": E[a b] (Ainsworth et al., Eq. 1, right side).
    - "cosine": E[a b] / sqrt(E[a^2] E[b^2]).
    - "l2": -E[(a - b)^2] (Ainsworth et al., Eq. 1, left side). E[a^2] and E[b^2] add the same to every matching, also
      over several places and inside blocks, so that its permutation is that of "product", for which the assignment is
      solved; what differs is the objective.

    All groups are matched at once. To match them in sequence, each on a moving network whose earlier groups have been
    permuted already (Jordan et al. 2023, and the warm start of Tatro et al.), gives the same: the units of a network
    answer as they did before, whatever the order of those that they read.

    The objective is the mean over all units of all groups of the similarity of the matched pair, itself the mean over
    the places where the group is observed; for "pearson" and "cosine" it lies in [-1, 1], and a dead unit (constant,
    or for "cosine" zero, in one of the networks) counts as 0.

    Trace: one record for each group in the order of the symmetry, {"group" (its number among those observed), "units",
    "places", "similarity" (the mean of its matched pairs)}.

    Memory: 8 n^2 bytes for each place at which a group of n units is observed, of as many groups as `memory` has room
    for, beside one batch of activations.

    Args:
        similarity: "pearson", "product", "cosine" or "l2".
        groups: names or patterns (*, ?, [...]) of the groups that are matched, None for all. The others keep the
            identity and are not observed, but for what lives inside the blocks of a group that is matched.
        images, kind, batch_size, memory: of what is compared; see `ByActivations` (Tatro et al.: 10,000 images).

    Raises:
        UserError: no pattern.
    """

    similarity: Similarity = "pearson"
    groups: list[str] | None = None

    def __post_init__(self) -> None:
        refuse_no_patterns(self.groups)

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` if a pattern of `groups` fits no group."""
        chosen_groups(symmetry, self.groups)

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the matching; see `lmc.alignment.problem.Alignment`.

        Raises:
            UserError: also if a group cannot be observed, or an activation is not finite.
        """
        symmetry = problem.symmetry
        chosen = chosen_groups(symmetry, self.groups)
        check_pair(fixed, moving, symmetry)
        held = frozenset(symmetry.groups) - frozenset(chosen)
        observed = self.observe(
            fixed, moving, problem, joint=False, groups=_observed(symmetry, chosen), on_step=on_step
        )
        permutations = dict(Permutation.identity(symmetry))
        records: dict[str, dict[str, float]] = {}
        root = {name: root for root, family in symmetry.families.items() for name in family}
        # A family is assigned as soon as it has been seen, so that no similarities of others are held.
        for family, members in itertools.groupby(observed, key=lambda entry: root.get(entry[0])):
            moments = dict(members)
            # Row norms are the same for every matching; without them, units that are always zero keep their order.
            compared: Similarity = "product" if self.similarity == "l2" else self.similarity
            similarities = {name: _similarity(places, compared) for name, places in moments.items()}
            permutations |= _permutations(symmetry, family, similarities, held, permutations)
            for name, places in moments.items():
                of = _similarity(places, "l2") if self.similarity == "l2" else similarities[name]
                pairs = matched(of, flat(symmetry, symmetry.chain(name), permutations))
                mean = pairs.mean().item() / len(places)
                records[name] = {"units": len(pairs), "places": len(places), "similarity": mean}
        seen = [name for name in symmetry.groups if name in records]
        trace = [{"group": number, **records[name]} for number, name in enumerate(seen)]
        units = sum(record["units"] for record in trace)
        objective = sum(record["units"] * record["similarity"] for record in trace) / max(1, units)
        return Matching(Permutation(symmetry, permutations), objective, trace)


def _observed(symmetry: Symmetry, chosen: Sequence[str]) -> list[str]:
    """The groups that have to be seen to match those in `chosen`: blocks are known by what lives inside them."""
    inside = {
        other
        for name in chosen
        for family in symmetry.families.values()
        for other in family
        if name in symmetry.groups[other].outer
    }
    return [name for name in symmetry.groups if name in inside.union(chosen)]


def _permutations(
    symmetry: Symmetry,
    root: str | None,
    similarities: Mapping[str, Tensor],
    held: frozenset[str],
    found: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The best permutations of the family of `root`, of which those in `held` keep the identity.

    Without a root, those of groups that live inside several families, which have been `found`.
    """
    if root is None:
        chosen = similarities.keys() - held
        return {name: assign_inside(symmetry, name, similarities[name], found) for name in sorted(chosen)}
    family = symmetry.families[root]
    if held >= set(family):
        return {}
    seen = dict(similarities)
    for name in held.intersection(family):
        none = torch.zeros(symmetry.units(name), symmetry.units(name), dtype=torch.float64)
        seen[name] = in_place(similarities.get(name, none), symmetry, name)
    return assign_family(symmetry, family, seen)


def _similarity(places: Mapping[str, PairMoments], kind: Similarity) -> Tensor:
    """(units, units): the sum of the similarities at all places where a group is observed."""
    found = [_SIMILARITIES[kind](place) for place in places.values()]
    return sum(found[1:], start=found[0])


_SIMILARITIES: dict[Similarity, Callable[[PairMoments], Tensor]] = {
    "pearson": PairMoments.pearson,
    "product": PairMoments.product,
    "cosine": PairMoments.cosine,
    "l2": lambda moments: -moments.distance(),
}
