"""The algebra behind discovery: labels for the dimensions of a network's values, and what it means to tie two of them.

Every dimension of every value carries a label: a concatenation of segments, each a row-major product of blocks. A block
is a set of units that some permutation moves, unless it is fixed. Blocks start apart; an operator ties the labels that
must move together, and tying refines what is too coarse: a block that meets a concatenation is split into a sum, a
block that meets a flattened feature map into a product. Every step only ever adds constraints, so whatever is movable
in the end keeps the function.
"""

import math
from collections.abc import Sequence


class Block:
    """Units that move together; merged blocks and refined ones point to what replaced them."""

    __slots__ = ("_fixed", "_parent", "_parts", "size")

    def __init__(self, size: int, *, fixed: bool = False) -> None:
        self.size = size
        self._fixed = fixed or size == 1
        self._parent: Block | None = None
        self._parts: Label | None = None

    @property
    def root(self) -> "Block":
        """The block that stands for this one after all mergers."""
        block = self
        while block._parent is not None:
            block = block._parent
        return block

    @property
    def is_fixed(self) -> bool:
        """Whether the units stay where they are."""
        return self.root._fixed

    @property
    def parts(self) -> "Label | None":
        """What the block has been refined into, or None."""
        return self.root._parts

    def fix(self) -> None:
        """Let the units stay where they are, for good."""
        root = self.root
        root._fixed = True
        for segment in root._parts or ():
            for block in segment:
                block.fix()

    def refine(self, parts: "Label") -> None:
        """Replace the block by a concatenation of products of the same length."""
        root = self.root
        root._parts = parts
        if root._fixed:
            root.fix()

    def merge(self, other: "Block") -> None:
        """Let two unrefined blocks of one size be the same from now on."""
        mine, theirs = self.root, other.root
        if mine is not theirs:
            theirs._parent = mine
            mine._fixed = mine._fixed or theirs._fixed


Segment = tuple[Block, ...]
Label = tuple[Segment, ...]


def free(size: int) -> Label:
    """Return a new label of `size` units that may move."""
    return ((Block(size),),)


def fixed(size: int) -> Label:
    """Return a new label of `size` positions that stay."""
    return ((Block(size, fixed=True),),)


def length(segment: Segment) -> int:
    """Return the number of positions of a segment."""
    return math.prod(block.size for block in segment)


def size(label: Label) -> int:
    """Return the number of positions of a label."""
    return sum(length(segment) for segment in label)


def fix(label: Label) -> None:
    """Fix every block of `label`."""
    for segment in label:
        for block in segment:
            block.fix()


def is_fixed(label: Label) -> bool:
    """Whether nothing in `label` can move."""
    return all(_stays(segment) for segment in label)


def resolve(label: Label) -> Label:
    """Return `label` in terms of blocks that are neither merged nor refined; factors of size one are left out.

    A refinement into several segments inside a product is multiplied out. That needs everything in front of it to be
    fixed; where it is not, the refined block is fixed instead.
    """
    segments: list[Segment] = []
    for segment in label:
        segments += _expand(segment)
    return tuple(segments)


def _expand(segment: Segment) -> list[Segment]:
    found: list[Segment] = [()]
    for place, block in enumerate(segment):
        parts = block.parts
        if parts is None:
            options: list[Segment] = [(block.root,)] if block.size > 1 else [()]
        else:
            options = list(resolve(parts))
        if len(options) > 1 and place > 0 and any(length(front) > 1 for front in found):
            # copies x (a + b) is (a + b) + (a + b) + ... as long as the copies themselves do not move
            if not all(_stays(front) for front in found):
                block.fix()
                options = [(Block(block.size, fixed=True),)]
            else:
                repeats = sum(length(front) for front in found)
                found, options = [()], options * repeats
        found = [front + option for front in found for option in options]
    return found


def _stays(segment: Segment) -> bool:
    return all(block.is_fixed for block in segment)


def tie(first: Label, second: Label) -> None:
    """Let two labels of one size move together from now on.

    Raises:
        ValueError: the sizes differ, which is a defect of the rule that called.
    """
    if size(first) != size(second):
        raise ValueError(f"labels of {size(first)} and {size(second)} positions cannot be tied")
    while True:  # every refinement changes the labels, so they are resolved and compared again
        one, two = resolve(first), resolve(second)
        if is_fixed(one) or is_fixed(two):
            fix(one)
            fix(two)
            return
        if _tie_once(list(one), list(two)):
            return


def _tie_once(one: list[Segment], two: list[Segment]) -> bool:
    """Tie segment by segment; return False after a refinement, when the labels must be resolved again."""
    while one and two:
        short, long = (one, two) if length(one[0]) <= length(two[0]) else (two, one)
        here, there = length(short[0]), length(long[0])
        if here < there:
            if not _stays(long[0]):
                _split_off(long[0], here)
                return False
            fix((short[0],))
            short.pop(0)
            long[0] = (Block(there - here, fixed=True),)
            continue
        if not _tie_segments(one.pop(0), two.pop(0)):
            return False
    return True


def _split_off(segment: Segment, head: int) -> None:
    """Refine the outermost block of `segment`, so that a segment of `head` positions can be cut off its front."""
    outer, inner = segment[0], length(segment[1:])
    if head % inner or outer.is_fixed:
        fix((segment,))
        return
    first = head // inner
    outer.refine(((Block(first),), (Block(outer.size - first),)))


def _tie_segments(one: Segment, two: Segment) -> bool:
    """Tie two products of one length; return False after a refinement."""
    if _stays(one) or _stays(two):
        fix((one, two))
        return True
    for first, second in zip(one, two, strict=False):
        if first.size == second.size:
            first.merge(second)
            continue
        large, small = (first, second) if first.size > second.size else (second, first)
        if large.size % small.size:
            fix((one, two))
            return True
        large.refine(((Block(small.size), Block(large.size // small.size)),))
        return False
    return True


def product(labels: Sequence[Label]) -> Label:
    """Return the label of several dimensions flattened into one (row-major)."""
    combined = Block(math.prod(size(label) for label in labels))
    if combined.size <= 1 or not labels:
        return fixed(combined.size)
    segments: list[Segment] = [()]
    for label in map(resolve, labels):
        if len(label) > 1 and any(length(front) > 1 for front in segments):
            if not all(_stays(front) for front in segments):
                fix(label)
                label = fixed(size(label))
            else:
                label = label * sum(length(front) for front in segments)
                segments = [()]
        segments = [front + segment for front in segments for segment in label]
    return tuple(segments)


def split(label: Label, sizes: Sequence[int]) -> list[Label]:
    """Return the labels of one dimension unflattened into `sizes` (row-major); the inverse of `product`.

    Blocks are refined where the sizes cut through them; what cannot be cut is fixed.
    """
    wanted = [Block(n) for n in sizes]
    # Tying to a product of fresh blocks does all the work: the blocks end as whatever the label lets them be.
    tie(label, (tuple(wanted),))
    return [resolve(((block,),)) or fixed(1) for block in wanted]
