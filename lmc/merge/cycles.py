"""Whether permutations of pairs agree with each other: the cycle error."""

from collections.abc import Mapping

from lmc.alignment.assignment import flat
from lmc.symmetry.permutation import Permutation


def cycle_error(permutations: Mapping[tuple[int, int], Permutation]) -> float:
    """Return the share of units that do not come back to themselves around three networks.

    For every three networks i, j, k, in this order, a unit of k goes to j, from there to i, and back to k directly; all
    units of all groups count alike. Units inside blocks come back if the block does and they do inside it. 0 where the
    permutations come from one frame, 1 - 1/n expected of independent random permutations of n units (Crisostomi et al.
    2024, cycle consistency).

    Args:
        permutations: (i, j), i being the earlier network, to what brings network j to network i; all pairs of networks.

    Returns:
        A number from 0 to 1; 0 for fewer than three networks.
    """
    astray = units = 0
    for i, j in permutations:
        for k in (k for other, k in permutations if other == j and (i, k) in permutations):
            direct, around = permutations[i, k], permutations[i, j].compose(permutations[j, k])
            for name in direct:
                # As many units differ here as would not come back: the way back is one to one.
                chain = direct.symmetry.chain(name)
                ends = [flat(direct.symmetry, chain, way) for way in (direct, around)]
                astray += int((ends[0] != ends[1]).sum())
                units += len(ends[0])
    return astray / units if units else 0.0
