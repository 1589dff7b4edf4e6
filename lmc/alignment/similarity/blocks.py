"""The rows of a group in a tensor of two networks, laid out for fast products while other groups move the columns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lmc.symmetry.structure import Axis, Factor, Segment, axis_index, permute, unit_views

_CHUNK = 2**20
"""Weights that are gathered at a time, 4 MiB in float32."""


@dataclass(frozen=True)
class Block:
    """One occurrence of a group on an axis of a tensor, as stacks of matrices with a row for each unit.

    Attributes:
        fixed: (..., n, k) of the network that stays.
        moving: (..., n, k) of the other; a row or a column of each matrix is contiguous.
        axes: the other axes on which groups act, with their dimensions in `moving`; the longest is the last dimension.
        outer: group to the groups that it lives inside.
    """

    fixed: Tensor
    moving: Tensor
    axes: tuple[Axis, ...]
    outer: Mapping[str, tuple[str, ...]]

    @cached_property
    def groups(self) -> frozenset[str]:
        """The groups that move what is compared with a row."""
        return frozenset().union(*(axis.groups for axis in self.axes))

    def add(self, total: Tensor, permutation: Mapping[str, Tensor]) -> None:
        """Add the inner products of all rows to `total` (n, n), the columns of `moving` permuted.

        A group that `permutation` lacks is replaced by the mean of its units.
        """
        if self._by_columns and self.groups <= permutation.keys():
            index = self._index(permutation)
            for fixed, moving in self._chunks():
                total.addbmm_(fixed, _columns(moving, index).transpose(1, 2))
        else:
            fixed, moving, _ = expected(self.fixed, self.moving, self.axes, permutation, self.outer)
            total.addbmm_(_stack(fixed), _stack(moving).transpose(1, 2))

    def changed(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor | None:
        """Return the columns that differ between two permutations; None if `update` cannot be used on them."""
        if not (self._by_columns and self.groups <= before.keys() & after.keys()):
            return None
        return (self._index(before) != self._index(after)).nonzero().squeeze(1)

    def update(self, total: Tensor, before: Mapping[str, Tensor], after: Mapping[str, Tensor], columns: Tensor) -> None:
        """Bring `total` from one permutation to another; `columns` are those that `changed` returned."""
        old, new = self._index(before)[columns], self._index(after)[columns]
        for fixed, moving in self._chunks():
            difference = _columns(moving, new) - _columns(moving, old)
            total.addbmm_(_columns(fixed, columns), difference.transpose(1, 2))

    @property
    def _by_columns(self) -> bool:
        """Whether a single axis moves the block, and it is the columns."""
        return len(self.axes) == 1

    def _index(self, permutation: Mapping[str, Tensor]) -> Tensor:
        return axis_index(self.axes[0], permutation, self.moving.device, self.outer)

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Both stacks as (matrices, n, k), a few matrices at a time: what is gathered from them stays in the cache."""
        fixed, moving = _stack(self.fixed), _stack(self.moving)
        count = max(1, _CHUNK // fixed[0].numel())
        return zip(torch.split(fixed, count), torch.split(moving, count), strict=True)


def blocks(
    fixed: Tensor,
    moving: Tensor,
    axes: tuple[Axis, ...],
    axis: Axis,
    chain: Sequence[str],
    outer: Mapping[str, tuple[str, ...]],
) -> Iterator[Block]:
    """Yield a block for each occurrence of a group on `axis`.

    Args:
        fixed: a tensor of the network that stays.
        moving: of the other.
        axes: all axes of the tensor on which groups act.
        axis: the one among them.
        chain: the group's outer groups, then itself; the rows are the units of all of them, row-major.
        outer: group to the groups that it lives inside.
    """
    views = zip(unit_views(fixed, axis, chain, axes), unit_views(moving, axis, chain, axes), strict=True)
    for (ours, others), (theirs, _) in views:
        yield _block(ours, theirs, others, outer)


def laid_out(tensor: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """Return `tensor` with the dimensions in `axes` innermost in memory; its shape and values are the same.

    A kernel of (out, in, height, width) becomes a stack of (out, in) matrices, so that the rows of either side can be
    multiplied without a copy.
    """
    movable = {axis.dim for axis in axes}
    order = sorted(range(tensor.ndim), key=lambda dim: (dim in movable, dim))
    return tensor.permute(order).contiguous().permute([order.index(dim) for dim in range(tensor.ndim)])


def expected(
    fixed: Tensor,
    moving: Tensor,
    axes: tuple[Axis, ...],
    permutation: Mapping[str, Tensor],
    outer: Mapping[str, tuple[str, ...]],
    keep: str | None = None,
) -> tuple[Tensor, Tensor, tuple[Axis, ...]]:
    """Return two tensors whose inner product is the expectation of <fixed, moving permuted>, and their axes.

    Groups on `axes` that `permutation` lacks are uniformly random, independent on every axis: sum_j f_j E[m_P(j)] is
    (sum_j f_j) times the mean of m, so both tensors shrink to one position for each such factor. `keep` is a group
    that is neither permuted nor replaced by its mean.
    """
    moved = {name: value for axis in axes for name, value in permutation.items() if name in axis.groups}
    moving = permute(moving, axes, {n: v for n, v in moved.items() if n != keep and not _is_identity(v)}, outer)
    left = []
    for axis in axes:
        unmatched = axis.groups - permutation.keys() - {keep}
        if unmatched:
            fixed, moving = (
                _collapse(axis.concatenation(tensor), axis, unmatched, reduce)
                for tensor, reduce in ((fixed, torch.sum), (moving, torch.mean))
            )
            still = [tuple(Factor(None, 1) if f.group in unmatched else f for f in part) for part in axis.segments]
            axis = Axis(axis.tensor, axis.dim, tuple(still))
        left.append(axis)
    return fixed, moving, tuple(left)


def _block(fixed: Tensor, moving: Tensor, axes: tuple[Axis, ...], outer: Mapping[str, tuple[str, ...]]) -> Block:
    if not axes:
        return Block(fixed.reshape(len(fixed), -1), moving.reshape(len(moving), -1), (), outer)
    last = max(axes, key=lambda axis: moving.shape[axis.dim])
    order = [dim for dim in range(1, moving.ndim) if dim != last.dim] + [0, last.dim]
    placed = tuple(Axis(axis.tensor, order.index(axis.dim), axis.segments, axis.order) for axis in axes)
    return Block(_dense(fixed.permute(order)), _dense(moving.permute(order)), placed, outer)


def _dense(stack: Tensor) -> Tensor:
    """A copy unless the rows or the columns of the matrices are contiguous, as products need them."""
    return stack if 1 in stack.stride()[-2:] else stack.contiguous()


def _stack(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, *tensor.shape[-2:])


def _columns(stack: Tensor, index: Tensor) -> Tensor:
    """Columns of the matrices of a stack, gathered along their memory: the result is laid out as the stack is."""
    if stack.stride(2) != 1:
        return stack.transpose(1, 2).index_select(1, index).transpose(1, 2)
    # As one tall matrix, for which index_select is several times as fast (torch 2.15, CPU).
    return stack.flatten(0, 1).index_select(1, index).view(*stack.shape[:2], -1)


def _collapse(tensor: Tensor, axis: Axis, groups: frozenset[str], reduce: Callable[..., Tensor]) -> Tensor:
    """Replace every factor of `groups` on `axis` by one position: the `reduce` of all of its positions."""
    parts, start = [], 0
    for segment in axis.segments:
        part = torch.unflatten(tensor.narrow(axis.dim, start, _length(segment)), axis.dim, [f.size for f in segment])
        for place, factor in enumerate(segment):
            if factor.group in groups:
                part = reduce(part, axis.dim + place, keepdim=True)
        parts.append(part.flatten(axis.dim, axis.dim + len(segment) - 1))
        start += _length(segment)
    return torch.cat(parts, axis.dim)


def _is_identity(value: Tensor) -> bool:
    return torch.equal(value, torch.arange(value.shape[-1], device=value.device).expand(value.shape))


def _length(segment: Segment) -> int:
    length = 1
    for factor in segment:
        length *= factor.size
    return length
