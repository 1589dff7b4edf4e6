"""From the labels of discovery to the axes of a symmetry: every dimension as segments of factors of named groups."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from lmc.symmetry import labels
from lmc.symmetry.labels import Block, Label
from lmc.symmetry.structure import Axis, Factor, Segment

_MOST_COPIES = 1024
"""Blocks that stay are told apart by their units up to this many; beyond, what lives inside them moves uniformly."""


class Inexpressible(Exception):
    """A block depends on the parts of a sum that is another dimension, which groups and outer groups cannot say."""

    def __init__(self, block: Block, outer: Block) -> None:
        super().__init__(f"{block.size} units depend on another dimension of {outer.size}")
        self.block, self.outer = block, outer


def expressible(label: Label) -> None:
    """Bring a label of a parameter into a form in which every permutation is given by groups alone.

    What lives inside units that stay has a permutation of its own for each of them: they become groups apart, where
    the units stand in the same segment. Where they are another dimension, it is made uniform.
    """
    while _simplify(label):
        pass


def _simplify(label: Label) -> bool:
    """Take one dependence on units that stay away; return False if there is none."""
    try:
        pieces = [blocks for blocks, _ in _pieces(label)]
    except Inexpressible as found:
        found.block.narrow(frozenset(found.block.over) - {found.outer})
        return True
    for blocks in pieces:
        for block in blocks:
            for outer in () if block.is_fixed else block.over:
                if outer.is_fixed and outer in blocks and outer.size <= _MOST_COPIES:
                    outer.refine(tuple((Block(1),) for _ in range(outer.size)))
                    return True
                if outer.is_fixed:
                    block.narrow(frozenset(block.over) - {outer})
                    return True
    return False


def movable(label: Label) -> Iterator[Block]:
    """Yield the blocks of a label that may move, in the order of their positions; what they live inside comes first."""
    for segment, _ in _pieces(label):
        for block in sorted(segment, key=lambda block: block.depth):
            if not block.is_fixed:
                yield block


def groups_on(label: Label, names: Mapping[Block, str]) -> list[Block]:
    """Return the named blocks of a label, each once."""
    return list(dict.fromkeys(block for segment, _ in _pieces(label) for block in segment if block in names))


def axis(tensor: str, dim: int, label: Label, names: Mapping[Block, str]) -> Axis:
    """Return the axis that a label describes; neighbouring fixed factors and neighbouring fixed segments are joined.

    Raises:
        Inexpressible: the label depends on sums of another dimension.
    """
    segments: list[Segment] = []
    order: list[NDArray[np.int64]] = []
    for blocks, positions in _pieces(label):
        factors: list[Factor] = []
        for block in blocks:
            factor = Factor(names.get(block), block.size)
            if factors and factor.group is None and factors[-1].group is None:
                factor = Factor(None, factors.pop().size * factor.size)
            factors.append(factor)
        if _still(factors) and segments and _still(segments[-1]):
            factors = [Factor(None, segments.pop()[0].size + (factors[0].size if factors else 1))]
        segments.append(tuple(factors) or (Factor(None, 1),))
        order.append(positions.reshape(-1))
    places = np.concatenate(order) if order else np.zeros(0, dtype=np.int64)
    if np.array_equal(places, np.arange(len(places))):
        return Axis(tensor, dim, tuple(segments))
    return Axis(tensor, dim, tuple(segments), tuple(places.tolist()))


def _still(factors: "list[Factor] | Segment") -> bool:
    return len(factors) == 0 or (len(factors) == 1 and factors[0].group is None)


def _pieces(label: Label) -> Iterator[tuple[tuple[Block, ...], NDArray[np.int64]]]:
    """Yield products of leaves that together make up a label, each with its positions (one dimension a leaf)."""
    start = 0
    for segment, where in labels.expand(label):
        sizes = [block.size for block in segment]
        positions = np.arange(start, start + labels.length(segment), dtype=np.int64).reshape(sizes)
        yield from _plain(segment, positions, where)
        start += labels.length(segment)


def _plain(
    segment: tuple[Block, ...], positions: NDArray[np.int64], where: dict[Block, int]
) -> Iterator[tuple[tuple[Block, ...], NDArray[np.int64]]]:
    """Take the sums inside a segment apart, and what depends on their parts."""
    for place, block in enumerate(segment):
        root, front, behind = block.root, segment[:place], segment[place + 1 :]
        if root.parts is not None:
            start = 0
            for number, part in enumerate(root.parts):
                stop = start + labels.length(part)
                chosen = positions.take(range(start, stop), axis=place)
                shape = (*chosen.shape[:place], *(inner.size for inner in part), *chosen.shape[place + 1 :])
                known = {**where, root: number} if len(root.parts) > 1 else where
                yield from _plain((*front, *part, *behind), chosen.reshape(shape), known)
                start = stop
            return
    for place, block in enumerate(segment):
        cases = None if block.is_fixed else block.root.cases
        if cases is not None:
            if cases[0] not in where:
                raise Inexpressible(block.root, cases[0])
            chosen_case = cases[1][where[cases[0]]]
            yield from _plain((*segment[:place], chosen_case, *segment[place + 1 :]), positions, where)
            return
    kept = [place for place, block in enumerate(segment) if block.size > 1]
    yield tuple(segment[place].root for place in kept), positions.reshape([segment[place].size for place in kept])
