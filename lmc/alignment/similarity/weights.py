"""The inner product of two networks' weights as a function of the permutation of one of them.

For one group and everything else held still the objective <fixed, P moving> is linear in the group's permutation:
sum_i S[i, p[i]], where S sums, over the group's axes, the inner products of the rows of both networks (Ainsworth et
al. 2023, Algorithm 1). S is kept as a sum of parts, one for each set of neighbours, and a part is renewed only if its
neighbours have moved since; if they moved a little, only the columns that changed are multiplied again.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lmc.alignment.assignment import matched
from lmc.alignment.similarity.blocks import Block, blocks, expected, laid_out
from lmc.symmetry.structure import Axis, Symmetry, unit_rows


class WeightSimilarity:
    """S of every group, and the objective itself, for two networks and a changing permutation.

    The objective is the sum of the inner products of all trainable tensors on which some group acts. A permutation
    may be partial: a group it lacks is *unmatched*, all of its permutations equally likely. S is then the expected
    similarity, in which each of its units is replaced by the mean of them all, and the objective is the expected one
    (independently for every axis): the value at the centre of the Birkhoff polytope.

    Products run in float32 (float64 if a network is), sums of their entries in float64. Held are one rearranged copy
    of the convolutions of both networks, and 4 n^2 bytes for each group and each of its neighbours.

    Args:
        fixed: the network that stays.
        moving: the network that is permuted; neither is changed.
        symmetry: their groups.
        device: where to compute. Permutations handed in must lie there, and must not be changed in place.
    """

    def __init__(
        self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], symmetry: Symmetry, device: torch.device
    ) -> None:
        axes = {name: found for name, found in symmetry.axes_of.items() if name in symmetry.parameters}
        wide = any(state[name].dtype == torch.float64 for name in axes for state in (fixed, moving))
        dtype = torch.float64 if wide else torch.float32
        self._symmetry = symmetry
        self._tensors = {n: _Pair(fixed[n].to(device, dtype), moving[n].to(device, dtype), axes[n]) for n in axes}
        layouts = {name: pair.laid_out() for name, pair in self._tensors.items()}
        self._parts = {
            name: _parts(
                symmetry,
                name,
                layouts,
                torch.zeros(symmetry.units(name), symmetry.units(name), dtype=dtype, device=device),
            )
            for family in symmetry.families.values()
            for name in family
        }
        self._tensors_of = {
            name: list(dict.fromkeys(axis.tensor for axis in group.axes if axis.tensor in self._tensors))
            for name, group in symmetry.groups.items()
        }
        self.neighbours = {root: self._neighbours(root) for root in symmetry.families}
        """Family to the families that S of it depends on: itself too, where a plain group acts twice on a tensor."""

    def _neighbours(self, root: str) -> frozenset[str]:
        mine = {*self._symmetry.families[root], *self._symmetry.inside(root)}
        near = {
            name for member in self._symmetry.families[root] for part in self._parts[member] for name in part.groups
        }
        near -= mine if len(mine) > 1 else set()
        near |= {outer for name in mine for outer in self._symmetry.groups[name].outer} - {root}
        roots = {root: {root, *members} for root, members in self._symmetry.families.items()}
        found = {other for other, members in roots.items() if members & near}
        found |= {outer for name in near for outer in self._symmetry.groups[name].outer if outer in roots}
        return frozenset(found - ({root} if len(mine) > 1 else set()))

    @property
    def bound(self) -> float:
        """What the objective cannot exceed: the product of the networks' norms (Cauchy-Schwarz)."""
        norms = [
            sum(torch.linalg.vector_norm(tensor).item() ** 2 for tensor in side) ** 0.5
            for side in zip(*((pair.fixed, pair.moving) for pair in self._tensors.values()), strict=True)
        ]
        return norms[0] * norms[1] if norms else 0.0

    def of(self, name: str, permutation: Mapping[str, Tensor]) -> Tensor:
        """Return S of a group, (units, units): S[i, j] compares unit i of `fixed` with unit j of `moving`.

        Everything but the group's own axis is permuted. A tensor with two axes of a plain group is not linear in its
        permutation; S is then the gradient at `permutation`, and only `gain` is exact.

        The units of a group inside others are all combinations with theirs, row-major, and whatever else lives inside
        the same outer groups counts as unmatched: what it is depends on the pair of outer units that is compared. A
        tensor on which groups inside this one act counts for these alone.
        """
        root = self._symmetry.chain(name)[0]
        own = {*self._symmetry.families[root], *self._symmetry.inside(root)}
        if len(own) > 1:
            permutation = {other: value for other, value in permutation.items() if other not in own}
        parts = self._parts[name]
        total = parts[0].at(permutation).clone()
        for part in parts[1:]:
            total += part.at(permutation)
        return total

    def inside(self, name: str, permutation: Mapping[str, Tensor]) -> Tensor:
        """Return S of an inner group with its outer groups held at `permutation`: (places, size, size).

        `places` are all combinations of the units of the outer groups of `fixed`; each is compared with the one that
        has come to it. Groups that `permutation` lacks count as unmatched.
        """
        *places, size = self._symmetry.lattice(name)
        total = torch.zeros((), device=next(iter(self._tensors.values())).fixed.device)
        for tensor in self._tensors_of[name]:
            pair = self._tensors[tensor]
            fixed, moving, axes = expected(*pair, permutation, self._symmetry.outer, keep=name)
            for axis in (axis for axis in axes if name in axis.groups):
                ours, theirs = (
                    unit_rows(side, axis, self._symmetry.chain(name), axes).reshape(math.prod(places), size, -1)
                    for side in (fixed, moving)
                )
                total = total + ours @ theirs.transpose(1, 2)
        return total

    def gain(self, group: str, similarity: Tensor, permutation: Mapping[str, Tensor], value: Tensor) -> float:
        """Return by how much the objective rises if a plain group is given the permutation `value`.

        `similarity` is S of the group at `permutation`.
        """
        if group in self.neighbours[group]:
            return self.difference(permutation, {group: value})
        new = matched(similarity, value).sum()
        if group in permutation:
            return (new - matched(similarity, permutation[group]).sum()).item()
        return (new - similarity.sum(dtype=torch.float64) / len(similarity)).item()

    def difference(self, permutation: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> float:
        """Return by how much the objective rises from `permutation` if some groups are given new values."""
        tensors = list(dict.fromkeys(tensor for name in changes for tensor in self._tensors_of[name]))
        return self._sum(tensors, {**permutation, **changes}) - self._sum(tensors, permutation)

    def objective(self, permutation: Mapping[str, Tensor]) -> float:
        """Return <fixed, P moving>, computed anew."""
        return self._sum(self._tensors, permutation)

    def _sum(self, tensors: Iterable[str], permutation: Mapping[str, Tensor]) -> float:
        total = 0.0
        for name in tensors:
            fixed, moving, _ = expected(*self._tensors[name], permutation, self._symmetry.outer)
            total += (fixed * moving).sum(dtype=torch.float64).item()
        return total


class _Pair(NamedTuple):
    """A tensor of both networks, and the axes on which groups act."""

    fixed: Tensor
    moving: Tensor
    axes: tuple[Axis, ...]

    def laid_out(self) -> "_Pair":
        return _Pair(laid_out(self.fixed, self.axes), laid_out(self.moving, self.axes), self.axes)


@dataclass
class _Part:
    """The share of S that depends on the same neighbours, and the permutation of them that it was computed at."""

    groups: frozenset[str]
    total: Tensor
    blocks: list[Block] = field(default_factory=list)
    seen: dict[str, Tensor] | None = None

    def at(self, permutation: Mapping[str, Tensor]) -> Tensor:
        """The share at `permutation`; not to be changed."""
        now = {name: permutation[name] for name in sorted(self.groups) if name in permutation}
        before, self.seen = self.seen, now
        if before is None:
            self._renew(now)
        elif before.keys() != now.keys() or any(before[name] is not now[name] for name in now):
            self._bring(before, now)
        return self.total

    def _bring(self, before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
        """Update by the columns that changed if that is less work than all columns."""
        changed = [block.changed(before, now) for block in self.blocks]
        columns = [index for index in changed if index is not None]
        # An update gathers and multiplies a column once, but of both permutations and of both networks.
        if len(columns) == len(changed) and 2 * sum(map(len, columns)) < sum(b.fixed.shape[-1] for b in self.blocks):
            for block, index in zip(self.blocks, columns, strict=True):
                block.update(self.total, before, now, index)
        else:
            self._renew(now)

    def _renew(self, now: Mapping[str, Tensor]) -> None:
        self.total.zero_()
        for block in self.blocks:
            block.add(self.total, now)


def _parts(symmetry: Symmetry, name: str, tensors: Mapping[str, _Pair], zero: Tensor) -> list[_Part]:
    """The parts of a group; the first has no neighbours, and is `zero` (n, n) if all of its tensors have some."""
    parts = {frozenset[str](): _Part(frozenset(), zero)}
    deeper = set(symmetry.inside(name))
    for axis in symmetry.groups[name].axes:
        if axis.tensor not in tensors or any(deeper & other.groups for other in tensors[axis.tensor].axes):
            continue
        fixed, moving, axes = tensors[axis.tensor]
        for block in blocks(fixed, moving, axes, axis, symmetry.chain(name), symmetry.outer):
            parts.setdefault(block.groups, _Part(block.groups, torch.zeros_like(zero))).blocks.append(block)
    return list(parts.values())
