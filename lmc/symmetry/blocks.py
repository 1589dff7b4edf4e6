"""Blocks of units and labels made of them: how two labels are tied so that they move together.

Every dimension of every value carries a label: a concatenation of segments, each a row-major product of blocks. A block
is a set of units that some permutation moves, unless it is fixed. A block may depend on others (be *over* them): it
then has a permutation of its own for each of their units, as the dimensions inside attention heads have.

Blocks start as free as they can be; an operator ties the labels that must move together. Tying works as unification
does: a block that has no structure yet takes that of what it meets, a block that meets a concatenation becomes a sum,
one that meets a flattened feature map a product, and one that depended on more than the other stops doing so. Every
step only ever adds constraints, so whatever is movable in the end keeps the function.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

SINGLE = "a single unit"
"""Why the unit of a block of size one stays."""


class Block:
    """Units that move together; merged blocks and refined ones point to what replaced them.

    A block is in one of four states: *merged* into another; *refined* into a label of its own length; *by cases*, if a
    block that it depends on has become a sum: one block for each of the sum's parts; or a *leaf*, none of these.

    Args:
        size: number of units.
        over: the blocks that its permutation may depend on, outermost first.
        fixed: why the units stay where they are; empty if they may move.
    """

    __slots__ = ("_cases", "_fixed", "_over", "_parent", "_parts", "size")

    def __init__(self, size: int, over: Iterable["Block"] = (), fixed: str = "") -> None:
        self.size = size
        self._over = tuple(over)
        self._fixed = fixed or (SINGLE if size == 1 else "")
        self._parent: Block | None = None
        self._parts: Label | None = None
        self._cases: tuple[Block, tuple[Block, ...]] | None = None

    @property
    def root(self) -> "Block":
        """The block that stands for this one after all mergers."""
        block = self
        while block._parent is not None:
            block = block._parent
        return block

    @property
    def parts(self) -> "Label | None":
        """What the block has been refined into, or None."""
        return self.root._parts

    @property
    def over(self) -> tuple["Block", ...]:
        """The blocks that the permutation depends on: leaves, and sums by whose parts it goes."""
        root = self.root
        if root._parts is None:
            return tuple(dict.fromkeys(leaf for block in root._over for leaf in _leaves(block)))
        outside = [outer for part in root._parts for block in part for outer in block.over if outer not in _deep(part)]
        return tuple(dict.fromkeys(outside))

    @property
    def cases(self) -> tuple["Block", tuple["Block", ...]] | None:
        """The sum that the block depends on, and a block for each of its parts; None where it depends on no sum."""
        root = self.root
        if root._parts is None and root._cases is None:
            sums = [block for block in root.over if block.parts is not None]
            if sums:
                parent = sums[0]
                root._cases = (parent, tuple(root._case(parent, number) for number in range(len(parent.parts or ()))))
        if root._cases is None:
            return None
        return root._cases[0].root, root._cases[1]

    def _case(self, parent: "Block", number: int) -> "Block":
        """What the block is where `parent`, a sum, is at its part `number`."""
        part = (parent.parts or ())[number]
        others = [_at(block, {parent: number}) for block in self.over if block is not parent]
        return Block(self.size, [*(leaf for block in part for leaf in _leaves(block)), *others], self.root._fixed)

    @property
    def is_fixed(self) -> bool:
        """Whether the units stay where they are."""
        return bool(self.reason)

    @property
    def reason(self) -> str:
        """Why the units stay where they are; empty if some of them may move."""
        root = self.root
        if root._fixed:
            return root._fixed
        inside = [block for part in root._parts or () for block in part] or list(root._cases[1] if root._cases else ())
        reasons = [block.reason for block in inside]
        return next((reason for reason in reasons if reason), "") if all(reasons) else ""

    @property
    def is_free(self) -> bool:
        """Whether the block is a leaf that may move: it can take any structure."""
        return not self.root._fixed and self.parts is None and self.cases is None

    @property
    def depth(self) -> int:
        """How many blocks the permutation depends on; more than any of these themselves do."""
        return len(self.over)

    def fix(self, reason: str) -> None:
        """Let the units stay where they are, for good."""
        root = self.root
        root._fixed = root._fixed or reason
        inside = [block for part in root._parts or () for block in part]
        for block in [*inside, *(root._cases[1] if root._cases else ())]:
            if not block.is_fixed:
                block.fix(reason)

    def refine(self, parts: "Label") -> None:
        """Replace a leaf, or a block by cases, by a concatenation of products of the same length."""
        root, cases = self.root, self.cases
        root._parts, root._cases = parts, None
        if root._fixed:
            fix(parts, root._fixed)
        if cases is not None:
            parent, blocks = cases
            for number, block in enumerate(blocks):
                tie(((block,),), at(parts, {parent: number}))

    def divide(self, outer: int) -> None:
        """Refine into a product of `outer` units and the rest, which depends on them."""
        first = Block(outer, self.over)
        self.refine(((first, Block(self.size // outer, (*self.over, first))),))

    def cut(self, head: int) -> None:
        """Refine into a sum of the first `head` units and the rest."""
        self.refine(((Block(head, self.over),), (Block(self.size - head, self.over),)))

    def narrow(self, allowed: "frozenset[Block]") -> None:
        """Let the permutation depend on no block but those in `allowed`: what depended on others becomes uniform."""
        root = self.root
        if root._parts is not None:
            for part in root._parts:
                inside = allowed | _deep(part)
                for block in part:
                    block.narrow(inside)
            return
        cases = root.cases
        kept = _closed(root.over, allowed)
        if kept == root.over:
            return
        root._over = kept
        if cases is None:
            return
        parent, blocks = cases
        for number, block in enumerate(blocks):
            inside = _deep((parent.parts or ())[number]) if parent in kept else frozenset[Block]()
            block.narrow(frozenset(_at(other, {parent: number}) for other in kept) | inside)
        if parent not in kept:
            root._parts, root._cases = ((blocks[0],),), None
            for block in blocks[1:]:
                tie(((blocks[0],),), ((block,),))

    def merge(self, other: "Block") -> None:
        """Let two blocks of one size be the same from now on."""
        mine, theirs = self.root, other.root
        if mine is theirs:
            return
        if mine.is_free and not theirs.is_free:
            mine, theirs = theirs, mine
        if theirs.is_free:  # it takes whatever structure the other has
            mine.narrow(frozenset(theirs.over))
            if mine.parts is not None and len(mine.parts) == 1:  # uniform now, and what it is may be `theirs`
                tie(((mine,),), ((theirs,),))
                return
        elif mine.parts is not None and theirs.parts is not None:
            tie(mine.parts, theirs.parts)
            if [length(part) for part in mine.parts] != [length(part) for part in theirs.parts]:
                return  # tied, part by part of the parts; each stays the sum that blocks over it go by
        elif mine.is_fixed or theirs.is_fixed:
            mine.fix(theirs.reason)
            theirs.fix(mine.reason)
            return
        elif mine.cases and theirs.cases and mine.cases[0] is theirs.cases[0]:
            for one, two in zip(mine.cases[1], theirs.cases[1], strict=True):
                tie(((one,),), ((two,),))
        else:  # a block by cases meets a sum, or one that goes by another sum: they have no structure in common
            sums = {block.cases[0] for block in (mine, theirs) if block.cases}
            shared = (frozenset(mine.over) & frozenset(theirs.over)) - sums
            mine.narrow(shared)
            theirs.narrow(shared)
            tie(((mine,),), ((theirs,),))
            return
        mine, theirs = mine.root, theirs.root
        if mine is not theirs:
            theirs._parent = mine


Segment = tuple[Block, ...]
Label = tuple[Segment, ...]
Cases = Mapping[Block, int]
"""Which part of a sum is meant, for some sums."""


def length(segment: Segment) -> int:
    """Return the number of positions of a segment."""
    return math.prod(block.size for block in segment)


def size(label: Label) -> int:
    """Return the number of positions of a label."""
    return sum(length(segment) for segment in label)


def fix(label: Label, reason: str) -> None:
    """Fix every block of `label`."""
    for segment in label:
        for block in segment:
            if not block.is_fixed:
                block.fix(reason)


def is_fixed(label: Label) -> bool:
    """Whether nothing in `label` can move."""
    return all(block.is_fixed for segment in label for block in segment)


def resolve(label: Label) -> Label:
    """Return `label` in terms of blocks that are neither merged nor refined; blocks of size one are left out.

    A sum behind other blocks of a segment (copies of a concatenation), or in front of a block that depends on it from
    another dimension, remains a block; see `Block`.
    """
    return tuple(segment for segment, _ in expand(label))


def expand(label: Label) -> list[tuple[Segment, dict[Block, int]]]:
    """Return the segments of `resolve`, each with the parts of the sums that it was found in."""
    return [found for segment in label for found in _expand((), segment, {})]


def _expand(front: Segment, rest: Segment, where: dict[Block, int]) -> Iterator[tuple[Segment, dict[Block, int]]]:
    if not rest:
        yield front, where
        return
    block, rest = rest[0].root, rest[1:]
    parts, cases = block.parts, None if block.parts is not None else block.cases
    if block.size == 1:
        yield from _expand(front, rest, where)
    elif parts is not None and len(parts) == 1:
        yield from _expand(front, parts[0] + rest, where)
    elif parts is not None and not front:
        for number, part in enumerate(parts):
            yield from _expand(front, part + rest, {**where, block: number})
    elif cases is not None and cases[0] in where:
        yield from _expand(front, (cases[1][where[cases[0]]], *rest), where)
    else:
        yield from _expand((*front, block), rest, where)


def blocks_of(label: Label) -> frozenset[Block]:
    """Return every block in `label`: leaves, blocks by cases, and sums."""
    return frozenset[Block]().union(*(_deep(segment) | where.keys() for segment, where in expand(label)))


def leaves_of(label: Label) -> frozenset[Block]:
    """Return every leaf in `label`: where a block goes by cases, those of all cases."""
    found: set[Block] = set()
    for block in blocks_of(label):
        if block.cases is not None:
            found |= leaves_of((block.cases[1],))
        elif block.parts is None:
            found.add(block)
    return frozenset(found)


def _deep(segment: Segment) -> frozenset[Block]:
    found: set[Block] = set()
    for block in segment:
        if block.parts is None:
            found.add(block.root)
            continue
        if len(block.parts) > 1:
            found.add(block.root)
        for part in block.parts:
            found |= _deep(part)
    return frozenset(found)


def _leaves(block: Block) -> Iterator[Block]:
    """What a dependence on `block` is a dependence on."""
    root = block.root
    if root.size == 1:
        return
    if root.parts is None or len(root.parts) > 1:
        yield root
    else:
        for inner in root.parts[0]:
            yield from _leaves(inner)


def _closed(over: Iterable[Block], allowed: frozenset[Block]) -> tuple[Block, ...]:
    """The blocks of `over` that are allowed, and whose own outer blocks are."""
    kept: list[Block] = []
    for block in over:
        if block in allowed and all(outer in kept for outer in block.over):
            kept.append(block)
    return tuple(kept)


def _at(block: Block, where: Cases) -> Block:
    """What `block` is at given parts of some sums."""
    root = block.root
    if root.parts is not None:
        parts = at(root.parts, where)
        if parts == tuple(tuple(b.root for b in part) for part in root.parts):
            return root
        found = Block(root.size)
        found._parts = parts
        return found
    if root.cases is None:
        return root
    parent, blocks = root.cases
    if parent in where:
        return _at(blocks[where[parent]], where)
    inside = tuple(_at(case, where) for case in blocks)
    if inside == tuple(case.root for case in blocks):
        return root
    found = Block(root.size, [_at(outer, where) for outer in root.over], root._fixed)
    found._cases = (parent, inside)
    return found


def at(label: Label, where: Cases) -> Label:
    """Return what `label` is at given parts of sums that it depends on."""
    return tuple(tuple(_at(block, where) for block in segment) for segment in label)


def tie(first: Label, second: Label) -> None:
    """Let two labels of one size move together from now on.

    Raises:
        ValueError: the sizes differ, which is a defect of the rule that called.
    """
    if size(first) != size(second):
        raise ValueError(f"labels of {size(first)} and {size(second)} positions cannot be tied")
    while True:  # every refinement changes the labels, so they are resolved and compared again
        one, two = resolve(first), resolve(second)
        if one == two:
            return
        if not _alone(one) or not _alone(two):
            for label, other in ((one, two), (two, one)):
                if is_fixed(label):
                    fix(other, _reason(label))
                    return
        if _tie_once(list(one), list(two)):
            return


def outer_first(ties: Sequence[tuple[Label, Label]]) -> Iterator[tuple[Label, Label]]:
    """Yield pairs of labels that are to be tied such that what a label depends on is tied before it."""
    left = list(ties)
    while left:
        blocks = [blocks_of(one) | blocks_of(two) for one, two in left]
        chosen = 0
        for number, mine in enumerate(blocks):
            needed = {outer for block in mine for outer in block.over} - mine
            if not any(needed & other for place, other in enumerate(blocks) if place != number):
                chosen = number
                break
        yield left.pop(chosen)


def _alone(label: Label) -> bool:
    return len(label) == 1 and len(label[0]) == 1


def _reason(label: Label) -> str:
    return next((block.reason for segment in label for block in segment), SINGLE)


def _tie_once(one: list[Segment], two: list[Segment]) -> bool:
    """Tie segment by segment; return False after a refinement, when the labels must be resolved again."""
    while one and two:
        short, long = (one, two) if length(one[0]) <= length(two[0]) else (two, one)
        here, there = length(short[0]), length(long[0])
        if here < there:
            if not _stays(long[0]):
                cut(long[0], here)
                return False
            fix((short[0],), _reason((long[0],)))
            short.pop(0)
            long[0] = (Block(there - here, fixed=_reason((long[0],))),)
            continue
        if not _tie_segments(one.pop(0), two.pop(0)):
            return False
    return True


def _stays(segment: Segment) -> bool:
    return all(block.is_fixed for block in segment)


def cut(segment: Segment, head: int) -> None:
    """Refine the outermost block of `segment`, so that nearer to a segment of `head` positions can be cut off."""
    segment[0].cut(max(1, head // length(segment[1:])))


def _tie_segments(one: Segment, two: Segment) -> bool:
    """Tie two products of one length; return False after a refinement."""
    if one == two:
        return True
    if (_stays(one) or _stays(two)) and (len(one) > 1 or len(two) > 1):
        fix((one, two), _reason((one if _stays(one) else two,)))
        return True
    pairs = list(zip(one, two, strict=False))
    if len(one) == len(two) and all(first.size == second.size for first, second in pairs):
        for ((mine,),), ((theirs,),) in outer_first([(((a,),), ((b,),)) for a, b in pairs]):
            mine.merge(theirs)
        return True
    for place, (first, second) in enumerate(pairs):
        if first.size == second.size:
            first.merge(second)
            continue
        large, others = (first, two) if first.size > second.size else (second, one)
        run = _run(others[place:], large.size)
        if run and large.is_free:  # what has no structure takes that of what it meets
            narrow((run,), frozenset(large.over))
            large.refine((run,))
            return False
        if large.size % others[place].size or large.parts is not None:
            break
        large.divide(others[place].size)
        return False
    else:
        return True
    fix((one, two), "layouts that have no common structure")
    return True


def _run(factors: Segment, size: int) -> Segment:
    """The first factors whose product has `size` positions; none if there are no such."""
    for count in range(len(factors) + 1):
        if length(factors[:count]) == size:
            return factors[:count]
    return ()


def narrow(label: Label, allowed: frozenset[Block]) -> None:
    """Let `label` depend on no block outside of it but those in `allowed`."""
    for segment in label:
        inside = allowed | blocks_of((segment,))
        for block in segment:
            block.narrow(inside)
