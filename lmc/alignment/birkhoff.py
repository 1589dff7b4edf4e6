"""Doubly stochastic matrices: the way towards them, and what permutations they are mixed of."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

_ROUNDING = 1e-14
"""What is left of an entry, or of the whole mixture, below which it counts as nothing."""


class Term(NamedTuple):
    """A permutation in a mixture, (n,) int64 on the CPU: row i has its one in column permutation[i]; and its weight."""

    weight: float
    permutation: Tensor


def towards_doubly_stochastic(matrices: Tensor, rounds: int) -> Tensor:
    """Return square matrices brought towards doubly stochastic ones by alternating projections.

    In every round negative entries become 0, and then the matrix becomes the nearest one whose rows and columns sum to
    1. So the sums are exact but for rounding, while entries may still be below zero. A doubly stochastic matrix stays
    as it is, and no round leads away from any of them; but what comes out is not the nearest one.

    Args:
        matrices: (..., n, n).
        rounds: of the alternation.
    """
    n = matrices.shape[-1]
    for _ in range(rounds):
        matrices = matrices.clamp(min=0)
        rows, columns = matrices.sum(-1, keepdim=True), matrices.sum(-2, keepdim=True)
        # The nearest matrix adds a_i + b_j; that both sums come out as 1 leaves this choice.
        matrices = matrices - (rows - 1) / n - (columns - rows.mean(-2, keepdim=True)) / n
    return matrices


def decompose(matrix: Tensor, terms: int | None = None) -> list[Term]:
    """Return permutations whose mixture is `matrix`, the heaviest first (Birkhoff 1946, von Neumann 1953).

    Greedy: the permutation with the largest smallest entry is taken away, with that entry as its weight, and so on with
    what is left; among several such permutations one with the largest sum. Each step leaves at least one entry fewer,
    so that there are at most n^2 - 2 n + 2 terms, and no other permutation could have a larger weight than the one that
    is taken. Weights are divided by their sum.

    Where the matrix is not doubly stochastic, negative entries count as zero, and what is left when no permutation has
    only positive entries is dropped.

    Args:
        matrix: (n, n), finite.
        terms: at most so many; None for all.

    Returns:
        The terms, their weights falling and of sum 1; none if no permutation has only positive entries.

    Raises:
        ValueError: the matrix is not square, or not finite.
    """
    left = matrix.detach().to("cpu", torch.float64).clamp(min=0).numpy().copy()
    if left.ndim != 2 or left.shape[0] != left.shape[1] or not np.isfinite(left).all():
        raise ValueError(f"not a square matrix of finite numbers, but of shape {tuple(left.shape)}")
    places, found = np.arange(len(left)), list[tuple[float, NDArray[np.int64]]]()
    while terms is None or len(found) < terms:
        left[left <= _ROUNDING] = 0
        columns = _widest(left)
        if columns is None:
            break
        weight = float(left[places, columns].min())
        left[places, columns] -= weight
        found.append((weight, columns))
    total = sum(weight for weight, _ in found)
    return [Term(weight / total, torch.from_numpy(columns)) for weight, columns in found]


def _widest(values: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """The permutation with the largest smallest entry, (n,), if one has only positive entries."""
    # The smallest entry of any permutation is at most the smallest of the largest ones in each row and column.
    bound = min(values.max(0, initial=0).min(initial=np.inf), values.max(1, initial=0).min(initial=np.inf))
    levels = np.unique(values[(values > 0) & (values <= bound)])
    if not len(levels) or not _is_perfect(values >= levels[0]):
        return None
    low, high = 0, len(levels)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _is_perfect(values >= levels[middle]) else (low, middle)
    allowed = np.where(values >= levels[low], values, -np.inf)
    return linear_sum_assignment(allowed, maximize=True)[1].astype(np.int64)


def _is_perfect(allowed: NDArray[np.bool_]) -> bool:
    """Whether a permutation has only entries that are allowed."""
    return bool((maximum_bipartite_matching(csr_array(allowed)) >= 0).all())
