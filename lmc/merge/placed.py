"""Several networks, each where a permutation has put it."""

import itertools
import math
from collections.abc import Sequence

import torch

from lmc.alignment.problem import Problem
from lmc.merge.base import check_all
from lmc.state import State, mean, to_device
from lmc.symmetry.permutation import Permutation


class Placed:
    """Networks with a permutation each, and how well they agree: the sum over all pairs of <P_i W_i, P_j W_j>.

    Over all trainable tensors on which some group acts, summed in float64.

    Args:
        states: at least two networks.
        problem: their symmetry, and the device to keep them on.
        permutations: one for each network; None for the networks as they are.

    Raises:
        UserError: a network does not fit the symmetry, or holds a number that is not finite.
    """

    def __init__(
        self, states: Sequence[State], problem: Problem, permutations: Sequence[Permutation] | None = None
    ) -> None:
        check_all(states, problem.symmetry)
        self._names = sorted(problem.symmetry.axes_of.keys() & problem.symmetry.parameters)
        self._states = [to_device(state, problem.device) for state in states]
        self.permutations = list(permutations or [Permutation.identity(problem.symmetry)] * len(states))
        self.moved = [
            permutation.apply(state) for permutation, state in zip(self.permutations, self._states, strict=True)
        ]

    @property
    def objective(self) -> float:
        """The sum over all pairs, computed anew."""
        total = 0.0
        for name in self._names:
            before, *rest = (moved[name].to(torch.float64) for moved in self.moved)
            for tensor in rest:
                total += (before * tensor).sum().item()
                before = before + tensor
        return total

    @property
    def bound(self) -> float:
        """What the objective cannot exceed: the sum over all pairs of ||W_i|| ||W_j|| (Cauchy-Schwarz)."""
        norms = [
            math.hypot(*(torch.linalg.vector_norm(state[name], dtype=torch.float64).item() for name in self._names))
            for state in self._states
        ]
        return sum(first * second for first, second in itertools.combinations(norms, 2))

    def others(self, number: int) -> State:
        """Return the mean of all networks but one, where they are now."""
        return mean([moved for place, moved in enumerate(self.moved) if place != number])

    def move(self, number: int, permutation: Permutation) -> None:
        """Apply a permutation to a network, after what has been applied to it before."""
        self.permutations[number] = permutation.compose(self.permutations[number])
        self.moved[number] = self.permutations[number].apply(self._states[number])

    def gain(self, number: int, permutation: Permutation) -> float:
        """Return by how much the objective would rise by `move`."""
        after = permutation.apply(self.moved[number])
        total = 0.0
        for name in self._names:
            change = after[name].to(torch.float64) - self.moved[number][name].to(torch.float64)
            for place, moved in enumerate(self.moved):
                if place != number:
                    total += (moved[name].to(torch.float64) * change).sum().item()
        return total
