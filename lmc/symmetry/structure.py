"""What a permutation symmetry is: groups of units, and the axes of tensors that their permutations act on.

An axis is a concatenation of segments. A segment is a product of factors in row-major order: the flattened feature map
of 32 channels of 4 x 4 pixels is the product of a factor of the channels' group (size 32) and a fixed factor (size 16);
flattened with the channels last, it is the fixed factor first. A factor without a group does not move.

A group may live inside the units of others (its *outer* groups): the dimensions of attention heads, the channels of a
grouped convolution. It then has a permutation of its own for each of their units: a wreath product. The query
projection's rows are the product of the heads' group and of the group of the dimensions inside the heads.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lmc.symmetry.stream import Stream


@dataclass(frozen=True)
class Factor:
    """`size` positions that `group` permutes, or that stay where they are if `group` is None."""

    group: str | None
    size: int


Segment = tuple[Factor, ...]
"""A product of factors, row-major; its length is the product of their sizes."""


@dataclass(frozen=True)
class Axis:
    """Dimension `dim` of tensor `tensor`: a concatenation of segments.

    Attributes:
        tensor: a name in the state dict, or of a value in the traced graph.
        dim: the dimension.
        segments: what the dimension consists of.
        order: for each position of the concatenation the position along the dimension that it has (units shuffled by
            the network between two layers); None where they are the same.
    """

    tensor: str
    dim: int
    segments: tuple[Segment, ...]
    order: tuple[int, ...] | None = None

    @cached_property
    def groups(self) -> frozenset[str]:
        """The groups that act on this axis."""
        return frozenset(factor.group for segment in self.segments for factor in segment if factor.group)

    def concatenation(self, tensor: Tensor) -> Tensor:
        """Return `tensor` with the positions of this axis in the order of its segments."""
        if self.order is None:
            return tensor
        return tensor.index_select(self.dim, torch.tensor(self.order, device=tensor.device))

    def unit_of(self, group: str) -> Tensor:
        """Return (length,) int64: the unit of `group` that each position of the axis belongs to; -1 where to none."""
        parts = []
        for segment in self.segments:
            sizes = [factor.size for factor in segment]
            units = torch.full(sizes, -1)
            for place, factor in enumerate(segment):
                if factor.group == group:
                    units = torch.arange(factor.size).reshape(-1, *[1] * (len(sizes) - place - 1)).expand(sizes)
            parts.append(units.reshape(-1))
        found = torch.cat(parts)
        if self.order is None:
            return found
        placed = torch.empty_like(found)
        placed[torch.tensor(self.order)] = found
        return placed


@dataclass(frozen=True)
class Site:
    """A place in the network's graph where the units of a group can be observed.

    Attributes:
        node: name of the value in the traced graph.
        kind: "post" (the output of a nonlinearity) or "pre" (its input).
        axes: every dimension of the value, batch dimension included.
    """

    node: str
    kind: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Group:
    """`size` interchangeable units: any permutation of them, applied to all `axes` at once, keeps the function.

    Attributes:
        name: after the first layer that makes the units.
        size: how many units may take each other's places.
        axes: every dimension of a tensor of the state dict that the group acts on.
        sites: the values of the network in which the units can be observed.
        outer: the groups that this one lives inside, outermost first: it has a permutation of its own for each of
            their units (for each combination, where there are several). On every tensor that the group acts on, they
            act too: on the same axis in front of it or behind it, or on exactly one other axis.
    """

    name: str
    size: int
    axes: tuple[Axis, ...]
    sites: tuple[Site, ...] = ()
    outer: tuple[str, ...] = ()


@dataclass(frozen=True)
class Symmetry:
    """The permutation symmetry of one architecture: groups by name, in the order in which the network uses them.

    Attributes:
        groups: name to group; an outer group comes before those inside it.
        shapes: the shape of every tensor of the state dict.
        parameters: names of the trainable tensors; the others are buffers.
        fixed: why units stay where they are, to how many of them: every reason once.
        reading: the dimensions of tensors, (name, dimension), along which a layer sums over the units that it reads;
            along all others, units are made, scaled or shifted.
        both_ways: the dimensions in `reading` along which another operator makes units too (tied embeddings).
        streams: the groups that are normalised by vectors (residual streams), and how.
    """

    groups: Mapping[str, Group]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: frozenset[str]
    fixed: Mapping[str, int] = field(default_factory=dict)
    reading: frozenset[tuple[str, int]] = frozenset()
    both_ways: frozenset[tuple[str, int]] = frozenset()
    streams: Mapping[str, Stream] = field(default_factory=dict)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """Every axis on which some group acts, each once, in the order of the groups."""
        return tuple(dict.fromkeys(axis for group in self.groups.values() for axis in group.axes))

    @cached_property
    def axes_of(self) -> Mapping[str, tuple[Axis, ...]]:
        """Tensor name to the axes of that tensor on which some group acts."""
        found: dict[str, tuple[Axis, ...]] = {}
        for axis in self.axes:
            found[axis.tensor] = (*found.get(axis.tensor, ()), axis)
        return found

    @cached_property
    def outer(self) -> Mapping[str, tuple[str, ...]]:
        """Every group that lives inside others, to these, outermost first."""
        return {name: group.outer for name, group in self.groups.items() if group.outer}

    @cached_property
    def families(self) -> Mapping[str, tuple[str, ...]]:
        """Every group that lives inside no other, to itself and the groups that live inside it alone, outer ones first.

        A group that lives inside two such groups at once (the channels that each group of one convolution hands to
        each group of the next) belongs to no family; see `shared`.
        """
        found = {name: [name] for name, group in self.groups.items() if not group.outer}
        for name, group in self.groups.items():
            if group.outer and set(group.outer) <= set(found[group.outer[0]]):
                found[group.outer[0]].append(name)
        return {root: tuple(members) for root, members in found.items()}

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The groups that live inside several families."""
        return tuple(name for name in self.groups if not any(name in family for family in self.families.values()))

    def inside(self, name: str) -> tuple[str, ...]:
        """Return the groups that live inside group `name`."""
        return tuple(other for other, group in self.groups.items() if name in group.outer)

    def chain(self, name: str) -> tuple[str, ...]:
        """Return the outer groups of group `name`, then itself."""
        return (*self.groups[name].outer, name)

    def lattice(self, name: str) -> tuple[int, ...]:
        """Return the shape of the permutation of group `name`: the sizes of its outer groups, then its own."""
        group = self.groups[name]
        return (*(self.groups[outer].size for outer in group.outer), group.size)

    def units(self, name: str) -> int:
        """Return how many units group `name` moves: its size, times the units of its outer groups."""
        return math.prod(self.lattice(name))

    @property
    def log10_size(self) -> float:
        """log10 of the number of permutations, that is of networks equivalent to a given one."""
        copies = {name: self.units(name) // group.size for name, group in self.groups.items()}
        return sum(copies[n] * math.lgamma(g.size + 1) for n, g in self.groups.items()) / math.log(10)

    def is_hidden(self, tensor: str, dim: int = 0) -> bool:
        """Whether some group acts on dimension `dim` of `tensor`: its positions are hidden units, not outputs."""
        return any(axis.dim == dim for axis in self.axes_of.get(tensor, ()))

    def neighbours(self, name: str) -> frozenset[str]:
        """The groups that share a tensor with group `name` (itself included where it acts on two axes of a tensor)."""
        found: set[str] = set()
        for axis in self.groups[name].axes:
            for other in self.axes_of[axis.tensor]:
                found |= other.groups - ({name} if other is axis else set())
        return frozenset(found)


def permute(
    tensor: Tensor,
    axes: Collection[Axis],
    permutation: Mapping[str, Tensor],
    outer: Mapping[str, tuple[str, ...]] | None = None,
    skip: Collection[str] = (),
) -> Tensor:
    """Return `tensor` with every axis in `axes` permuted: row i of a group's factor is row permutation[group][i].

    For a group inside others, row j inside row i of theirs is row permutation[group][i, j] inside the row that has
    come to i.

    Args:
        tensor: the tensor that `axes` belong to.
        axes: all of its axes on which a group acts; dimensions without one stay as they are.
        permutation: group to its permutation, (*sizes of its outer groups, size) int64 on the device of `tensor`;
            groups that are absent stay.
        outer: group to its outer groups, for those that have some.
        skip: groups that are left alone.
    """
    outer = outer or {}
    for axis in _hosts_first(axes, outer):
        here = {name: permutation[name] for name in axis.groups.difference(skip) if name in permutation}
        if not here:
            continue
        index = axis_index(axis, here, tensor.device, outer, axes)
        if index.ndim == 1:
            tensor = tensor.index_select(axis.dim, index)
        else:
            tensor = torch.take_along_dim(tensor, index[(...,) + (None,) * (tensor.ndim - index.ndim)], axis.dim)
    return tensor


def _hosts_first(axes: Collection[Axis], outer: Mapping[str, tuple[str, ...]]) -> Iterator[Axis]:
    """Yield axes such that what lives inside the units of another axis comes after it: it says where they end."""
    left = list(axes)
    while left:
        ready = [a for a in left if not any(_abroad(a, outer) & other.groups for other in left if other is not a)]
        chosen = (ready or left)[0]
        left.remove(chosen)
        yield chosen


def _abroad(axis: Axis, outer: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    """The outer groups of the groups on `axis` that act on another axis."""
    return frozenset(o for name in axis.groups for o in outer.get(name, ()) if o not in axis.groups)


def axis_index(
    axis: Axis,
    permutation: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
    outer: Mapping[str, tuple[str, ...]] | None = None,
    axes: Collection[Axis] = (),
) -> Tensor:
    """Return the int64 index that `permutation` induces on `axis`: position i takes what was at index[i].

    Args:
        axis: the axis.
        permutation: group to (*sizes of its outer groups, size); groups that are absent stay.
        device: of the index.
        outer: group to its outer groups, for those that have some.
        axes: the axes of the tensor, where outer groups may act on another axis than `axis`.

    Returns:
        (length,). Where an outer group of a group here acts on another axis, the index depends on the position along
        that axis too: its dimensions are then those of the tensor, up to the last that matters, of size one where the
        index does not depend on the position.
    """
    outer = outer or {}
    inside = {name for name in axis.groups if name in permutation}
    abroad = {o for name in inside for o in outer.get(name, ()) if o not in axis.groups}
    hosts = [other for other in axes if other.dim != axis.dim and other.groups & abroad]
    along = {
        name: host.unit_of(name).to(device).reshape(-1, *[1] * (len(hosts) - place - 1))
        for place, host in enumerate(hosts)
        for name in host.groups & abroad
    }
    parts, start = [], 0
    for segment in axis.segments:
        sizes = [factor.size for factor in segment]
        units = [
            torch.arange(size, device=device).reshape(-1, *[1] * (len(sizes) - place - 1))
            for place, size in enumerate(sizes)
        ]
        where = {f.group: unit for f, unit in zip(segment, units, strict=True) if f.group}
        where |= {name: unit.reshape(*unit.shape, *[1] * len(sizes)) for name, unit in along.items()}
        index = torch.tensor(start, device=device)
        for place, (factor, unit) in enumerate(zip(segment, units, strict=True)):
            if factor.group in inside:
                within = [where[name] for name in outer.get(factor.group, ())]
                unit = permutation[factor.group][(*within, unit)]
            index = index + unit * math.prod(sizes[place + 1 :])
        lengths = [_length_of(host) for host in hosts]
        parts.append(index.expand(*lengths, *sizes).reshape(*lengths, -1))
        start += math.prod(sizes)
    index = torch.cat(parts, dim=-1)
    if axis.order is not None:
        order = torch.tensor(axis.order, device=device)
        index = torch.empty_like(index).index_copy_(-1, order, order[index])
    if not hosts:
        return index
    return _spread(index, [*(host.dim for host in hosts), axis.dim])


def _length_of(axis: Axis) -> int:
    return sum(math.prod(factor.size for factor in segment) for segment in axis.segments)


def _spread(index: Tensor, dims: list[int]) -> Tensor:
    """Let dimension k of `index` become dimension dims[k], with dimensions of size one in between."""
    index = index.permute([dims.index(dim) for dim in sorted(dims)])
    shape = [1] * (max(dims) + 1)
    for dim, size in zip(sorted(dims), index.shape, strict=True):
        shape[dim] = size
    return index.reshape(shape)


def unit_rows(tensor: Tensor, axis: Axis, chain: Sequence[str], axes: Collection[Axis] = ()) -> Tensor:
    """Return `tensor` with one row for each unit of a group along `axis`: shape (units, everything else).

    Where the group occurs several times on the axis (a concatenation), the columns of all its occurrences are joined.

    Args:
        tensor: of the shape that `axis` belongs to.
        axis: on which the group acts.
        chain: the group's outer groups, then the group; the units are the combinations of theirs, row-major.
        axes: the axes of the tensor, where outer groups may act on another one than `axis`.
    """
    return torch.cat([view.reshape(len(view), -1) for view, _ in unit_views(tensor, axis, chain, axes)], dim=1)


def unit_views(
    tensor: Tensor, axis: Axis, chain: Sequence[str], axes: Collection[Axis] = ()
) -> Iterator[tuple[Tensor, tuple[Axis, ...]]]:
    """Yield for each occurrence of a group on `axis` a view of `tensor` with the units first, and the view's axes.

    The shape of a view is (units, *the other dimensions in order); a dimension that the units are taken from is
    replaced by the remaining factors of its segment. The axes are those of the view's dimensions but the first on
    which groups act. Arguments as for `unit_rows`.
    """
    hosts = [o for o in axes if o.dim != axis.dim and o.groups & (set(chain) - axis.groups)]
    taken = {host.dim: host for host in (axis, *hosts)}
    for host in taken.values():
        tensor = host.concatenation(tensor)
    others = {other.dim: other for other in axes if other.dim not in taken}
    for choice in itertools.product(*(_occurrences(host, chain) for host in taken.values())):
        part, entries = tensor, list[Factor | Axis | None]()
        chosen = dict(zip(taken, choice, strict=True))
        for dim in reversed(range(tensor.ndim)):
            if dim in chosen:
                start, segment = chosen[dim]
                sizes = [factor.size for factor in segment]
                part = torch.unflatten(part.narrow(dim, start, math.prod(sizes)), dim, sizes)
                entries = [*segment, *entries]
            else:
                entries = [others.get(dim), *entries]
        for places in _places(entries, chain):
            rest = [dim for dim in range(part.ndim) if dim not in places]
            view = part.permute(*places, *rest).flatten(0, len(places) - 1)
            moved = (_moved(axis.tensor, place, entries[dim]) for place, dim in enumerate(rest, 1))
            yield view, tuple(axis for axis in moved if axis is not None)


def _occurrences(axis: Axis, chain: Sequence[str]) -> list[tuple[int, Segment]]:
    """The segments of `axis` on which a group of `chain` acts, with the position at which each starts."""
    found, start = [], 0
    for segment in axis.segments:
        if any(factor.group in chain for factor in segment):
            found.append((start, segment))
        start += math.prod(factor.size for factor in segment)
    return found


def _places(entries: Sequence[Factor | Axis | None], chain: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """The places of the groups of `chain`; several where the group itself is repeated."""
    found = [[p for p, e in enumerate(entries) if isinstance(e, Factor) and e.group == name] for name in chain]
    yield from itertools.product(*found)


def _moved(tensor: str, dim: int, entry: Factor | Axis | None) -> Axis | None:
    """The axis of a view's dimension `dim`; None if no group acts on it."""
    if isinstance(entry, Axis):
        return Axis(tensor, dim, entry.segments, entry.order)
    return Axis(tensor, dim, ((entry,),)) if entry is not None and entry.group is not None else None
