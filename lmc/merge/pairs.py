"""Every pair of networks is aligned on its own."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Aligns the later network of every pair to the earlier one; nothing makes the permutations consistent.

    What brings network 2 to network 0 need not be what brings it there by way of network 1: the cycle error.
    """
