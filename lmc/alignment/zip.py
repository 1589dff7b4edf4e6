"""ZipIt: the units of both networks are merged in pairs that answer alike, within a network too."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lmc.alignment.problem import Matching, OneCheckpoint, OnStep, Problem, check_pair, until_interrupted
from lmc.alignment.similarity.observed import ByActivations
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import LinearMap, refuse_blocks, refuse_both_ways


@dataclass(frozen=True, kw_only=True)
class Zip(ByActivations, OneCheckpoint):
    """Merges the 2n units of a group greedily to n, the most correlated first (Stoica et al. 2024, ZipIt!).

    All 2n units of both networks are compared with one another. The two most correlated are merged, and the merged
    unit is as similar to a third as the less similar of its parts, times `alpha`; so on until n clusters are left. A
    zipped unit is the mean of the members of its cluster; what read any of them reads it instead. The zipped network
    is the mean of both transformed networks: `fixed_transform` and `transform` have M = 2 / |cluster| for the members
    of a cluster, and N = 1. A pair of one unit of each network so is a permutation; where all clusters are such pairs,
    as they always are with `beta` 0, the result is a permutation of `moving`, and `fixed` stays. Else *only the mean*
    is meant: of units that were merged within one network the other lacks a counterpart, so that either transformed
    network alone computes something else.

    Each merge that brings units of the same network together takes one from this network's budget of
    floor(beta floor(n / 2)); once it is spent, there are no more. (The authors' code takes a cluster for one of its
    first unit's network, so that more units of the moving network come together than the budget allows; and it lets
    one merge pass where the budget is 0, which in the paper gives a permutation.)

    The similarity of a group that is observed at several places is the mean of its correlations there. (The authors
    look at the last place of a residual stage alone.) Only the first ceil(depth * groups) groups are zipped; the others
    stay as they are and are averaged unaligned, for there is one network to return. (The paper keeps both networks side
    by side from there on.)

    The objective is the mean correlation of all pairs of units that became one; it is a greedy choice, not a maximum.

    Trace: one record for each zipped group in the order of the symmetry, {"group" (its number), "units", "places",
    "within_fixed" and "within_moving" (merges that took from the budget), "pairs" (of units that became one),
    "similarity" (their mean correlation)}.

    Memory: 32 n^2 bytes for each place at which a group of n units is observed (of as many groups as `memory` has room
    for), beside one batch of activations; and another 32 n^2 for one group at a time.

    Args:
        alpha: factor on the similarities of a unit each time it is merged, in [0, 1]; 0 forbids to merge it again.
        beta: largest share of the merges that may be within a network, half of it for each network.
        depth: share of the groups, in the order of the network, that are zipped.
        images, kind, batch_size, memory: of what is compared; see `ByActivations`.
    """

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.3
    beta: Annotated[float, Field(ge=0, le=1)] = 0.125
    depth: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def is_soft(self) -> bool:
        """Whether units of a network may be merged with each other; else they are permuted."""
        return self.beta > 0

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` for units inside blocks and, where units of a network may be merged, for tied weights."""
        refuse_blocks(symmetry, type(self).__name__)
        if self.is_soft:
            refuse_both_ways(symmetry, f"{type(self).__name__} with beta > 0")

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the matching; see `lmc.alignment.problem.Alignment`. Groups that Ctrl-C leaves undone stay as is.

        Raises:
            UserError: also if a group cannot be observed, or an activation is not finite.
        """
        self.check(problem.symmetry)
        check_pair(fixed, moving, problem.symmetry)
        names = list(problem.symmetry.groups)
        names = names[: math.ceil(self.depth * len(names) - 1e-9)]
        clusters: dict[str, Tensor] = {}
        trace: list[dict[str, float]] = []
        with until_interrupted() as run:
            observed = self.observe(fixed, moving, problem, joint=True, groups=names, on_step=on_step)
            for number, (name, moments) in enumerate(observed):
                places = [place.pearson() for place in moments.values()]
                similarity = sum(places[1:], start=places[0]) / len(places)
                clusters[name] = zip_units(similarity, self.alpha, self.beta)
                record = {"group": number, "units": len(similarity) // 2, "places": len(places)}
                trace.append({**record, **_summary(similarity.cpu(), clusters[name])})
                if on_step is not None:
                    on_step(trace[-1])
        pairs = sum(record["pairs"] for record in trace)
        objective = sum(record["pairs"] * record["similarity"] for record in trace) / max(1, pairs)
        transform, fixed_transform = _transforms(problem.symmetry, clusters)
        return Matching(transform, objective, trace, run.complete, fixed_transform)


def zip_units(similarity: Tensor, alpha: float, beta: float) -> Tensor:
    """Return the zipped unit, in [0, n), that each of the 2n units becomes, those of the fixed network first.

    A zipped unit is numbered as the first of its members that is of the fixed network; those without one take the
    numbers that are left, in the order of their first members.

    Args:
        similarity: (2n, 2n), symmetric.
        alpha: factor for every merge; 0 forbids a second one.
        beta: largest share of the n merges that may be within a network.
    """
    values = similarity.detach().to("cpu", torch.float64).clone()
    values.fill_diagonal_(-torch.inf)
    n = len(values) // 2
    budget = [math.floor(beta * (n // 2) + 1e-9)] * 2
    holds = torch.zeros(2 * n, 2, dtype=torch.bool)  # whether a cluster has units of the fixed, of the moving network
    holds[:n, 0] = holds[n:, 1] = True
    cluster = torch.arange(2 * n)
    best, partner = torch.empty(2 * n, dtype=values.dtype), torch.empty(2 * n, dtype=torch.int64)
    stale = torch.ones(2 * n, dtype=torch.bool)  # rows whose greatest entry is to be sought (again)
    spent = [side for side in (0, 1) if not budget[side]]
    for _ in range(n):
        for side in spent:
            values[holds[:, side].outer(holds[:, side])] = -torch.inf
            stale |= holds[:, side]
        best[stale], partner[stale] = values[stale].max(1)
        one = int(best.argmax())
        one, other = sorted((one, int(partner[one])))
        cluster[cluster == other] = one
        both = (holds[one] & holds[other]).tolist()
        budget = [left - used for left, used in zip(budget, both, strict=True)]
        spent = [side for side in (0, 1) if both[side] and not budget[side]]
        holds[one] |= holds[other]
        holds[other] = False
        row = torch.minimum(values[one], values[other])
        row = alpha * row if alpha > 0 else torch.full_like(row, -torch.inf)
        row[[one, other]] = -torch.inf
        values[one] = values[:, one] = row
        values[other] = values[:, other] = -torch.inf
        # Similarities below zero grow by `alpha`. Rows that are not sought again miss it, but that of `one` does not.
        stale = (partner == one) | (partner == other)
        stale[[one, other]] = True
    return _numbered(cluster, n)


def _numbered(cluster: Tensor, n: int) -> Tensor:
    """Replace the first member of each cluster by a number in [0, n)."""
    firsts = (cluster == torch.arange(2 * n)).nonzero().squeeze(1)
    without = firsts[firsts >= n]
    taken = torch.zeros(n, dtype=torch.bool)
    taken[firsts[firsts < n]] = True
    number = torch.arange(2 * n)
    number[without] = (~taken).nonzero().squeeze(1)
    return number[cluster]


def _summary(similarity: Tensor, cluster: Tensor) -> dict[str, float]:
    n = len(cluster) // 2
    same = (cluster[:, None] == cluster).triu(1)
    pairs = int(same.sum())
    within = [n - len(set(side.tolist())) for side in cluster.chunk(2)]
    mean = similarity[same].mean().item() if pairs else 0.0
    return {"within_fixed": within[0], "within_moving": within[1], "pairs": pairs, "similarity": mean}


def _transforms(
    symmetry: Symmetry, clusters: Mapping[str, Tensor]
) -> tuple[Permutation | LinearMap, Permutation | LinearMap | None]:
    """What is done to the moving and to the fixed network, so that their mean is the zipped one."""
    still = {name: torch.arange(group.size).repeat(2) for name, group in symmetry.groups.items()}
    found = {**still, **clusters}
    if all(len(set(side.tolist())) == len(side) for cluster in found.values() for side in cluster.chunk(2)):
        return Permutation(symmetry, {name: cluster.chunk(2)[1].argsort() for name, cluster in found.items()}), None
    maps: tuple[dict[str, tuple[Tensor, Tensor]], ...] = ({}, {})
    for name, cluster in found.items():
        n = len(cluster) // 2
        members = torch.nn.functional.one_hot(cluster, n).to(torch.float32)
        mean = 2 * members / members.sum(0)
        for side, (make, read) in enumerate(zip(mean.chunk(2), members.chunk(2), strict=True)):
            maps[side][name] = (make.T.contiguous(), read)
    return LinearMap(symmetry, maps[1]), LinearMap(symmetry, maps[0])
