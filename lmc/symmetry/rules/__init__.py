"""One small rule per ATen operator: which dimensions of its inputs and of its output move together.

A rule is handed the graph's node and the `Values` with the labels of its inputs. It ties what must move together, fixes
what may not move, and returns the labels of the output, one per dimension (a list of them for several outputs). A rule
may be too strict; it must never be too lenient: for every assignment of permutations to blocks that respects its ties,
permuting the inputs must permute the output accordingly. Most rules are one line of `join`.
"""

from lmc.symmetry.rules import contraction, creation, normalisation, pointwise, recurrent, reduction, selection, shape
from lmc.symmetry.rules.registry import (
    RULES,
    Labels,
    Unproved,
    Values,
    argument,
    join,
    keep,
    overloads,
    rule,
    shape_of,
    still,
    unknown,
)

__all__ = [
    "RULES",
    "Labels",
    "Unproved",
    "Values",
    "argument",
    "join",
    "keep",
    "overloads",
    "rule",
    "shape_of",
    "still",
    "unknown",
]
_MODULES = (contraction, creation, normalisation, pointwise, recurrent, reduction, selection, shape)
