"""What rules do with labels: make them, flatten and unflatten, take parts, tie.

A label describes a dimension: a concatenation of segments, each a row-major product of blocks (`lmc.symmetry.blocks`).
"""

from collections.abc import Iterable, Sequence

from lmc.symmetry.blocks import (
    SINGLE,
    Block,
    Cases,
    Label,
    Segment,
    at,
    blocks_of,
    cut,
    expand,
    fix,
    is_fixed,
    leaves_of,
    length,
    narrow,
    outer_first,
    resolve,
    size,
    tie,
)

__all__ = [
    "SINGLE",
    "Block",
    "Cases",
    "Label",
    "Segment",
    "at",
    "blocks_of",
    "expand",
    "fix",
    "fixed",
    "free",
    "is_fixed",
    "leaves_of",
    "length",
    "narrow",
    "outer_first",
    "product",
    "resolve",
    "size",
    "split",
    "take",
    "tie",
]


def free(size: int, over: Iterable[Block] = ()) -> Label:
    """Return a new label of `size` units that may move, for each unit of the blocks `over` on their own."""
    return ((Block(size, over),),)


def fixed(size: int, reason: str) -> Label:
    """Return a new label of `size` positions that stay, and why."""
    return ((Block(size, fixed=reason),),)


def product(labels: Sequence[Label]) -> Label:
    """Return the label of several dimensions flattened into one (row-major)."""
    return (tuple(block for label in labels for block in _factors(label)),)


def _factors(label: Label) -> Segment:
    """`label` as the factors of a product: a concatenation is one of them."""
    if len(label) == 1:
        return label[0]
    return (_wrapped(label),)


def _wrapped(label: Label) -> Block:
    whole = Block(size(label))
    whole.refine(label)
    return whole


def split(label: Label, sizes: Sequence[int]) -> list[Label]:
    """Return the labels of one dimension unflattened into `sizes` (row-major); the inverse of `product`.

    Every dimension but the first depends on those in front of it, as far as `label` allows. Blocks are refined where
    the sizes cut through them; what cannot be cut is fixed.
    """
    inside = blocks_of(label)
    around = [outer for block in inside for outer in block.over if outer not in inside]
    wanted: list[Block] = []
    for n in sizes:
        wanted.append(Block(n, [*dict.fromkeys(around), *wanted]))
    # Tying to a product of fresh blocks does all the work: the blocks end as whatever the label lets them be.
    tie(label, (tuple(wanted),))
    return [((block,),) for block in wanted]


def take(label: Label, start: int, stop: int) -> tuple[Label, dict[Block, int]]:
    """Return the label of the positions from `start` to `stop`, and the parts of sums that all of them lie in.

    What depends on a block of `label` is, on these positions, what `at` makes of it.
    """
    for boundary in (start, stop):
        while _cut_at(label, boundary):
            pass
    chosen, begin = [], 0
    for segment, where in expand(label):
        end = begin + length(segment)
        if start <= begin and end <= stop:
            chosen.append((segment or (Block(1),), where))
        begin = end
    common = set.intersection(*(set(where.items()) for _, where in chosen)) if chosen else set()
    return tuple(segment for segment, _ in chosen), dict(common)


def _cut_at(label: Label, boundary: int) -> bool:
    """Cut the segment that `boundary` lies inside; return False if there is none."""
    begin = 0
    for segment in resolve(label):
        end = begin + length(segment)
        if begin < boundary < end:
            cut(segment, boundary - begin)
            return True
        begin = end
    return False
