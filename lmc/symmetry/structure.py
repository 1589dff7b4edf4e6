"""What a permutation symmetry is: groups of units, and the axes of tensors that their permutations act on.

An axis is a concatenation of segments. A segment is a product of factors in row-major order: the flattened feature map
of 32 channels of 4 x 4 pixels is the product of a factor of the channels' group (size 32) and a fixed factor (size 16);
flattened with the channels last, it is the fixed factor first. A factor without a group does not move.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """`size` positions that `group` permutes, or that stay where they are if `group` is None."""

    group: str | None
    size: int


Segment = tuple[Factor, ...]
"""A product of factors, row-major; its length is the product of their sizes."""


@dataclass(frozen=True)
class Axis:
    """Dimension `dim` of tensor `tensor` of the state dict: a concatenation of segments."""

    tensor: str
    dim: int
    segments: tuple[Segment, ...]

    @cached_property
    def groups(self) -> frozenset[str]:
        """The groups that act on this axis."""
        return frozenset(factor.group for segment in self.segments for factor in segment if factor.group)


@dataclass(frozen=True)
class Site:
    """A place in the network's graph where the units of a group can be observed.

    Attributes:
        node: name of the value in the traced graph.
        kind: "post" (the output of a nonlinearity) or "pre" (its input).
        axes: the segments of every dimension of the value, batch dimension included.
    """

    node: str
    kind: str
    axes: tuple[tuple[Segment, ...], ...]


@dataclass(frozen=True)
class Group:
    """`size` interchangeable units: any permutation of them, applied to all `axes` at once, keeps the function.

    `sites` are the values of the network in which the units can be observed.
    """

    name: str
    size: int
    axes: tuple[Axis, ...]
    sites: tuple[Site, ...] = ()


@dataclass(frozen=True)
class Symmetry:
    """The permutation symmetry of one architecture: groups by name, in the order in which the network uses them.

    Attributes:
        groups: name to group.
        shapes: the shape of every tensor of the state dict.
        parameters: names of the trainable tensors; the others are buffers.
    """

    groups: Mapping[str, Group]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: frozenset[str]

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

    @property
    def log10_size(self) -> float:
        """log10 of the number of permutations, that is of networks equivalent to a given one."""
        return sum(math.lgamma(group.size + 1) for group in self.groups.values()) / math.log(10)

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
    tensor: Tensor, axes: Collection[Axis], permutation: Mapping[str, Tensor], skip: str | None = None
) -> Tensor:
    """Return `tensor` with every axis in `axes` permuted: row i of a group's factor is row permutation[group][i].

    Args:
        tensor: the tensor that `axes` belong to.
        axes: its axes; dimensions without one stay as they are.
        permutation: group to (size,) int64 on the device of `tensor`; groups that are absent stay.
        skip: a group that is left alone.
    """
    for axis in axes:
        moving = {name for name in axis.groups if name in permutation and name != skip}
        if moving:
            tensor = tensor.index_select(axis.dim, axis_index(axis, {n: permutation[n] for n in moving}, tensor.device))
    return tensor


def axis_index(axis: Axis, permutation: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Tensor:
    """Return the (length,) int64 index that `permutation` induces on `axis`: position i takes what was at index[i]."""
    parts, start = [], 0
    for segment in axis.segments:
        sizes = [factor.size for factor in segment]
        index = torch.arange(start, start + math.prod(sizes), device=device).reshape(sizes)
        for dim, factor in enumerate(segment):
            if factor.group is not None and factor.group in permutation:
                index = index.index_select(dim, permutation[factor.group])
        parts.append(index.reshape(-1))
        start += math.prod(sizes)
    return torch.cat(parts)


def unit_rows(tensor: Tensor, dim: int, segments: tuple[Segment, ...], group: str) -> Tensor:
    """Return `tensor` with one row for each unit of `group` along dimension `dim`: shape (size, everything else).

    Where the group occurs several times on the axis (a concatenation), the columns of all its occurrences are joined.
    """
    return torch.cat([part.reshape(len(part), -1) for part in unit_views(tensor, dim, segments, group)], dim=1)


def unit_views(tensor: Tensor, dim: int, segments: tuple[Segment, ...], group: str) -> Iterator[Tensor]:
    """Yield for each occurrence of `group` on dimension `dim` a view of `tensor` with the units first.

    The shape of a view is (size, *the other dimensions in order), where dimension `dim` is replaced by the remaining
    factors of the segment.
    """
    start = 0
    for segment in segments:
        sizes = [factor.size for factor in segment]
        length = math.prod(sizes)
        for place, factor in enumerate(segment):
            if factor.group == group:
                part = tensor.narrow(dim, start, length)
                yield part.reshape(*part.shape[:dim], *sizes, *part.shape[dim + 1 :]).movedim(dim + place, 0)
        start += length
