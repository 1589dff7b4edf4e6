"""The inner product of two networks' weights as a function of the permutation of one of them.

For one group and everything else held still the objective <fixed, P moving> is linear in the group's permutation:
sum_i S[i, p[i]], where S sums, over the group's axes, the inner products of the rows of both networks (Ainsworth et
al. 2023, Algorithm 1). S is kept as a sum of parts, one for each set of neighbours, and a part is renewed only if its
neighbours have moved since; if they moved a little, only the columns that changed are multiplied again.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lmc.alignment.assignment import matched
from lmc.alignment.similarity.blocks import Block, blocks, expected, laid_out
from lmc.state import State
from lmc.symmetry.structure import Axis, Factor, Symmetry, unit_rows


class WeightSimilarity:
    """S of every group, and the objective itself, for two networks and a changing permutation.

    The objective is the sum of the inner products of all trainable tensors on which some group acts. A permutation
    may be partial: a group it lacks is *unmatched*, all of its permutations equally likely. S is then the expected
    similarity, in which each of its units is replaced by the mean of them all, and the objective is the expected one
    (independently for every axis): the value at the centre of the Birkhoff polytope.

    With `earlier`, one permutation is sought for several pairs of networks: the objective is the sum of theirs. With
    `cosine`, every tensor counts once for each of its axes on which groups act, with the vectors of the units along
    this axis brought to length one (see `unit_length`); that too is a fixed multilinear form.

    Products run in float32 (float64 if a network is), sums of their entries in float64. Held are one rearranged copy
    of the convolutions of both networks, and 4 n^2 bytes for each group and each of its neighbours; with `earlier`,
    copies of all pairs, and with `cosine`, one of every tensor for each of its axes.

    Args:
        fixed: the network that stays.
        moving: the network that is permuted; neither is changed.
        symmetry: their groups.
        device: where to compute. Permutations handed in must lie there, and must not be changed in place.
        earlier: further pairs (fixed, moving).
        leave_out: tensors that do not take part.
        cosine: whether units are compared by cosines.
        held: groups that never move.
    """

    def __init__(
        self,
        fixed: Mapping[str, Tensor],
        moving: Mapping[str, Tensor],
        symmetry: Symmetry,
        device: torch.device,
        *,
        earlier: Sequence[tuple[State, State]] = (),
        leave_out: Collection[str] = (),
        cosine: bool = False,
        held: frozenset[str] = frozenset(),
    ) -> None:
        taking_part = symmetry.parameters.difference(leave_out)
        axes = {name: found for name, found in symmetry.axes_of.items() if name in taking_part}
        networks: list[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = [(fixed, moving), *earlier]
        wide = any(state[name].dtype == torch.float64 for name in axes for pair in networks for state in pair)
        dtype = torch.float64 if wide else torch.float32
        every, symmetry = symmetry, without(symmetry, held)
        self._symmetry = symmetry
        self._none = torch.zeros((), dtype=dtype, device=device)
        self._tensors: dict[str, list[_Pair]] = {}
        for name, here in axes.items():
            ours, theirs = ([pair[side][name].to(device, dtype) for pair in networks] for side in (0, 1))
            if cosine:
                of = [(axis, here, every.outer) for axis in here]
                ours, theirs = ([t for a in of for t in unit_length(stack, *a)] for stack in (ours, theirs))
            left = symmetry.axes_of.get(name, ())
            self._tensors[name] = [_Pair(one, other, left) for one, other in zip(ours, theirs, strict=True)]
        layouts = {name: [pair.laid_out() for pair in pairs] for name, pairs in self._tensors.items()}
        self._parts = {
            name: _parts(symmetry, name, layouts, self._none.new_zeros(symmetry.units(name), symmetry.units(name)))
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
    def symmetry(self) -> Symmetry:
        """The groups that there are: all but those of `held` inside which no group moves."""
        return self._symmetry

    @property
    def bound(self) -> float:
        """What the objective cannot exceed: the product of the networks' norms (Cauchy-Schwarz)."""
        norms = [
            sum(torch.linalg.vector_norm(tensor).item() ** 2 for tensor in side) ** 0.5
            for side in zip(*((p.fixed, p.moving) for pairs in self._tensors.values() for p in pairs), strict=True)
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
        total = self._none.new_zeros(math.prod(places), size, size)
        for pair in (pair for tensor in self._tensors_of[name] for pair in self._tensors[tensor]):
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
        for pair in (pair for name in tensors for pair in self._tensors[name]):
            fixed, moving, _ = expected(*pair, permutation, self._symmetry.outer)
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


def _parts(symmetry: Symmetry, name: str, tensors: Mapping[str, list[_Pair]], zero: Tensor) -> list[_Part]:
    """The parts of a group; the first has no neighbours, and is `zero` (n, n) if all of its tensors have some."""
    parts = {frozenset[str](): _Part(frozenset(), zero)}
    deeper = set(symmetry.inside(name))
    for axis in symmetry.groups[name].axes:
        if axis.tensor not in tensors or any(deeper & other.groups for other in symmetry.axes_of[axis.tensor]):
            continue
        for fixed, moving, axes in tensors[axis.tensor]:
            for block in blocks(fixed, moving, axes, axis, symmetry.chain(name), symmetry.outer):
                parts.setdefault(block.groups, _Part(block.groups, torch.zeros_like(zero))).blocks.append(block)
    return list(parts.values())


def without(symmetry: Symmetry, held: Collection[str]) -> Symmetry:
    """Return `symmetry` without the groups in `held`, but for those inside which other groups live that are not."""
    needed = {outer for name, group in symmetry.groups.items() if name not in held for outer in group.outer}
    gone = set(held) - needed
    if not gone:
        return symmetry

    def left(axis: Axis) -> Axis:
        still = (tuple(Factor(None, f.size) if f.group in gone else f for f in part) for part in axis.segments)
        return replace(axis, segments=tuple(still))

    groups = {
        name: replace(group, axes=tuple(map(left, group.axes)), sites=())
        for name, group in symmetry.groups.items()
        if name not in gone
    }
    return replace(symmetry, groups=groups)


def unit_length(
    stack: Sequence[Tensor], axis: Axis, axes: Collection[Axis], outer: Mapping[str, tuple[str, ...]]
) -> list[Tensor]:
    """Return the tensors with the vector of every unit along `axis` divided by its length, over all of `stack`.

    The vector of a unit is everything in the tensors that its position on `axis` holds: incoming weights where the
    axis makes units, outgoing ones where it reads them. Units are all combinations of those of the groups that act at
    a position, each inside the units of its outer groups, which may act on another axis. What belongs to no unit along
    `axis`, and vectors of zeros, become zero. Where a unit has a single number in each tensor (a bias, a scale), its
    cosine would be nothing but a sign; there all are divided by their root mean square instead.

    Args:
        stack: tensors of one shape.
        axis: of them, on which some group acts.
        axes: all of their axes on which groups act.
        outer: group to the groups that it lives inside.
    """
    dims, owner = _owners(axis, axes, outer)
    rest = [dim for dim in range(stack[0].ndim) if dim not in dims]
    order = [sorted(dims).index(dim) for dim in dims]
    squares = torch.zeros(owner.shape, dtype=torch.float64)
    for tensor in stack:
        square = tensor.to(torch.float64).square()
        # Sums over the units of an axis are made on the CPU, in one and the same order.
        squares += (square.sum(rest) if rest else square).permute(order).cpu()
    shares = torch.bincount(owner.flatten())
    lengths = squares.new_zeros(len(shares)).index_add_(0, owner.flatten(), squares.flatten())
    if shares[1:].max() == 1 and stack[0].numel() == owner.numel():
        lengths[1:] = lengths[1:].sum() / (shares[1:] > 0).sum()
    scale = torch.where(lengths > 0, lengths.rsqrt(), 0.0)
    scale[0] = 0.0
    spread = scale[owner].permute([dims.index(dim) for dim in sorted(dims)])
    spread = spread.reshape([n if dim in dims else 1 for dim, n in enumerate(stack[0].shape)])
    return [tensor * spread.to(tensor) for tensor in stack]


def _owners(axis: Axis, axes: Collection[Axis], outer: Mapping[str, tuple[str, ...]]) -> tuple[list[int], Tensor]:
    """The dimensions along which elements of different units lie, and the number of the unit; 0 is for no unit."""
    abroad = {o for name in axis.groups for o in outer.get(name, ()) if o not in axis.groups}
    hosts = [other for other in axes if other.dim != axis.dim and other.groups & abroad]
    owner = _numbers(axis, axis.groups)
    for host in hosts:
        number = _numbers(host, host.groups & abroad)
        count = int(number.max()) + 1
        owner = torch.where(owner[..., None] > 0, owner[..., None] * count + number, 0)
    return [axis.dim, *(host.dim for host in hosts)], owner


def _numbers(axis: Axis, groups: Collection[str]) -> Tensor:
    """(length,) int64: the unit of `groups`, all combinations at a position, that each position has; 0 for none."""
    parts, first, total = [], dict[tuple[str | None, ...], int](), 1
    for segment in axis.segments:
        kind = tuple(factor.group for factor in segment if factor.group in groups)
        number = torch.zeros([factor.size for factor in segment], dtype=torch.int64)
        for place, factor in enumerate(segment):
            if factor.group in groups:
                unit = torch.arange(factor.size).reshape(-1, *[1] * (number.ndim - place - 1))
                number = number * factor.size + unit
        if kind and kind not in first:
            first[kind] = total
            total += math.prod(factor.size for factor in segment if factor.group in groups)
        parts.append(number.reshape(-1) + first.get(kind, 0))
    found = torch.cat(parts)
    if axis.order is None:
        return found
    placed = torch.empty_like(found)
    placed[torch.tensor(axis.order)] = found
    return placed


def biases(symmetry: Symmetry) -> frozenset[str]:
    """Return the one-dimensional trainable tensors that belong to no normalisation layer, see `normalisation`."""
    vectors = (name for name in symmetry.parameters if len(symmetry.shapes[name]) == 1)
    return frozenset(vectors) - normalisation(symmetry)


def normalisation(symmetry: Symmetry) -> frozenset[str]:
    """Return the trainable tensors of normalisation layers: their scales and shifts.

    A symmetry knows tensors and not modules. A layer is what has one name up to the last dot, and it normalises if
    none of its tensors has more than one dimension, or if its `weight` and `bias` have the same shape. So slopes of
    PReLU, factors on whole channels and the like count as normalisation if they are vectors in a module of their own;
    scales of several dimensions without a shift do not.
    """
    layers: dict[str, list[str]] = {}
    for name in symmetry.shapes:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return frozenset(
        name for layer, names in layers.items() if _normalises(layer, names, symmetry) for name in names
    ) & frozenset(symmetry.parameters)


def _normalises(layer: str, names: Sequence[str], symmetry: Symmetry) -> bool:
    weight, bias = (symmetry.shapes.get(f"{layer}.{kind}" if layer else kind) for kind in ("weight", "bias"))
    return all(len(symmetry.shapes[name]) <= 1 for name in names) or (weight is not None and weight == bias)
